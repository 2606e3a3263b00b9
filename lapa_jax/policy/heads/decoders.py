"""From hidden states to chunks: OpenVLA-OFT's residual layers, UniVLA's pooling by attention.

Shape suffixes: B examples, n slots, m latents, D width, V numbers of a vector.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.attention import attention
from lapa_jax.nn.layers import Dense, LayerNorm, RMSNorm, truncated_normal
from lapa_jax.nn.module import param


def _dense(inputs: int, outputs: int, **given) -> Dense:
    return Dense((inputs,), (outputs,), ("embed", None), bias=True, **given)


class _Layer(nnx.Module):
    """Norm, linear, ReLU."""

    def __init__(self, inputs: int, outputs: int, **given):
        self.norm = LayerNorm(inputs, bias=True)
        self.linear = _dense(inputs, outputs, **given)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.linear(self.norm(x)))


class ResidualDecoder(nnx.Module):
    """A layer, two with what they are given added, norm and linear: of each vector alone."""

    def __init__(self, inputs: int, dim: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        given = dict(dtype=dtype, rngs=rngs)
        self.into = _Layer(inputs, dim, **given)
        self.first, self.second = _Layer(dim, dim, **given), _Layer(dim, dim, **given)
        self.norm, self.out = LayerNorm(dim, bias=True), _dense(dim, outputs, **given)

    def __call__(self, hidden_BnD: jax.Array) -> jax.Array:
        """(B, n, V)."""
        x = self.into(hidden_BnD)
        for layer in (self.first, self.second):
            x = x + layer(x)
        return self.out(self.norm(x))


class AttentionPool(nnx.Module):
    """Learned latents that attend once to all hidden states; norms come after the residuals."""

    def __init__(
        self,
        inputs: int,
        dim: int,
        *,
        latents: int = 1,
        heads: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        given = dict(dtype=dtype, rngs=rngs)
        self.latents = param(truncated_normal(rngs.params(), (latents, dim), 1.0), None, "embed")
        self.project = _dense(inputs, dim, **given)
        shape, names = (heads, dim // heads), ("embed", "heads", "head_dim")
        self.q = Dense((dim,), shape, names, **given)
        self.k = Dense((dim,), shape, names, **given)
        self.v = Dense((dim,), shape, names, **given)
        self.out = Dense(shape, (dim,), ("heads", "head_dim", "embed"), bias=True, **given)
        self.value = _dense(dim, 4 * dim, **given)
        self.gate = _dense(dim, 4 * dim, **given)
        self.down = _dense(4 * dim, dim, **given)
        self.attention_norm = RMSNorm(dim, eps=1e-12)
        self.mlp_norm = RMSNorm(dim, eps=1e-12)
        self.scale, self.dtype = (dim // heads) ** -0.5, dtype

    def __call__(self, hidden_BnD: jax.Array, first_BmD: jax.Array | None = None) -> jax.Array:
        """(B, m, dim); `first_BmD` is added to the latents."""
        x = self.project(hidden_BnD)
        latents = self.latents[...].astype(self.dtype)
        y = jnp.broadcast_to(latents, (len(x), *latents.shape))
        y = y if first_BmD is None else y + first_BmD
        seen = attention(self.q(y), self.k(x), self.v(x), scale=self.scale, implementation="xla")
        y = self.attention_norm(y + self.out(seen))
        return self.mlp_norm(y + self.down(self.value(y) * jax.nn.silu(self.gate(y))))


class PooledDecoder(nnx.Module):
    """All slots of an example pooled to one vector, of which a linear map makes all of its
    vectors."""

    HEADS = 8

    def __init__(
        self,
        inputs: int,
        dim: int,
        count: int,
        outputs: int,
        *,
        heads: int = HEADS,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if dim % heads:
            raise ValueError(f"decoder_dim={dim} must be a multiple of {heads}: heads that pool")
        self.pool = AttentionPool(inputs, dim, heads=heads, dtype=dtype, rngs=rngs)
        self.out = _dense(dim, count * outputs, dtype=dtype, rngs=rngs)
        self.shape = count, outputs

    def __call__(self, hidden_RnD: jax.Array) -> jax.Array:
        """(R, k·n, D) of k examples → (R, k·n, V)."""
        R, slots, D = hidden_RnD.shape
        n, V = self.shape
        pooled = self.pool(hidden_RnD.reshape(-1, n, D))[:, 0]
        return self.out(pooled).reshape(R, slots, V)
