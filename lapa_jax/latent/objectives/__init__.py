"""What the quantizer is trained to predict about later frames, by name.

A new objective is a file with a class like `Pixels` and its config, with defaults, and a line in
`OBJECTIVES`; see `Objective` in base.py.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.objectives.base import Objective
from lapa_jax.latent.objectives.contrastive import Contrastive, ContrastiveConfig
from lapa_jax.latent.objectives.features import Features, FeaturesConfig
from lapa_jax.latent.objectives.pixels import Pixels, PixelsConfig, PixelsNoBottleneck
from lapa_jax.nn.registry import named_config, named_settings
from lapa_jax.nn.vit import vit_settings

__all__ = [
    "OBJECTIVES",
    "Objective",
    "make_objective",
    "objective_config",
    "objective_settings",
]

OBJECTIVES: dict[str, tuple[type, type[Objective]]] = {
    "pixels": (PixelsConfig, Pixels),
    "pixels_no_bottleneck": (PixelsConfig, PixelsNoBottleneck),
    "contrastive": (ContrastiveConfig, Contrastive),
    "features": (FeaturesConfig, Features),
}


def objective_config(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...}` mapping."""
    return named_config(settings, OBJECTIVES, "model.objective")


def make_objective(config: QuantizerConfig, *, rngs: nnx.Rngs) -> Objective:
    name, settings = objective_config(config.objective)
    return OBJECTIVES[name][1](settings, config, rngs=rngs)


def objective_settings(name: str, encoder: str = "tabletop") -> ConfigDict:
    """For a new config. `encoder`: that of the teacher of "features", one of vit.ENCODERS."""
    teacher = {"teacher": vit_settings(encoder)} if name == "features" else {}
    return named_settings(name, OBJECTIVES, "objective", **teacher)
