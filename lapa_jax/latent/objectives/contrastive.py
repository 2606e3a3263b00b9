"""Telling the true later frame from others, instead of drawing it.

Shape suffixes: as in pixels.py; E embedding width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lapa_jax.latent.attention import l2_normalize
from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.objectives.pixels import Pixels
from lapa_jax.nn.layers import Dense


@dataclass(frozen=True)
class ContrastiveConfig:
    """`embed_dim`: width of what is compared. `temperature`: divides cosine similarities."""

    embed_dim: int = 64
    temperature: float = 0.1

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

    def __call__(self, clip):
        def embed(head, tokens_MHWD):
            return l2_normalize(head(jnp.mean(tokens_MHWD.astype(jnp.float32), axis=(1, 2))))

        predicted_ME = embed(self.predicted, clip.tokens_MHWD)
        first_ME = embed(self.true, clip.encode_frame(clip.first_MIJC))
        last_ME = embed(self.true, clip.encode_frame(clip.last_MIJC))
        others_MM = predicted_ME @ last_ME.T
        own_M1 = jnp.sum(predicted_ME * first_ME, axis=-1, keepdims=True)
        logits = jnp.concatenate([others_MM, own_M1], axis=1) / self.temperature
        labels = jnp.arange(len(logits))
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        draw = jnp.mean(jnp.square(clip.recon_MIJC - clip.last_MIJC))
        metrics = {"info_nce": loss, "retrieval_accuracy": accuracy}
        return loss + draw, jax.lax.stop_gradient(metrics)
