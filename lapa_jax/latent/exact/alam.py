"""ALAM's latent action tokenizer: latents of three frames that add up along a clip and change sign
with its direction, and their codes.

Its LPIPS term has no gradient there and is not computed here: the loss is less by that number.

Shape suffixes: as in blocks.py; M pairs, N patches.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.exact.base import CodesConfig, ExactQuantizer
from lapa_jax.latent.exact.blocks import (
    Codebook,
    Transformer,
    check_width,
    image_of,
    image_patches,
    queries,
    weighed,
)
from lapa_jax.nn.layers import Dense, dtype_of
from lapa_jax.nn.module import param


@dataclass(frozen=True, kw_only=True)
class ALAMConfig(CodesConfig):
    """The defaults: the released models', for images of 224 pixels a side."""

    architecture: Annotated[str, ("alam",), "that of ALAM"] = "alam"
    patch_size: Annotated[int, "[1, 8192]", "pixels"] = 14
    dim: Annotated[int, "[2, 65536]", "width of the layers"] = 768
    heads: Annotated[int, "[1, 4096]", "of an attention"] = 12
    encoder_depth: Annotated[int, "[1, 1024]", "layers of the encoder"] = 12
    decoder_depth: Annotated[int, "[1, 1024]", "layers of the decoder"] = 12
    quant_dim: Annotated[int, "[1, 65536]", "width of a latent and of a code"] = 128
    codebook_size: Annotated[int, "[2, 1e7]", "values of a code"] = 256
    code_length: Annotated[int, "[1, 4096]", "codes of a latent action"] = 7
    labels: Annotated[
        str,
        ("codes", "latents"),
        "what a latent action is: codes, or the vectors before them, which add up",
    ] = "codes"
    codebook_weight: Annotated[
        float, "[0, 1e6]", "on the squared distance that moves codes towards latents"
    ] = 0.25
    commitment_weight: Annotated[
        float,
        "[0, 1e6]",
        "on the squared distance that moves latents towards codes; which of both the original's "
        "0.25 is on is not known",
    ] = 1.0
    quantization_weight: Annotated[float, "[0, 1e6]", "on both of these"] = 1.0
    recon_weight: Annotated[float, "[0, 1e6]", "on the error of the pixels"] = 1.0
    absolute: Annotated[bool, "that error is absolute instead of squared"] = False
    additivity_weight: Annotated[float, "[0, 1e6]", "on (a02 - a01 - a12)²"] = 1.0
    cycle_weight: Annotated[float, "[0, 1e6]", "on (a01 + a10)²"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_patches(self.patch_size)
        check_width(self.dim, self.heads)
        if self.num_frames != 3:
            raise ValueError(
                f"data.num_frames={self.num_frames} must be 3 under model.architecture='alam'"
            )

    @property
    def has_codes(self) -> bool:
        return self.labels == "codes"

    @property
    def continuous(self) -> str:
        return f"model.labels={self.labels!r}"


class ALAM(ExactQuantizer):
    def __init__(self, config: ALAMConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        dim, pixels = config.dim, 3 * config.patch_size**2
        dtype = dtype_of(config.compute_dtype)

        def dense(inputs, outputs, axes, dtype=dtype):
            return Dense((inputs,), (outputs,), axes, bias=True, dtype=dtype, rngs=rngs)

        shape = (config.code_length, pixels)
        self.queries = param(
            jax.random.uniform(rngs.params(), shape, minval=-1.0, maxval=1.0), None, "patch"
        )
        self.encoder = Transformer(
            *(config, pixels, dim, config.encoder_depth), time="causal", rngs=rngs
        )
        self.to_latent = dense(dim, config.quant_dim, ("embed", None), jnp.float32)
        self.codebook = Codebook(config.codebook_size, config.quant_dim, rngs=rngs)
        self.patch_up = dense(pixels, dim, ("patch", "embed"))
        self.action_up = dense(config.quant_dim, dim, (None, "embed"))
        self.decoder = Transformer(
            *(config, dim, dim, config.decoder_depth), outputs=pixels, rngs=rngs
        )

    def __call__(self, frames_BTIJC, *, train, rng=None):
        config = self.config
        frames = self.frames(frames_BTIJC)
        if frames.shape[1] != 3:
            raise ValueError(f"clips of {frames.shape[1]} frames: data.num_frames must be 3")
        o0, o1, o2 = frames[:, 0], frames[:, 1], frames[:, 2]
        first, last = (jnp.concatenate(x) for x in ((o0, o1, o0, o1), (o1, o2, o2, o0)))
        latent_MLQ = self._latents(first, last)
        received_MLQ, codes_ML, losses = self.codebook(latent_MLQ)
        a01, a12, a02, a10 = jnp.split(latent_MLQ, 4)
        drawn = 3 * len(o0)  # the pair 10 is not drawn
        first, last, codes = first[:drawn], last[:drawn], codes_ML[:drawn]
        recon = self._draw(first, received_MLQ[:drawn])
        apart = jnp.abs(recon - last) if config.absolute else jnp.square(recon - last)
        metrics = {
            **losses,
            "quantization_loss": weighed(config, losses),
            "recon_loss": jnp.mean(apart),
            "additivity_loss": jnp.mean(jnp.square(a02 - a01 - a12)),
            "cycle_loss": jnp.mean(jnp.square(a01 + a10)),
        }
        loss = (
            config.quantization_weight * metrics["quantization_loss"]
            + config.recon_weight * metrics["recon_loss"]
            + config.additivity_weight * metrics["additivity_loss"]
            + config.cycle_weight * metrics["cycle_loss"]
        )
        used_K = jnp.zeros(config.codebook_size).at[codes].set(1.0)
        metrics["active_codes"] = jnp.sum(used_K)
        return self.outcome(
            *(first, last, recon), loss=loss, codes_BL=codes, train=train, metrics=metrics
        )

    def encode(self, first_BIJC, last_BIJC):
        return self._latents(self.frames(first_BIJC), self.frames(last_BIJC))

    def _latents(self, first_MIJC: jax.Array, last_MIJC: jax.Array) -> jax.Array:
        patches = image_patches(jnp.stack([first_MIJC, last_MIJC], 1), self.config.patch_size)
        x_MTSD = self.encoder(queries(self.queries, patches))
        return self.to_latent(x_MTSD[:, 1, : self.config.code_length])

    def decode_latent(self, first_BIJC, z_BLQ):
        """Vectors, sums of latents too, are quantised first."""
        return self._draw(self.frames(first_BIJC), self.lookup(self.codebook.nearest(z_BLQ)))

    def _draw(self, first_MIJC: jax.Array, received_MLQ: jax.Array) -> jax.Array:
        config = self.config
        x_MND = self.patch_up(image_patches(first_MIJC, config.patch_size))
        x_MSD = jnp.concatenate([self.action_up(received_MLQ), x_MND], axis=1)
        patches = self.decoder(x_MSD[:, None])[:, 0, config.code_length :]
        patches = jax.nn.sigmoid(patches.astype(jnp.float32))
        return image_of(patches, config.patch_size, config.image_size)
