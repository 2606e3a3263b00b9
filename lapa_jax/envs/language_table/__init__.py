"""Language Table (google-research/language-table): an xArm's tip pushes eight blocks, on PyBullet.

`docs/benchmarks.md` says what is random there, and how this differs from the published protocol.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from data_pipelines import keys
from lapa_jax.envs.env import (
    EnvSpec,
    Size,
    check_action,
    missing_packages,
    phrasing_numbers,
    reset_key,
    task_drawn,
)
from lapa_jax.envs.language_table.simulator import FAMILIES, Simulator, State

__all__ = ["LanguageTable", "LanguageTableSettings", "State"]

_PYBULLET = "3.2.7"
# module → what is installed for it
_NEEDS = {
    "gym": "gym",
    "cv2": "opencv-python-headless",
    "scipy": "scipy",
    "absl": "absl-py",
    "six": "six",
}
_OURS = "pip install --no-deps git+https://github.com/google-research/language-table"
_VIEW = "front"
_TRAIN, _EVALUATE = 0, 1  # the lowest bit of a reset key


@dataclasses.dataclass(frozen=True)
class LanguageTableSettings:
    """How episodes are run."""

    oracle: Annotated[
        bool,
        "states hold the memory of the benchmark's planner: there is an expert, and steps plan",
    ] = False
    horizon: Annotated[int, "[1, 1e6]", "actions of an episode at most"] = 200

    def __post_init__(self) -> None:
        keys.check(LanguageTableSettings, dataclasses.asdict(self), "evaluation.env")


@dataclasses.dataclass(frozen=True)
class LanguageTable:
    """The environment (see lapa_jax/envs/env.py for the protocol)."""

    Settings = LanguageTableSettings
    settings: LanguageTableSettings = LanguageTableSettings()

    @functools.cached_property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            name="language_table",
            tasks=tuple(FAMILIES),
            actions=("x", "y"),
            action_low=(-0.1, -0.1),
            action_high=(0.1, 0.1),
            action_units=("m in 1/10 s, away from the robot", "m in 1/10 s, to its left"),
            control_hz=10.0,
            horizon=self.settings.horizon,
            views=(_VIEW,),
            cameras=(_VIEW,),
            image_size=(180, 320),
            state=("x", "y"),
            traceable=False,
        )

    @staticmethod
    def available() -> str:
        mends = f"pip install pybullet=={_PYBULLET} {' '.join(_NEEDS.values())}"
        if missing := missing_packages({"pybullet": _PYBULLET}, mends):
            return missing
        for name, package in _NEEDS.items():
            if importlib.util.find_spec(name) is None:
                return f"{package} is not installed in this Python: {mends}"
        if importlib.util.find_spec("language_table") is None:
            return f"language_table is not installed in this Python: {_OURS}"
        return ""

    def reset(self, key: Any, task: str | None = None) -> State:
        """The start of an episode: places, the pair of blocks or the like, and words are what the
        key draws."""
        key = int(key)
        task = task_drawn(self.spec.tasks, key, task)
        return _simulator(task).start(np.random.SeedSequence((key, 1)))

    def step(self, state: State, action: np.ndarray) -> State:
        action = check_action(self.spec, action)
        return _simulator(str(state.task)).step(state, action, self.settings.oracle)

    def success(self, state: State) -> bool:
        """What the benchmark's reward says of the state."""
        return bool(state.success)

    @property
    def expert(self) -> Callable[[State], np.ndarray] | None:
        """The benchmark's planner, within the bounds; None without `oracle`."""
        return self._act if self.settings.oracle else None

    def _act(self, state: State) -> np.ndarray:
        low, high = np.float32(self.spec.action_low), np.float32(self.spec.action_high)
        return np.clip(_simulator(str(state.task)).plan(state)[0], low, high)

    def render(self, state: State, size: Size, view: str = _VIEW) -> np.ndarray:
        """uint8 (height, width, 3); what is not 16:9 shows more to the sides, or less."""
        if view != _VIEW:
            raise ValueError(f"view {view!r} is not one of {[_VIEW]}")
        size = (size, size) if isinstance(size, int) else tuple(size)
        return _simulator(str(state.task)).draw(state, size)

    def proprioception(self, state: State) -> np.ndarray:
        """Where the tip is, metres."""
        return state.tip

    # Language.

    def tasks_of(self, states: list[State]) -> list[str]:
        return [str(state.task) for state in states]

    def phrasings(self, split: str = "train") -> range:
        """An episode has one sentence, which its key draws."""
        return phrasing_numbers(split, 1, 1)

    def instructions(self, states: list[State], phrasing: int | np.ndarray = 0) -> list[str]:
        return [str(state.instruction) for state in states]

    def all_instructions(self, split: str = "train") -> list[str]:
        """All that can be said of eight blocks, from the benchmark's lists."""
        every = [_simulator(task).sentences() for task in self.spec.tasks]
        return [text for texts in every for text in texts for _ in self.phrasings(split)]

    # Seeds.

    def training_keys(self, seed: int, n: int) -> np.ndarray:
        return np.array([reset_key(_TRAIN, seed, k) for k in range(n)], np.uint64)

    def evaluation_states(self, seed: int, task: str, n: int, first: int = 0) -> list[State]:
        index = self.spec.tasks.index(task) if task in self.spec.tasks else 0
        numbers = range(first, first + n)
        return [self.reset(reset_key(_EVALUATE, seed, index, k), task) for k in numbers]


@functools.cache
def _simulator(task: str) -> Simulator:
    return Simulator(task)


atexit.register(_simulator.cache_clear)  # before PyBullet, whose clients say goodbye to it
