"""Dense layers, norms and gated feed-forwards.

Parameters are float32; a layer computes in its `dtype`, norms in float32. Kernels keep their heads
and gate dimensions apart, so that a sharding rule can name them.

Shape suffixes: B batch, N tokens, D model width, F feed-forward width.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.models.module import AXES, param

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

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self._contract(x, self.kernel, self.num_inputs)
        if self.factor_scale is not None:
            low = self._contract(x, self.lora_a, self.num_inputs)
            y = y + self.factor_scale * self._contract(low, self.lora_b, 1)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

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

    def _contract(self, x: jax.Array, kernel: nnx.Param, k: int) -> jax.Array:
        contract = (tuple(range(x.ndim - k, x.ndim)), tuple(range(k)))
        return jax.lax.dot_general(
            x.astype(self.dtype), kernel[...].astype(self.dtype), (contract, ((), ()))
        )


def truncated_normal(key: jax.Array, shape: Sequence[int], std: float) -> jax.Array:
    """A normal truncated at two sigmas, rescaled so that `std` is its standard deviation."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * (std / 0.87962566103423978)


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
    """Norm, then value * gelu(gate), then a projection back; no biases but the norm's."""

    def __init__(self, dim: int, mlp_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, bias=True)
        # index 0 of the middle dimension is the value, 1 the gate
        self.wi = Dense((dim,), (2, mlp_dim), ("embed", None, "mlp"), dtype=dtype, rngs=rngs)
        self.wo = Dense((mlp_dim,), (dim,), ("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        h = self.wi(self.norm(x_BND))
        return self.wo(h[..., 0, :] * jax.nn.gelu(h[..., 1, :], approximate=False))


class SwiGLU(nnx.Module):
    """down(silu(gate x) * up x), without biases; the norm is the block's."""

    def __init__(self, dim: int, mlp_dim: int, *, dtype: jnp.dtype, std: float, rngs: nnx.Rngs):
        def dense(inputs, outputs, axes):
            return Dense((inputs,), (outputs,), axes, dtype=dtype, std=std, rngs=rngs)

        self.gate = dense(dim, mlp_dim, ("embed", "mlp"))
        self.up = dense(dim, mlp_dim, ("embed", "mlp"))
        self.down = dense(mlp_dim, dim, ("mlp", "embed"))

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BND)) * self.up(x_BND))
