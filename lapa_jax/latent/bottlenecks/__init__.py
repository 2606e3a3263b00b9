"""Bottlenecks: from a continuous latent to codes, and what the decoder receives.

A new one is a class and its config, with defaults, in a file here and a line in `BOTTLENECKS`; it
says of itself what others ask (`Bottleneck` in base.py).
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lapa_jax.latent.bottlenecks import continuous, nsvq, scalar, vq
from lapa_jax.latent.bottlenecks.base import Bottleneck
from lapa_jax.nn.registry import named_config, named_settings

BOTTLENECKS: dict[str, tuple[type, type[Bottleneck]]] = {
    "nsvq": (nsvq.NSVQConfig, nsvq.NSVQ),
    "legacy_nsvq": (nsvq.LegacyNSVQConfig, nsvq.LegacyNSVQ),
    "vq_ema": (vq.VQEMAConfig, vq.VQEMA),
    "vq_commit": (vq.VQCommitConfig, vq.VQCommit),
    "soft_vq": (vq.SoftVQConfig, vq.SoftVQ),
    "fsq": (scalar.FSQConfig, scalar.FSQ),
    "lfq": (scalar.LFQConfig, scalar.LFQ),
    "gaussian": (continuous.GaussianConfig, continuous.Gaussian),
    "none": (continuous.NoneConfig, continuous.NoBottleneck),
}


def bottleneck_config(settings: Mapping[str, Any]) -> tuple[type[Bottleneck], Any]:
    """(class, typed config) of a `{name, ...}` mapping."""
    name, config = named_config(settings, BOTTLENECKS, "model.bottleneck")
    return BOTTLENECKS[name][1], config


def bottleneck_settings(name: str, codebook_size: int = 8) -> ConfigDict:
    """For a new config."""
    own = BOTTLENECKS[name][1].defaults(codebook_size) if name in BOTTLENECKS else {}
    return named_settings(name, BOTTLENECKS, "bottleneck", **own)
