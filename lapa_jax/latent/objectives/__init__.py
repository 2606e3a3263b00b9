"""What the quantizer is trained to predict about later frames, by name.

A new objective is a file with a class like `Pixels` and its config, with defaults, and a line in
`OBJECTIVES`; see `Objective` in base.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict

from lapa_jax.latent.objectives import (
    algebraic,
    bimanual,
    contrastive,
    cross_view,
    factorised,
    features,
    flow,
    latent_targets,
    motion,
    pixels,
    pose,
    proprio,
    rotation,
    shared_codes,
    two_stage,
)
from lapa_jax.latent.objectives.base import Objective
from lapa_jax.latent.objectives.mixed import Mixed
from lapa_jax.nn.registry import named_config, named_settings
from lapa_jax.nn.vit import vit_settings

OBJECTIVES: dict[str, tuple[type, type[Objective]]] = {
    "pixels": (pixels.PixelsConfig, pixels.Pixels),
    "pixels_no_bottleneck": (pixels.PixelsConfig, pixels.PixelsNoBottleneck),
    "contrastive": (contrastive.ContrastiveConfig, contrastive.Contrastive),
    "cross_view": (cross_view.CrossViewConfig, cross_view.CrossView),
    "bimanual": (bimanual.BimanualConfig, bimanual.Bimanual),
    "factorised": (factorised.FactorisedConfig, factorised.Factorised),
    "shared_codes": (shared_codes.SharedCodesConfig, shared_codes.SharedCodes),
    "features": (features.FeaturesConfig, features.Features),
    "flow": (flow.FlowConfig, flow.Flow),
    "latent_targets": (latent_targets.LatentTargetsConfig, latent_targets.LatentTargets),
    "motion": (motion.MotionConfig, motion.Motion),
    "pose": (pose.PoseConfig, pose.Pose),
    "proprio": (proprio.ProprioConfig, proprio.Proprio),
    "rotation": (rotation.RotationConfig, rotation.Rotation),
    "algebraic": (algebraic.AlgebraicConfig, algebraic.Algebraic),
    "two_stage": (two_stage.TwoStageConfig, two_stage.TwoStage),
}
MIXED = {name for name, (_, kind) in OBJECTIVES.items() if issubclass(kind, Mixed)}


def objective_config(
    settings: Mapping[str, Any], key: str = "model.objective"
) -> tuple[type[Objective], Any]:
    """(class, typed config) of a `{name, ...}` mapping, which stands under `key`; of one that is
    added to another, `of` in its config is the same of that one."""
    name, config = named_config(settings, OBJECTIVES, key)
    if name in MIXED:
        if (of := config.of.get("name")) in MIXED:
            raise ValueError(f"{key}.of.name={of!r} must be none of {sorted(MIXED)}")
        config = replace(config, of=objective_config(config.of, f"{key}.of"))
        if config.of[0].num_frames > OBJECTIVES[name][1].num_frames:
            raise ValueError(f"{key}.of.name={of!r} pairs more frames than {name!r} can be told of")
        if config.of[0].views(config.of[1]):
            raise ValueError(f"{key}.of.name={of!r} is of several cameras, {name!r} of one")
    return OBJECTIVES[name][1], config


def objective_settings(name: str, encoder: str = "tabletop") -> ConfigDict:
    """For a new config. `name`: one of OBJECTIVES, or one of MIXED, "+" and another. `encoder`:
    that of a teacher, where it has one, one of vit.ENCODERS."""
    name, _, other = name.partition("+")
    if other and name not in MIXED:
        raise ValueError(f"objective={name}+{other!r}: only {sorted(MIXED)} are added to another")
    own = {"of": objective_settings(other, encoder)} if other else {}
    if name in OBJECTIVES and issubclass(OBJECTIVES[name][1], features.Taught):
        own = {"teacher": vit_settings(encoder)}
    return named_settings(name, OBJECTIVES, "objective", **own)
