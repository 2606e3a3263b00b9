"""What the quantizer is made of: patches, blocks, and the projection to code slots.

Shape suffixes: B batch, T frames, I image rows, J image columns, H and W grid rows and columns, N =
H·W cells, D width, L code slots, Q latent width.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.latent.attention import CosineAttention
from lapa_jax.latent.bottlenecks.base import BottleneckState
from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.legacy import scrambled
from lapa_jax.nn.layers import GEGLU, Dense, LayerNorm, dtype_of
from lapa_jax.nn.patches import to_patches
from lapa_jax.nn.position import PositionConv
from lapa_jax.nn.stack import REMAT, Stack
from lapa_jax.parallel.sharding import constrain


class Block(nnx.Module):
    """Position convolution, self-attention, cross-attention where there is a context, feed-forward.

    `over`: self-attention over the "cells" of each frame, or over the "frames" at each cell
    (causal).
    """

    def __init__(self, config: QuantizerConfig, *, over: str, cross: bool, rngs: nnx.Rngs):
        dtype = dtype_of(config.compute_dtype)

        def attend(**kwargs):
            return CosineAttention(
                config.dim, config.heads, config.head_dim, dtype=dtype, rngs=rngs, **kwargs
            )

        self.position = PositionConv(config.dim, dtype=dtype, rngs=rngs)
        self.attention = attend(num_null=0, cross=False, normalize_kv=not config.legacy)
        self.cross = attend(num_null=2, cross=True) if cross else None
        self.mlp = GEGLU(config.dim, config.mlp_dim, dtype=dtype, rngs=rngs)
        self.over, self.implementation, self.legacy = over, config.attention, config.legacy

    def __call__(
        self,
        x_BTHWD: jax.Array,
        bias_KNN: jax.Array | None,
        context_BLD: jax.Array | None,
        known_BL: jax.Array | None,
    ) -> jax.Array:
        B, T, H, W, D = x_BTHWD.shape
        if self.over == "frames":
            moved = scrambled(self.position, x_BTHWD) if self.legacy else self.position(x_BTHWD)
            x = (x_BTHWD + moved).reshape(B, T, H * W, D)
            x = x + self.attention.over_frames(
                x, seen=[range(T if self.legacy else t + 1) for t in range(T)]
            )
        else:
            x = (x_BTHWD + self.position(x_BTHWD)).reshape(B * T, H * W, D)
            x = x + self.attention(x, bias_KTS=bias_KNN, implementation=self.implementation)
        if self.cross is not None:
            x = x + self.cross(
                x, context_BLD, known_BS=known_BL, implementation=self.implementation
            )
        x = x + self.mlp(x)
        return constrain(x.reshape(B, T, H, W, D), "batch", None, None, None, "embed")

    def pairs(
        self, x_BTHWD: jax.Array, bias_KNN: jax.Array | None, firsts: Sequence[int]
    ) -> jax.Array:
        """The block of pairs of frames, T − P first frames before the P last: what a first frame
        is does not depend on the last, so it is computed once for all pairs that begin with it.
        `firsts`: where the first frame of each pair is."""
        B, T, H, W, D = x_BTHWD.shape
        alone = T - len(firsts)
        before = self.position.before(x_BTHWD[:, :alone])
        before = jnp.stack([before[:, i] for i in firsts], axis=1)
        x = x_BTHWD + self.position.alone(x_BTHWD)
        x = jnp.concatenate([x[:, :alone], x[:, alone:] + before], axis=1)
        if self.over == "frames":
            x = x.reshape(B, T, H * W, D)
            x = x + self.attention.of_pairs(x, firsts)
        else:
            x = x.reshape(B * T, H * W, D)
            x = x + self.attention(x, bias_KTS=bias_KNN, implementation=self.implementation)
        x = x.reshape(B, T, H * W, D)
        x = x + by_frame(self.mlp, x)
        return constrain(x.reshape(B, T, H, W, D), "batch", None, None, None, "embed")


def by_frame(function: Callable[[jax.Array], jax.Array], x_BT: jax.Array) -> jax.Array:
    """`function` of every frame by itself, (B, ...) → (B, ...). One after the other, so that what
    no matrix product gives is computed again for the gradient instead of being kept: of the pairs
    of a clip there are several times as many frames as of a pair."""
    again = jax.checkpoint(function, policy=REMAT["dots"], prevent_cse=False)
    _, y = jax.lax.scan(lambda _, x: (None, again(x)), None, jnp.moveaxis(x_BT, 1, 0))
    return jnp.moveaxis(y, 0, 1)


class Transformer(nnx.Module):
    """A stack of blocks and a final norm."""

    def __init__(
        self,
        config: QuantizerConfig,
        depth: int,
        *,
        over: str,
        cross: bool = False,
        rngs: nnx.Rngs,
    ):
        self.stack = Stack(
            lambda rngs: Block(config, over=over, cross=cross, rngs=rngs),
            depth,
            remat=config.remat,
            unroll=config.unroll,
            rngs=rngs,
        )
        self.norm = LayerNorm(config.dim)

    def __call__(
        self,
        x_BTHWD: jax.Array,
        bias_KNN: jax.Array | None = None,
        context_BLD: jax.Array | None = None,
        known_BL: jax.Array | None = None,
    ) -> jax.Array:
        x, _ = self.stack(x_BTHWD, bias_KNN, context_BLD, known_BL)
        return self.norm(x)

    def pairs(
        self, x_BTHWD: jax.Array, bias_KNN: jax.Array | None, firsts: Sequence[int]
    ) -> jax.Array:
        """See `Block.pairs`."""
        x, _ = self.stack(x_BTHWD, bias_KNN, firsts, method="pairs")
        return self.norm(x)


class PatchEmbedding(nnx.Module):
    """Each patch's pixels: norm, linear, norm."""

    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
        pixels = 3 * config.patch_size**2
        self.norm_in = LayerNorm(pixels, axis="patch", bias=True)
        self.project = Dense(
            (pixels,),
            (config.dim,),
            ("patch", "embed"),
            bias=True,
            dtype=dtype_of(config.compute_dtype),
            rngs=rngs,
        )
        self.norm_out = LayerNorm(config.dim, bias=True)
        self.patch_size = config.patch_size

    def __call__(self, frames_BTIJC: jax.Array) -> jax.Array:
        patches = to_patches(frames_BTIJC, self.patch_size)
        return self.norm_out(self.project(self.norm_in(patches)))


class CodeProjection(nnx.Module):
    """f: the cells of one code slot → its latent, from the moments of what the cells say.

    With h the features of a cell: the sums over cells of h, of h · row and of h · column. As z is a
    difference of two frames, a feature that moves changes its first moments by its motion, wherever
    it is; weights of their own for every cell learn the places instead.
    """

    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
        dtype, D = dtype_of(config.compute_dtype), config.dim
        rows, columns = config.code_grid
        self.slots = config.code_grid
        self.weights = moment_weights(config.grid[0] // rows, config.grid[1] // columns)
        self.cell = Dense((D,), (D,), ("embed", "mlp"), bias=True, dtype=dtype, rngs=rngs)
        # The latent feeds an argmin: its last step is in float32.
        self.out = Dense(
            (3, D), (config.quant_dim,), (None, "mlp", None), dtype=jnp.float32, rngs=rngs
        )

    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        x = jax.nn.gelu(self.cell(x_BHWD)).astype(jnp.float32)
        B, H, W, D = x.shape
        (rows, columns), (h, w, _) = self.slots, self.weights.shape
        x = x.reshape(B, rows, h, columns, w, D)
        moments = jnp.einsum("brhcwd,hwm->brcmd", x, self.weights)
        return self.out(moments.reshape(B, rows * columns, 3, D))


def moment_weights(rows: int, columns: int) -> np.ndarray:
    """Weights float32 (rows, columns, 3) of the constant, row and column moment of a grid.

    Each has a root mean square of 1 over the grid (a single row or column: 0), divided by the root
    of the number of cells, so that a moment is as large whatever the grid.
    """
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    centred = grid - grid.mean(axis=(0, 1))
    centred = centred / np.maximum(centred.std(axis=(0, 1)), 1e-6)
    weights = np.concatenate([np.ones((rows, columns, 1)), centred], axis=-1)
    return (weights / math.sqrt(rows * columns)).astype(np.float32)


class Normalizer(nnx.Module):
    """Batch normalisation of each slot's latents without scale and shift: by the batch in training,
    by running statistics in evaluation (as Lancucki et al. 2020 do before vector quantisation).

    Normalised latents cannot drift away from their codebook, and the little that they say early in
    training is as loud as the noise. What all pairs have in common in a slot, such as its place,
    says nothing of the motion; in one codebook for all slots it would take the codes.
    """

    def __init__(self, decay: float, code_length: int, dim: int):
        self.mean = BottleneckState(jnp.zeros((code_length, dim), jnp.float32))
        self.variance = BottleneckState(jnp.ones((code_length, dim), jnp.float32))
        self.decay = decay

    def __call__(
        self, z_BLQ: jax.Array, *, train: bool, of_MLQ: jax.Array | None = None
    ) -> jax.Array:
        """`of_MLQ`: what the batch's statistics are of, where not of all latents."""
        if not train:
            mean_LQ, variance_LQ = self.mean[...], self.variance[...]
        else:
            of_MLQ = z_BLQ if of_MLQ is None else of_MLQ
            mean_LQ, variance_LQ = jnp.mean(of_MLQ, axis=0), jnp.var(of_MLQ, axis=0)
            for running, batch_LQ in ((self.mean, mean_LQ), (self.variance, variance_LQ)):
                kept = self.decay * running[...]
                running[...] = kept + (1.0 - self.decay) * jax.lax.stop_gradient(batch_LQ)
        return (z_BLQ - mean_LQ) * jax.lax.rsqrt(variance_LQ + 1e-12)
