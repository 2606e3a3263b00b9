"""What the quantizer is trained to predict about later frames, by name.

A new objective is a file with a class like `Pixels` and its config, with defaults, and a line in
`OBJECTIVES`; everything that it may look at is in `Clip`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lapa_jax.latent.objectives.contrastive import Contrastive, ContrastiveConfig
from lapa_jax.latent.objectives.features import Features, FeaturesConfig
from lapa_jax.latent.objectives.pixels import Clip, Pixels, PixelsConfig, PixelsNoBottleneck
from lapa_jax.nn.registry import named_config, named_settings
from lapa_jax.nn.vit import vit_settings

__all__ = [
    "OBJECTIVES",
    "Clip",
    "FeaturesConfig",
    "Pixels",
    "PixelsConfig",
    "objective_config",
    "objective_settings",
]

OBJECTIVES: dict[str, tuple[type, type]] = {
    "pixels": (PixelsConfig, Pixels),
    "pixels_no_bottleneck": (PixelsConfig, PixelsNoBottleneck),
    "contrastive": (ContrastiveConfig, Contrastive),
    "features": (FeaturesConfig, Features),
}


def objective_config(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...}` mapping."""
    return named_config(settings, OBJECTIVES, "model.objective")


def objective_settings(name: str, encoder: str = "tabletop") -> ConfigDict:
    """For a new config. `encoder`: that of the teacher of "features", one of vit.ENCODERS."""
    teacher = {"teacher": vit_settings(encoder)} if name == "features" else {}
    return named_settings(name, OBJECTIVES, "objective", **teacher)
