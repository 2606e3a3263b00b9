"""Offloaded activations go to the host's memory on TPUs, as far as their compiler says."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from experiments import base
from lapa_jax.models.module import Functional
from lapa_jax.models.stack import check_remat
from lapa_jax.models.vla import VLA, VLAConfig
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.parallel.sharding import tree_shardings, with_rules
from lapa_jax.training.state import with_shardings

pytestmark = [
    pytest.mark.aot,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="needs the TPU compiler: pip install 'libtpu==0.0.42.*'",
    ),
]
DEPTH, BATCH, TOKENS, HEADS, WIDTH = 4, 16, 256, 4, 128


def test_attention_outputs_are_kept_on_the_host(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = make_mesh(dict(data=2, fsdp=4, seq=1, tensor=1), devices)
    remat = "attention_out_offload"
    check_remat(remat, mesh.devices.flat[0].platform)
    settings = base.policy_model(latent_vocab=8).to_dict()
    del settings["tokenizer"]
    settings |= dict(dim=512, depth=DEPTH, heads=HEADS, head_dim=WIDTH, mlp_dim=1024, remat=remat)
    settings["front_end"] |= {"image_size": (64, 64)}
    config = VLAConfig(**settings | {"unroll": 1}, compute_dtype="bfloat16")
    model = Functional(lambda rngs: VLA(config, rngs=rngs))

    def loss(params, x_BTD, positions_BT, mask_BT):
        hidden, _ = model.apply(params, {}, "hidden", x_BTD, positions_BT, mask_BT)
        return hidden.astype(jnp.float32).mean()

    shapes = model.abstract()[0]
    params = with_shardings(shapes, tree_shardings(model.axes(), shapes, mesh, "fsdp"))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    batch = [
        jax.ShapeDtypeStruct((BATCH, TOKENS, *more), dtype, sharding=rows)
        for more, dtype in (((512,), jnp.bfloat16), ((), jnp.int32), ((), jnp.bool_))
    ]
    step = jax.jit(jax.grad(with_rules(loss, mesh, "fsdp")))
    memory = step.lower(params, *batch).compile().memory_analysis()
    kept = DEPTH * BATCH // 8 * TOKENS * HEADS * WIDTH * 2  # bytes a device, bfloat16
    assert kept <= memory.host_temp_size_in_bytes < 1.1 * kept
