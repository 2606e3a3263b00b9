"""The latent action quantizer: a frame pair → codes → the later frame.

An encoder with causal attention over the two frames yields one latent per code slot, f(last) −
f(first); the bottleneck makes codes of them; a decoder sees the first frame and, by
cross-attention, the codes, and predicts the later frame. Frames are float in [0, 1] or uint8,
channels last.

Shape suffixes: B batch, T frames, I image rows, J image columns, H and W grid rows and columns, N =
H·W cells, D width, L code slots, Q latent width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.models.attention import CosineAttention
from lapa_jax.models.bottleneck import BOTTLENECKS, bottleneck_config
from lapa_jax.models.layers import GEGLU, Dense, LayerNorm, dtype_of, truncated_normal
from lapa_jax.models.module import param
from lapa_jax.models.position import ContinuousPositionBias, PositionConv
from lapa_jax.models.stack import Stack
from lapa_jax.parallel.sharding import constrain

PREDICT = ("frame", "residual")


@dataclass(frozen=True)
class QuantizerConfig:
    """`bottleneck`: {name, ...its settings}. `predict`: the decoder's output is the later "frame"
    itself (the paper) or a "residual" added to the pixels of the first frame. `unroll`: layers per
    scan step, 0 for all."""

    image_size: tuple[int, int]
    patch_size: int
    dim: int
    mlp_dim: int
    heads: int
    head_dim: int
    spatial_depth: int
    temporal_depth: int
    decoder_depth: int
    quant_dim: int
    codebook_size: int
    code_length: int
    bottleneck: Mapping[str, Any]
    predict: str
    compute_dtype: str
    attention: str
    remat: str
    unroll: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "bottleneck", dict(self.bottleneck))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", int) and field.name != "unroll" and value < 1:
                raise ValueError(f"model.{field.name}={value} must be at least 1")
        if self.codebook_size < 2:
            raise ValueError(f"model.codebook_size={self.codebook_size} must be at least 2")
        if self.predict not in PREDICT:
            raise ValueError(f"model.predict={self.predict!r} must be one of {PREDICT}")
        bottleneck_config(self.bottleneck)
        dtype_of(self.compute_dtype)
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"model.image_size={self.image_size} must be a multiple of "
                f"model.patch_size={self.patch_size} on both sides"
            )
        code_grid(self.code_length, self.grid, self.image_size, self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def code_grid(self) -> tuple[int, int]:
        """Code rows and columns."""
        return code_grid(self.code_length, self.grid, self.image_size, self.patch_size)


def code_grid(
    code_length: int, grid: tuple[int, int], image_size: tuple[int, int], patch_size: int
) -> tuple[int, int]:
    """The squarest (rows, columns) with rows · columns = code_length that divide the patch grid."""
    candidates = [
        (rows, code_length // rows)
        for rows in range(1, code_length + 1)
        if code_length % rows == 0 and grid[0] % rows == 0 and grid[1] % (code_length // rows) == 0
    ]
    if not candidates:
        raise ValueError(
            f"model.code_length={code_length} cannot be laid over the {grid[0]}x{grid[1]} patch "
            f"grid of model.image_size={image_size} / model.patch_size={patch_size}: it needs "
            f"rows x columns = {code_length} with rows dividing {grid[0]} and columns "
            f"dividing {grid[1]}"
        )
    return min(candidates, key=lambda shape: (abs(shape[0] - shape[1]), shape[1]))


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
        self.attention = attend(num_null=0, cross=False)
        self.cross = attend(num_null=2, cross=True) if cross else None
        self.mlp = GEGLU(config.dim, config.mlp_dim, dtype=dtype, rngs=rngs)
        self.over, self.implementation = over, config.attention

    def __call__(
        self, x_BTHWD: jax.Array, bias_KNN: jax.Array | None, context_BLD: jax.Array | None
    ) -> jax.Array:
        B, T, H, W, D = x_BTHWD.shape
        x = x_BTHWD + self.position(x_BTHWD)
        if self.over == "frames":
            x = x.reshape(B, T, H * W, D)
            x = x + self.attention.over_frames(x)
        else:
            x = x.reshape(B * T, H * W, D)
            x = x + self.attention(x, bias_KTS=bias_KNN, implementation=self.implementation)
        if self.cross is not None:
            x = x + self.cross(x, context_BLD, implementation=self.implementation)
        x = x + self.mlp(x)
        return constrain(x.reshape(B, T, H, W, D), "batch", None, None, None, "embed")


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
    ) -> jax.Array:
        x, _ = self.stack(x_BTHWD, bias_KNN, context_BLD)
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


class Quantizer(nnx.Module):
    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
        dtype = dtype_of(config.compute_dtype)
        self.config = config
        self.patches = PatchEmbedding(config, rngs=rngs)
        self.bias = ContinuousPositionBias(config.grid, config.dim, config.heads, rngs=rngs)
        self.spatial = Transformer(config, config.spatial_depth, over="cells", rngs=rngs)
        self.temporal = Transformer(config, config.temporal_depth, over="frames", rngs=rngs)
        self.code_projection = CodeProjection(config, rngs=rngs)
        name, settings = bottleneck_config(config.bottleneck)
        self.bottleneck = BOTTLENECKS[name][1](
            settings, config.codebook_size, config.quant_dim, rngs=rngs
        )
        self.context = Dense(
            (config.quant_dim,), (config.dim,), (None, "embed"), bias=True, dtype=dtype, rngs=rngs
        )
        slots = truncated_normal(rngs.params(), (config.code_length, config.dim), 0.02)
        self.slots = param(slots, None, "embed")
        self.decoder = Transformer(
            config, config.decoder_depth, over="cells", cross=True, rngs=rngs
        )
        self.pixels = Dense(
            (config.dim,),
            (3 * config.patch_size**2,),
            ("embed", "patch"),
            bias=True,
            std=0.0 if config.predict == "residual" else None,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, frames_B2IJC: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> dict[str, Any]:
        """{loss, mse, recon (B,H,W,3), z int32 (B,L), metrics {name: scalar}}.

        In training `recon` carries the bottleneck's noise; in evaluation it is decoded from the
        hard codes.
        """
        frames = self._frames(frames_B2IJC)
        first, last = frames[:, 0], frames[:, 1]
        embedded = self.patches(frames)
        out = self.bottleneck(self._encode(embedded), rng=rng, train=train)
        recon = self._decode(first, embedded[:, :1], out.z_q_BLD)
        mse = jnp.mean(jnp.square(recon - last))
        copy = jnp.mean(jnp.square(first - last))
        metrics = {**out.metrics, "mse": mse, "copy_mse": copy, "bottleneck_loss": out.loss}
        return {
            "loss": mse + out.loss,
            "mse": mse,
            "recon": recon,
            "z": out.codes_BL,
            "metrics": metrics,
        }

    def encode(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """The continuous latent, float32 (B, L, Q), before the bottleneck."""
        frames = self._frames(jnp.stack([first_BIJC, last_BIJC], axis=1))
        return self._encode(self.patches(frames))

    def quantize(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """The latent action z, int32 (B, L)."""
        z_e = self.encode(first_BIJC, last_BIJC)
        return self.bottleneck(z_e, rng=None, train=False).codes_BL

    def decode(self, first_BIJC: jax.Array, z_BL: jax.Array) -> jax.Array:
        """The predicted later frame (B, H, W, 3), float32, not clipped."""
        first = self._frames(first_BIJC[:, None])
        return self._decode(first[:, 0], self.patches(first), self.bottleneck.lookup(z_BL))

    def after_update(self, step: jax.Array, rng: jax.Array) -> None:
        """Housekeeping of the bottleneck after optimizer step `step` (from 0)."""
        self.bottleneck.after_update(step, rng)

    def _frames(self, frames: jax.Array) -> jax.Array:
        expected = (*self.config.image_size, 3)
        if frames.shape[-3:] != expected:
            raise ValueError(
                f"frames of shape {frames.shape} do not end in {expected}: model.image_size is "
                f"{self.config.image_size}"
            )
        if frames.dtype == jnp.uint8:
            return frames.astype(jnp.float32) / 255.0
        return frames.astype(jnp.float32)

    def _encode(self, embedded_BTHWD: jax.Array) -> jax.Array:
        x = self.spatial(embedded_BTHWD.astype(dtype_of(self.config.compute_dtype)), self.bias())
        x = self.temporal(x)
        f_first, f_last = self.code_projection(x[:, 0]), self.code_projection(x[:, 1])
        return f_last - f_first

    def _decode(
        self, first_BIJC: jax.Array, embedded_B1HWD: jax.Array, z_BLQ: jax.Array
    ) -> jax.Array:
        dtype = dtype_of(self.config.compute_dtype)
        context = self.context(z_BLQ) + self.slots[...].astype(dtype)
        # The gradient must come through the codes: the decoder may not shape the first frame's
        # embedding.
        x = jax.lax.stop_gradient(embedded_B1HWD).astype(dtype)
        x = self.decoder(x, self.bias(), context)
        frame = from_patches(self.pixels(x)[:, 0].astype(jnp.float32), self.config.patch_size)
        return first_BIJC + frame if self.config.predict == "residual" else frame


def to_patches(frames: jax.Array, patch: int) -> jax.Array:
    """(..., I, J, C) → (..., H, W, C·patch²), within a patch ordered (channel, row, column)."""
    *lead, rows, columns, channels = frames.shape
    x = frames.reshape(*lead, rows // patch, patch, columns // patch, patch, channels)
    n = len(lead)
    x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*lead, rows // patch, columns // patch, channels * patch**2)


def from_patches(patches_BHWP: jax.Array, patch: int) -> jax.Array:
    """The inverse of `to_patches`, for three channels."""
    B, H, W, P = patches_BHWP.shape
    x = patches_BHWP.reshape(B, H, W, P // patch**2, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(B, H * patch, W * patch, -1)


def quantizer_flops(config: QuantizerConfig) -> int:
    """Floating-point operations of one example's forward pass (a multiply-add is two), from the
    shapes: matrix products and the position convolutions, no element-wise work."""
    cells = math.prod(config.grid)
    inner = config.heads * config.head_dim
    pixels, dim, codes = 3 * config.patch_size**2, config.dim, config.code_length

    def block(frames: int, keys: float, taps: int, cross: bool) -> float:
        tokens = frames * cells
        per_token = taps * dim + 4 * dim * inner + 2 * keys * inner + 3 * dim * config.mlp_dim
        total = tokens * per_token
        if cross:
            total += tokens * (2 * dim * inner + 2 * (codes + 2) * inner) + codes * 2 * dim * inner
        return total

    # Taps of the position convolution that meet a frame: 9 for the first, 18 for the second.
    total = 2 * cells * pixels * dim
    total += config.spatial_depth * block(2, cells, 18, False)
    total += config.temporal_depth * block(2, 1.0, 18, False)
    total += config.decoder_depth * block(1, cells, 9, True)
    total += cells * dim * pixels
    total += 2 * (cells * dim * dim + 3 * cells * dim + codes * 3 * dim * config.quant_dim)
    total += codes * config.quant_dim * (config.codebook_size + dim)
    return int(2 * total)
