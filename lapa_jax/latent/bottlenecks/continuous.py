"""Latents that stay continuous: no codes, so no labels, but a measure of what codes cost.

Shape suffixes: see base.py.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.bottlenecks.base import Bottleneck, BottleneckOutput
from lapa_jax.nn.layers import Dense


@dataclass(frozen=True)
class NoneConfig:
    """Nothing to set."""


class NoBottleneck(Bottleneck):
    """The latent as it is."""

    form = "continuous"

    def __init__(self, config: NoneConfig, codebook_size: int, dim: int, *, rngs: nnx.Rngs):
        del config, codebook_size, dim, rngs

    def __call__(
        self, z_e_BLD: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> BottleneckOutput:
        del rng, train
        return BottleneckOutput(z_e_BLD.astype(jnp.float32), None, jnp.zeros(()), {})


@dataclass(frozen=True)
class GaussianConfig:
    """β of the β-VAE."""

    kl_weight: Annotated[
        float, "[0, 1e6]", "on the divergence from a unit normal, in nats per latent dimension"
    ] = 1e-4


class Gaussian(Bottleneck):
    """A normal whose mean is the latent and whose variance is learned from it, kept near the unit
    normal (β-VAE, Higgins et al. 2017). The decoder receives a sample in training, the mean in
    evaluation."""

    form = "continuous"

    def __init__(self, config: GaussianConfig, codebook_size: int, dim: int, *, rngs: nnx.Rngs):
        del codebook_size
        self.log_variance = Dense(
            (dim,), (dim,), (None, None), bias=True, std=0.0, dtype=jnp.float32, rngs=rngs
        )
        self.config = config

    def __call__(
        self, z_e_BLD: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> BottleneckOutput:
        mean = z_e_BLD.astype(jnp.float32)
        if not train:
            return BottleneckOutput(mean, None, jnp.zeros(()), {})
        if rng is None:
            raise ValueError("Gaussian needs an rng in training")
        log_variance = self.log_variance(mean)
        sample = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(rng, mean.shape)
        kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)
        metrics = {"kl": jax.lax.stop_gradient(kl)}
        return BottleneckOutput(sample, None, self.config.kl_weight * kl, metrics)
