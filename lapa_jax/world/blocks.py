"""Layers of a dynamics model: attention over the cells of a frame, and over the frames before.

Shape suffixes: B clips, T frames, N cells of a frame, n of them, K heads, C head width, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.layers import RMSNorm, SwiGLU, dtype_of
from lapa_jax.nn.position import rope_tables
from lapa_jax.parallel.sharding import constrain
from lapa_jax.policy.attention import SelfAttention
from lapa_jax.world.config import DynamicsConfig


class Tables(NamedTuple):
    """Rotary (cos, sin), each (1, n, C / 2)."""

    cells: tuple[jax.Array, jax.Array]
    frames: tuple[jax.Array, jax.Array]

    @classmethod
    def of(cls, config: DynamicsConfig, cells: int, frames: int) -> "Tables":
        def tables(count):
            return rope_tables(jnp.arange(count)[None], config.head_dim, config.rope_theta)

        return cls(tables(cells), tables(frames))


class Block(nnx.Module):
    """Pre-norm attention over the cells of each frame; where it sees the `past`, attention at each
    cell over the frames up to its own; feed-forward. `causal`: a cell sees none after it."""

    def __init__(self, config: DynamicsConfig, *, past: bool, causal: bool, rngs: nnx.Rngs):
        def norm():
            return RMSNorm(config.dim, eps=config.norm_eps)

        def attend():
            return SelfAttention(config, config.dim, length=None, rngs=rngs)

        self.cells_norm, self.cells = norm(), attend()
        self.frames_norm, self.frames = (norm(), attend()) if past else (None, None)
        self.mlp_norm = norm()
        dtype = dtype_of(config.compute_dtype)
        self.mlp = SwiGLU(config.dim, config.mlp_dim, dtype=dtype, std=config.init_std, rngs=rngs)
        self.causal = causal

    def __call__(self, x_BTND: jax.Array, tables: Tables) -> jax.Array:
        B, T, N, D = x_BTND.shape
        x = x_BTND.reshape(B * T, N, D)
        q, k, v = self.cells.heads(self.cells_norm(x), tables.cells)
        x = x + self.cells.attend(q, k, v, causal=self.causal)
        if self.frames is not None:
            x = x.reshape(B, T, N, D).swapaxes(1, 2).reshape(B * N, T, D)
            q, k, v = self.frames.heads(self.frames_norm(x), tables.frames)
            x = x + self.frames.attend(q, k, v, causal=True)
            x = x.reshape(B, N, T, D).swapaxes(1, 2)
        x = x.reshape(B, T, N, D)
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "batch", None, None, "embed")

    def step(
        self, x_B1D: jax.Array, cell: jax.Array, tables: Tables, cache: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One cell of a frame, whose keys and values enter the cache (B, N, K, C): what a call
        gives of it where it is causal and sees no past; and the new cache."""
        here = [jax.lax.dynamic_slice_in_dim(table, cell, 1, axis=1) for table in tables.cells]
        q, k, v = self.cells.heads(self.cells_norm(x_B1D), here)
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, new, cell, axis=1)
            for old, new in zip(cache, (k, v), strict=True)
        )
        known_BN = jnp.broadcast_to(jnp.arange(k.shape[1]) <= cell, k.shape[:2]).astype(jnp.int32)
        own_B1 = jnp.ones_like(known_BN[:, :1])
        x = x_B1D + self.cells.attend(q, k, v, q_segments_BT=own_B1, kv_segments_BS=known_BN)
        return x + self.mlp(self.mlp_norm(x)), (k, v)
