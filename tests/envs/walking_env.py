"""A point on a line that walks to a goal, in NumPy alone, whose expert turns back in some
episodes."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lapa_jax.envs.env import EnvSpec, check_action

DIES = "WALK_DIES"  # a file: who steps while it is not there makes it, and is killed


@dataclasses.dataclass(frozen=True)
class Settings:
    horizon: Annotated[int, "[1, 1e6]", "actions of an episode at most"] = 9
    lost: Annotated[int, "[1, 100]", "of so many start states, one whose expert turns back"] = 4


@dataclasses.dataclass(frozen=True)
class State:
    task: str
    x: float
    goal: float
    lost: bool


@dataclasses.dataclass(frozen=True)
class Walk:
    settings: Settings = Settings()
    Settings = Settings

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            name="walk",
            tasks=("near", "far", "farther"),
            actions=("x",),
            action_low=(-1.0,),
            action_high=(1.0,),
            action_units=("metres a step",),
            control_hz=10.0,
            horizon=self.settings.horizon,
            views=("front", "back"),
            cameras=("front",),
            image_size=(16, 16),
            state=("x", "speed"),
            traceable=False,
        )

    @staticmethod
    def available() -> str:
        return ""

    def reset(self, key: int, task: str) -> State:
        rng = np.random.default_rng(key)
        goal = 1.0 + self.spec.tasks.index(task) + rng.uniform(0, 2)
        return State(task, 0.0, goal, bool(rng.integers(self.settings.lost) == 0))

    def step(self, state: State, action: np.ndarray) -> State:
        mark = os.environ.get(DIES)
        if mark and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return dataclasses.replace(state, x=state.x + float(check_action(self.spec, action)[0]))

    def success(self, state: State) -> bool:
        return state.x >= state.goal

    def expert(self, state: State) -> np.ndarray:
        return np.float32([-1.0 if state.lost else 0.9])

    def render(self, state: State, size: Any, view: str) -> np.ndarray:
        return np.full((*size, 3), level(state.x, view), np.uint8)

    def proprioception(self, state: State) -> np.ndarray:
        return np.float32([state.x, 0.9])

    def tasks_of(self, states: list[State]) -> list[str]:
        return [state.task for state in states]

    def phrasings(self, split: str = "train") -> range:
        return {"train": range(2), "held_out": range(2, 3)}[split]

    def instructions(self, states: list[State], phrasing: Any = 0) -> list[str]:
        return [f"walk {state.task}, way {int(phrasing)}" for state in states]

    def training_keys(self, seed: int, n: int) -> list[int]:
        return [
            int(np.random.SeedSequence((seed, k)).generate_state(1, np.uint64)[0]) for k in range(n)
        ]


def level(x: float, view: str) -> int:
    """Grey of a picture."""
    return int(np.clip(100 + 12 * x * (1 if view == "front" else -1), 0, 255))
