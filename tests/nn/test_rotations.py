"""Rotations against float64 (golden/heads/rotation.npz)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn import rotations

GOLDEN = Path(__file__).parent.parent / "golden" / "heads" / "rotation.npz"
MATRICES = (
    "gaussian_det_pos", "gaussian_det_neg", "identity_1e-1_noise", "identity_1e-3_noise",
    "identity_1e-6_noise", "exact_identity", "exact_rotation", "two_equal_singular_values",
    "sigma_min_1e-3",
)  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_the_nearest_rotation_and_its_gradient(golden):
    stacked = {
        key: np.concatenate([golden[f"{name}/{key}"] for name in MATRICES])
        for key in ("M", "proj", "cotangent", "vjp")
    }

    @jax.jit
    def found(matrix, cotangent):
        rotation, back = jax.vjp(rotations.nearest, matrix)
        return rotation, back(cotangent)[0]

    rotation, gradient = found(stacked["M"], stacked["cotangent"])
    for i, name in enumerate(np.repeat(MATRICES, 3)):
        np.testing.assert_allclose(rotation[i], stacked["proj"][i], atol=5e-6, err_msg=name)
        if np.linalg.norm(stacked["vjp"][i]) > 1e-6:
            assert relative(gradient[i], stacked["vjp"][i]) < 1e-4, name
    half, gradient = found(jnp.eye(4, dtype=jnp.bfloat16)[None], jnp.ones((1, 4, 4)))
    assert half.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    for matrix in (np.zeros((1, 4, 4)), np.diag([1.0, 1, 1, -1])[None]):  # where there is no answer
        rotation, gradient = found(jnp.asarray(matrix, jnp.float32), jnp.ones((1, 4, 4)))
        assert np.isfinite(rotation).all() and np.isfinite(gradient).all()


def test_the_exponential_and_its_gradient(golden):
    @jax.jit
    def found(matrix, cotangent):
        rotation, back = jax.vjp(rotations.exponential, matrix)
        return rotation, back(cotangent)[0]

    rotation, gradient = found(golden["skew/M"], golden["skew/cotangent"])
    np.testing.assert_allclose(rotation, golden["skew/expm"], atol=5e-6)
    for ours, theirs in zip(gradient, golden["skew/expm_vjp"], strict=True):
        assert relative(ours, theirs) < 1e-4
    rng = np.random.default_rng(0)
    big = rng.normal(size=(8, 16, 16)).astype(np.float32)
    big *= 10.0 / np.linalg.norm(big - big.swapaxes(1, 2), 2, axis=(1, 2))[:, None, None] * 2.0
    for matrix in (big, np.zeros((1, 16, 16), np.float32)):
        rotation, gradient = found(matrix, np.ones_like(matrix))
        gap = rotations.product(rotation, rotation.swapaxes(1, 2)) - np.eye(16)
        assert np.abs(gap).max() < 2e-5 and np.isfinite(gradient).all()
        np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-4)


def test_composition_and_its_anchor(golden):
    z_I = golden["compose/z_I"]
    z = rotations.after(golden["compose/z2"], golden["compose/z1"], z_I)
    np.testing.assert_allclose(z, golden["compose/z2_zIinv_z1"], atol=5e-6)
    mean = jnp.mean(golden["anchor/F"], axis=0)
    np.testing.assert_allclose(rotations.nearest(mean), golden["anchor/z_I"], atol=5e-6)
    np.testing.assert_allclose(rotations.after(z_I, z_I, z_I), z_I, atol=5e-6)
