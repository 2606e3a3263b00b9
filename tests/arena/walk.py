"""A line on which a point goes to a goal, in NumPy alone: an environment for workers. Its tasks can
end its process, or hang. Run as a program it is a worker that knows it, where JAX cannot be
imported."""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lapa_jax import envs
from lapa_jax.envs.env import EnvSpec, NotWholeError, check_action

HORIZON = 12


@dataclasses.dataclass(frozen=True)
class Settings:
    once: Annotated[str, "", "a folder: what fails does so once, and leaves a file there"] = ""


@dataclasses.dataclass(frozen=True)
class State:
    task: str
    number: int
    x: float
    goal: float
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class Toy:
    settings: Settings = Settings()
    Settings = Settings
    expert = None

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            name="toy",
            tasks=("go", "die", "hang", "crash", "lost"),
            actions=("x", "grip"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            action_units=("metres a step", "1: closed"),
            control_hz=10.0,
            horizon=HORIZON,
            views=("front", "wrist"),
            cameras=("front", "wrist"),
            image_size=(16, 24),
            state=("x",),
            traceable=False,
        )

    @staticmethod
    def available() -> str:
        return ""

    def step(self, state: State, action: np.ndarray) -> State:
        x, _ = check_action(self.spec, action)
        self._fail(state)
        sys.stdout.write("simulators print\n")
        return dataclasses.replace(state, x=state.x + float(x), steps=state.steps + 1)

    def _fail(self, state: State) -> None:
        if state.steps != 2 or state.task == "go" or state.number != 1:
            return
        if self.settings.once:
            mark = Path(self.settings.once) / state.task
            if mark.exists():
                return
            mark.touch()
        if state.task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if state.task == "hang":
            time.sleep(600)
        raise ArithmeticError("the simulator is unstable")

    def success(self, state: State) -> bool:
        return state.x >= state.goal

    def render(self, state: State, size: Any, view: str) -> np.ndarray:
        image = np.zeros((*size, 3), np.uint8)
        image[:, : 1 + int(state.x)] = 200 if view == "front" else 100
        return image

    def proprioception(self, state: State) -> np.ndarray:
        return np.float32([state.x])

    def phrasings(self, split: str = "train") -> range:
        return {"train": range(2), "held_out": range(2, 3), "all": range(3)}[split]

    def instructions(self, states: list[State], phrasing: int = 0) -> list[str]:
        return [f"go to {state.goal:g}, way {phrasing}" for state in states]

    def evaluation_states(self, seed: int, task: str, n: int, first: int = 0) -> list[State]:
        if task == "lost":
            raise NotWholeError("lost: a mesh is missing (install it)")
        goals = [np.random.default_rng((seed, i)).uniform(1, 8) for i in range(first, first + n)]
        return [State(task, first + i, 0.0, float(goal)) for i, goal in enumerate(goals)]


if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(("jax", "flax", "optax", "tensorflow"), None))
    dict.__setitem__(envs.ENVS, "toy", (Settings, Toy))
    from lapa_jax.arena import worker

    sys.exit(worker.main())
