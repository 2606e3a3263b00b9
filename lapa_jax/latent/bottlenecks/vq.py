"""Vector quantisation with a straight-through gradient, and its soft form.

Shape suffixes: see base.py.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.bottlenecks.base import (
    BottleneckState,
    CodebookBottleneck,
    CodebookConfig,
    code_distances,
)


@dataclass(frozen=True)
class VQCommitConfig(CodebookConfig):
    """Those of every codebook, and one."""

    commitment_weight: Annotated[
        float, "[0, 1e6]", "on the squared distance that moves latents towards their codes"
    ] = 0.25


class VQCommit(CodebookBottleneck):
    """VQ-VAE (van den Oord et al. 2017, equation 3): straight-through, codebook and commitment
    losses."""

    def train_output(self, z_BLD, hard_BLD, error_BL, rng):
        commitment = jnp.square(z_BLD - jax.lax.stop_gradient(hard_BLD))
        codebook = jnp.square(hard_BLD - jax.lax.stop_gradient(z_BLD))
        loss = jnp.mean(codebook) + self.config.commitment_weight * jnp.mean(commitment)
        return straight_through(z_BLD, hard_BLD), loss


@dataclass(frozen=True)
class VQEMAConfig(VQCommitConfig):
    """Those of VQCommit, and one."""

    codebook_decay: Annotated[
        float, "(0, 1)", "per step, of the counts and sums of which a code is the ratio"
    ] = 0.99


class VQEMA(CodebookBottleneck):
    """VQ-VAE whose codes are moving averages of their latents (van den Oord et al. 2017,
    appendix A.1). The average of a code that receives no latent in a step stays as it is."""

    trained_codebook = False

    def __init__(self, config: VQEMAConfig, codebook_size: int, dim: int, *, rngs: nnx.Rngs):
        super().__init__(config, codebook_size, dim, rngs=rngs)
        self.counts = BottleneckState(jnp.ones(codebook_size, jnp.float32))

    def train_output(self, z_BLD, hard_BLD, error_BL, rng):
        hard_BLD = jax.lax.stop_gradient(hard_BLD)
        loss = self.config.commitment_weight * jnp.mean(jnp.square(z_BLD - hard_BLD))
        return straight_through(z_BLD, hard_BLD), loss

    def update_codebook(self, z_BLD, codes_BL):
        decay, size = self.config.codebook_decay, self.counts.shape[0]
        z_MD, codes_M = z_BLD.reshape(-1, z_BLD.shape[-1]), codes_BL.reshape(-1)
        chosen_MK = jax.nn.one_hot(codes_M, size, dtype=jnp.float32)
        new_K = chosen_MK.sum(axis=0)
        sums_KD = jnp.einsum("mk,md->kd", chosen_MK, z_MD, precision=jax.lax.Precision.HIGHEST)
        counts_K = decay * self.counts[...] + (1.0 - decay) * new_K
        # codebook = sums / counts, where sums decay as counts do
        sums_KD = decay * self.counts[...][:, None] * self.codebook[...] + (1.0 - decay) * sums_KD
        average = sums_KD / jnp.maximum(counts_K, 1e-12)[:, None]
        self.codebook[...] = jnp.where((new_K > 0)[:, None], average, self.codebook[...])
        # A code that is drawn anew from data should follow it: its weight never falls to nothing.
        self.counts[...] = jnp.maximum(counts_K, 1e-3)


@dataclass(frozen=True)
class SoftVQConfig(CodebookConfig):
    """Those of every codebook, and two."""

    temperature: Annotated[float, "(0, 1e6]", "of the softmax over negative squared distances"] = (
        0.5
    )
    sharpness_weight: Annotated[
        float,
        "[0, 1e6]",
        "on the mean entropy of that softmax: what the decoder sees in training comes close to one "
        "code",
    ] = 0.01


class SoftVQ(CodebookBottleneck):
    """In training the decoder receives the average of the codes by softmax(−‖z − c‖² / temperature)
    (soft assignment, Agustsson et al. 2017)."""

    def train_output(self, z_BLD, hard_BLD, error_BL, rng):
        distance_BLK = code_distances(z_BLD, self.codebook[...])
        log_BLK = jax.nn.log_softmax(-distance_BLK / self.config.temperature, axis=-1)
        weights_BLK = jnp.exp(log_BLK)
        entropy = -jnp.mean(jnp.sum(weights_BLK * log_BLK, axis=-1))
        soft = jnp.einsum("blk,kd->bld", weights_BLK, self.codebook[...])
        return soft, self.config.sharpness_weight * entropy


def straight_through(z: jax.Array, hard: jax.Array) -> jax.Array:
    """The value of `hard` with the gradient of `z`."""
    return z + jax.lax.stop_gradient(hard - z)
