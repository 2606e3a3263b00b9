"""One task of Meta-World as functions of a state: MuJoCo, the benchmark's variables and its expert.

The benchmark's own `reset(seed)` ignores the seed. What it leaves to chance is one vector, from
which a reset works out all places: it is drawn here from our generator, and a reset begins from how
the simulator was when it was made, so that it depends on that vector alone.
"""

from __future__ import annotations

import collections
import dataclasses
import warnings
from typing import Any

import numpy as np

from lapa_jax.envs import graphics
from lapa_jax.envs.env import NotWholeError

_SCENES_KEPT = 4096


@dataclasses.dataclass(frozen=True)
class State:
    """A moment of an episode. The fields of the scene are a function of `task` and `scene`."""

    task: str
    seed: int  # drives what is only drawn (distractors)
    scene: np.ndarray  # (3 or 6,) f64: the benchmark's random vector, places of object and goal
    physics: np.ndarray  # f64: MuJoCo's mjSTATE_INTEGRATION
    seen: np.ndarray  # (18,) f64, what the next observation has as its frame before
    observation: np.ndarray  # (39,) f64, as the benchmark gives it, its goal included
    success: bool  # in a step of the last action
    time: int  # actions since reset


class Simulator:
    """The live simulator of a task. It stands at the state that it gave last, and is moved where it
    is asked for another."""

    def __init__(self, task: str):
        graphics.choose()
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        # Experts ask for more than the bounds on purpose.
        warnings.filterwarnings("ignore", "Constant.s. may be too high")
        self.task, self._mujoco = task, mujoco
        try:
            self.env = env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        except (OSError, ValueError) as error:  # MuJoCo's, too
            why = " ".join(str(error).split())[:300]
            raise NotWholeError(
                f"{task}: {why} (pip install --force-reinstall --no-deps metaworld brings it back)"
            ) from error
        env._set_task_called, env._partially_observable = True, False
        env.__dict__.pop("sawyer_observation_space", None)  # it was cached without the goal
        self._policy = ENV_POLICY_MAP[f"{task}-v3"]()
        self.model, self.data = env.model, env.data
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self._size = mujoco.mj_stateSize(self.model, self._kind)
        self._made = self._scene_now()
        # random vector → what its reset left in the model and in the benchmark's variables
        self._scenes: collections.OrderedDict[bytes, tuple] = collections.OrderedDict()
        self._at: State | None = None
        self._built: bytes | None = None

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A random vector that the benchmark accepts."""
        self._leave()
        env = self.env
        env._freeze_rand_vec, env.seeded_rand_vec, env.np_random = False, True, rng
        env.do_simulation = lambda *_: None  # what is drawn does not depend on it
        try:
            env.reset_model()
        finally:
            del env.do_simulation
        return np.array(env._last_rand_vec)

    def reset(self, scene: np.ndarray, seed: int) -> State:
        observation = self._build(scene)
        self._at = self._state(seed, scene, observation, False, 0)
        return self._at

    def step(self, state: State, action: np.ndarray, repeat: int) -> State:
        self.stand_at(state)
        success = False
        for _ in range(repeat):
            self.env.curr_path_length = 0  # the horizon is the caller's
            observation, _, _, _, info = self.env.step(action)
            success |= bool(info["success"])
        self._at = self._state(state.seed, state.scene, observation, success, state.time + 1)
        return self._at

    def expert(self, state: State) -> np.ndarray:
        return np.clip(self._policy.get_action(state.observation), -1, 1).astype(np.float32)

    def stand_at(self, state: State) -> None:
        """Brings the model, what can be drawn of the data, and the benchmark's variables there."""
        if state is self._at:
            return
        self._leave()
        key = state.scene.tobytes()
        if key not in self._scenes:
            self._build(state.scene)
        if self._built != key:
            self._put(self._scenes[key])
            self._built = key
        self._scenes.move_to_end(key)
        self._mujoco.mj_setState(self.model, self.data, state.physics, self._kind)
        self.env._prev_obs = state.seen.copy()
        for derive in ("mj_kinematics", "mj_comPos", "mj_camlight"):
            getattr(self._mujoco, derive)(self.model, self.data)
        self._at = state

    def _leave(self) -> None:
        self._at = None

    def _build(self, scene: np.ndarray) -> np.ndarray:
        """Resets to the scene, from how the simulator was made; the first observation."""
        env, key = self.env, scene.tobytes()
        self._leave()
        self._put(self._made)
        env._freeze_rand_vec, env._last_rand_vec = True, np.array(scene)
        observation, _ = env.reset()
        self._mujoco.mj_forward(self.model, self.data)
        self._scenes[key] = self._scene_now()
        self._built = key
        if len(self._scenes) > _SCENES_KEPT:
            self._scenes.popitem(last=False)
        return observation

    def _state(self, seed, scene, observation, success, time) -> State:
        physics = np.empty(self._size)
        self._mujoco.mj_getState(self.model, self.data, physics, self._kind)
        seen = np.array(self.env._prev_obs)
        return State(self.task, seed, scene, physics, seen, observation, success, time)

    def _scene_now(self) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """What a reset may change besides MuJoCo's data: places in the model, and variables."""
        variables = {k: _copied(v) for k, v in vars(self.env).items() if _is_plain(v)}
        return self.model.body_pos.copy(), self.model.site_pos.copy(), variables

    def _put(self, scene: tuple[np.ndarray, np.ndarray, dict[str, Any]]) -> None:
        self.model.body_pos[:], self.model.site_pos[:], variables = scene
        found = vars(self.env)
        for name in [k for k, v in found.items() if _is_plain(v) and k not in variables]:
            del found[name]
        found.update({name: _copied(value) for name, value in variables.items()})
        self._built = None


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, np.generic, np.ndarray))


def _copied(value: Any) -> Any:
    """A copy of an array, but one that shows the simulator's data, which stays a view of them."""
    base = value
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    shows = isinstance(value, np.ndarray) and not isinstance(base, np.ndarray)
    return value if shows or not isinstance(value, np.ndarray) else value.copy()
