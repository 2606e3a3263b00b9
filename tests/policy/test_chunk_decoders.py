"""The decoders of chunks against OpenVLA-OFT's and UniVLA's own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import ROOT

from lapa_jax.nn.module import Functional, flatten, unflatten
from lapa_jax.policy.heads.decoders import AttentionPool, PooledDecoder, ResidualDecoder

GIVEN = dict(dtype=jnp.float32)


@pytest.fixture(scope="module")
def golden():
    with np.load(ROOT / "tests/golden/heads/decoders.npz") as file:
        return dict(file)


def named(golden, prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def test_residual_layers_are_those_of_oft(golden):
    own = named(golden, "oft_l1/")
    modules = {
        "into/norm": "layer_norm1",
        "into/linear": "fc1",
        "first/norm": "mlp_resnet_blocks.0.ffn.0",
        "first/linear": "mlp_resnet_blocks.0.ffn.1",
        "second/norm": "mlp_resnet_blocks.1.ffn.0",
        "second/linear": "mlp_resnet_blocks.1.ffn.1",
        "norm": "layer_norm2",
        "out": "fc2",
    }
    flat, theirs = {}, {}
    for ours, name in modules.items():
        weight = "scale" if "norm" in ours else "kernel"
        flat[f"{ours}/{weight}"] = own[f"params/model.{name}.weight"].T
        flat[f"{ours}/bias"] = own[f"params/model.{name}.bias"]
        theirs |= {f"{ours}/{weight}": f"{name}.weight", f"{ours}/bias": f"{name}.bias"}
    module = Functional(lambda rngs: ResidualDecoder(18, 10, 3, **GIVEN, rngs=rngs))
    hidden = own["hidden"].reshape(2, 4, 18)  # a state for each number of a step

    def loss(params):
        found, _ = module.apply(params, {}, "__call__", hidden)
        return jnp.abs(found - own["target"]).mean(), found

    (value, found), grads = jax.value_and_grad(loss, has_aux=True)(unflatten(flat))
    np.testing.assert_allclose(found, own["pred"], atol=5e-6)
    np.testing.assert_allclose(value, own["loss"], rtol=1e-5)
    for path, gradient in flatten(grads).items():
        norm = own[f"gradnorm/model.{theirs[path]}"]
        np.testing.assert_allclose(jnp.linalg.norm(gradient), norm, rtol=1e-4)


def pool_of(own: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    k, v = np.split(own["attn.kv.weight"].T, 2, axis=1)
    apart = dict(q=own["attn.q.weight"].T, k=k, v=v)
    value, gate = np.split(own["mlp.0.project.weight"], 2)
    value_bias, gate_bias = np.split(own["mlp.0.project.bias"], 2)
    return {
        "latents": own["latents"],
        "project/kernel": own["projection.weight"].T,
        "project/bias": own["projection.bias"],
        **{f"{name}/kernel": x.reshape(len(x), heads, -1) for name, x in apart.items()},
        "out/kernel": own["attn.proj.weight"].T.reshape(heads, -1, len(k)),
        "out/bias": own["attn.proj.bias"],
        "value/kernel": value.T,
        "value/bias": value_bias,
        "gate/kernel": gate.T,
        "gate/bias": gate_bias,
        "down/kernel": own["mlp.1.weight"].T,
        "down/bias": own["mlp.1.bias"],
        "attention_norm/scale": own["attn_norm.g"],
        "mlp_norm/scale": own["mlp_norm.g"],
    }


def test_pooling_is_that_of_univla(golden):
    own = named(golden, "univla_map3/")
    given = dict(latents=3, heads=4) | GIVEN
    module = Functional(lambda rngs: AttentionPool(20, 16, **given, rngs=rngs))
    found, _ = module.apply(unflatten(pool_of(named(own, "params/"), 4)), {}, "__call__", own["in"])
    np.testing.assert_allclose(found, own["out"], atol=5e-6)


class Univla(nnx.Module):
    """The whole of its decoder for LIBERO, of our parts: the pooled image is added to the query."""

    def __init__(self, *, rngs):
        self.visual = AttentionPool(20, 16, heads=2, **GIVEN, rngs=rngs)
        self.decoder = PooledDecoder(20, 16, 4, 7, heads=2, **GIVEN, rngs=rngs)

    def __call__(self, visual, latent):
        query = self.visual(visual)
        return jnp.tanh(self.decoder.out(self.decoder.pool(latent, query))).reshape(-1, 4, 7)


def test_chunks_are_those_of_univla(golden):
    own = named(golden, "univla_libero/")
    flat = {f"visual/{k}": v for k, v in pool_of(named(own, "params/visual_pool."), 2).items()}
    pool = pool_of(named(own, "params/latent_action_pool."), 2)
    flat |= {f"decoder/pool/{k}": v for k, v in pool.items()}
    flat["decoder/out/kernel"] = own["params/proj.0.weight"].T
    flat["decoder/out/bias"] = own["params/proj.0.bias"]
    module = Functional(lambda rngs: Univla(rngs=rngs))
    given = own["visual"], own["latent_tokens"][:, -4:]
    found, _ = module.apply(unflatten(flat), {}, "__call__", *given)
    np.testing.assert_allclose(found, own["actions"], atol=5e-6)
    # Of several examples in a row each is pooled by itself.
    flat = {k.removeprefix("decoder/"): v for k, v in flat.items() if k.startswith("decoder/")}
    decoder = Functional(lambda rngs: PooledDecoder(20, 16, 4, 7, heads=2, **GIVEN, rngs=rngs))
    of_rows = [
        decoder.apply(unflatten(flat), {}, "__call__", given[1].reshape(shape))[0].reshape(2, 4, 7)
        for shape in ((2, 4, 20), (1, 8, 20))
    ]
    np.testing.assert_allclose(*of_rows, atol=1e-6)
