"""The latent action quantizer: a frame pair → codes → the later frame.

An encoder yields one latent per code slot (encoder.py); the bottleneck makes codes of them; a
decoder sees the first frame and, by cross-attention, the codes, and predicts the later frame. What
is made of a batch in training is the objective's; it uses what is here. A clip of more than two
frames is its pairs of neighbours, whose latents may look at the frames before. Frames are float in
[0, 1] or uint8, channels last.

Shape suffixes: as in encoder.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.bottlenecks import bottleneck_config
from lapa_jax.latent.bottlenecks.base import BottleneckOutput
from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.encoder import Encoder, Pairs
from lapa_jax.latent.health import CodeHealth
from lapa_jax.latent.legacy import mix_channels
from lapa_jax.latent.objectives import objective_config
from lapa_jax.latent.parts import Transformer
from lapa_jax.nn.layers import Dense, dtype_of, truncated_normal
from lapa_jax.nn.module import param
from lapa_jax.nn.patches import from_patches


class Reading(NamedTuple):
    """What is read off B pairs in evaluation."""

    z_BL: jax.Array | None  # int32 codes; None from a continuous bottleneck
    latent_BLQ: jax.Array  # before the bottleneck
    received_BLQ: jax.Array  # by the decoder


class Quantizer(Encoder):
    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        dtype = dtype_of(config.compute_dtype)
        bottleneck, settings = bottleneck_config(config.bottleneck)
        self.bottleneck = bottleneck(settings, config.codebook_size, config.quant_dim, rngs=rngs)
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
        objective, settings = objective_config(config.objective)
        if config.num_frames < objective.num_frames:
            raise ValueError(
                f"data.num_frames={config.num_frames} must be at least {objective.num_frames} for "
                f"model.objective.name={config.objective['name']!r}"
            )
        self.objective = objective(settings, config, rngs=rngs)

    def __call__(
        self,
        frames_BTIJC: jax.Array,
        *,
        train: bool,
        rng: jax.Array | None = None,
        **columns: jax.Array,
    ) -> dict[str, Any]:
        """What the objective makes of clips, and of the columns that it asks for beside them: see
        `outcome`."""
        batch = {"frames": self.frames(frames_BTIJC), **columns}
        return self.objective(self, batch, train=train, rng=rng)

    # What an objective uses, beside `bottleneck` and the encoder's `pairs`, `latents`, `patches`,
    # `encode` and `encode_frame`.

    def seen(self, frames_BTIJC: jax.Array, embedded_BTHWD: jax.Array) -> jax.Array:
        """What latents are read off, (B, T, H, W, D): patches, if the objective has no other."""
        return self.objective.seen(frames_BTIJC, embedded_BTHWD)

    def tokens(
        self,
        embedded_MHWD: jax.Array,
        z_MLQ: jax.Array,
        also: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """The decoder's tokens (M, H, W, D), of first frames and what the bottleneck gives. `also`:
        tokens (M, S, D) that it sees beside those, and which of them there are, bool (M, S)."""
        dtype = dtype_of(self.config.compute_dtype)
        if self.config.legacy:
            context = self.context(mix_channels(z_MLQ))
        else:
            context = self.context(z_MLQ) + self.slots[...].astype(dtype)
        # The gradient must come through the codes: the decoder may not shape the first frame's
        # embedding.
        x = jax.lax.stop_gradient(embedded_MHWD[:, None]).astype(dtype)
        known_MS = None
        if also is not None:
            more_MSD, known_MS = also
            own = jnp.ones(context.shape[:2], bool)
            known_MS = jnp.concatenate([own, known_MS], axis=1)
            context = jnp.concatenate([context, more_MSD.astype(dtype)], axis=1)
        return self.decoder(x, self.bias(), context, known_MS)[:, 0]

    def draw(self, first_MIJC: jax.Array, tokens_MHWD: jax.Array) -> jax.Array:
        """The later frames (M, I, J, C) of tokens, float32, not clipped."""
        pixels = self.pixels(tokens_MHWD).astype(jnp.float32)
        frame = from_patches(pixels, self.config.patch_size)
        return first_MIJC + frame if self.config.predict == "residual" else frame

    def decode_latent(self, first_BIJC: jax.Array, z_BLQ: jax.Array) -> jax.Array:
        """As `decode`, from what the decoder receives, float (B, L, Q)."""
        first = self.frames(first_BIJC)
        return self.draw(first, self.tokens(self.patches(first[:, None])[:, 0], z_BLQ))

    def outcome(
        self,
        pairs: Pairs,
        out: BottleneckOutput,
        recon_MIJC: jax.Array,
        *,
        loss: jax.Array,
        train: bool,
        bottleneck_loss: jax.Array | None = None,
        metrics: dict[str, jax.Array] | None = None,
    ) -> dict[str, Any]:
        """{loss, recon (M, I, J, C), z int32 (M, L) or None, metrics {name: scalar}} of pairs:
        what an objective gives, its metrics beside those that all have. The bottleneck's loss is
        added to the objective's; unless given, it is what `out` says.

        In training `recon` is drawn from what the decoder receives then (with NSVQ: with noise); in
        evaluation it is drawn from the codes, or from the latent of a continuous bottleneck.
        """
        bottleneck_loss = out.loss if bottleneck_loss is None else bottleneck_loss
        mse = jnp.mean(jnp.square(recon_MIJC - pairs.last_MIJC))
        copy = jnp.mean(jnp.square(pairs.first_MIJC - pairs.last_MIJC))
        metrics = {**out.metrics, **(metrics or {}), "mse": mse, "copy_mse": copy}
        if self.health is not None:
            metrics |= self.health(out.codes_BL, train=train)
        metrics["bottleneck_loss"] = bottleneck_loss
        loss = loss + bottleneck_loss
        return {"loss": loss, "recon": recon_MIJC, "z": out.codes_BL, "metrics": metrics}

    # What a trained quantizer is used for.

    def quantize(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """The latent action z, int32 (B, L)."""
        self.config.require_codes()
        return self.read(first_BIJC, last_BIJC).z_BL

    def read(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> Reading:
        latent = self.encode(first_BIJC, last_BIJC)
        out = self.bottleneck(latent, train=False)
        return Reading(out.codes_BL, latent, self.objective.received(out.z_q_BLD))

    def compose(
        self, first_BLQ: jax.Array, second_BLQ: jax.Array, still_NLQ: jax.Array
    ) -> jax.Array:
        """What the decoder receives of two motions in a row, as the objective has it."""
        return self.objective.compose(self, first_BLQ, second_BLQ, still_NLQ)

    def decode(self, first_BIJC: jax.Array, z_BL: jax.Array) -> jax.Array:
        """The predicted later frame (B, H, W, 3), float32, not clipped."""
        self.config.require_codes()
        received = self.objective.received(self.bottleneck.lookup(z_BL))
        return self.decode_latent(first_BIJC, received)

    def target(self, frames_BIJC: jax.Array) -> jax.Array:
        """What `decode` is compared with, float32 (B, H, W, 3)."""
        return self.frames(frames_BIJC)

    def nearness(self, latent_BLQ: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(where latents are (B, L, G), where codes are (K, G)): the nearest code is chosen."""
        return self.bottleneck.nearness(latent_BLQ)

    def after_update(self, step: jax.Array, rng: jax.Array) -> None:
        """What changes after optimizer step `step` (from 0), beside what the gradient trains."""
        self.bottleneck.after_update(step, rng)
        self.objective.after_update(self, step, rng)
