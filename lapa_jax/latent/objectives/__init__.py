"""What the quantizer is trained to predict about later frames, by name.

A new objective is a file with a class like `Pixels` and its config, with defaults, and a line in
`OBJECTIVES`; see `Objective` in base.py.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lapa_jax.latent.objectives import (
    contrastive,
    cross_view,
    features,
    latent_targets,
    motion,
    pixels,
    proprio,
)
from lapa_jax.latent.objectives.base import Objective
from lapa_jax.nn.registry import named_config, named_settings
from lapa_jax.nn.vit import vit_settings

OBJECTIVES: dict[str, tuple[type, type[Objective]]] = {
    "pixels": (pixels.PixelsConfig, pixels.Pixels),
    "pixels_no_bottleneck": (pixels.PixelsConfig, pixels.PixelsNoBottleneck),
    "contrastive": (contrastive.ContrastiveConfig, contrastive.Contrastive),
    "cross_view": (cross_view.CrossViewConfig, cross_view.CrossView),
    "features": (features.FeaturesConfig, features.Features),
    "latent_targets": (latent_targets.LatentTargetsConfig, latent_targets.LatentTargets),
    "motion": (motion.MotionConfig, motion.Motion),
    "proprio": (proprio.ProprioConfig, proprio.Proprio),
}


def objective_config(settings: Mapping[str, Any]) -> tuple[type[Objective], Any]:
    """(class, typed config) of a `{name, ...}` mapping."""
    name, config = named_config(settings, OBJECTIVES, "model.objective")
    return OBJECTIVES[name][1], config


def objective_settings(name: str, encoder: str = "tabletop") -> ConfigDict:
    """For a new config. `encoder`: that of a teacher, where it has one, one of vit.ENCODERS."""
    taught = name in OBJECTIVES and issubclass(OBJECTIVES[name][1], features.Taught)
    teacher = {"teacher": vit_settings(encoder)} if taught else {}
    return named_settings(name, OBJECTIVES, "objective", **teacher)
