"""Drawing pixels from a latent read off a frozen encoder's features (Moto, Chen et al. 2024).

Features hold what is where whatever the light; pixels ask for all that changes. Moto has eight
tokens of 128 codes: model.code_length and model.codebook_size.

Shape suffixes: see base.py; F the features of a cell.
"""

import jax
from flax import nnx

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.encoder import flat
from lapa_jax.latent.objectives.features import FeaturesConfig, Taught
from lapa_jax.latent.objectives.pixels import Pixels
from lapa_jax.nn.layers import Dense, LayerNorm, dtype_of


class MotionConfig(FeaturesConfig):
    """Whose features latents are read off."""


class Motion(Taught, Pixels):
    """Mean squared error of the pixels. The decoder sees the pixels of the first frame, too."""

    def __init__(self, settings: MotionConfig, config: QuantizerConfig, *, rngs: nnx.Rngs):
        super().__init__(settings, config, rngs=rngs)
        self.project = Dense(
            (self.feature_dim,),
            (config.dim,),
            (None, "embed"),
            bias=True,
            dtype=dtype_of(config.compute_dtype),
            rngs=rngs,
        )
        self.norm = LayerNorm(config.dim, bias=True)

    @classmethod
    def reads_patches(cls, settings: MotionConfig) -> bool:
        return False

    def seen(self, frames_BTIJC: jax.Array, embedded_BTHWD: jax.Array) -> jax.Array:
        del embedded_BTHWD
        features_NHWF = self._features(flat(frames_BTIJC))
        x = self.norm(self.project(features_NHWF))
        return x.reshape(*frames_BTIJC.shape[:2], *x.shape[1:])
