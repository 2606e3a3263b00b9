"""The environment protocol: what collection, rollouts and evaluation may ask of a benchmark.

Every method but those of languages and seeds is a pure function of one state. Of a traceable
environment a state is a pytree, a batch of them the same pytree with leading axes, and callers vmap
and jit as they wish (envs/rollout.py). Of any other a state is what the simulator needs to go on
from there, a batch is a list, and envs/drive.py steps it in Python.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Size = int | tuple[int, int]  # of an image in pixels: a side, or height and width


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What a policy and a data writer must know of an environment."""

    name: str
    families: tuple[str, ...]
    actions: tuple[str, ...]  # names of the dimensions
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_unit: str
    control_hz: float
    horizon: int  # steps after which an episode has failed
    views: tuple[str, ...]  # the first one is what policies see, where nothing else is said
    image_size: tuple[int, int]  # height, width; of pictures where nothing else is said
    traceable: bool  # True: methods may be called under jit and vmap

    @property
    def action_dim(self) -> int:
        return len(self.actions)


@runtime_checkable
class Environment(Protocol):
    """A language-conditioned task environment."""

    # The scripted policy, state → action; None where there is none.
    expert: Callable[[Any], jax.Array] | None

    @property
    def spec(self) -> EnvSpec: ...

    def reset(self, key: jax.Array, family: Any = None) -> Any: ...

    def step(self, state: Any, action: jax.Array) -> Any: ...

    def success(self, state: Any) -> jax.Array: ...

    def render(self, state: Any, size: Size, view: str) -> jax.Array: ...

    def families_of(self, states: Any) -> list[str]: ...

    def phrasings(self, split: str = "train") -> range: ...

    def instructions(self, states: Any, phrasing: int | np.ndarray = 0) -> list[str]: ...

    def all_instructions(self, split: str = "train") -> list[str]: ...

    def training_keys(self, seed: int, n: int) -> jax.Array: ...

    def evaluation_states(self, seed: int, family: str, n: int) -> Any: ...
