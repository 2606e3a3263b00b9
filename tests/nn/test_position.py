"""Position layers against direct references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lapa_jax.latent.attention import frame_attention
from lapa_jax.nn.attention import attention
from lapa_jax.nn.position import ContinuousPositionBias, depthwise_conv, rope, rope_tables


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_position_conv_equals_grouped_convolution(frames):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, frames, 4, 5, 7))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 7))
    g = jax.random.normal(keys[2], x.shape)

    def reference(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, :, :, None, :],
            (1, 1, 1),
            ((2, 0), (1, 1), (1, 1)),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            feature_group_count=7,
        )

    y, back = jax.vjp(depthwise_conv, x, kernel)
    expected, expected_back = jax.vjp(reference, x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    for a, b in zip(back(g), expected_back(g), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_rope_depends_on_distance_only_and_rotates_pairs():
    q = jax.random.normal(jax.random.key(0), (1, 1, 1, 8))
    k = jax.random.normal(jax.random.key(1), (1, 1, 1, 8))

    def score(i, j):
        tables = [rope_tables(jnp.array([[n]]), 8, 1e4) for n in (i, j)]
        return float(jnp.sum(rope(q, *tables[0]) * rope(k, *tables[1])))

    assert score(7, 3) == pytest.approx(score(1004, 1000), abs=1e-3)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3
    pairs = np.asarray(q).reshape(-1, 2)
    complex_q = (pairs[:, 0] + 1j * pairs[:, 1]) * np.exp(1j * 5 * 1e4 ** (-np.arange(4) / 4))
    rotated = np.asarray(rope(q, *rope_tables(jnp.array([[5]]), 8, 1e4))).reshape(-1, 2)
    np.testing.assert_allclose(rotated[:, 0] + 1j * rotated[:, 1], complex_q, atol=1e-5)


@pytest.mark.slow
def test_position_bias_is_the_mlp_of_the_offset():
    bias = ContinuousPositionBias((2, 3), 8, 2, rngs=nnx.Rngs(params=0))
    actual = np.asarray(bias())
    row, column = (a.reshape(-1) for a in np.indices((2, 3)))
    for i, j in ((0, 5), (4, 1), (2, 2)):
        offset = np.array([row[i] - row[j], column[i] - column[j]], np.float32)
        x = jnp.asarray(np.sign(offset) * np.log(np.abs(offset) + 1))
        x = jax.nn.leaky_relu(bias.second(jax.nn.leaky_relu(bias.first(x), 0.1)), 0.1)
        np.testing.assert_allclose(actual[:, i, j], bias.third(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_frames_at_one_cell_are_an_ordinary_sequence(causal):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 4, 3, 8)) for i in range(3))
    cell = (x[:, :, None] for x in (0.5 * q, k, v))
    frames = frame_attention(*cell, seen=[range(t + 1 if causal else 4) for t in range(4)])[:, :, 0]
    np.testing.assert_allclose(frames, attention(q, k, v, scale=0.5, causal=causal), atol=1e-5)
