"""Bottlenecks: from a continuous latent to codes, and what the decoder receives.

A new one is a class and its config, with defaults, in a file here and a line in `BOTTLENECKS`; it
says of itself what others ask (`Bottleneck` in base.py).
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from lapa_jax.latent.bottlenecks.base import Bottleneck, BottleneckOutput, BottleneckState
from lapa_jax.latent.bottlenecks.continuous import (
    Gaussian,
    GaussianConfig,
    NoBottleneck,
    NoneConfig,
)
from lapa_jax.latent.bottlenecks.nsvq import NSVQ, LegacyNSVQ, LegacyNSVQConfig, NSVQConfig
from lapa_jax.latent.bottlenecks.scalar import FSQ, LFQ, FSQConfig, LFQConfig
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
    "Bottleneck",
    "BottleneckOutput",
    "BottleneckState",
    "bottleneck_config",
    "bottleneck_settings",
    "make_bottleneck",
]

BOTTLENECKS: dict[str, tuple[type, type[Bottleneck]]] = {
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


def bottleneck_config(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...}` mapping."""
    return named_config(settings, BOTTLENECKS, "model.bottleneck")


def bottleneck_settings(name: str, codebook_size: int = 8) -> ConfigDict:
    """For a new config."""
    own = BOTTLENECKS[name][1].defaults(codebook_size) if name in BOTTLENECKS else {}
    return named_settings(name, BOTTLENECKS, "bottleneck", **own)


def make_bottleneck(
    settings: Mapping[str, Any], codebook_size: int, dim: int, *, rngs: nnx.Rngs
) -> Bottleneck:
    """Of `{name, ...}`, for latents of width `dim`. An objective may make further ones."""
    name, config = bottleneck_config(settings)
    return BOTTLENECKS[name][1](config, codebook_size, dim, rngs=rngs)
