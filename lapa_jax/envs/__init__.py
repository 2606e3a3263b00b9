"""Closed-loop environments by name, and how policies run in them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lapa_jax.envs.env import Environment
from lapa_jax.envs.tabletop import SceneConfig, Tabletop

# name → (dataclass of its settings, environment of them)
ENVS: dict[str, tuple[type, type]] = {"tabletop": (SceneConfig, Tabletop)}


def make(settings: Mapping[str, Any]) -> Environment:
    """The environment of `{name, ...settings}`, with its own defaults for what is not there. An
    unknown name, and unknown or impossible settings, raise ValueError."""
    settings = dict(settings)
    name = settings.pop("name", None)
    if name not in ENVS:
        raise ValueError(f"evaluation.env.name={name!r} must be one of {sorted(ENVS)}")
    kind, environment = ENVS[name]
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(settings.keys() - set(known)):
        raise ValueError(f"evaluation.env has no setting {unknown} for {name!r}, but {known}")
    return environment(kind(**settings))
