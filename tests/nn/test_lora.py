"""LoRA: a model starts as what it was, factors are split and swapped as they should, and merge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import token_heads

from experiments import base
from lapa_jax.nn import int8, lora
from lapa_jax.nn.module import Functional, flatten, paths, unflatten
from lapa_jax.nn.surgery import head_swap, plan_swap
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.parallel.sharding import tree_shardings
from lapa_jax.policy.modality import FILL, IMAGE, LATENT, TEXT
from lapa_jax.policy.vla import VLA, VLAConfig
from lapa_jax.stages.policy import LAYOUT_KEYS
from lapa_jax.training.groups import merge, split

pytestmark = pytest.mark.usefixtures("quick_compile")

RANK, ALPHA = 2, 6.0
FACTORS = {
    f"backbone/layers/{layer}/lora_{factor}"
    for layer in ("attention/q", "attention/out", "mlp/up")
    for factor in "ab"
}


@functools.cache
def build(rank=RANK, pattern="attention/(q|out)|mlp/up", **changes):
    settings = base.policy_model(latent_vocab=8).to_dict()
    settings = {key: value for key, value in settings.items() if key not in LAYOUT_KEYS}
    settings |= dict(text_vocab=16, dim=16, depth=2, heads=2, head_dim=8, mlp_dim=24)
    settings |= dict(lora_rank=rank, lora_alpha=ALPHA, lora_pattern=pattern, **changes)
    settings |= {"front_end": {"name": "patches", "image_size": (8, 8), "patch_size": 4,
                               "stem_channels": ()}}  # fmt: skip
    config = VLAConfig(**settings, compute_dtype="float32")
    return Functional(lambda rngs: VLA(config, token_heads(latent=8), rngs=rngs))


def outputs(model, params):
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 1, 8, 8, 3)), jnp.float32)
    tokens = jnp.asarray([[1, 5, 2, *[FILL] * 4, 3], [1, 7, 4, *[FILL] * 4, 0]])
    modality = jnp.asarray([[TEXT] * 3 + [IMAGE] * 4 + [LATENT]] * 2)
    rows = (tokens, modality, jnp.ones_like(tokens), images)
    return model.apply(params, {}, "outputs", *rows, slots={"latent": None})[0]["latent"]


@functools.cache
def logits_of(rank):
    return jax.jit(functools.partial(outputs, build(rank)))


@functools.cache
def fresh(rank):
    return jax.jit(build(rank).init)(jax.random.key(0))[0]


@functools.cache
def trained():
    """Parameters whose factors both do something."""
    flat = flatten(fresh(RANK))
    rng = np.random.default_rng(2)
    return unflatten(
        {p: jnp.asarray(rng.normal(size=x.shape), jnp.float32) if "lora_b" in p else x
         for p, x in flat.items()}
    )  # fmt: skip


@pytest.mark.slow
def test_a_model_starts_as_what_it_was():
    plain, adapted = fresh(0), fresh(RANK)
    assert paths(adapted) - paths(plain) == FACTORS
    for path, leaf in flatten(plain).items():
        np.testing.assert_array_equal(leaf, flatten(adapted)[path], err_msg=path)
    np.testing.assert_array_equal(logits_of(0)(plain), logits_of(RANK)(adapted))


@pytest.mark.slow
def test_merged_kernels_compute_what_the_factors_did():
    merged = lora.merge(trained(), ALPHA)
    assert paths(merged) == paths(build(0).abstract()[0]) and not lora.is_adapted(merged)
    expected = logits_of(RANK)(trained())
    np.testing.assert_allclose(logits_of(0)(merged), expected, rtol=1e-4, atol=1e-5)
    plain = {p: x for p, x in flatten(trained()).items() if p not in FACTORS}
    assert np.abs(logits_of(0)(unflatten(plain)) - expected).max() > 0.1
    # By hand, for one kernel of one layer: alpha / rank · A B.
    q = {name: x[1] for name, x in trained()["backbone"]["layers"]["attention"]["q"].items()}
    change = ALPHA / RANK * np.einsum("dr,rhc->dhc", q["lora_a"], q["lora_b"])
    found = merged["backbone"]["layers"]["attention"]["q"]["kernel"][1]
    np.testing.assert_allclose(found, q["kernel"] + change, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_base_in_int8_trains_as_its_floats_and_merges():
    held = build(base_dtype="int8")
    assert not any("lora" in path or "latent" in path for path in held.held)
    flat = flatten(jax.jit(held.init)(jax.random.key(0))[0])
    assert {str(flat[p].dtype) for p in held.held if not p.endswith("_scale")} == {"int8"}
    flat |= {p: x for p, x in flatten(trained()).items() if "lora_b" in p}
    floats = int8.as_floats(unflatten(flat), jnp.float32)

    def gradients(model, params):
        trains, rest = split(params, held.held)
        loss = lambda x: jnp.var(outputs(model, merge(x, rest)))  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(trains))

    for x, y in zip(gradients(held, unflatten(flat)), gradients(build(), floats), strict=True):
        np.testing.assert_array_equal(x, y)
    merged = lora.merge(unflatten(flat), ALPHA)
    assert {str(x.dtype) for x in flatten(merged).values()} == {"float32"}
    expected = logits_of(RANK)(floats)
    np.testing.assert_allclose(logits_of(0)(merged), expected, rtol=1e-4, atol=1e-5)


def test_a_base_in_bfloat16_is_of_kernels_and_tables_alone():
    model = build(base_dtype="bfloat16")
    dtypes = {path: str(x.dtype) for path, x in flatten(model.abstract()[0]).items()}
    coarse = {path for path, dtype in dtypes.items() if dtype == "bfloat16"}
    assert coarse == model.held
    layers = {f"attention/{n}" for n in ("q", "k", "v", "out")}
    layers |= {f"mlp/{n}" for n in ("gate", "up", "down")}
    kernels = {f"backbone/layers/{layer}/kernel" for layer in layers}
    assert coarse == kernels | {"embeddings/text/table", "heads/text/kernel"}
    # Merged in the dtype that is computed in: all of it, or not at all.
    flat = {p: x.astype(dtypes[p]) for p, x in flatten(trained()).items()}
    merged = lora.merge(unflatten(flat), ALPHA)
    assert {str(x.dtype) for x in flatten(merged).values()} == {"float32"}
    floats = unflatten({p: x.astype(jnp.float32) for p, x in flat.items()})
    expected = logits_of(RANK)(floats)
    np.testing.assert_allclose(logits_of(0)(merged), expected, rtol=1e-4, atol=1e-5)
    rounded = flatten(lora.merge(unflatten(flat), ALPHA, jnp.bfloat16))
    assert {path for path, x in rounded.items() if x.dtype == jnp.bfloat16} == model.held
    for path in model.held:
        np.testing.assert_allclose(rounded[path], flatten(merged)[path], rtol=2**-8)
    with pytest.raises(ValueError, match="model.param_dtype='bfloat16' must be 'float32'"):
        build(param_dtype="bfloat16", base_dtype="int8")


@pytest.mark.slow
def test_factors_are_new_in_a_swap_and_never_dropped():
    plain = fresh(0)
    report = plan_swap(plain, build().abstract()[0])
    params = head_swap(report, flatten(plain), build(), jax.random.key(1))
    assert set(report.initialised) == FACTORS and report.dropped == ()
    np.testing.assert_array_equal(logits_of(RANK)(params), logits_of(0)(plain))
    with pytest.raises(ValueError, match="has unused .*lora_a.*may not change"):
        plan_swap(trained(), build(0).abstract()[0])


def test_factors_are_split_as_their_kernels_are():
    axes = flatten_axes(build().axes())
    layer = "backbone/layers/attention"
    assert axes[f"{layer}/q/lora_a"] == ("layers", "embed", None)
    assert axes[f"{layer}/q/lora_b"] == ("layers", None, "heads", "head_dim")
    assert axes[f"{layer}/out/lora_a"] == ("layers", "heads", "head_dim", None)
    mesh = make_mesh(dict(data=1, fsdp=4, seq=1, tensor=2), jax.devices()[:8])
    shardings = flatten(tree_shardings(build().axes(), build().abstract()[0], mesh, "fsdp_tp"))
    assert tuple(shardings[f"{layer}/q/lora_a"].spec) == (None, "fsdp", None)
    assert tuple(shardings[f"{layer}/q/lora_b"].spec) == (None, None, "tensor", None)
    assert tuple(shardings[f"{layer}/out/lora_b"].spec) == (None, None, "fsdp")
    held = build(base_dtype="int8")
    shardings = flatten(tree_shardings(held.axes(), held.abstract()[0], mesh, "fsdp_tp"))
    assert tuple(shardings[f"{layer}/q/kernel"].spec) == (None, "fsdp", "tensor", None)
    assert tuple(shardings[f"{layer}/q/kernel_scale"].spec) == (None, None, "tensor", None)
    assert tuple(shardings[f"{layer}/out/kernel_scale"].spec) == (None, None, None, "fsdp")


def flatten_axes(tree, prefix=""):
    if isinstance(tree, tuple):
        return {prefix[:-1]: tree}
    return {k: v for n, t in tree.items() for k, v in flatten_axes(t, f"{prefix}{n}/").items()}


def test_errors_name_the_key():
    with pytest.raises(ValueError, match="model.lora_pattern='attention' .*'attention/q'"):
        build(pattern="attention")
