"""Meta-World 3.1.1: the fifty tasks of a Sawyer arm over a table, with scripted experts.

`docs/benchmarks.md` says what is random there, and how this differs from the published protocol.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any

import numpy as np

from data_pipelines import keys
from lapa_jax.envs import graphics
from lapa_jax.envs.env import EnvSpec, Size, check_action, missing_packages, reset_key, task_drawn
from lapa_jax.envs.metaworld import language
from lapa_jax.envs.metaworld.pictures import VIEWS, Painter
from lapa_jax.envs.metaworld.simulator import Simulator, State

__all__ = ["Metaworld", "MetaworldSettings", "State"]

_NEEDS = {"metaworld": "3.1.1", "mujoco": "3.3.0"}
_PINNED = " ".join(f"{name}=={version}" for name, version in _NEEDS.items())
_STEP_HZ = 80.0  # of the benchmark: 5 steps of MuJoCo of 2.5 ms
_TRAIN, _EVALUATE = 0, 1  # the lowest bit of a reset key


@dataclasses.dataclass(frozen=True)
class MetaworldSettings:
    """Which tasks, and how often a policy decides. The defaults are the ten tasks of a first study;
    the published protocol has action_repeat 1 and horizon 500."""

    suite: Annotated[str, tuple(language.SUITES), "which tasks there are"] = "mw10"
    action_repeat: Annotated[int, "[1, 20]", "steps of the benchmark that an action is held"] = 2
    horizon: Annotated[int, "[1, 1e6]", "actions of an episode at most"] = 100

    def __post_init__(self) -> None:
        keys.check(MetaworldSettings, dataclasses.asdict(self), "evaluation.env")

    @property
    def tasks(self) -> tuple[str, ...]:
        return language.SUITES[self.suite]


@dataclasses.dataclass(frozen=True)
class Metaworld:
    """The environment (see lapa_jax/envs/env.py for the protocol)."""

    Settings = MetaworldSettings
    settings: MetaworldSettings = MetaworldSettings()

    @functools.cached_property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            name="metaworld",
            tasks=self.settings.tasks,
            actions=("x", "y", "z", "gripper"),
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            action_units=(
                *("cm in 1/80 s, to the robot's right", "cm in 1/80 s, away from the robot"),
                *("cm in 1/80 s, up", "effort, 1 closes"),
            ),
            control_hz=_STEP_HZ / self.settings.action_repeat,
            horizon=self.settings.horizon,
            views=tuple(VIEWS),
            cameras=("robot",),
            image_size=(64, 64),
            state=("x", "y", "z", "gripper"),
            traceable=False,
        )

    @staticmethod
    def available() -> str:
        return missing_packages(_NEEDS, f"pip install {_PINNED}") or graphics.missing()

    def reset(self, key: Any, task: str | None = None) -> State:
        """The start of an episode: the task and its places are what the key draws."""
        key = int(key)
        simulator = _simulator(task_drawn(self.settings.tasks, key, task))
        return simulator.reset(simulator.draw(np.random.default_rng((key, 1))), key & 0x7FFFFFFF)

    def step(self, state: State, action: np.ndarray) -> State:
        action = check_action(self.spec, action)
        return _simulator(state.task).step(state, action, self.settings.action_repeat)

    def success(self, state: State) -> bool:
        """What the benchmark says of the steps of the last action; of a start state, False."""
        return bool(state.success)

    def expert(self, state: State) -> np.ndarray:
        """The benchmark's scripted policy for the task, within the bounds."""
        return _simulator(state.task).expert(state)

    def render(self, state: State, size: Size, view: str = "robot") -> np.ndarray:
        """uint8 (height, width, 3); what is not square shows more to the sides, or less."""
        if view not in VIEWS:
            raise ValueError(f"view {view!r} is not one of {list(VIEWS)}")
        size = (size, size) if isinstance(size, int) else tuple(size)
        _simulator(state.task).stand_at(state)
        return _painter(state.task).draw(view, size, int(state.seed), int(state.time))

    def proprioception(self, state: State) -> np.ndarray:
        """Where the hand is, metres, and how far the gripper is open, 0..1."""
        return state.observation[:4].astype(np.float32)

    # Language.

    def tasks_of(self, states: list[State]) -> list[str]:
        return [str(state.task) for state in states]

    def phrasings(self, split: str = "train") -> range:
        return language.phrasings(split)

    def instructions(self, states: list[State], phrasing: int | np.ndarray = 0) -> list[str]:
        numbers = np.broadcast_to(np.asarray(phrasing), (len(states),))
        found = zip(self.tasks_of(states), numbers, strict=True)
        return [language.instruction(task, int(number)) for task, number in found]

    def all_instructions(self, split: str = "train") -> list[str]:
        numbers = language.phrasings(split)
        return [language.instruction(task, p) for task in self.settings.tasks for p in numbers]

    # Seeds.

    def training_keys(self, seed: int, n: int) -> np.ndarray:
        return np.array([reset_key(_TRAIN, seed, k) for k in range(n)], np.uint64)

    def evaluation_states(self, seed: int, task: str, n: int, first: int = 0) -> list[State]:
        index = language.TASKS.index(task)
        return [
            self.reset(reset_key(_EVALUATE, seed, index, k), task) for k in range(first, first + n)
        ]


@functools.cache
def _simulator(task: str) -> Simulator:
    return Simulator(task)


@functools.cache
def _painter(task: str) -> Painter:
    simulator = _simulator(task)
    return Painter(simulator.model, simulator.data)
