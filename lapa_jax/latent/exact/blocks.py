"""The transformers of Genie-style models (Bruce et al. 2024) as UniVLA, ALAM and AdaWorld have
them, and their quantisation.

Shape suffixes: B clips, T frames, S tokens of a frame, I width of what is fed, K heads, C head
width, D width, O width of what comes out, L code slots, Q latent width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.latent.attention import frame_attention
from lapa_jax.latent.bottlenecks.base import nearest_code
from lapa_jax.latent.bottlenecks.vq import straight_through
from lapa_jax.nn.attention import attention
from lapa_jax.nn.layers import Dense, LayerNorm, dtype_of
from lapa_jax.nn.module import param
from lapa_jax.nn.position import rope, rope_tables
from lapa_jax.nn.stack import Stack
from lapa_jax.parallel.sharding import constrain

ROTARY_THETA = 10_000.0


class Attention(nnx.Module):
    """Queries, keys and values without bias, scores over the root of the head width."""

    def __init__(self, dim: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape, names = (heads, dim // heads), ("heads", "head_dim")

        def dense():
            return Dense((dim,), shape, ("embed", *names), dtype=dtype, rngs=rngs)

        self.q, self.k, self.v = dense(), dense(), dense()
        self.out = Dense(shape, (dim,), (*names, "embed"), bias=True, dtype=dtype, rngs=rngs)
        self.scale = shape[1] ** -0.5

    def over_tokens(
        self, x_BTSD: jax.Array, seen_BTS: jax.Array | None, implementation: str
    ) -> jax.Array:
        """Among the tokens of a frame; `seen_BTS`, int32, is 0 for those that nobody sees."""
        B, T, S, D = x_BTSD.shape
        x, masks = x_BTSD.reshape(B * T, S, D), {}
        if seen_BTS is not None:
            seen = seen_BTS.reshape(B * T, S)
            masks = {"q_segments_BT": jnp.ones_like(seen), "kv_segments_BS": seen}
        y = attention(
            *(self.q(x), self.k(x), self.v(x)),
            scale=self.scale,
            implementation=implementation,
            **masks,
        )
        return self.out(y).reshape(B, T, S, D)

    def over_frames(self, x_BTSD: jax.Array, *, causal: bool, rotary: bool) -> jax.Array:
        """Among the frames of a token."""
        q, k, v = self.q(x_BTSD), self.k(x_BTSD), self.v(x_BTSD)
        if rotary:
            q, k = rotate(q), rotate(k)
        T = x_BTSD.shape[1]
        seen = [range(t + 1 if causal else T) for t in range(T)]
        return self.out(frame_attention(q * self.scale, k, v, seen=seen))


def rotate(x_BTSKC: jax.Array) -> jax.Array:
    """Turns the pairs (2i, 2i + 1) by the number of the frame times 10000^(−2i/C)."""
    B, T, S, K, C = x_BTSKC.shape
    tables = rope_tables(jnp.arange(T)[None], C, ROTARY_THETA)
    return rope(x_BTSKC.reshape(B, T, S * K, C), *tables).reshape(x_BTSKC.shape)


class Block(nnx.Module):
    """Pre-norm attention over tokens, over frames where there is `time` ("causal", or "rotary" in
    both directions), and a feed-forward of four times the width."""

    def __init__(self, config: Any, dim: int, *, time: str, rngs: nnx.Rngs):
        dtype = dtype_of(config.compute_dtype)

        def dense(inputs, outputs, axes):
            return Dense((inputs,), (outputs,), axes, bias=True, dtype=dtype, rngs=rngs)

        self.spatial_norm = LayerNorm(dim, bias=True)
        self.spatial = Attention(dim, config.heads, dtype=dtype, rngs=rngs)
        self.temporal_norm = LayerNorm(dim, bias=True) if time else None
        self.temporal = Attention(dim, config.heads, dtype=dtype, rngs=rngs) if time else None
        self.mlp_norm = LayerNorm(dim, bias=True)
        self.wi = dense(dim, 4 * dim, ("embed", "mlp"))
        self.wo = dense(4 * dim, dim, ("mlp", "embed"))
        self.time, self.implementation = time, config.attention

    def __call__(self, x_BTSD: jax.Array, seen_BTS: jax.Array | None) -> jax.Array:
        x = x_BTSD
        x = x + self.spatial.over_tokens(self.spatial_norm(x), seen_BTS, self.implementation)
        if self.temporal is not None:
            x = x + self.temporal.over_frames(
                self.temporal_norm(x), causal=self.time == "causal", rotary=self.time == "rotary"
            )
        x = x + self.wo(jax.nn.gelu(self.wi(self.mlp_norm(x)), approximate=False))
        return constrain(x, "batch", None, None, "embed")


class Transformer(nnx.Module):
    """Norm, linear, norm, positions, blocks; no norm at the end. `time`: as of `Block`, empty for
    frames that do not see each other. `outputs`: width of a linear map at the end, 0 for none.

    `config` says heads, compute_dtype, attention, remat and unroll.
    """

    def __init__(
        self,
        config: Any,
        inputs: int,
        dim: int,
        depth: int,
        *,
        time: str = "",
        outputs: int = 0,
        rngs: nnx.Rngs,
    ):
        dtype = dtype_of(config.compute_dtype)

        def dense(inputs, outputs, axes):
            return Dense((inputs,), (outputs,), axes, bias=True, dtype=dtype, rngs=rngs)

        self.norm_in = LayerNorm(inputs, axis=None, bias=True)
        self.project = dense(inputs, dim, (None, "embed"))
        self.norm_out = LayerNorm(dim, bias=True)
        self.stack = Stack(
            lambda rngs: Block(config, dim, time=time, rngs=rngs),
            depth,
            remat=config.remat,
            unroll=config.unroll,
            rngs=rngs,
        )
        self.out = dense(dim, outputs, ("embed", None)) if outputs else None
        self.dtype = dtype

    def __call__(
        self,
        x_BTSI: jax.Array,
        more_BTSD: jax.Array | None = None,
        seen_BTS: jax.Array | None = None,
    ) -> jax.Array:
        """(B, T, S, D or O). `more_BTSD` are tokens without a position that follow the others."""
        x = self.norm_out(self.project(self.norm_in(x_BTSI.astype(self.dtype))))
        x = x + jnp.asarray(positions(*x.shape[2:]), x.dtype)
        if more_BTSD is not None:
            x = jnp.concatenate([x, more_BTSD.astype(x.dtype)], axis=2)
        x, _ = self.stack(x, seen_BTS)
        return x if self.out is None else self.out(x)


def positions(count: int, dim: int) -> np.ndarray:
    """float32 (count, dim): sin and cos of p·10000^(−2i/dim) side by side."""
    angles = np.arange(count)[:, None] * 10_000.0 ** (-np.arange(0, dim, 2) / dim)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return table.reshape(count, dim).astype(np.float32)


def queries(tokens: nnx.Variable, x_BTSI: jax.Array) -> jax.Array:
    """The tokens (n, I) before those of every frame."""
    B, T, _, width = x_BTSI.shape
    n = len(tokens[...])
    first = jnp.broadcast_to(tokens[...], (B, T, n, width)).astype(x_BTSI.dtype)
    return jnp.concatenate([first, x_BTSI], axis=2)


def check_width(dim: int, heads: int) -> None:
    """Raises ValueError for a width that the heads, or the pairs of positions, do not divide."""
    if dim % heads or dim % 2:
        raise ValueError(f"model.dim={dim} must be even and a multiple of model.heads={heads}")


class Codebook(nnx.Module):
    """The nearest code, with a straight-through gradient."""

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs):
        bound = 1.0 / size
        codes = jax.random.uniform(rngs.params(), (size, width), minval=-bound, maxval=bound)
        self.codes = param(codes, "code", None)

    def nearest(self, z_BLQ: jax.Array) -> jax.Array:
        return nearest_code(z_BLQ.astype(jnp.float32), self.codes[...])

    def __call__(self, z_BLQ: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(what the decoder receives, codes int32 (B, L), the mean squared distances
        `codebook_loss`, which moves codes, and `commitment_loss`, which moves latents)."""
        z_BLQ = z_BLQ.astype(jnp.float32)
        codes_BL = self.nearest(z_BLQ)
        hard_BLQ = self.codes[...][codes_BL]
        losses = {
            "codebook_loss": jnp.mean(jnp.square(jax.lax.stop_gradient(z_BLQ) - hard_BLQ)),
            "commitment_loss": jnp.mean(jnp.square(z_BLQ - jax.lax.stop_gradient(hard_BLQ))),
        }
        return straight_through(z_BLQ, hard_BLQ), codes_BL, losses


def weighed(config: Any, losses: Mapping[str, jax.Array]) -> jax.Array:
    """The quantisation's part of a loss, of a config with both weights."""
    return (
        config.codebook_weight * losses["codebook_loss"]
        + config.commitment_weight * losses["commitment_loss"]
    )


def image_patches(frames: jax.Array, patch: int) -> jax.Array:
    """(..., I, J, 3) → (..., N, 3·patch²), patches row by row, each ordered (row, column,
    channel)."""
    *lead, rows, columns, channels = frames.shape
    x = frames.reshape(*lead, rows // patch, patch, columns // patch, patch, channels)
    n = len(lead)
    x = x.transpose(*range(n), n, n + 2, n + 1, n + 3, n + 4)
    return x.reshape(*lead, -1, channels * patch**2)


def image_of(patches_BNP: jax.Array, patch: int, image_size: tuple[int, int]) -> jax.Array:
    """The inverse of `image_patches`, (B, I, J, 3)."""
    rows, columns = (side // patch for side in image_size)
    x = patches_BNP.reshape(-1, rows, columns, patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, *image_size, 3)
