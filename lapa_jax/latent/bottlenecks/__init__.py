"""Bottlenecks: from a continuous latent to codes, and what the decoder receives.

A new one is a class and its config, with defaults, in a file here and a line in `BOTTLENECKS`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lapa_jax.latent.bottlenecks.base import BottleneckOutput, BottleneckState
from lapa_jax.latent.bottlenecks.continuous import (
    Gaussian,
    GaussianConfig,
    NoBottleneck,
    NoneConfig,
)
from lapa_jax.latent.bottlenecks.nsvq import NSVQ, LegacyNSVQ, LegacyNSVQConfig, NSVQConfig
from lapa_jax.latent.bottlenecks.scalar import FSQ, LFQ, FSQConfig, LFQConfig, fsq_levels
from lapa_jax.latent.bottlenecks.vq import (
    VQEMA,
    SoftVQ,
    SoftVQConfig,
    VQCommit,
    VQCommitConfig,
    VQEMAConfig,
)
from lapa_jax.nn.registry import named_config, named_settings

__all__ = [
    "BOTTLENECKS",
    "CONTINUOUS",
    "BottleneckOutput",
    "BottleneckState",
    "bottleneck_config",
    "bottleneck_settings",
]

BOTTLENECKS: dict[str, tuple[type, type]] = {
    "nsvq": (NSVQConfig, NSVQ),
    "legacy_nsvq": (LegacyNSVQConfig, LegacyNSVQ),
    "vq_ema": (VQEMAConfig, VQEMA),
    "vq_commit": (VQCommitConfig, VQCommit),
    "soft_vq": (SoftVQConfig, SoftVQ),
    "fsq": (FSQConfig, FSQ),
    "lfq": (LFQConfig, LFQ),
    "gaussian": (GaussianConfig, Gaussian),
    "none": (NoneConfig, NoBottleneck),
}
CONTINUOUS = ("gaussian", "none")


def bottleneck_config(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...}` mapping."""
    return named_config(settings, BOTTLENECKS, "model.bottleneck")


def bottleneck_settings(name: str, codebook_size: int = 8) -> ConfigDict:
    """For a new config. `codebook_size` only shapes the levels of "fsq"."""
    levels = {"levels": fsq_levels(codebook_size)} if name == "fsq" else {}
    return named_settings(name, BOTTLENECKS, "bottleneck", **levels)
