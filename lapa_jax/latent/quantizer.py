"""The latent action quantizer: a frame pair → codes → the later frame.

An encoder with causal attention over the frames yields one latent per code slot, f(last) −
f(first); the bottleneck makes codes of them; a decoder sees the first frame and, by
cross-attention, the codes, and predicts the later frame. A clip of more than two frames is its
pairs of neighbours, whose latents may look at the frames before. Frames are float in [0, 1] or
uint8, channels last.

Shape suffixes: B batch, T frames, M = B·(T−1) pairs of neighbouring frames, I image rows, J image
columns, H and W grid rows and columns, N = H·W cells, D width, L code slots, Q latent width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.bottlenecks import BOTTLENECKS, bottleneck_config
from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.health import CodeHealth
from lapa_jax.latent.legacy import ConvCodeProjection, mix_channels
from lapa_jax.latent.objectives import OBJECTIVES, Clip, objective_config
from lapa_jax.latent.parts import CodeProjection, Normalizer, PatchEmbedding, Transformer
from lapa_jax.nn.layers import Dense, dtype_of, truncated_normal
from lapa_jax.nn.module import param
from lapa_jax.nn.patches import from_patches
from lapa_jax.nn.position import ContinuousPositionBias


class Reading(NamedTuple):
    """What is read off B pairs in evaluation."""

    z_BL: jax.Array | None  # int32 codes; None from a continuous bottleneck
    latent_BLQ: jax.Array  # before the bottleneck
    received_BLQ: jax.Array  # by the decoder


class Quantizer(nnx.Module):
    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
        dtype = dtype_of(config.compute_dtype)
        self.config = config
        self.patches = PatchEmbedding(config, rngs=rngs)
        self.bias = ContinuousPositionBias(config.grid, config.dim, config.heads, rngs=rngs)
        self.spatial = Transformer(config, config.spatial_depth, over="cells", rngs=rngs)
        self.temporal = Transformer(config, config.temporal_depth, over="frames", rngs=rngs)
        if config.legacy:
            self.code_projection = ConvCodeProjection(
                config.dim, config.quant_dim, config.code_length, rngs=rngs
            )
        else:
            self.code_projection = CodeProjection(config, rngs=rngs)
        decay = config.normalize_decay
        self.normalize = Normalizer(decay, config.code_length, config.quant_dim) if decay else None
        name, settings = bottleneck_config(config.bottleneck)
        self.bottleneck = BOTTLENECKS[name][1](
            settings, config.codebook_size, config.quant_dim, rngs=rngs
        )
        health = CodeHealth(config.code_length, config.codebook_size, config.collapse_fraction)
        self.health = health if config.has_codes else None
        self.context = Dense(
            (config.quant_dim,), (config.dim,), (None, "embed"), bias=True, dtype=dtype, rngs=rngs
        )
        slots = truncated_normal(rngs.params(), (config.code_length, config.dim), 0.02)
        self.slots = None if config.legacy else param(slots, None, "embed")
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
        name, settings = objective_config(config.objective)
        self.objective = OBJECTIVES[name][1](settings, config, rngs=rngs)

    def __call__(
        self, frames_BTIJC: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> dict[str, Any]:
        """{loss, mse, recon (M,I,J,C), z int32 (M,L) or None, metrics {name: scalar}} of the M =
        B·(T−1) pairs of neighbouring frames, clip by clip.

        In training `recon` is drawn from what the decoder receives then (with NSVQ: with noise); in
        evaluation it is drawn from the codes, or from the latent of a continuous bottleneck.
        """
        frames = self._frames(frames_BTIJC)
        first, last = _flat(frames[:, :-1]), _flat(frames[:, 1:])
        embedded = self.patches(frames)
        z_e = self._encode(embedded, train=train)
        out = self.bottleneck(self.objective.bottleneck_input(z_e), rng=rng, train=train)
        z = self.objective.decoder_input(z_e, out) if train else out.z_q_BLD
        tokens = self._decode(_flat(embedded[:, :-1]), z)
        recon = self._draw(first, tokens)
        clip = Clip(
            frames,
            first,
            last,
            latent_MLQ=z_e,
            received_MLQ=z,
            tokens_MHWD=tokens,
            recon_MIJC=recon,
            encode_frame=self._encode_frame,
            encode_pair=self._encode_pair,
            decode=self.decode_latent,
        )
        loss, metrics = self.objective(clip)
        latent_loss = self.objective.latent_loss(z_e, out)
        mse = jnp.mean(jnp.square(recon - last))
        copy = jnp.mean(jnp.square(first - last))
        metrics = {**out.metrics, **metrics, "mse": mse, "copy_mse": copy}
        if self.health is not None:
            metrics |= self.health(out.codes_BL, train=train)
        return {
            "loss": loss + latent_loss,
            "mse": mse,
            "recon": recon,
            "z": out.codes_BL,
            "metrics": metrics | {"bottleneck_loss": latent_loss},
        }

    def encode(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """The continuous latent, float32 (B, L, Q), before the bottleneck."""
        return self._encode_pair(self._frames(first_BIJC), self._frames(last_BIJC))

    def quantize(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """The latent action z, int32 (B, L)."""
        self.config.require_codes()
        return self.read(first_BIJC, last_BIJC).z_BL

    def read(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> Reading:
        latent = self.encode(first_BIJC, last_BIJC)
        out = self.bottleneck(latent, train=False)
        return Reading(out.codes_BL, latent, out.z_q_BLD)

    def decode(self, first_BIJC: jax.Array, z_BL: jax.Array) -> jax.Array:
        """The predicted later frame (B, H, W, 3), float32, not clipped."""
        self.config.require_codes()
        return self.decode_latent(first_BIJC, self.bottleneck.lookup(z_BL))

    def decode_latent(self, first_BIJC: jax.Array, z_BLQ: jax.Array) -> jax.Array:
        """As `decode`, from what the bottleneck gives, float (B, L, Q)."""
        first = self._frames(first_BIJC)
        return self._draw(first, self._decode(self.patches(first[:, None])[:, 0], z_BLQ))

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

    def _encode(self, embedded_BTHWD: jax.Array, *, train: bool) -> jax.Array:
        """Latents float32 (M, L, Q) of neighbouring frames. What comes later than a pair has no
        part in its latent: the temporal attention is causal."""
        x = self.spatial(embedded_BTHWD.astype(dtype_of(self.config.compute_dtype)), self.bias())
        x = self.temporal(x)
        slots = self.code_projection(_flat(x)).astype(jnp.float32)
        slots = slots.reshape(*x.shape[:2], *slots.shape[1:])
        z = _flat(slots[:, 1:] - slots[:, :-1])
        return z if self.normalize is None else self.normalize(z, train=train)

    def _encode_pair(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """Latents (B, L, Q) of frames of any distance, normalised by the running statistics."""
        embedded = self.patches(jnp.stack([first_BIJC, last_BIJC], axis=1))
        return self._encode(embedded, train=False)

    def _encode_frame(self, frame_BIJC: jax.Array) -> jax.Array:
        """Spatial tokens (B, H, W, D) of frames that see no other."""
        embedded = self.patches(frame_BIJC[:, None])
        x = embedded.astype(dtype_of(self.config.compute_dtype))
        return self.spatial(x, self.bias())[:, 0]

    def _decode(self, embedded_MHWD: jax.Array, z_MLQ: jax.Array) -> jax.Array:
        """The decoder's tokens (M, H, W, D)."""
        dtype = dtype_of(self.config.compute_dtype)
        if self.config.legacy:
            context = self.context(mix_channels(z_MLQ))
        else:
            context = self.context(z_MLQ) + self.slots[...].astype(dtype)
        # The gradient must come through the codes: the decoder may not shape the first frame's
        # embedding.
        x = jax.lax.stop_gradient(embedded_MHWD[:, None]).astype(dtype)
        return self.decoder(x, self.bias(), context)[:, 0]

    def _draw(self, first_BIJC: jax.Array, tokens_BHWD: jax.Array) -> jax.Array:
        if not self.objective.draws_with_gradient:
            tokens_BHWD = jax.lax.stop_gradient(tokens_BHWD)
        pixels = self.pixels(tokens_BHWD).astype(jnp.float32)
        frame = from_patches(pixels, self.config.patch_size)
        return first_BIJC + frame if self.config.predict == "residual" else frame


def _flat(x: jax.Array) -> jax.Array:
    """(B, T, ...) → (B·T, ...)."""
    return x.reshape(-1, *x.shape[2:])
