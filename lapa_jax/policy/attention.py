"""Attention of a policy's layers, of the backbone's and of those beside it.

Shape suffixes: B rows, T sequence, n slots, K heads, C head width, D width.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.attention import attention
from lapa_jax.nn.layers import Dense, dtype_of
from lapa_jax.nn.position import rope
from lapa_jax.parallel.sharding import constrain


class Backbone(Protocol):
    """The settings of a model that its layers and its heads must know."""

    dim: int
    depth: int
    heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    init_std: float
    compute_dtype: str
    attention: str
    remat: str
    unroll: int


class SelfAttention(nnx.Module):
    """With rotary positions; heads and their width are the model's, the width of tokens is `dim`.

    `length`: the logical axis of their positions; None: they are few, and not split."""

    def __init__(self, model: Backbone, dim: int, *, length: str | None = "length", rngs: nnx.Rngs):
        common = dict(dtype=dtype_of(model.compute_dtype), std=model.init_std, rngs=rngs)
        shape, names = (model.heads, model.head_dim), ("heads", "head_dim")
        self.q = Dense((dim,), shape, ("embed", *names), **common)
        self.k = Dense((dim,), shape, ("embed", *names), **common)
        self.v = Dense((dim,), shape, ("embed", *names), **common)
        self.out = Dense(shape, (dim,), (*names, "embed"), **common)
        self.scale, self.implementation = model.head_dim**-0.5, model.attention
        self.length = length

    def heads(
        self, x_BTD: jax.Array, tables, slots_Bn: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, at these slots only where they are given, keys and values."""
        asked, at = x_BTD, tables
        if slots_Bn is not None:
            asked, *at = (take(x, slots_Bn) for x in (x_BTD, *tables))
        q, k, v = rope(self.q(asked), *at), rope(self.k(x_BTD), *tables), self.v(x_BTD)
        return tuple(constrain(y, "batch", self.length, "heads", None) for y in (q, k, v))

    def attend(self, q, k, v, **mask) -> jax.Array:
        given = {"implementation": self.implementation} | mask
        return self.out(attention(q, k, v, scale=self.scale, **given))


def take(x_BTD: jax.Array, slots_Bn: jax.Array) -> jax.Array:
    """(B, n, D)."""
    return jnp.take_along_axis(x_BTD, slots_Bn[..., None], axis=1)


def positions(segments_BT: jax.Array) -> jax.Array:
    """Rotary positions, counted from 0 in every segment."""
    index = jnp.arange(segments_BT.shape[1])
    before = jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jnp.where(segments_BT != before, index, 0)
    return index - jax.lax.cummax(starts, axis=1)
