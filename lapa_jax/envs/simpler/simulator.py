"""One task of SIMPLER as functions of a state: ManiSkill's environment, on SAPIEN.

PhysX keeps contacts and their friction from step to step, and neither its snapshots nor ManiSkill's
states hold them: continued from either, things at rest move otherwise at once. A state here is
therefore its start and all actions since, which give the same numbers anywhere, and the numbers
themselves, from which it is drawn.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from lapa_jax.envs import vulkan

CAMERA = "3rd_view_camera"
_FINGER = (0.015, 0.037)  # metres: closed, open
_SEED = 0  # of resets: nothing is drawn where places are given
_ATTEMPTS = 1000  # at places that are apart


@dataclasses.dataclass(frozen=True)
class State:
    """A moment of an episode: what follows `actions` is a function of `task`, `places` and them."""

    task: str
    places: np.ndarray  # (2, 7) f32: where the thing and its goal are put, metres, quaternions wxyz
    actions: np.ndarray  # (T, 7) f32: all since
    physics: np.ndarray  # (N,) f32: poses and velocities, as ManiSkill orders them
    hand: np.ndarray  # (8,) f32: place and quaternion in the frame of the base, gripper 0..1
    success: bool  # after the last action


class Simulator:
    """The live simulator of a task. It stands at the state that it gave last; for another it begins
    anew and repeats that one's actions. A second one draws pictures, of the numbers alone."""

    def __init__(self, task: str, kind: str):
        os.environ.setdefault("LP_NUM_THREADS", "1")  # of lavapipe
        import torch
        from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval import put_on_in_scene

        self.task, self._torch = task, torch
        self._kind = getattr(put_on_in_scene, kind)
        self.env = self._made(get_obs=lambda *_, **__: {})  # which would draw
        self._xyz = self.env.xyz_configs.numpy().copy()  # (P, 2, 3)
        self._turns = self.env.quat_configs.numpy().copy()  # (Q, 2, 4)
        self._at: State | None = None

    def _made(self, **changed: Any) -> Any:
        # ManiSkill has one background for all tasks of a process: of the one that was made last.
        own = {"_rgb_overlay_images": {}, "_objects_to_remove_from_greenscreen": []}
        on_cpu = any(cpu for _, cpu, _ in vulkan.devices() or ())
        return type(self._kind.__name__, (self._kind,), own | changed)(
            obs_mode="rgb+segmentation",
            num_envs=1,
            sim_backend="cpu",
            render_backend="cpu" if on_cpu else "gpu",
        )

    @functools.cached_property
    def _painted(self) -> Any:
        return self._made()

    def official(self, episode: int) -> np.ndarray:
        """Places of a published start state, as its number stands for them."""
        place, turn = divmod(episode % (len(self._xyz) * len(self._turns)), len(self._turns))
        return np.concatenate([self._xyz[place], self._turns[turn]], 1)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Places of the thing and its goal in the rectangles that the published ones span, no
        closer than these, the thing turned about the vertical."""
        low, high = self._xyz.min(0), self._xyz.max(0)
        apart = np.linalg.norm(self._xyz[:, 0, :2] - self._xyz[:, 1, :2], axis=-1).min()
        for _ in range(_ATTEMPTS):
            xyz = rng.uniform(low, high)
            if np.linalg.norm(xyz[0, :2] - xyz[1, :2]) >= apart:
                break
        else:
            raise RuntimeError(f"{self.task}: no places that are {apart:g} m apart")
        turns = self._turns[rng.integers(len(self._turns))].astype(np.float64)
        turns[0] = _turned(turns[0], rng.uniform(0, 2 * np.pi))
        return np.concatenate([xyz, turns], 1).astype(np.float32)

    def start(self, places: np.ndarray) -> State:
        self._begin(places)
        self._at = self._state(places, np.zeros((0, 7), np.float32))
        return self._at

    def step(self, state: State, action: np.ndarray) -> State:
        self._return_to(state)
        self._at = None
        self.env._step_action(action)
        self._at = self._state(state.places, np.concatenate([state.actions, action[None]]))
        return self._at

    def draw_camera(self, state: State) -> np.ndarray:
        """uint8 (480, 640, 3): what is simulated before a photograph, as the benchmark shows it."""
        scene, start = self._painted.scene, 0
        found = scene.get_sim_state()
        for group in ("actors", "articulations"):
            for name, part in found[group].items():
                end = start + part.shape[1]
                found[group][name] = self._torch.tensor(state.physics[None, start:end])
                start = end
        scene.set_sim_state(found)
        seen = self._painted.get_obs({}, unflattened=True)["sensor_data"][CAMERA]["rgb"]
        return seen[0].numpy().astype(np.uint8)

    def _begin(self, places: np.ndarray) -> None:
        """A reset of the benchmark, into a new scene: in a used one the arm is still where an
        episode left it while things come to rest."""
        self._at = None
        self.env.xyz_configs = self._torch.tensor(places[None, :, :3])
        self.env.quat_configs = self._torch.tensor(places[None, :, 3:])
        self.env.reset(seed=_SEED, options={"episode_id": 0, "reconfigure": True})

    def _return_to(self, state: State) -> None:
        if state is self._at:
            return
        self._begin(state.places)
        for action in state.actions:
            self.env._step_action(action)
        if not np.array_equal(self._physics(), state.physics):
            raise RuntimeError(
                f"{self.task}: the {len(state.actions)} actions of a state lead elsewhere on this "
                "machine; go on with it on one of the processor and packages it was made with"
            )

    def _state(self, places: np.ndarray, actions: np.ndarray) -> State:
        success = bool(self.env.evaluate()["success"][0])
        controller = self.env.agent.controller.controllers["arm"]
        finger = float(self.env.agent.robot.get_qpos()[0, -2])
        opened = np.clip((finger - _FINGER[0]) / (_FINGER[1] - _FINGER[0]), 0, 1)
        hand = np.append(controller.ee_pose_at_base.raw_pose[0].numpy(), opened)
        hand = hand.astype(np.float32)
        return State(self.task, places, actions, self._physics(), hand, success)

    def _physics(self) -> np.ndarray:
        found = self.env.scene.get_sim_state()
        parts = [*found["actors"].values(), *found["articulations"].values()]
        return np.concatenate([part[0].numpy() for part in parts])


def _turned(wxyz: np.ndarray, angle: float) -> np.ndarray:
    """A quaternion turned about the vertical of the world."""
    (c, s), (w, x, y, z) = (np.cos(angle / 2), np.sin(angle / 2)), wxyz
    return np.array([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w])
