"""What the quantizer is trained to predict about later frames, by name.

A new objective is a file with a class like `Pixels` and its config, and a line in `OBJECTIVES`;
everything that it may look at is in `Clip`.
"""

from collections.abc import Mapping
from typing import Any

from lapa_jax.latent.objectives.contrastive import Contrastive, ContrastiveConfig
from lapa_jax.latent.objectives.features import Features, FeaturesConfig
from lapa_jax.latent.objectives.pixels import Clip, Pixels, PixelsConfig, PixelsNoBottleneck
from lapa_jax.nn.registry import named_config

__all__ = ["OBJECTIVES", "Clip", "FeaturesConfig", "Pixels", "PixelsConfig", "objective_config"]

OBJECTIVES: dict[str, tuple[type, type]] = {
    "pixels": (PixelsConfig, Pixels),
    "pixels_no_bottleneck": (PixelsConfig, PixelsNoBottleneck),
    "contrastive": (ContrastiveConfig, Contrastive),
    "features": (FeaturesConfig, Features),
}


def objective_config(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...}` mapping."""
    return named_config(settings, OBJECTIVES, "model.objective")
