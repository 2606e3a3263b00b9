"""Dense layers, norms and gated feed-forwards.

Parameters are float32; a layer computes in its `dtype`, norms in float32. Kernels keep their heads
and gate dimensions apart, so that a sharding rule can name them.

Shape suffixes: B batch, N tokens, D model width, F feed-forward width, H and W rows and columns, C
channels.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn import int8
from lapa_jax.nn.module import AXES, param
from lapa_jax.parallel.sharding import GPU, placement

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def dtype_of(name: str, key: str = "compute_dtype") -> jnp.dtype:
    """The dtype of a `compute_dtype` or `param_dtype` setting."""
    if name not in DTYPES:
        raise ValueError(f"model.{key}={name!r} must be one of {sorted(DTYPES)}")
    return DTYPES[name]


class Dense(nnx.Module):
    """A linear map from trailing dimensions `inputs` to `outputs`; kernel shape (*inputs,
    *outputs).

    `std=None` is LeCun's truncated normal (1/sqrt(fan in)); std=0 starts at zero.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        axes: Sequence[str | None],
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        bias: bool = False,
        std: float | None = None,
    ):
        shape = (*inputs, *outputs)
        std = 1.0 / math.sqrt(math.prod(inputs)) if std is None else std
        self.kernel = param(truncated_normal(rngs.params(), shape, std), *axes)
        self.bias = param(jnp.zeros(outputs), *axes[len(inputs) :]) if bias else None
        self.dtype, self.num_inputs = dtype, len(inputs)
        self.factor_scale = None  # of lora_a lora_b, beside the kernel: see lora.py
        self.kernel_scale = None  # where the kernel is int8: see int8.py

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kernel_scale is None:
            y = self._product(x, self.kernel, self.num_inputs)
        else:
            held = self.kernel[...], self.kernel_scale[...]
            y = frozen_product(x.astype(self.dtype), *held, self.num_inputs)
        if self.factor_scale is not None:
            low = self._product(x, self.lora_a, self.num_inputs)
            y = y + self.factor_scale * self._product(low, self.lora_b, 1)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def hold(self, dtype: str) -> None:
        """Holds the kernel, which then cannot train, in fewer bits; of `int8.HELD`."""
        int8.hold(self, "kernel", dtype, range(self.num_inputs))

    def add_factors(self, rank: int, scale: float, rngs: nnx.Rngs) -> None:
        """Adds `scale` · lora_a lora_b to what the kernel does; nothing until lora_b is trained."""
        k = self.num_inputs
        inputs, outputs = self.kernel.shape[:k], self.kernel.shape[k:]
        axes = self.kernel.get_metadata()[AXES]
        lora_a = truncated_normal(
            rngs.params(), (*inputs, rank), 1.0 / math.sqrt(math.prod(inputs))
        )
        self.lora_a = param(lora_a, *axes[:k], None)
        self.lora_b = param(jnp.zeros((rank, *outputs)), None, *axes[k:])
        self.factor_scale = scale

    def _product(self, x: jax.Array, kernel: nnx.Param, k: int) -> jax.Array:
        return product(x.astype(self.dtype), kernel[...].astype(self.dtype), k)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, k: int) -> jax.Array:
    """The last `k` dimensions of x contracted with the first `k` of the kernel.

    Its gradients go through matrices on CPUs: XLA transposes kernels of more dimensions there, one
    number after the other, which takes longer than the products. Elsewhere they keep their
    dimensions, which may be split over devices.
    """
    return _dot(x, kernel, range(x.ndim - k, x.ndim), range(k))


def _product_forward(x, kernel, k):
    # Not `product`: a remat policy must see that this is a dot.
    return _dot(x, kernel, range(x.ndim - k, x.ndim), range(k)), (x, kernel)


def _product_backward(k, saved, g):
    x, kernel = saved

    def by_matrices(x, kernel, g):
        rows, inputs = math.prod(x.shape[: x.ndim - k]), math.prod(kernel.shape[:k])
        dkernel = _dot(x.reshape(rows, inputs), g.reshape(rows, -1), (0,), (0,))
        return _dx_by_matrices(kernel, g, k), dkernel.reshape(kernel.shape)

    def as_they_are(x, kernel, g):
        batch = range(x.ndim - k)
        return _dx_as_it_is(kernel, g, k), _dot(x, g, batch, batch)

    return jax.lax.platform_dependent(x, kernel, g, cpu=by_matrices, default=as_they_are)


product.defvjp(_product_forward, _product_backward)


def _dx_by_matrices(kernel: jax.Array, g: jax.Array, k: int) -> jax.Array:
    rows, inputs = g.shape[: g.ndim - kernel.ndim + k], kernel.shape[:k]
    kernel2 = kernel.reshape(math.prod(inputs), -1)
    dx = _dot(g.reshape(math.prod(rows), -1), kernel2, (1,), (1,))
    return dx.reshape(*rows, *inputs)


def _dx_as_it_is(kernel: jax.Array, g: jax.Array, k: int) -> jax.Array:
    return _dot(g, kernel, range(g.ndim - kernel.ndim + k, g.ndim), range(k, kernel.ndim))


FEW_ROWS = 8  # up to which products with int8 kernels are made for their bytes, not for their FLOPs


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def frozen_product(x: jax.Array, values: jax.Array, scale: jax.Array, k: int) -> jax.Array:
    """`product` with a kernel in int8 (int8.py), which has no gradient: the backward pass needs
    neither `x` nor the kernel as floats, and nothing keeps them."""
    rows, outputs = math.prod(x.shape[: x.ndim - k]), values.shape[k:]
    if rows <= FEW_ROWS and scale.size == math.prod(outputs):
        by = dict(cpu=_by_eights, cuda=_by_sums, default=_by_product)
        given = {platform: partial(function, k=k) for platform, function in by.items()}
        few = jax.lax.platform_dependent(x, values, **given)
        return (few * scale.reshape(outputs)).astype(x.dtype)
    return product(x, int8.dequantize(values, scale, x.dtype), k)


def _by_product(x: jax.Array, values: jax.Array, k: int) -> jax.Array:
    """x · values in float32: on TPUs the conversion, which is exact, fuses with the product."""
    axes = tuple(range(x.ndim - k, x.ndim)), tuple(range(k))
    return jax.lax.dot_general(
        x, values.astype(x.dtype), (axes, ((), ())), preferred_element_type=jnp.float32
    )


def _by_sums(x: jax.Array, values: jax.Array, k: int) -> jax.Array:
    """The same for GPUs, where products are the library's and conversions fuse with sums alone."""
    rows, inputs = x.reshape(-1, math.prod(values.shape[:k]), 1), math.prod(values.shape[:k])
    y = (rows.astype(jnp.float32) * values.reshape(inputs, -1).astype(jnp.float32)).sum(1)
    return y.reshape(*x.shape[: x.ndim - k], *values.shape[k:])


def _by_eights(x: jax.Array, values: jax.Array, k: int) -> jax.Array:
    """The same for CPUs, where both would have the matrix converted as a whole, in memory, or
    piece by piece: eight rows of it are added up while they are converted, and a product with ones
    adds what comes of it (a plain sum would be taken apart from the conversion)."""
    # Else the conversion, which does not depend on the token, leaves the loop over tokens.
    x, values = jax.lax.optimization_barrier((x, values))
    inputs, outputs = math.prod(values.shape[:k]), values.shape[k:]
    parts = math.gcd(inputs, 8)
    kernel = values.reshape(parts, inputs // parts, -1)
    ones = jnp.ones(inputs // parts)

    def one(row: jax.Array) -> jax.Array:
        of_parts = row.astype(jnp.float32).reshape(parts, -1, 1)
        return ones @ sum(a * w.astype(jnp.float32) for a, w in zip(of_parts, kernel, strict=True))

    rows = x.reshape(-1, inputs)
    return jnp.stack([one(row) for row in rows]).reshape(*x.shape[: x.ndim - k], *outputs)


def _frozen_forward(x, values, scale, k):
    kernel = int8.dequantize(values, scale, x.dtype)
    return _dot(x, kernel, range(x.ndim - k, x.ndim), range(k)), (values, scale)


def _frozen_backward(k, saved, g):
    kernel = int8.dequantize(*saved, g.dtype)
    dx = jax.lax.platform_dependent(
        kernel, g, cpu=partial(_dx_by_matrices, k=k), default=partial(_dx_as_it_is, k=k)
    )
    return dx, None, None


frozen_product.defvjp(_frozen_forward, _frozen_backward)


def _dot(a: jax.Array, b: jax.Array, a_axes: Sequence[int], b_axes: Sequence[int]) -> jax.Array:
    return jax.lax.dot_general(a, b, ((tuple(a_axes), tuple(b_axes)), ((), ())))


def truncated_normal(key: jax.Array, shape: Sequence[int], std: float) -> jax.Array:
    """A normal truncated at two sigmas, rescaled so that `std` is its standard deviation."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * (std / 0.87962566103423978)


class Conv(nnx.Module):
    """A two-dimensional convolution; kernel shape (size, size, inputs, outputs)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int = 3,
        bias: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, inputs, outputs)
        kernel = truncated_normal(rngs.params(), shape, (size**2 * inputs) ** -0.5)
        self.kernel = param(kernel, None, None, None, None)
        self.bias = param(jnp.zeros(outputs), None) if bias else None
        self.dtype = dtype

    def __call__(
        self, x_BHWC: jax.Array, stride: int = 1, padding: str | list[tuple[int, int]] = "SAME"
    ) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        y = convolve(x_BHWC.astype(self.dtype), kernel, stride, padding)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def convolve(
    x_BHWC: jax.Array, kernel: jax.Array, stride: int, padding: str | list[tuple[int, int]]
) -> jax.Array:
    strides, layout = (stride, stride), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x_BHWC, kernel, strides, padding, dimension_numbers=layout)


class LayerNorm(nnx.Module):
    def __init__(
        self, width: int, *, axis: str | None = "embed", bias: bool = False, eps: float = 1e-5
    ):
        self.scale = param(jnp.ones(width), axis)
        self.bias = param(jnp.zeros(width), axis) if bias else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        y = y * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    def __init__(self, width: int, *, eps: float, axis: str | None = "embed"):
        self.scale = param(jnp.ones(width), axis)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class GEGLU(nnx.Module):
    """Norm, then value * gelu(gate), then a projection back; no biases but the norm's.

    On GPUs a width that is no multiple of 8 (the original's 2730) is filled up with zeros while it
    computes: their matrix units want rows of whole 16 bytes.
    """

    def __init__(self, dim: int, mlp_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, bias=True)
        # index 0 of the middle dimension is the value, 1 the gate
        self.wi = Dense((dim,), (2, mlp_dim), ("embed", None, "mlp"), dtype=dtype, rngs=rngs)
        self.wo = Dense((mlp_dim,), (dim,), ("mlp", "embed"), dtype=dtype, rngs=rngs)

        self.dtype, self.missing = dtype, -mlp_dim % 8 and -mlp_dim % 64

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        wi, wo = (w.kernel[...].astype(self.dtype) for w in (self.wi, self.wo))
        if self.missing and placement()[0] in GPU:
            wi = jnp.pad(wi, ((0, 0), (0, 0), (0, self.missing)))
            wo = jnp.pad(wo, ((0, self.missing), (0, 0)))
        h = product(self.norm(x_BND).astype(self.dtype), wi, 1)
        return product(h[..., 0, :] * jax.nn.gelu(h[..., 1, :], approximate=False), wo, 1)


ACTIVATIONS = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}  # the latter by tanh


class SwiGLU(nnx.Module):
    """down(silu(gate x) * up x), without biases; the norm is the block's. Of another activation it
    is what that makes it: GeGLU."""

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        *,
        dtype: jnp.dtype,
        std: float,
        activation: str = "silu",
        rngs: nnx.Rngs,
    ):
        def dense(inputs, outputs, axes):
            return Dense((inputs,), (outputs,), axes, dtype=dtype, std=std, rngs=rngs)

        self.gate = dense(dim, mlp_dim, ("embed", "mlp"))
        self.up = dense(dim, mlp_dim, ("embed", "mlp"))
        self.down = dense(mlp_dim, dim, ("mlp", "embed"))
        self.activation = activation

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.gate(x_BND)) * self.up(x_BND))
