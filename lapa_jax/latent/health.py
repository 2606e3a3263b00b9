"""Whether the codes are in use, watched while a quantizer trains.

Shape suffixes: M pairs, L code slots, K codes.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.bottlenecks.base import BottleneckState

DECAY = 0.95  # of the usage average, per step: about the last 20 steps
MOST_SLOTS = 16  # with more, only the worst slot and the mean are metrics of their own
MOST_ROWS = 1024  # of a batch, for the joint entropy


class CodeHealth(nnx.Module):
    """Metrics of the codes of a batch, and of the average over the last steps.

    `collapsed` is 1 while that average has a mean perplexity under `collapse_fraction` ·
    codebook_size. The average is part of the train state, over the global batch.
    """

    def __init__(self, code_length: int, codebook_size: int, collapse_fraction: float):
        self.usage = BottleneckState(
            jnp.full((code_length, codebook_size), 1.0 / codebook_size, jnp.float32)
        )
        self.collapse_fraction = collapse_fraction

    def __call__(self, codes_ML: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        length, size = self.usage.shape
        one_hot_MLK = jax.nn.one_hot(codes_ML, size, dtype=jnp.float32)
        frequency_LK = jnp.mean(one_hot_MLK, axis=0)
        if train:
            self.usage[...] = DECAY * self.usage[...] + (1.0 - DECAY) * frequency_LK
        slots_L = perplexity(frequency_LK)
        recent_L = perplexity(self.usage[...])
        metrics = {
            "perplexity": jnp.mean(slots_L),
            "perplexity_worst_slot": jnp.min(slots_L),
            "perplexity_recent": jnp.mean(recent_L),
            "joint_entropy_bits": joint_entropy_bits(codes_ML),
            "collapsed": (jnp.mean(recent_L) < self.collapse_fraction * size).astype(jnp.float32),
        }
        if 1 < length <= MOST_SLOTS:
            metrics |= {f"perplexity_slot_{i}": slots_L[i] for i in range(length)}
        return metrics


def perplexity(frequency_LK: jax.Array) -> jax.Array:
    """exp(entropy) of distributions over codes, (L,)."""
    entropy_L = -jnp.sum(frequency_LK * jnp.log(jnp.maximum(frequency_LK, 1e-12)), axis=-1)
    return jnp.exp(entropy_L)


def joint_entropy_bits(codes_ML: jax.Array) -> jax.Array:
    """Plug-in entropy of whole latent actions over at most MOST_ROWS rows, which bound it by the
    log2 of their number."""
    codes = codes_ML[:MOST_ROWS]
    same_MM = jnp.all(codes[:, None] == codes[None], axis=-1)
    return math.log2(len(codes)) - jnp.mean(jnp.log2(jnp.sum(same_MM, axis=-1)))
