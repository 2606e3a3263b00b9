"""The latent action model of AdaWorld (Gao et al. 2025, arXiv 2503.18938): a β-VAE whose latent is
one vector a transition, added to every patch of the decoder.

In training a clip of T frames has T − 1 latents, and attention over time sees all of it, later
frames too; the released weights were trained with two frames.

Shape suffixes: as in blocks.py; M = B·(T−1) transitions, N patches, P values of a patch.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.encoder import flat
from lapa_jax.latent.exact.base import ExactConfig, ExactQuantizer
from lapa_jax.latent.exact.blocks import (
    Transformer,
    check_width,
    image_of,
    image_patches,
    queries,
)
from lapa_jax.nn.layers import Dense, dtype_of
from lapa_jax.nn.module import param


@dataclass(frozen=True, kw_only=True)
class AdaWorldConfig(ExactConfig):
    """The defaults: the released model's, for images of 256 pixels a side."""

    has_codes: ClassVar[bool] = False
    codebook_size: ClassVar[int] = 8  # of the codes that measures compare it with
    code_length: ClassVar[int] = 1

    architecture: Annotated[str, ("adaworld",), "that of AdaWorld"] = "adaworld"
    patch_size: Annotated[int, "[1, 8192]", "pixels"] = 16
    dim: Annotated[int, "[2, 65536]", "width of the layers"] = 1024
    heads: Annotated[int, "[1, 4096]", "of an attention"] = 16
    encoder_depth: Annotated[int, "[1, 1024]", "layers of the encoder"] = 16
    decoder_depth: Annotated[int, "[1, 1024]", "layers of the decoder"] = 16
    quant_dim: Annotated[int, "[1, 65536]", "width of the latent"] = 32
    kl_weight: Annotated[
        float, "[0, 1e6]", "on the divergence from a unit normal, in nats per latent (β)"
    ] = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_patches(self.patch_size)
        check_width(self.dim, self.heads)


class AdaWorld(ExactQuantizer):
    def __init__(self, config: AdaWorldConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        dim, pixels = config.dim, 3 * config.patch_size**2
        dtype = dtype_of(config.compute_dtype)

        def dense(inputs, outputs, axes, dtype=dtype):
            return Dense((inputs,), (outputs,), axes, bias=True, dtype=dtype, rngs=rngs)

        prompt = jax.random.uniform(rngs.params(), (1, pixels), minval=-1.0, maxval=1.0)
        self.prompt = param(prompt, None, "patch")
        self.encoder = Transformer(
            *(config, pixels, dim, config.encoder_depth), time="rotary", outputs=dim, rngs=rngs
        )
        # Mean, then logarithm of the variance.
        self.moments = dense(dim, 2 * config.quant_dim, ("embed", None), jnp.float32)
        self.patch_up = dense(pixels, dim, ("patch", "embed"))
        self.action_up = dense(config.quant_dim, dim, (None, "embed"))
        self.decoder = Transformer(
            *(config, dim, dim, config.decoder_depth), outputs=pixels, rngs=rngs
        )

    def __call__(self, frames_BTIJC, *, train, rng=None, noise_MQ: jax.Array | None = None):
        """`noise_MQ`: in the place of normal numbers drawn from `rng`."""
        frames = self.frames(frames_BTIJC)
        mean_MQ, log_variance_MQ = self.encoded(frames)
        z_MQ = mean_MQ
        if train:
            if noise_MQ is None:
                noise_MQ = jax.random.normal(rng, mean_MQ.shape)
            z_MQ = mean_MQ + noise_MQ * jnp.exp(0.5 * log_variance_MQ)
        first, last = flat(frames[:, :-1]), flat(frames[:, 1:])
        recon = self._draw(first, z_MQ)
        mse = jnp.mean(jnp.square(last - recon))
        divergence = 1.0 + log_variance_MQ - jnp.square(mean_MQ) - jnp.exp(log_variance_MQ)
        kl = jnp.mean(-0.5 * jnp.sum(divergence, axis=-1))
        return self.outcome(
            *(first, last, recon),
            loss=mse + self.config.kl_weight * kl,
            codes_BL=None,
            train=train,
            metrics={"kl": kl},
        )

    def encoded(self, frames_BTIJC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the latents of clips, float32 (M, Q)."""
        tokens_MD = flat(self.tokens(frames_BTIJC)[:, 1:, 0])
        moments = self.moments(tokens_MD).astype(jnp.float32)
        return tuple(jnp.split(moments, 2, axis=-1))

    def tokens(self, frames_BTIJC: jax.Array) -> jax.Array:
        """What the encoder gives of clips (B, T, 1 + N, D), the prompt's token first."""
        patches = image_patches(frames_BTIJC, self.config.patch_size)
        return self.encoder(queries(self.prompt, patches))

    def encode(self, first_BIJC, last_BIJC):
        pair = jnp.stack([self.frames(first_BIJC), self.frames(last_BIJC)], axis=1)
        return self.encoded(pair)[0][:, None]

    def decode_latent(self, first_BIJC, z_BLQ):
        return self._draw(self.frames(first_BIJC), z_BLQ[:, 0])

    def _draw(self, first_MIJC: jax.Array, z_MQ: jax.Array) -> jax.Array:
        config = self.config
        x_MND = self.patch_up(image_patches(first_MIJC, config.patch_size))
        x_MND = x_MND + self.action_up(z_MQ)[:, None]
        patches = jax.nn.sigmoid(self.decoder(x_MND[:, None])[:, 0].astype(jnp.float32))
        return image_of(patches, config.patch_size, config.image_size)
