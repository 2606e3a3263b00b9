"""SIMPLER's four tasks of a WidowX arm (Bridge), as ManiSkill 3 has them (mani_skill 3.0.1).

It runs in a Python of its own. `docs/benchmarks.md` says how to make it, what is random there, and
how this differs from the published protocol.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_pipelines import keys
from lapa_jax.envs import vulkan
from lapa_jax.envs.env import (
    EnvSpec,
    Size,
    check_action,
    missing_packages,
    phrasing_numbers,
    reset_key,
    task_drawn,
)
from lapa_jax.envs.simpler.simulator import CAMERA, Simulator, State

__all__ = ["Simpler", "SimplerSettings", "State"]

_NEEDS = {"mani_skill": "3.0.1", "sapien": "3.0.3", "torch": ""}
_PACKAGES = "mani_skill==3.0.1 sapien==3.0.3 torch pillow websockets msgpack"
# a file of each download of ManiSkill → its name there
_ASSETS = {
    "robots/widowx/wx250s.urdf": "widowx250s",
    "tasks/bridge_v2_real2sim_dataset/custom/info_bridge_custom_v0.json": "bridge_v2_real2sim",
    "tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb": "bridge_v2_real2sim",
    "tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v2.glb": "bridge_v2_real2sim",
}
# suite → (actions of an episode, task → (ManiSkill's class, instruction))
_SUITES = {
    "table": (
        60,
        {
            "widowx_spoon_on_towel": ("PutSpoonOnTableClothInScene", "put the spoon on the towel"),
            "widowx_carrot_on_plate": ("PutCarrotOnPlateInScene", "put carrot on plate"),
            "widowx_stack_cube": (
                "StackGreenCubeOnYellowCubeBakedTexInScene",
                "stack the green block on the yellow block",
            ),
        },
    ),
    "sink": (
        120,
        {
            "widowx_put_eggplant_in_basket": (
                "PutEggplantInBasketScene",
                "put eggplant into yellow basket",
            )
        },
    ),
}
_ALL = {task: told for _, tasks in _SUITES.values() for task, told in tasks.items()}
PUBLISHED = 24  # start states of a task that are evaluated
_TRAIN = 0  # the lowest bit of a reset key


@dataclasses.dataclass(frozen=True)
class SimplerSettings:
    """Which tasks. Their episodes are of two lengths, and so there are two suites."""

    suite: Annotated[str, tuple(_SUITES), "table: spoon, carrot and cubes; sink: the eggplant"] = (
        "table"
    )
    horizon: Annotated[int, "[0, 1e6]", "actions of an episode at most; 0: as published"] = 0

    def __post_init__(self) -> None:
        keys.check(SimplerSettings, dataclasses.asdict(self), "evaluation.env")

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(_SUITES[self.suite][1])


@dataclasses.dataclass(frozen=True)
class Simpler:
    """The environment (see lapa_jax/envs/env.py for the protocol)."""

    Settings = SimplerSettings
    settings: SimplerSettings = SimplerSettings()
    expert = None

    @functools.cached_property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            name="simpler",
            tasks=self.settings.tasks,
            actions=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
            action_low=(*(-1.0,) * 3, *(-np.pi / 2,) * 3, -1.0),
            action_high=(*(1.0,) * 3, *(np.pi / 2,) * 3, 1.0),
            action_units=(
                *("m in 1/5 s, away from the robot", "m in 1/5 s, to its left", "m in 1/5 s, up"),
                *(f"rad in 1/5 s, about {axis}" for axis in "xyz"),
                "how far it opens, 1: wholly, -1: closed",
            ),
            control_hz=5.0,
            horizon=self.settings.horizon or _SUITES[self.settings.suite][0],
            views=(CAMERA,),
            cameras=(CAMERA,),
            image_size=(480, 640),
            state=("x", "y", "z", "qw", "qx", "qy", "qz", "gripper"),
            traceable=False,
        )

    @staticmethod
    def available() -> str:
        if missing := missing_packages(_NEEDS, f"pip install {_PACKAGES}"):
            return missing
        data = Path(os.environ.get("MS_ASSET_DIR", Path.home() / ".maniskill")) / "data"
        for file, asset in _ASSETS.items():
            if not (data / file).exists():
                mends = f"python -m mani_skill.utils.download_asset {asset} -y"
                return f"{data / file} is missing (MS_ASSET_DIR says where data are): {mends}"
        importlib.import_module("sapien")  # names a driver of its own where the system has none
        return vulkan.missing()

    def reset(self, key: Any, task: str | None = None) -> State:
        """The start of an episode whose places are drawn by the key among and around the published
        ones, which they are not."""
        key = int(key)
        simulator = _simulator(task_drawn(self.settings.tasks, key, task))
        return simulator.start(simulator.draw(np.random.default_rng((key, 1))))

    def step(self, state: State, action: np.ndarray) -> State:
        return _simulator(str(state.task)).step(state, check_action(self.spec, action))

    def success(self, state: State) -> bool:
        """What the benchmark says after the last action."""
        return bool(state.success)

    def render(self, state: State, size: Size, view: str = CAMERA) -> np.ndarray:
        """uint8 (height, width, 3): the benchmark's 480 x 640 pixels, scaled to that size; of
        another shape it is squeezed, as evaluators do."""
        if view != CAMERA:
            raise ValueError(f"view {view!r} is not one of {[CAMERA]}")
        size = (size, size) if isinstance(size, int) else tuple(size)
        image = _simulator(str(state.task)).draw_camera(state)
        if size == image.shape[:2]:
            return image
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))

    def proprioception(self, state: State) -> np.ndarray:
        """Where the hand is in the frame of the robot's base, metres, how it is turned, and how far
        the gripper is open, 0..1."""
        return state.hand

    # Language.

    def tasks_of(self, states: list[State]) -> list[str]:
        return [str(state.task) for state in states]

    def phrasings(self, split: str = "train") -> range:
        """The benchmark's words are the only ones."""
        return phrasing_numbers(split, 1, 1)

    def instructions(self, states: list[State], phrasing: int | np.ndarray = 0) -> list[str]:
        return [_ALL[str(state.task)][1] for state in states]

    def all_instructions(self, split: str = "train") -> list[str]:
        return [_ALL[task][1] for task in self.settings.tasks for _ in self.phrasings(split)]

    # Seeds.

    def training_keys(self, seed: int, n: int) -> np.ndarray:
        return np.array([reset_key(_TRAIN, seed, k) for k in range(n)], np.uint64)

    def evaluation_states(self, seed: int, task: str, n: int, first: int = 0) -> list[State]:
        """The 24 published start states in their order, again from the first after the last. The
        seed has no say: nothing else is random."""
        simulator = _simulator(task_drawn(self.settings.tasks, 0, task))
        return [simulator.start(simulator.official(k % PUBLISHED)) for k in range(first, first + n)]


@functools.cache
def _simulator(task: str) -> Simulator:
    return Simulator(task, _ALL[task][0])
