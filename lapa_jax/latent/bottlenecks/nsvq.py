"""Vector quantisation by noise substitution (NSVQ; Vali and Bäckström 2022, LAPA section 3.1).

Shape suffixes: see base.py.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.bottlenecks.base import (
    Bottleneck,
    BottleneckOutput,
    BottleneckState,
    CodebookBottleneck,
    CodebookConfig,
    nearest_code,
)
from lapa_jax.nn.module import param


@dataclass(frozen=True)
class NSVQConfig(CodebookConfig):
    """Those of every codebook, and one."""

    commitment_weight: Annotated[
        float, "[0, 1e6]", "on the squared distance from a latent to its code; 0.0 in the paper"
    ] = 0.0


class NSVQ(CodebookBottleneck):
    """In training the decoder receives the latent plus noise of the length of its quantisation
    error, which carries gradients to the latent and to the codebook."""

    def train_output(self, z_BLD, hard_BLD, error_BL, rng):
        loss = jnp.zeros(())
        if self.config.commitment_weight:
            commitment = jnp.square(z_BLD - jax.lax.stop_gradient(hard_BLD))
            loss = self.config.commitment_weight * jnp.mean(commitment)
        return substitute_noise(z_BLD, error_BL, jax.random.normal(rng, z_BLD.shape)), loss


def substitute_noise(z_BLD: jax.Array, error_BL: jax.Array, noise_BLD: jax.Array) -> jax.Array:
    """z + ‖z − c‖ · r / ‖r‖ with r normal; the gradient is zero, not NaN, where z = c."""
    norm = jax.lax.rsqrt(jnp.sum(jnp.square(noise_BLD), axis=-1, keepdims=True) + 1e-12)
    return z_BLD + jnp.sqrt(error_BL + 1e-12)[..., None] * (noise_BLD * norm)


@dataclass(frozen=True)
class LegacyNSVQConfig:
    """Nothing can be set: the schedule and the threshold are the original's."""


class LegacyNSVQ(Bottleneck):
    """NSVQ with the original implementation's codebook: never initialised from data; unused codes
    become copies of used ones, which no argmin can choose before a gradient parts them. Training
    with it collapses; it is for parity.

    The original replaces inside the forward pass, before the optimizer moves the codebook; here
    `after_update` replaces the codebook of the forward pass and adds the optimizer's move.
    """

    def __init__(self, config: LegacyNSVQConfig, codebook_size: int, dim: int, *, rngs: nnx.Rngs):
        self.codebook = param(jax.random.normal(rngs.params(), (codebook_size, dim)), "code", None)
        self.used = BottleneckState(jnp.zeros(codebook_size, jnp.int32))
        self.batch_size = BottleneckState(jnp.ones((), jnp.int32))
        self.before = BottleneckState(jnp.zeros((codebook_size, dim), jnp.float32))

    def __call__(
        self, z_e_BLD: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> BottleneckOutput:
        z_BLD = z_e_BLD.astype(jnp.float32)
        codes_BL = nearest_code(z_BLD, self.codebook[...])
        z_q_BLD = hard_BLD = self.codebook[...][codes_BL]
        if train:
            if rng is None:
                raise ValueError("LegacyNSVQ needs an rng in training")
            error_BL = jnp.sum(jnp.square(z_BLD - hard_BLD), axis=-1)
            z_q_BLD = substitute_noise(z_BLD, error_BL, self.noise(rng, z_BLD.shape))
            counts_K = jnp.bincount(codes_BL.reshape(-1), length=self.used.shape[0])
            # At most one count per code and forward pass, as the original's indexed addition.
            self.used[...] = self.used[...] + (counts_K > 0)
            self.batch_size[...] = jnp.array(z_BLD.shape[0], jnp.int32)
            self.before[...] = jax.lax.stop_gradient(self.codebook[...])
        metrics = {"dead_codes": jnp.sum(self.unused()).astype(jnp.float32)}
        return BottleneckOutput(z_q_BLD, codes_BL, jnp.zeros(()), metrics)

    def noise(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(rng, shape)

    def unused(self) -> jax.Array:
        """Bool (K,): codes that count as unused since the last replacement."""
        return self.used[...] / self.batch_size[...] < 0.1

    def after_update(self, step: jax.Array, rng: jax.Array) -> None:
        """The original's schedule: steps 10..90, 100..900, 1000..4500 by 10, 100 and 500."""
        due = (step % 10 == 0) & (step < 100) | (step % 100 == 0) & (step < 1000)
        due = (step > 0) & (due | (step % 500 == 0) & (step < 5000))
        moved = self.codebook[...] - self.before[...]
        order = self.shuffle(rng, self.used[...] / self.batch_size[...] >= 0.1)
        replaced = copy_used_codes(self.before[...], self.unused(), order) + moved
        self.codebook[...] = jnp.where(due, replaced, self.codebook[...])
        self.used[...] = jnp.where(due, 0, self.used[...])

    def shuffle(self, rng: jax.Array, used_K: jax.Array) -> jax.Array:
        """A random order of the rows of the tiled used codes (`copy_used_codes`)."""
        size, used = used_K.shape[0], used_K.sum()
        tiles = jnp.ceil((size - used) / jnp.maximum(used, 1)).astype(jnp.int32)
        draws = jax.random.uniform(rng, (size,))
        return jnp.argsort(jnp.where(jnp.arange(size) < used * tiles, draws, 2.0))


def copy_used_codes(codebook_KD: jax.Array, unused_K: jax.Array, order_K: jax.Array) -> jax.Array:
    """The original's replacement: unused code j (from 0, in order) becomes used code j, or, with
    fewer used than unused codes, row `order[j]` of the used codes repeated. Without any used code
    nothing changes. (The original adds 1e-12 of noise, which float32 does not hold.)"""
    size = codebook_KD.shape[0]
    used = jnp.sum(~unused_K)
    rows_K = jnp.argsort(unused_K, stable=True)  # used codes first, each kind in order
    rank_K = jnp.cumsum(unused_K) - 1  # of an unused code among the unused
    rank_K = jnp.where(used < size - used, order_K[rank_K], rank_K)
    source_K = rows_K[rank_K % jnp.maximum(used, 1)]
    copy = unused_K & (used > 0)
    return jnp.where(copy[:, None], codebook_KD[source_K], codebook_KD)
