"""Telling the true later frame from others, instead of drawing it.

Shape suffixes: see base.py; E embedding width.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lapa_jax.latent.attention import l2_normalize
from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.encoder import Encoder, Pairs
from lapa_jax.latent.objectives.base import Objective, mean_squared_error
from lapa_jax.nn.layers import Dense


@dataclass(frozen=True)
class ContrastiveConfig:
    """Nothing but the comparison's own."""

    embed_dim: Annotated[int, "[1, 65536]", "width of what is compared"] = 64
    temperature: Annotated[float, "(0, 1e6]", "divides cosine similarities"] = 0.1


class Contrastive(Objective):
    """InfoNCE (van den Oord et al. 2018): the prediction must be nearer to its true later frame
    than to those of the other pairs and to its own first frame. Without that last candidate the
    scene alone would tell the pair, and the latent nothing."""

    def __init__(self, settings: ContrastiveConfig, config: QuantizerConfig, *, rngs: nnx.Rngs):
        def dense():
            return Dense(
                (config.dim,), (settings.embed_dim,), ("embed", None), dtype=jnp.float32, rngs=rngs
            )

        self.predicted, self.true = dense(), dense()
        self.temperature = settings.temperature

    def __call__(self, model, batch, *, train, rng=None):
        pairs = model.pairs(batch["frames"], train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        tokens_MHWD = model.tokens(pairs.embedded_MHWD, out.z_q_BLD)
        recon = model.draw(pairs.first_MIJC, jax.lax.stop_gradient(tokens_MHWD))
        loss, metrics = self.compare(model, pairs, tokens_MHWD)
        loss = loss + mean_squared_error(recon, pairs.last_MIJC)
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)

    def compare(
        self, model: Encoder, pairs: Pairs, tokens_MHWD: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(InfoNCE, metrics)."""

        def embed(head, tokens_MHWD):
            return l2_normalize(head(jnp.mean(tokens_MHWD.astype(jnp.float32), axis=(1, 2))))

        predicted_ME = embed(self.predicted, tokens_MHWD)
        first_ME = embed(self.true, model.encode_frame(pairs.first_MIJC))
        last_ME = embed(self.true, model.encode_frame(pairs.last_MIJC))
        others_MM = predicted_ME @ last_ME.T
        own_M1 = jnp.sum(predicted_ME * first_ME, axis=-1, keepdims=True)
        logits = jnp.concatenate([others_MM, own_M1], axis=1) / self.temperature
        labels = jnp.arange(len(logits))
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        metrics = {"info_nce": loss, "retrieval_accuracy": accuracy}
        return loss, jax.lax.stop_gradient(metrics)
