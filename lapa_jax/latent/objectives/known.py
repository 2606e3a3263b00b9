"""What is known of some examples alone: actions, states, poses. How an objective learns from it.

Shape suffixes: see base.py; N rows, A values.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.latent.bottlenecks.base import BottleneckState
from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.objectives.base import Objective
from lapa_jax.nn.layers import Dense

LEAST = 1e-6  # of a variance: what varies less is constant


class Standardizer(nnx.Module):
    """Units in which every value has the mean 0 and the variance 1, of all that training has met
    so far. Values that never change are 0."""

    def __init__(self, dim: int):
        self.count = BottleneckState(jnp.zeros((), jnp.float32))
        self.mean = BottleneckState(jnp.zeros(dim, jnp.float32))
        self.variance = BottleneckState(jnp.ones(dim, jnp.float32))

    def __call__(self, x_NA: jax.Array, known_N: jax.Array, *, train: bool) -> jax.Array:
        """Float32 (N, A), 0 where not known. In training the rows known count first."""
        known_N1 = known_N[:, None]
        x = jnp.where(known_N1, x_NA, 0.0).astype(jnp.float32)
        if train:
            self._meet(x, known_N1)
        scale_A = jnp.where(self.variance[...] > LEAST, jax.lax.rsqrt(self.variance[...]), 0.0)
        return jnp.where(known_N1, (x - self.mean[...]) * scale_A, 0.0)

    def _meet(self, x_NA: jax.Array, known_N1: jax.Array) -> None:
        new = jnp.sum(known_N1, dtype=jnp.float32)
        count = self.count[...] + new
        share = new / jnp.maximum(count, 1.0)
        mean_A = jnp.sum(x_NA, axis=0) / jnp.maximum(new, 1.0)
        away_NA = jnp.where(known_N1, x_NA - mean_A, 0.0)
        variance_A = jnp.sum(jnp.square(away_NA), axis=0) / jnp.maximum(new, 1.0)
        apart_A = mean_A - self.mean[...]
        spread_A = (1.0 - share) * self.variance[...] + share * variance_A
        # Before the first row there is no mean that the new one could be apart from.
        between_A = share * (1.0 - share) * jnp.square(apart_A)
        self.mean[...] = self.mean[...] + share * apart_A
        self.variance[...] = spread_A + between_A
        self.count[...] = count


class OfChunks(Objective):
    """Reads chunks of settings.horizon actions, of one step, too: float32 (B, K, A) and bool (B,
    K), and takes examples without."""

    @classmethod
    def width(cls, settings: Any) -> int:
        """A."""
        return settings.action_dim

    @classmethod
    def columns(cls, settings):
        shape = (settings.horizon, cls.width(settings))
        return {
            "action": jax.ShapeDtypeStruct(shape, jnp.float32),
            "action_mask": jax.ShapeDtypeStruct(shape[:1], bool),
        }

    @classmethod
    def fields(cls, settings):
        return (*cls.columns(settings), "action_known")  # so that examples without come, too

    @classmethod
    def prepare(cls, settings, batch):
        mask, action = batch["action_mask"], batch["action"]
        shape = (*mask.shape, action.shape[-1])
        return {"action": np.reshape(action, shape), "action_mask": mask}


class OfWindows(OfChunks):
    """Of actions that are those of the first window."""

    @classmethod
    def window_steps(cls, settings):
        return settings.horizon


class Labels(nnx.Module):
    """A linear map from latents to values that are known of some pairs, in standard units."""

    def __init__(self, config: QuantizerConfig, dim: int, *, rngs: nnx.Rngs):
        self.units = Standardizer(dim)
        latent = (config.code_length, config.quant_dim)
        self.out = Dense(
            latent, (dim,), (None, None, None), bias=True, dtype=jnp.float32, rngs=rngs
        )

    def __call__(
        self, latent_NLQ: jax.Array, wanted_NA: jax.Array, known_N: jax.Array, *, train: bool
    ) -> jax.Array:
        """Mean squared error of the rows known; 0 where there are none."""
        wanted_NA = self.units(wanted_NA, known_N, train=train)
        return error_where_known(self.out(latent_NLQ), wanted_NA, known_N)


def error_where_known(found_NA: jax.Array, wanted_NA: jax.Array, known_N: jax.Array) -> jax.Array:
    """Mean squared error over the rows known; 0 where there are none. What stands in the others
    does not matter, but for values that are not finite."""
    error_N = jnp.mean(jnp.square(found_NA - wanted_NA), axis=-1)
    return jnp.sum(jnp.where(known_N, error_N, 0.0)) / jnp.maximum(jnp.sum(known_N), 1)
