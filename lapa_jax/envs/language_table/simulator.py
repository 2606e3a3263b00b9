"""One family of Language Table as functions of a state: PyBullet, and what the reward and the
planner remember.

Bullet's world has a past that none of its snapshots holds, such as the order of pairs that may
touch: continued from one in a used world, the last bits differ, and soon all. A state is therefore
its seed and all actions since the start, which give the same numbers in a new world.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import itertools
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from lapa_jax.envs.env import numpy_seeded
from lapa_jax.envs.language_table import memory

# task → (module of the reward, its class)
FAMILIES = {
    "block_to_block": ("block2block", "BlockToBlockReward"),
    "block_to_absolute_location": ("block2absolutelocation", "BlockToAbsoluteLocationReward"),
    "block_to_block_relative_location": (
        "block2block_relative_location",
        "BlockToBlockRelativeLocationReward",
    ),
    "block_to_relative_location": ("block2relativelocation", "BlockToRelativeLocationReward"),
    "separate_blocks": ("separate_blocks", "SeparateBlocksReward"),
}
_HEIGHT = 180  # pixels that the benchmark's focal length is of
_NONE = np.zeros((0, 2), np.float32)
_ATTEMPTS = 100  # at a start that is not solved yet and that the planner finds a way for
# what the benchmark imports, and what is here of it unused
_UNUSED = (
    *("tensorflow", "tf_agents", "tf_agents.policies", "tf_agents.policies.py_policy"),
    *("tf_agents.trajectories", "tf_agents.trajectories.policy_step"),
    *("tf_agents.trajectories.time_step", "matplotlib", "matplotlib.pyplot", "matplotlib.patches"),
)


@dataclasses.dataclass(frozen=True)
class State:
    """A moment of an episode: all but `planner` is a function of `task`, `seed` and `actions`."""

    task: str
    seed: int
    actions: np.ndarray  # (T, 2) f32 metres: all since the start
    bodies: np.ndarray  # (N,) f64: poses, velocities and joints of arm, tip and blocks
    planner: str  # JSON: what the planner remembers, before it acts here
    instruction: str
    tip: np.ndarray  # (2,) f32 metres
    success: bool


class Simulator:
    """The live simulator of a family. It stands at the state that it gave last; for another it
    begins anew and repeats that one's actions. A second draws pictures, of the numbers alone."""

    def __init__(self, task: str):
        self.task, self._parts = task, _parts(task)

        class Table(self._parts["table"].LanguageTable):
            def _render_camera(self, *_: Any, **__: Any) -> None:
                """No picture: a step asks for one several times."""

        self._kind = Table
        self._mode = self._parts["blocks"].LanguageTableBlockVariants.BLOCK_8
        self.env: Any = None
        self._at: State | None = None
        self._planned: tuple[State, tuple[np.ndarray, str]] | None = None

    def start(self, sequence: np.random.SeedSequence) -> State:
        """A start state of the benchmark's for the seed: the first of those that it draws which is
        not solved, and which its planner finds a way for."""
        for attempt in sequence.spawn(_ATTEMPTS):
            seed = int(attempt.generate_state(1)[0])
            self._begin(seed)
            with numpy_seeded(seed):
                planner = self._planner()
                solvable = planner.get_plan(self.env.compute_state())
            state = self._state(seed, _NONE, memory.kept(planner))
            if solvable and not state.success:
                return state
        raise RuntimeError(f"{self.task}: no start that can be solved in {_ATTEMPTS} tries")

    def step(self, state: State, action: np.ndarray, plans: bool) -> State:
        planner = self.plan(state)[1] if plans else str(state.planner)
        self._stand_at(state)
        self._at = None
        actions = np.concatenate([state.actions, action[None]])
        self._act(actions[-1])
        return self._state(int(state.seed), actions, planner)

    def plan(self, state: State) -> tuple[np.ndarray, str]:
        """The planner's action, float32 (2,), and what it remembers then."""
        if self._planned is None or self._planned[0] is not state:
            self._stand_at(state)
            planner = self._planner()
            memory.bring_back(planner, str(state.planner))
            (seed,) = np.random.SeedSequence((state.seed, len(state.actions))).generate_state(1)
            found = self.env.compute_state()
            del found["instruction"]  # else the memory holds it, too, in 512 numbers
            with numpy_seeded(int(seed)):
                action = planner._get_action_for_block_target(found)
            self._planned = state, (np.asarray(action, np.float32), memory.kept(planner))
        return self._planned[1]

    def draw(self, state: State, size: tuple[int, int]) -> np.ndarray:
        """uint8 (height, width, 3), row 0 at the top, in a world that is for pictures alone."""
        env, numbers = self._painted, iter(state.bodies.tolist())
        bullet, (height, width) = env.pybullet_client, size
        for body in _bodies(env):
            place, turn, _ = (list(itertools.islice(numbers, count)) for count in (3, 4, 6))
            bullet.resetBasePositionAndOrientation(body, place, turn)
            for joint in range(bullet.getNumJoints(body)):
                bullet.resetJointState(body, joint, next(numbers), next(numbers))
        view, projection, *_ = env.calc_camera_params((_HEIGHT, _HEIGHT * width / height))
        drawn = bullet.getCameraImage(
            width=width,
            height=height,
            viewMatrix=view,
            projectionMatrix=projection,
            flags=bullet.ER_SEGMENTATION_MASK_OBJECT_AND_LINKINDEX,
            renderer=bullet.ER_TINY_RENDERER,
        )
        return np.reshape(drawn[2], (height, width, 4)).astype(np.uint8)[:, :, :3]

    @functools.cached_property
    def _painted(self) -> Any:
        return self._made(0)

    def sentences(self) -> list[str]:
        """What the benchmark may say of this family and eight blocks."""
        mode, reward = self._mode, self._parts["reward"]
        if self.task == "separate_blocks":
            names = self._parts["blocks"].get_blocks_text_descriptions(mode)
            return _separations(names, reward)
        found = reward.generate_all_instructions(mode)
        if (
            self.task == "block_to_absolute_location"
        ):  # it says "put the", too, but does not list it
            found += [f"put the{t[8:]}" for t in found if t.startswith("move the")]
        return found

    def _stand_at(self, state: State) -> None:
        if state is self._at:
            return
        self._begin(int(state.seed))
        for action in state.actions:
            self._act(action)
        if not np.array_equal(self._numbers(), state.bodies):
            raise RuntimeError(
                f"{self.task}: the {len(state.actions)} actions of a state lead elsewhere on this "
                "machine; go on with it on one of the processor and packages it was made with"
            )
        self._at = state

    def _begin(self, seed: int) -> None:
        """A reset of the benchmark, of that seed also where it draws from NumPy's generator."""
        self._at = None
        if self.env is not None:
            self._bullet.disconnect()
        with numpy_seeded(seed):
            self.env = self._made(seed)
            self.env.reset()
        self._bullet, self._rewards = self.env.pybullet_client, self.env._reward_calculator

    def _made(self, seed: int) -> Any:
        with _printing_aside():
            return self._kind(
                block_mode=self._mode,
                reward_factory=getattr(self._parts["reward"], FAMILIES[self.task][1]),
                seed=seed,
            )

    def _act(self, action: np.ndarray) -> None:
        self.env._step_robot_and_sim(action.astype(np.float64))
        self.env.compute_state()  # a goal that goes with a block moves

    def _state(self, seed: int, actions: np.ndarray, planner: str) -> State:
        found = self.env.compute_state()
        reward, _ = self._rewards.reward(found)
        self._at = State(
            task=self.task,
            seed=seed,
            actions=actions,
            bodies=self._numbers(),
            planner=planner,
            instruction=str(self.env._instruction_str),
            tip=np.array(found["effector_translation"], np.float32),
            success=bool(reward > 0),
        )
        return self._at

    def _numbers(self) -> np.ndarray:
        found: list[float] = []
        place, velocity = self._bullet.getBasePositionAndOrientation, self._bullet.getBaseVelocity
        for body in _bodies(self.env):
            found += [x for part in (*place(body), *velocity(body)) for x in part]
            for joint in range(self._bullet.getNumJoints(body)):
                found += self._bullet.getJointState(body, joint)[:2]
        return np.array(found)

    def _planner(self) -> Any:
        env = types.SimpleNamespace(
            pybullet_client=self._bullet,
            get_control_frequency=lambda: self.env._control_frequency,
            time_step_spec=dict,
            action_spec=dict,
        )
        return self._parts["planner"].ObstacleOrientedPushOracleBoard2dRRT(env, use_ee_planner=True)


def _bodies(env: Any) -> list[int]:
    return [env._robot.xarm, env._robot.end_effector, *env._block_ids]


def _parts(task: str) -> dict[str, Any]:
    """The modules of the benchmark that are needed. What they import besides and do not use here is
    not loaded, and need not be installed."""
    names = {
        "table": "language_table",
        "blocks": "blocks",
        "planner": "oracles.push_oracle_rrt_slowdown",
        "reward": f"rewards.{FAMILIES[task][0]}",
    }
    with _stand_ins():
        return {
            part: importlib.import_module(f"language_table.environments.{name}")
            for part, name in names.items()
        }


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    made = {}
    for name in _UNUSED:
        if name not in sys.modules:
            made[name] = sys.modules[name] = types.ModuleType(name)
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, made[name])
    if policy := made.get("tf_agents.policies.py_policy"):
        policy.PyPolicy = type("PyPolicy", (), {"__init__": lambda *_: None})
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


@contextlib.contextmanager
def _printing_aside() -> Iterator[None]:
    """What C prints meanwhile goes to standard error: PyBullet tells each connection."""
    libc, output = ctypes.CDLL(None), os.dup(1)
    libc.fflush(None)
    os.dup2(2, 1)
    try:
        yield
    finally:
        libc.fflush(None)
        os.dup2(output, 1)
        os.close(output)


def _separations(names: list[str], reward: Any) -> list[str]:
    """Of `separate_blocks`, whose own list has some of the blocks to part from only."""
    said = []
    for name in names:
        others = [other for other in names if other != name]
        said += [(name, text) for text in [*others, *reward.GROUP_SYNONYMS, reward.REST]]
        for count in (2, 3):
            for group in itertools.permutations(others, count):
                listed = f"{', '.join(group[:-1])}{',' * (count > 2)} and {group[-1]}"
                said.append((name, listed))
    return [template % pair for pair in said for template in reward.SEPARATE_TEMPLATES]
