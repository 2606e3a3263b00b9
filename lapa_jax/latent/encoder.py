"""The quantizer's encoder: pairs of neighbouring frames → one latent per code slot, f(last) −
f(first), by causal attention over the frames.

Shape suffixes: B clips, T frames, M = B·(T−1) pairs of neighbouring frames, I image rows, J image
columns, H and W grid rows and columns, D width, L code slots, Q latent width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.legacy import ConvCodeProjection
from lapa_jax.latent.parts import (
    CodeProjection,
    Normalizer,
    PatchEmbedding,
    Transformer,
    by_frame,
)
from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.position import ContinuousPositionBias


class Pairs(NamedTuple):
    """The neighbouring frames of clips, clip by clip, and their latents."""

    first_MIJC: jax.Array  # float32 in [0, 1]
    last_MIJC: jax.Array
    embedded_BTHWD: jax.Array  # patches of all frames
    latent_MLQ: jax.Array  # float32
    features_BTHWD: jax.Array | None = None  # that latents are read off, of all frames

    @property
    def embedded_MHWD(self) -> jax.Array:
        """Patches of the first frame of every pair: what a decoder draws the last from."""
        return flat(self.embedded_BTHWD[:, :-1])


class FrameEncoder(nnx.Module):
    """What sees one frame."""

    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patches = PatchEmbedding(config, rngs=rngs)
        self.bias = ContinuousPositionBias(config.grid, config.dim, config.heads, rngs=rngs)
        self.spatial = Transformer(config, config.spatial_depth, over="cells", rngs=rngs)

    def encode_frame(self, frame_BIJC: jax.Array) -> jax.Array:
        """Spatial tokens (B, H, W, D) of frames that see no other."""
        embedded = self.patches(self.frames(frame_BIJC)[:, None])
        x = embedded.astype(dtype_of(self.config.compute_dtype))
        return self.spatial(x, self.bias())[:, 0]

    def frames(self, frames: jax.Array) -> jax.Array:
        """Float32 in [0, 1], of such or uint8 frames (..., I, J, 3)."""
        return unit_frames(frames, self.config.image_size)


class Encoder(FrameEncoder):
    """`Quantizer` is one, with all that follows. An objective may hold another, of other
    weights."""

    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.temporal = Transformer(config, config.temporal_depth, over="frames", rngs=rngs)
        projection = ConvCodeProjection if config.legacy else CodeProjection
        self.code_projection = projection(config, rngs=rngs)
        decay = config.normalize_decay
        self.normalize = Normalizer(decay, config.code_length, config.quant_dim) if decay else None

    def pairs(
        self,
        frames_BTIJC: jax.Array,
        *,
        train: bool,
        told: Callable[[jax.Array], jax.Array] | None = None,
    ) -> Pairs:
        """What comes later than a pair has no part in its latent: the temporal attention is causal.
        In training latents are normalised by the batch, and the running statistics follow. `told`:
        changes what the layers see (B, T, H, W, D)."""
        frames = self.frames(frames_BTIJC)
        first, last = flat(frames[:, :-1]), flat(frames[:, 1:])
        embedded = self.patches(frames)
        seen = self.seen(frames, embedded)
        x = self.temporal(self._spatial(seen if told is None else told(seen)))
        z = steps(x, self.code_projection, self.normalize, train=train)
        return Pairs(first, last, embedded, z, x)

    def latents(
        self,
        frames_BTIJC: jax.Array,
        firsts: Sequence[int],
        lasts: Sequence[int],
        *,
        train: bool,
        embedded_BTHWD: jax.Array | None = None,
        counted: Sequence[int] | None = None,
    ) -> jax.Array:
        """Latents float32 (B, P, L, Q) of the pairs (firsts[p], lasts[p]) of frames of a clip, in
        any order and of any distance; a frame may be paired with itself.

        Each is as `encode` gives it of these two frames, which no other frame changes. What a frame
        is as the first is computed once for all its pairs, and with model.spatial_sees="frame" the
        spatial layers once for every frame. In training latents are normalised by the batch, all
        pairs together, or those in `counted`, and the running statistics follow. `embedded_BTHWD`:
        `patches` of the frames, where they are there already.
        """
        frames, config = self.frames(frames_BTIJC), self.config
        if config.legacy:
            raise ValueError("model.legacy=True sees whole clips of two frames, no other pairs")
        if (needed := 1 + max(*firsts, *lasts)) > frames.shape[1]:
            raise ValueError(
                f"data.num_frames={frames.shape[1]} must be at least {needed} for "
                f"model.objective.name={config.objective['name']!r}"
            )
        embedded = self.patches(frames) if embedded_BTHWD is None else embedded_BTHWD
        alone = list(dict.fromkeys(firsts))
        where = [alone.index(i) for i in firsts]
        apart = config.spatial_sees == "frame"
        seen = self.seen(frames, embedded)
        x = self._spatial(seen) if apart else seen.astype(dtype_of(config.compute_dtype))
        x = jnp.stack([x[:, t] for t in (*alone, *lasts)], axis=1)
        x = x if apart else self.spatial.pairs(x, self.bias(), where)
        x = self.temporal.pairs(x, None, where)
        slots = by_frame(self.code_projection, x).astype(jnp.float32)
        begun = jnp.stack([slots[:, i] for i in where], axis=1)
        z = slots[:, len(alone) :] - begun
        if self.normalize is None:
            return z
        of = z if counted is None else jnp.stack([z[:, p] for p in counted], axis=1)
        return self.normalize(flat(z), train=train, of_MLQ=flat(of)).reshape(z.shape)

    def encode(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """The continuous latent, float32 (B, L, Q), of two frames of any distance, before the
        bottleneck; normalised by the running statistics."""
        pair = jnp.stack([self.frames(first_BIJC), self.frames(last_BIJC)], axis=1)
        return self.pairs(pair, train=False).latent_MLQ

    def seen(self, frames_BTIJC: jax.Array, embedded_BTHWD: jax.Array) -> jax.Array:
        """What latents are read off, (B, T, H, W, D): the patches of the frames."""
        del frames_BTIJC
        return embedded_BTHWD

    def _spatial(self, embedded_BTHWD: jax.Array) -> jax.Array:
        x = embedded_BTHWD.astype(dtype_of(self.config.compute_dtype))
        if self.config.spatial_sees == "clip":
            return self.spatial(x, self.bias())
        return self.spatial(flat(x)[:, None], self.bias()).reshape(x.shape)


def steps(
    x_BTHWD: jax.Array,
    projection: Callable[[jax.Array], jax.Array],
    normalize: Normalizer | None,
    *,
    train: bool,
) -> jax.Array:
    """Latents float32 (M, L, Q) of neighbouring frames, of features that see those before."""
    slots = projection(flat(x_BTHWD)).astype(jnp.float32)
    slots = slots.reshape(*x_BTHWD.shape[:2], *slots.shape[1:])
    z = flat(slots[:, 1:] - slots[:, :-1])
    return z if normalize is None else normalize(z, train=train)


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
