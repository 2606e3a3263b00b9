"""Bottlenecks without a codebook to learn: the codes are the cells of a fixed grid.

Shape suffixes: see base.py; G grid dimensions.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.latent.bottlenecks.base import Bottleneck, BottleneckOutput
from lapa_jax.latent.bottlenecks.vq import straight_through
from lapa_jax.nn.layers import Dense


@dataclass(frozen=True)
class FSQConfig:
    """A grid with a level or more in each dimension."""

    levels: Annotated[
        tuple[int, *tuple[int, ...]],
        "[2, 1e6]",
        "of each grid dimension; their product is the codebook_size",
    ] = (4, 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))


@dataclass(frozen=True)
class LFQConfig:
    """The loss pulls each latent towards one code, and all of them towards all codes."""

    temperature: Annotated[float, "(0, 1e6]", "of the soft codes"] = 1.0
    entropy_weight: Annotated[
        float, "[0, 1e6]", "on mean entropy − diversity · entropy of the mean, of the soft codes"
    ] = 0.1
    diversity: Annotated[float, "[0, 1e6]", "what the second of these counts"] = 2.0
    commitment_weight: Annotated[
        float, "[0, 1e6]", "on the squared distance from a latent to its code"
    ] = 0.1


class GridBottleneck(Bottleneck):
    """Latents are projected to the G dimensions of a grid, rounded to it with a straight-through
    gradient, and projected back. Code ids count the grid's cells, the first dimension fastest.

    A subclass has `round(z_BLG)`: (level ids int32 (B, L, G), grid coordinates in [-1, 1] with a
    gradient).
    """

    def __init__(self, config: Any, codebook_size: int, dim: int, *, rngs: nnx.Rngs):
        levels = self.grid(config, codebook_size)

        def dense(inputs, outputs):
            return Dense((inputs,), (outputs,), (None, None), dtype=jnp.float32, rngs=rngs)

        self.into, self.out = dense(dim, len(levels)), dense(len(levels), dim)
        self.levels, self.config = levels, config

    def train_loss(self, z_BLG: jax.Array, grid_BLG: jax.Array) -> jax.Array:
        return jnp.zeros(())

    def __call__(
        self, z_e_BLD: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> BottleneckOutput:
        del rng
        z_BLG = self.into(z_e_BLD.astype(jnp.float32))
        ids_BLG, grid_BLG = self.round(z_BLG)
        codes_BL = jnp.sum(ids_BLG * self._strides(), axis=-1).astype(jnp.int32)
        loss = self.train_loss(z_BLG, grid_BLG) if train else jnp.zeros(())
        return BottleneckOutput(self.out(grid_BLG), codes_BL, loss, {})

    def lookup(self, codes_BL: jax.Array) -> jax.Array:
        levels = np.array(self.levels)
        ids_BLG = (codes_BL[..., None] // self._strides()) % levels
        return self.out(2.0 * ids_BLG / (levels - 1) - 1.0)

    def _cells(self) -> np.ndarray:
        """Level ids int (K, G) of every code."""
        codes = np.arange(math.prod(self.levels))[:, None]
        return codes // self._strides() % np.array(self.levels)

    def _strides(self) -> np.ndarray:
        return np.cumprod((1, *self.levels[:-1]))


class FSQ(GridBottleneck):
    """Finite scalar quantisation (Mentzer et al. 2023): each dimension is squashed by a tanh and
    rounded to one of its levels."""

    form = "fsq"

    @classmethod
    def defaults(cls, codebook_size):
        """Levels whose product is `codebook_size`: of a power of two, at most eight each and at
        least two dimensions."""
        bits = codebook_size.bit_length() - 1
        if codebook_size != 2**bits or bits < 2:
            return {"levels": (codebook_size,)}
        dimensions = max(2, -(-bits // 3))
        return {"levels": tuple(2 ** (-(-(bits - i) // dimensions)) for i in range(dimensions))}

    @classmethod
    def grid(cls, config, codebook_size):
        if math.prod(config.levels) != codebook_size:
            raise ValueError(
                f"model.bottleneck.levels={config.levels} make {math.prod(config.levels)} codes, "
                f"model.codebook_size is {codebook_size}"
            )
        return config.levels

    def round(self, z_BLG):
        top = np.array(self.levels, np.float32) - 1.0
        place = self._place(z_BLG)
        ids = jnp.round(place)
        return ids.astype(jnp.int32), 2.0 * straight_through(place, ids) / top - 1.0

    def nearness(self, z_BLD):
        return self._place(self.into(z_BLD)), jnp.asarray(self._cells(), jnp.float32)

    def _place(self, z_BLG: jax.Array) -> jax.Array:
        """In [0, levels − 1]."""
        return 0.5 * (np.array(self.levels, np.float32) - 1.0) * (jnp.tanh(z_BLG) + 1.0)


class LFQ(GridBottleneck):
    """Lookup-free quantisation (Yu et al. 2023): one bit a dimension, kept in use by an entropy
    loss."""

    form = "lfq"

    @classmethod
    def grid(cls, config, codebook_size):
        bits = codebook_size.bit_length() - 1
        if codebook_size != 2**bits:
            raise ValueError(
                f"model.codebook_size={codebook_size} must be a power of two for "
                "model.bottleneck.name='lfq', which has one bit a dimension"
            )
        return (2,) * bits

    def round(self, z_BLG):
        ids = (z_BLG > 0.0).astype(jnp.int32)
        return ids, straight_through(z_BLG, 2.0 * ids - 1.0)

    def nearness(self, z_BLD):
        return self.into(z_BLD), jnp.asarray(self._codes())

    def train_loss(self, z_BLG, grid_BLG):
        """Both entropies are over whole codes, whose soft probabilities are a softmax of their
        agreement with the latent."""
        config, grid_KG = self.config, self._codes()
        log_BLK = jax.nn.log_softmax(2.0 * z_BLG @ grid_KG.T / config.temperature, axis=-1)
        mean_K = jnp.mean(jnp.exp(log_BLK), axis=(0, 1))
        single = -jnp.mean(jnp.sum(jnp.exp(log_BLK) * log_BLK, axis=-1))
        overall = -jnp.sum(mean_K * jnp.log(mean_K + 1e-12))
        commitment = jnp.mean(jnp.square(z_BLG - jax.lax.stop_gradient(grid_BLG)))
        entropy = config.entropy_weight * (single - config.diversity * overall)
        return entropy + config.commitment_weight * commitment

    def _codes(self) -> np.ndarray:
        """Grid coordinates (K, G) of every code."""
        return (2.0 * self._cells() - 1.0).astype(np.float32)
