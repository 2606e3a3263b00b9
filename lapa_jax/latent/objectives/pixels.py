"""The interface of objectives, and those that compare pixels.

An objective sees the decoder's tokens and says what is compared. Where it is not about pixels, the
pixel head still learns to draw, from tokens that carry no gradient: reconstructions stay
comparable.

Shape suffixes: B clips, T frames, M = B·(T−1) pairs of neighbouring frames, I image rows, J image
columns, H and W grid rows and columns, D width, L code slots, Q latent width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.bottlenecks import BottleneckOutput
from lapa_jax.latent.config import QuantizerConfig


class Clip(NamedTuple):
    """Frames and what the model makes of them. A pair is a clip of two frames.

    Everything with M is of neighbouring frames, clip by clip. A constraint between other frames (z
    of the first and third against those of the two steps) reads them off `frames_BTIJC` with
    `encode_pair`; what latents say together (the third frame from the first by both steps) is drawn
    by `decode`.
    """

    frames_BTIJC: jax.Array  # float32 in [0, 1]
    first_MIJC: jax.Array
    last_MIJC: jax.Array
    latent_MLQ: jax.Array  # before the bottleneck
    received_MLQ: jax.Array  # by the decoder
    tokens_MHWD: jax.Array  # the decoder's
    recon_MIJC: jax.Array
    encode_frame: Callable[[jax.Array], jax.Array]  # frames alone (N, I, J, C) → (N, H, W, D)
    encode_pair: Callable[[jax.Array, jax.Array], jax.Array]  # two frames → latent (N, L, Q)
    decode: Callable[[jax.Array, jax.Array], jax.Array]  # first frame, latent → (N, I, J, C)


@dataclass(frozen=True)
class PixelsConfig:
    """Nothing to set."""


class Pixels(nnx.Module):
    """Mean squared error of the pixels (the paper)."""

    draws_with_gradient = True  # whether pixels shape the decoder

    def __init__(self, settings: Any, config: QuantizerConfig, *, rngs: nnx.Rngs):
        del settings, config, rngs

    def bottleneck_input(self, z_e_MLQ: jax.Array) -> jax.Array:
        return z_e_MLQ

    def decoder_input(self, z_e_MLQ: jax.Array, out: BottleneckOutput) -> jax.Array:
        return out.z_q_BLD

    def latent_loss(self, z_e_MLQ: jax.Array, out: BottleneckOutput) -> jax.Array:
        return out.loss

    def __call__(self, clip: Clip) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, metrics)."""
        return jnp.mean(jnp.square(clip.recon_MIJC - clip.last_MIJC)), {}


class PixelsNoBottleneck(Pixels):
    """Plain reconstruction: in training the decoder receives the latent itself. The bottleneck
    learns beside it to stand for the latent (squared error), and shapes nothing else."""

    def bottleneck_input(self, z_e_MLQ):
        return jax.lax.stop_gradient(z_e_MLQ)

    def decoder_input(self, z_e_MLQ, out):
        return z_e_MLQ

    def latent_loss(self, z_e_MLQ, out):
        error = jnp.mean(jnp.square(jax.lax.stop_gradient(z_e_MLQ) - out.z_q_BLD))
        return out.loss + error
