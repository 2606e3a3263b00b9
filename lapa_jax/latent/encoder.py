"""The quantizer's encoder: pairs of neighbouring frames → one latent per code slot, f(last) −
f(first), by causal attention over the frames.

Shape suffixes: B clips, T frames, M = B·(T−1) pairs of neighbouring frames, I image rows, J image
columns, H and W grid rows and columns, D width, L code slots, Q latent width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.legacy import ConvCodeProjection
from lapa_jax.latent.parts import CodeProjection, Normalizer, PatchEmbedding, Transformer
from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.position import ContinuousPositionBias


class Pairs(NamedTuple):
    """The neighbouring frames of clips, clip by clip, and their latents."""

    first_MIJC: jax.Array  # float32 in [0, 1]
    last_MIJC: jax.Array
    embedded_BTHWD: jax.Array  # patches of all frames
    latent_MLQ: jax.Array  # float32

    @property
    def embedded_MHWD(self) -> jax.Array:
        """Patches of the first frame of every pair: what a decoder draws the last from."""
        return flat(self.embedded_BTHWD[:, :-1])


class Encoder(nnx.Module):
    """`Quantizer` is one, with all that follows. An objective may hold another, of other
    weights."""

    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patches = PatchEmbedding(config, rngs=rngs)
        self.bias = ContinuousPositionBias(config.grid, config.dim, config.heads, rngs=rngs)
        self.spatial = Transformer(config, config.spatial_depth, over="cells", rngs=rngs)
        self.temporal = Transformer(config, config.temporal_depth, over="frames", rngs=rngs)
        projection = ConvCodeProjection if config.legacy else CodeProjection
        self.code_projection = projection(config, rngs=rngs)
        decay = config.normalize_decay
        self.normalize = Normalizer(decay, config.code_length, config.quant_dim) if decay else None

    def pairs(self, frames_BTIJC: jax.Array, *, train: bool) -> Pairs:
        """What comes later than a pair has no part in its latent: the temporal attention is causal.
        In training latents are normalised by the batch, and the running statistics follow."""
        frames = self.frames(frames_BTIJC)
        first, last = flat(frames[:, :-1]), flat(frames[:, 1:])
        embedded = self.patches(frames)
        x = self.spatial(embedded.astype(dtype_of(self.config.compute_dtype)), self.bias())
        x = self.temporal(x)
        slots = self.code_projection(flat(x)).astype(jnp.float32)
        slots = slots.reshape(*x.shape[:2], *slots.shape[1:])
        z = flat(slots[:, 1:] - slots[:, :-1])
        if self.normalize is not None:
            z = self.normalize(z, train=train)
        return Pairs(first, last, embedded, z)

    def encode(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """The continuous latent, float32 (B, L, Q), of two frames of any distance, before the
        bottleneck; normalised by the running statistics."""
        pair = jnp.stack([self.frames(first_BIJC), self.frames(last_BIJC)], axis=1)
        return self.pairs(pair, train=False).latent_MLQ

    def encode_frame(self, frame_BIJC: jax.Array) -> jax.Array:
        """Spatial tokens (B, H, W, D) of frames that see no other."""
        embedded = self.patches(self.frames(frame_BIJC)[:, None])
        x = embedded.astype(dtype_of(self.config.compute_dtype))
        return self.spatial(x, self.bias())[:, 0]

    def frames(self, frames: jax.Array) -> jax.Array:
        """Float32 in [0, 1], of such or uint8 frames (..., I, J, 3)."""
        return unit_frames(frames, self.config.image_size)


def unit_frames(frames: jax.Array, image_size: tuple[int, int]) -> jax.Array:
    """Float32 in [0, 1], of such or uint8 frames (..., I, J, 3); ValueError for another size."""
    expected = (*image_size, 3)
    if frames.shape[-3:] != expected:
        raise ValueError(
            f"frames of shape {frames.shape} do not end in {expected}: model.image_size is "
            f"{image_size}"
        )
    if frames.dtype == jnp.uint8:
        return frames.astype(jnp.float32) / 255.0
    return frames.astype(jnp.float32)


def flat(x: jax.Array) -> jax.Array:
    """(B, T, ...) → (B·T, ...)."""
    return x.reshape(-1, *x.shape[2:])
