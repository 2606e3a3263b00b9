"""What the TPU compiler makes of attention, and of activations that go to the host's memory."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_policy import token_heads

from experiments import base
from lapa_jax.aot.topology import parse
from lapa_jax.nn.attention import attention
from lapa_jax.nn.module import Functional
from lapa_jax.nn.stack import check_remat
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.parallel.sharding import tree_shardings, with_rules
from lapa_jax.policy.vla import VLA, VLAConfig
from lapa_jax.stages.policy import LAYOUT_KEYS
from lapa_jax.training.state import with_shardings

pytestmark = pytest.mark.aot
COMPILERS = Path(sys.prefix) / "aot"


@pytest.fixture
def devices(monkeypatch):
    if not COMPILERS.exists():
        pytest.skip(f"{COMPILERS} is not there: `make test-aot` installs it and runs this")
    monkeypatch.syspath_prepend(COMPILERS)
    # The tests' "highest" makes the kernel ask for products of bfloat16 that the TPU has not.
    with jax.default_matmul_precision("default"):
        yield parse("v5e:2x4").devices()


def test_attention_compiles(devices):
    mesh = make_mesh(dict(data=1, fsdp=2, seq=2, tensor=2), devices)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "seq"))

    def text(T, C, blocks=False, **settings):
        def gradients(q, k, v, ids):
            def total(q, k, v):
                segments = dict(q_segments_BT=ids, kv_segments_BS=ids)
                if blocks:
                    segments["blocks_BT"] = ids
                y = attention(q, k, v, scale=0.1, causal=True, **segments, **settings)
                return y.astype(jnp.float32).sum()

            return jax.grad(total, (0, 1, 2))(q, k, v)

        x = jax.ShapeDtypeStruct((4, T, 4, C), jnp.bfloat16, sharding=rows)
        ids = jax.ShapeDtypeStruct((4, T), jnp.int32, sharding=rows)
        run = jax.jit(with_rules(gradients, mesh, "fsdp_tp_sp"))
        return run.lower(x, x, x, ids).compile().as_text()

    # The choice is automatic: one kernel forward, two backward, also for lengths and widths that
    # are no multiples of 128.
    assert text(1000, 100).count("tpu_custom_call") == 3
    assert text(1000, 100, blocks=True).count("tpu_custom_call") == 3
    ring = text(2048, 128, implementation="ring")
    assert "tpu_custom_call" not in ring and "collective-permute" in ring


@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_attention_outputs_are_kept_on_the_host(devices, implementation):
    """Once each, whatever attention they come from."""
    depth, batch, length, heads, width = 4, 16, 256, 4, 128
    mesh = make_mesh(dict(data=2, fsdp=4, seq=1, tensor=1), devices)
    remat = "attention_out_offload"
    check_remat(remat, mesh.devices.flat[0].platform)
    settings = base.policy_model(latent_vocab=8).to_dict()
    settings = {key: x for key, x in settings.items() if key not in LAYOUT_KEYS}
    settings |= dict(dim=512, depth=depth, heads=heads, head_dim=width, mlp_dim=1024, unroll=1)
    settings |= dict(remat=remat, attention=implementation, image_vocab=64)
    settings["front_end"] = dict(name="cached_tokens", num_tokens=4)
    config = VLAConfig(**settings, compute_dtype="bfloat16")
    model = Functional(lambda rngs: VLA(config, token_heads(latent=8), rngs=rngs))

    def loss(params, tokens_BT):
        slots = {"latent": tokens_BT[:, :4]}
        given = (tokens_BT, jnp.zeros_like(tokens_BT), jnp.ones_like(tokens_BT), None)
        return model.apply(params, {}, "outputs", *given, slots=slots)[0]["latent"].mean()

    shapes = model.abstract()[0]
    params = with_shardings(shapes, tree_shardings(model.axes(), shapes, mesh, "fsdp"))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=rows)
    step = jax.jit(jax.grad(with_rules(loss, mesh, "fsdp")))
    memory = step.lower(params, tokens).compile().memory_analysis()
    kept = depth * batch // 8 * length * heads * width * 2  # bytes a device, bfloat16
    assert kept <= memory.host_temp_size_in_bytes < 1.1 * kept
