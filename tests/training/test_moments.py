"""Moments in fewer bits: how far they are off, that rounding has no bias, and Adam with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import base
from lapa_jax.training import moments
from lapa_jax.training.optimizer import make_optimizer
from lapa_jax.training.state import tree_bytes

RNG = np.random.default_rng(0)
ROWS = (RNG.normal(size=(6, 64)) * np.exp(RNG.normal(size=(6, 64)))).astype(np.float32)
ROWS[0] = 0.0
ROWS[1, 3] = 0.0
ROWS[2, 0] = 1e6  # the rest of its row is below the smallest code
TREE = {"rows": jnp.asarray(ROWS), "short": jnp.asarray(ROWS[3:, :4]), "vector": jnp.ones(64)}


@pytest.mark.parametrize("squares", [False, True])
def test_rows_in_eight_bits(squares):
    tree = jax.tree.map(jnp.square, TREE) if squares else TREE
    x = np.asarray(tree["rows"])
    held = jax.jit(moments._to_rows, static_argnums=2)(tree, jax.random.key(0), squares)
    found = moments._from_rows(held, squares)
    assert held.codes["rows"].dtype == (np.uint8 if squares else np.int8)
    assert held.scales["rows"].shape == (6,) and held.scales["short"] is None
    for name in ("short", "vector"):
        np.testing.assert_array_equal(found[name], tree[name])
    y = np.asarray(found["rows"])
    largest = np.abs(x).max(-1)
    np.testing.assert_allclose(np.abs(y).max(-1), largest, rtol=1e-6)
    assert not y[0].any() and y[1, 3] == 0.0 and np.isfinite(y).all()
    inside = np.abs(x) > largest[:, None] * 2.0 ** (-30 if squares else -15)
    off = np.abs(y - x)[inside] / np.abs(x)[inside]
    assert off.max() <= 1 / 8 + 1e-3 and 0.01 < off.mean() < 0.05
    if squares:
        assert np.all((y > 0.0) == (x > 0.0))  # nothing is divided by zero


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_rounding_has_no_bias_and_depends_on_the_step_alone(dtype):
    x = {"x": jnp.full((64, 64), 1.03).at[:, 0].set(16.0)}
    same = optax.ScaleByAdamState(jnp.ones((), jnp.int32), x, x)
    held = moments.held(optax.GradientTransformation(lambda _: same, lambda *_: (x, same)), dtype)
    first = held.init(x)
    assert not any(np.any(y) for y in jax.tree.leaves((first.mu, first.nu)))
    (_, one), (_, two) = (jax.jit(held.update)(x, first) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    if dtype == "bfloat16":
        mu, nu = one.mu["x"].astype(jnp.float32), one.nu["x"].astype(jnp.float32)
        assert one.mu["x"].dtype == jnp.bfloat16
        assert not np.array_equal(mu, nu)  # each has bits of its own
    else:
        mu, nu = moments._from_rows(one.mu, False)["x"], moments._from_rows(one.nu, True)["x"]
    for found in (mu, nu):
        rest = np.asarray(found[:, 1:], np.float64)
        assert len(np.unique(rest)) == 2
        assert abs(rest.mean() - 1.03) < 5 * rest.std() / rest.size**0.5 + 1e-3


def test_adam_follows_adam():
    """Thirty steps of noisy gradients whose sizes differ by row and by value."""
    exact = optax.scale_by_adam(b1=0.9, b2=0.95)
    size = jnp.exp(jnp.asarray(RNG.normal(size=(8, 64)), jnp.float32))

    def run(dtype):
        tx = moments.held(exact, dtype)

        def step(state, noise):
            updates, state = tx.update({"w": size * (0.3 + noise)}, state)
            return state, updates["w"]

        noise = jnp.asarray(np.random.default_rng(1).normal(size=(30, 8, 64)), jnp.float32)
        return jax.lax.scan(step, tx.init({"w": size}), noise)[1]

    expected, *found = map(np.asarray, jax.jit(lambda: [run(x) for x in moments.MOMENTS])())
    for updates, off in zip(found, (0.006, 0.09), strict=True):
        error = updates - expected
        assert 0.0 < np.sqrt(np.square(error).mean() / np.square(expected).mean()) < off
        assert np.abs(error.mean()) / np.abs(expected).mean() < off / 10


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_bytes_of_each_optimizer(name):
    axes = {"a": ("layers", "embed", "mlp"), "b": ("mlp",)}
    params = {"a": jnp.ones((2, 64, 64)), "b": jnp.ones(64)}

    def held(dtype):
        config = base.optimizer(name).to_dict() | {"moments": dtype}
        return jax.eval_shape(make_optimizer(config, 1000, axes).tx.init, params)

    sizes = [tree_bytes(held(dtype)) for dtype in moments.MOMENTS]
    assert sizes[1] / sizes[0] == pytest.approx(1 / 2, abs=0.01)
    assert sizes[2] / sizes[0] == pytest.approx(1 / 4 + 1 / 64, abs=0.015)
