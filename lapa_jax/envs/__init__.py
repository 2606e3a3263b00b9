"""Closed-loop environments by name, and how policies run in them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines import keys
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
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    keys.check(kind, defaults | settings, "evaluation.env")
    return environment(kind(**settings))
