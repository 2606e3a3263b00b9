"""Weights in int8: how far they are off, and that products of them are those of their floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn import int8
from lapa_jax.nn.layers import (
    FEW_ROWS,
    _by_eights,
    _by_product,
    _by_sums,
    frozen_product,
    product,
)

KERNEL = np.random.default_rng(0).normal(size=(3, 4, 6, 5)).astype(np.float32)
KERNEL[0, :, :, 1] = 0.0
KERNEL[1, 2, 3, 4] = 300.0  # an outlier costs its own block alone


@pytest.mark.parametrize("group, shape", [(0, (1, 1, 5)), (6, (4, 1, 5)), (2, (4, 3, 5))])
def test_no_value_is_off_by_more_than_half_a_step(group, shape):
    """A stack of three kernels of (4, 6) inputs and 5 outputs."""
    assert int8.scale_shape(KERNEL.shape[1:], (0, 1), group) == shape
    values, scale = int8.quantize(KERNEL, (3, *shape))
    assert values.dtype == np.int8 and values.shape == KERNEL.shape
    assert np.abs(np.asarray(values, int)).max() == 127  # -128 is not used
    found = np.asarray(int8.dequantize(values, scale))
    fine = [n // s for n, s in zip(KERNEL.shape, scale.shape, strict=True)]
    step = np.asarray(scale)
    for axis, times in enumerate(fine):
        step = step.repeat(times, axis)
    assert np.all(np.abs(found - KERNEL) <= 0.5001 * step)
    assert not found[0, :, :, 1].any() and np.isfinite(found).all()
    np.testing.assert_allclose(
        int8.relative_error(KERNEL, values, scale),
        np.sqrt(np.square(found - KERNEL).mean() / np.square(KERNEL).mean()),
        rtol=1e-4,
    )
    for one, again in zip((values, scale), int8.quantize(found, scale.shape), strict=True):
        np.testing.assert_allclose(again, one, rtol=1e-6)  # once is as good as twice
    for layer in range(3):  # of a stack each by itself
        alone = int8.quantize(KERNEL[layer], shape)
        np.testing.assert_array_equal(alone[0], values[layer])


def test_groups_must_divide():
    with pytest.raises(ValueError, match="groups of 4 do not divide the 6 inputs"):
        int8.scale_shape((4, 6, 5), (0, 1), 4)


@pytest.mark.parametrize("shape", [(1, 1, 5), (4, 2, 5)])
def test_a_product_and_its_gradient_are_those_of_the_floats(shape):
    values, scale = int8.quantize(KERNEL[2], shape)
    x = np.random.default_rng(1).normal(size=(2, 7, 4, 6)).astype(np.float32)

    def both(f):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sin(f(x)).sum()))(x)

    found = both(lambda x: frozen_product(x, values, scale, 2))
    expected = both(lambda x: product(x, int8.dequantize(values, scale), 2))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(1, 4, 6), (FEW_ROWS, 4, 6)])
@pytest.mark.parametrize("way", [_by_eights, _by_sums, _by_product])
def test_a_product_of_few_rows_is_that_of_the_floats_on_every_platform(shape, way):
    values, scale = int8.quantize(KERNEL[2], (1, 1, 5))
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    expected = np.einsum("rab,abo->ro", x, int8.dequantize(values, scale))
    np.testing.assert_allclose(way(x, values, 2) * scale[0, 0], expected, rtol=1e-5, atol=1e-4)
    found = jax.jit(frozen_product, static_argnums=3)(x, values, scale, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_loop_over_tokens_holds_no_matrix_as_floats():
    """Else a token would read four times the bytes: conversions do not depend on the token."""
    values, scale = int8.quantize(np.ones((256, 256), np.float32), (1, 256))

    def tokens(x, values, scale):
        step = lambda x, _: (frozen_product(x, values, scale, 1), None)  # noqa: E731
        return jax.lax.scan(step, x, length=4)[0]

    compiled = jax.jit(tokens).lower(jnp.ones((1, 256)), values, scale).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < values.size
