"""The environment protocol: what collection, rollouts and evaluation may ask of a benchmark.

The state is a pytree and every method but `instructions` is a pure function of one unbatched
state, so callers vmap and jit as they wish. Actions are physical units per control step.
A simulator that cannot be traced satisfies the same names with Python loops around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What a policy and a data writer must know of an environment."""

    name: str
    families: tuple[str, ...]
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_unit: str
    control_hz: float
    horizon: int
    views: tuple[str, ...]
    traceable: bool  # True: methods may be called under jit and vmap


@runtime_checkable
class Environment(Protocol):
    """A language-conditioned task environment. `State` is any pytree."""

    @property
    def spec(self) -> EnvSpec: ...

    def reset(self, key: jax.Array, family: Any = None) -> Any: ...

    def step(self, state: Any, action: jax.Array) -> Any: ...

    def success(self, state: Any) -> jax.Array: ...

    def expert(self, state: Any) -> jax.Array: ...

    def render(self, state: Any, size: int = 64, view: str = "robot") -> jax.Array: ...

    def instructions(self, states: Any, phrasing: int | np.ndarray = 0) -> list[str]: ...

    def all_instructions(self, split: str = "train") -> list[str]: ...

    def training_keys(self, seed: int, n: int) -> jax.Array: ...

    def evaluation_states(self, seed: int, family: str, n: int) -> Any: ...


def family_index(spec_families: Sequence[str], family: str) -> int:
    """Position of a family name, or an error that names the choices."""
    if family not in spec_families:
        raise ValueError(
            f"family {family!r} is not one of {list(spec_families)} (SceneConfig.families)"
        )
    return list(spec_families).index(family)
