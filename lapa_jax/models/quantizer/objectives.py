"""What the quantizer is trained to predict about the later frame.

An objective sees the decoder's tokens and says what is compared. Where it is not about pixels, the
pixel head still learns to draw, from tokens that carry no gradient: reconstructions stay
comparable. A new one is a class and its config here and a line in `OBJECTIVES`; what it needs of
the pair is in `Pair`.

Shape suffixes: B batch, I image rows, J image columns, H and W grid rows and columns, D width, L
code slots, Q latent width, E embedding width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lapa_jax.models.attention import l2_normalize
from lapa_jax.models.bottlenecks import BottleneckOutput
from lapa_jax.models.layers import Dense
from lapa_jax.models.quantizer.config import QuantizerConfig
from lapa_jax.models.registry import named_config


class Pair(NamedTuple):
    """A frame pair and what the model makes of it."""

    first_BIJC: jax.Array
    last_BIJC: jax.Array
    tokens_BHWD: jax.Array  # the decoder's
    recon_BIJC: jax.Array
    encode_frame: Callable[[jax.Array], jax.Array]  # frames alone (B, I, J, C) → (B, H, W, D)


@dataclass(frozen=True)
class PixelsConfig:
    """Nothing to set."""


class Pixels(nnx.Module):
    """Mean squared error of the pixels (the paper)."""

    draws_with_gradient = True  # whether pixels shape the decoder

    def __init__(self, settings: Any, config: QuantizerConfig, *, rngs: nnx.Rngs):
        del settings, config, rngs

    def bottleneck_input(self, z_e_BLQ: jax.Array) -> jax.Array:
        return z_e_BLQ

    def decoder_input(self, z_e_BLQ: jax.Array, out: BottleneckOutput) -> jax.Array:
        return out.z_q_BLD

    def latent_loss(self, z_e_BLQ: jax.Array, out: BottleneckOutput) -> jax.Array:
        return out.loss

    def __call__(self, pair: Pair) -> tuple[jax.Array, dict[str, jax.Array]]:
        return jnp.mean(jnp.square(pair.recon_BIJC - pair.last_BIJC)), {}


class PixelsNoBottleneck(Pixels):
    """Plain reconstruction: in training the decoder receives the latent itself. The bottleneck
    learns beside it to stand for the latent (squared error), and shapes nothing else."""

    def bottleneck_input(self, z_e_BLQ):
        return jax.lax.stop_gradient(z_e_BLQ)

    def decoder_input(self, z_e_BLQ, out):
        return z_e_BLQ

    def latent_loss(self, z_e_BLQ, out):
        error = jnp.mean(jnp.square(jax.lax.stop_gradient(z_e_BLQ) - out.z_q_BLD))
        return out.loss + error


@dataclass(frozen=True)
class ContrastiveConfig:
    """`embed_dim`: width of what is compared. `temperature`: divides cosine similarities."""

    embed_dim: int
    temperature: float

    def __post_init__(self) -> None:
        if self.embed_dim < 1 or self.temperature <= 0.0:
            raise ValueError(
                f"model.objective.embed_dim={self.embed_dim} must be at least 1 and "
                f"model.objective.temperature={self.temperature} positive"
            )


class Contrastive(Pixels):
    """InfoNCE (van den Oord et al. 2018): the prediction must be nearer to its true later frame
    than to those of the other pairs and to its own first frame. Without that last candidate the
    scene alone would tell the pair, and the latent nothing."""

    draws_with_gradient = False

    def __init__(self, settings: ContrastiveConfig, config: QuantizerConfig, *, rngs: nnx.Rngs):
        def dense():
            return Dense(
                (config.dim,), (settings.embed_dim,), ("embed", None), dtype=jnp.float32, rngs=rngs
            )

        self.predicted, self.true = dense(), dense()
        self.temperature = settings.temperature

    def __call__(self, pair):
        def embed(head, tokens_BHWD):
            return l2_normalize(head(jnp.mean(tokens_BHWD.astype(jnp.float32), axis=(1, 2))))

        predicted_BE = embed(self.predicted, pair.tokens_BHWD)
        first_BE = embed(self.true, pair.encode_frame(pair.first_BIJC))
        last_BE = embed(self.true, pair.encode_frame(pair.last_BIJC))
        others_BB = predicted_BE @ last_BE.T
        own_B1 = jnp.sum(predicted_BE * first_BE, axis=-1, keepdims=True)
        logits = jnp.concatenate([others_BB, own_B1], axis=1) / self.temperature
        labels = jnp.arange(len(logits))
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        draw = jnp.mean(jnp.square(pair.recon_BIJC - pair.last_BIJC))
        metrics = {"info_nce": loss, "retrieval_accuracy": accuracy}
        return loss + draw, jax.lax.stop_gradient(metrics)


OBJECTIVES: dict[str, tuple[type, type]] = {
    "pixels": (PixelsConfig, Pixels),
    "pixels_no_bottleneck": (PixelsConfig, PixelsNoBottleneck),
    "contrastive": (ContrastiveConfig, Contrastive),
}


def objective_config(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...}` mapping."""
    return named_config(settings, OBJECTIVES, "model.objective")
