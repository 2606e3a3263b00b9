"""Predicting what a frozen teacher sees in the later frame, instead of its pixels.

Pixels ask for the look of everything, features for what things are and where (UniVLA, Bu et al.
2025, predicts those of DINOv2). A cell of the quantizer is a square of the teacher's patches, a
whole number of them: frames are resized to that, and no feature is averaged away.

Shape suffixes: see base.py; N frames, F the features of a cell's patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.encoder import flat
from lapa_jax.latent.objectives.base import Objective, mean_squared_error, standardised
from lapa_jax.nn.layers import Dense, dtype_of
from lapa_jax.nn.module import freeze
from lapa_jax.nn.patches import to_patches
from lapa_jax.nn.registry import typed_config
from lapa_jax.nn.surgery import Borrowed
from lapa_jax.nn.vit import ViT, ViTConfig, vit_settings


class TeacherConfig(ViTConfig):
    KEY = "model.objective.teacher"


@dataclass(frozen=True)
class FeaturesConfig:
    """Whose features are predicted."""

    weights: Annotated[
        str,
        'run of stage "teacher" that a new run takes the teacher\'s weights from; then they are in '
        "its own checkpoints",
    ] = ""
    teacher: Annotated[
        Mapping[str, Any] | TeacherConfig, "the architecture, as that run has it"
    ] = field(default_factory=vit_settings)

    def __post_init__(self) -> None:
        teacher = typed_config(TeacherConfig, self.teacher, TeacherConfig.KEY)
        object.__setattr__(self, "teacher", teacher)


class Taught(Objective):
    """One with a teacher, which is frozen."""

    def __init__(self, settings: FeaturesConfig, config: QuantizerConfig, *, rngs: nnx.Rngs):
        teacher = settings.teacher
        self.teacher = ViT(
            teacher, dtype=dtype_of(config.compute_dtype), unroll=config.unroll, rngs=rngs
        )
        freeze(self.teacher)
        self.patches = patches_of_cell(settings, config)  # a side
        self.image_size = tuple(n * self.patches * teacher.patch_size for n in config.grid)
        self.feature_dim = self.patches**2 * teacher.dim  # of a cell

    @classmethod
    def borrowed(cls, settings):
        teacher = Borrowed(
            key="model.objective.weights",
            run=settings.weights,
            hint="a teacher (teacher/tabletop, or lapa import --format dinov2)",
            stage="teacher",
            settings_key=TeacherConfig.KEY,
            settings=settings.teacher.architecture(),
            theirs="encoder",
            ours="objective/teacher",
        )
        return (teacher,)

    def _features(self, frames_NIJC: jax.Array) -> jax.Array:
        """(N, H, W, F) of frames."""
        if frames_NIJC.shape[1:3] != self.image_size:
            shape = (len(frames_NIJC), *self.image_size, 3)
            frames_NIJC = jax.image.resize(frames_NIJC, shape, "linear")  # smooths as it shrinks
        return to_patches(standardised(self.teacher.features(frames_NIJC)), self.patches)


class Features(Taught):
    """Mean squared error of the teacher's patch features, each scaled to mean 0 and variance 1.

    With model.predict="residual" the head's output is added to the features of the first frame, as
    the pixels' is.
    """

    def __init__(self, settings: FeaturesConfig, config: QuantizerConfig, *, rngs: nnx.Rngs):
        super().__init__(settings, config, rngs=rngs)
        self.residual = config.predict == "residual"
        self.head = Dense(
            (config.dim,),
            (self.feature_dim,),
            ("embed", None),
            bias=True,
            std=0.0 if self.residual else None,
            dtype=jnp.float32,
            rngs=rngs,
        )

    def __call__(self, model, batch, *, train, rng=None):
        pairs = model.pairs(batch["frames"], train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        tokens_MHWD = model.tokens(pairs.embedded_MHWD, out.z_q_BLD)
        recon = model.draw(pairs.first_MIJC, jax.lax.stop_gradient(tokens_MHWD))
        error, copy = self._errors(batch["frames"], tokens_MHWD)
        drawn = mean_squared_error(recon, pairs.last_MIJC)
        metrics = {"feature_loss": error, "feature_skill": 1.0 - error / jnp.maximum(copy, 1e-12)}
        metrics = jax.lax.stop_gradient(metrics)
        return model.outcome(pairs, out, recon, loss=error + drawn, train=train, metrics=metrics)

    def _errors(
        self, frames_BTIJC: jax.Array, tokens_MHWD: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean squared errors of features: of those predicted, of the first frame's."""
        features = self._features(flat(frames_BTIJC))
        features = features.reshape(*frames_BTIJC.shape[:2], *features.shape[1:])
        first_MHWF, last_MHWF = flat(features[:, :-1]), flat(features[:, 1:])
        predicted_MHWF = self.head(tokens_MHWD)
        if self.residual:
            predicted_MHWF = first_MHWF + predicted_MHWF
        error = mean_squared_error(predicted_MHWF, last_MHWF)
        return error, mean_squared_error(first_MHWF, last_MHWF)


def patches_of_cell(settings: FeaturesConfig, config: QuantizerConfig) -> int:
    """How many of the teacher's patches a side of a cell is, so that frames are resized least."""
    return max(1, round(config.patch_size / settings.teacher.patch_size))
