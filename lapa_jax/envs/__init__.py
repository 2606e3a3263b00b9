"""Closed-loop environments by name, and how policies run in them.

Here is nothing of JAX, and nothing of a simulator before one is made: the workers that step one run
where neither may be (lapa_jax/envs/env.py).
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from data_pipelines import keys
from lapa_jax.envs.env import Environment


class _Entries(dict):
    """name → (dataclass of its settings, environment of them), imported when it is asked for."""

    def __getitem__(self, name: str) -> tuple[type, type]:
        found = super().__getitem__(name)
        if isinstance(found, str):
            environment = getattr(importlib.import_module(f"{__name__}.{name}"), found)
            return environment.Settings, environment
        return found


# name → the class in the module of that name
ENVS: Mapping[str, tuple[type, type]] = _Entries(
    language_table="LanguageTable",
    libero="Libero",
    metaworld="Metaworld",
    simpler="Simpler",
    tabletop="Tabletop",
)


def make(settings: Mapping[str, Any]) -> Environment:
    """The environment of `{name, ...settings}`, with its own defaults for what is not there. An
    unknown name, and unknown or impossible settings, raise ValueError, and one whose simulator
    cannot run here is told by its first use (`available`)."""
    settings = dict(settings)
    name = settings.pop("name", None)
    if name not in ENVS:
        raise ValueError(f"evaluation.env.name={name!r} must be one of {sorted(ENVS)}")
    kind, environment = ENVS[name]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    keys.check(kind, defaults | settings, "evaluation.env")
    return environment(kind(**settings))
