"""Quantizers by architecture: ours, and those of others as they are (exact/)."""

from collections.abc import Mapping
from typing import Any

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.exact import adaworld, alam, moto, univla, villax
from lapa_jax.latent.objectives import objective_config
from lapa_jax.latent.quantizer import Quantizer, Reading

__all__ = ["ARCHITECTURES", "Quantizer", "QuantizerConfig", "Reading", "architecture", "reader"]

ARCHITECTURES: dict[str, tuple[type, type]] = {
    "native": (QuantizerConfig, Quantizer),
    "adaworld": (adaworld.AdaWorldConfig, adaworld.AdaWorld),
    "alam": (alam.ALAMConfig, alam.ALAM),
    "moto": (moto.MotoConfig, moto.Moto),
    "univla": (univla.UniVLAConfig, univla.UniVLA),
    "villax": (villax.VillaXConfig, villax.VillaX),
}


def architecture(model: Mapping[str, Any]) -> tuple[type, type]:
    """(config class, module class) of config.model."""
    name = model.get("architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"model.architecture={name!r} must be one of {sorted(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def reader(model: Mapping[str, Any]) -> tuple[type, Any]:
    """(the class that says what training reads of a batch, what it is asked with): the objective
    with its settings, or a whole model of others with config.model."""
    kind = architecture(model)[1]
    return objective_config(model["objective"]) if kind is Quantizer else (kind, model)
