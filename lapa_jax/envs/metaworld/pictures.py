"""Pictures of a state in several views, by rules that make them cheap on a CPU.

No shadows, reflections and multisampling, spheres of fewer faces, and meshes of many with their
vertices merged within cells of MESH_CELL metres: the robot has 67,000 faces, most of them under a
pixel. Views change what is drawn only. Images are LeRobot's: its camera, turned upright.
"""

from __future__ import annotations

import atexit
import copy
import dataclasses
from typing import Any

import numpy as np

from lapa_jax.envs import graphics, meshes

MESH_CELL = 0.006
_SLICES, _STACKS = 16, 10  # of spheres and capsules, of which MuJoCo has 28 and 16
_DETAILED = 1000  # faces from which on a mesh is simplified
_CAMERA = "corner2"
_CAMERA_POSITION = (0.75, 0.075, 0.7)  # as LeRobot moves it
_ARM, _GRIPPER = 3, 5  # groups of geoms and sites that views show or hide; the models use neither

# A Sawyer: these bodies and all that hangs on them.
_ARM_ROOT, _GRIPPER_ROOT = "base", "right_hand"


@dataclasses.dataclass(frozen=True)
class View:
    """How a view differs from the robot's."""

    shows: tuple[int, ...] = (_ARM, _GRIPPER)
    colours: bool = False
    hand: bool = False
    moved: bool = False
    distractors: bool = False


VIEWS: dict[str, View] = {
    "robot": View(),
    "human": View(shows=(), hand=True),
    "gripper": View(shows=(_GRIPPER,)),
    "recolour": View(colours=True),
    "camera": View(moved=True),
    "distractors": View(distractors=True),
}

# RGBA of the recoloured arm, gripper, floor, table and walls.
_COLOURS = {
    "arm": (0.20, 0.42, 0.62, 1.0),
    "gripper": (0.92, 0.72, 0.18, 1.0),
    "floor": (0.23, 0.25, 0.22, 1.0),
    "table": (0.62, 0.68, 0.70, 1.0),
    "walls": (0.33, 0.22, 0.34, 1.0),
}
_SKIN, _SLEEVE = (0.80, 0.58, 0.45, 1.0), (0.16, 0.24, 0.50, 1.0)
_SHOULDER = np.array((-0.15, -0.75, 0.55))
_DISTRACTORS = (
    ((0.58, 0.24, 0.62, 1.0), 0.030),
    ((0.95, 0.55, 0.15, 1.0), 0.024),
    ((0.20, 0.68, 0.72, 1.0), 0.034),
    ((0.93, 0.55, 0.74, 1.0), 0.022),
)


class Painter:
    """Draws what a live simulator of MuJoCo stands at."""

    def __init__(self, model: Any, data: Any):
        import mujoco

        self._mujoco, self.model, self.data = mujoco, model, data
        graphics.context()
        model.camera(_CAMERA).pos = _CAMERA_POSITION
        mujoco.mj_camlight(model, data)
        self._arm, self._gripper = _parts(model)
        self._group(model.geom_group, model.geom_bodyid)
        self._group(model.site_group, model.site_bodyid)
        self._looks = {False: (model.geom_matid.copy(), model.geom_rgba.copy())}
        self._looks[True] = self._recoloured()
        self._scene = mujoco.MjvScene(model, model.ngeom + model.nsite + 200)
        for flag in ("mjRND_SHADOW", "mjRND_REFLECTION"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
        self._options = {shows: self._option(shows) for shows in {v.shows for v in VIEWS.values()}}
        self._cameras = {False: self._fixed_camera(), True: self._other_camera()}
        self._context, self._side = self._uploaded(), 0
        atexit.register(self._context.free)  # before OpenGL's own context

    def draw(self, view: str, size: tuple[int, int], seed: int, time: int) -> np.ndarray:
        """uint8 (height, width, 3)."""
        mujoco, look = self._mujoco, VIEWS[view]
        if max(size) > self._side:
            self._side = max(size)
            mujoco.mjr_resizeOffscreen(self._side, self._side, self._context)
        # Another task's picture may have been the last: else it is drawn there, and read here.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        if look.colours:
            self.model.geom_matid[:], self.model.geom_rgba[:] = self._looks[True]
        mujoco.mjv_updateScene(
            *(self.model, self.data, self._options[look.shows], None, self._cameras[look.moved]),
            *(mujoco.mjtCatBit.mjCAT_ALL, self._scene),
        )
        if look.colours:
            self.model.geom_matid[:], self.model.geom_rgba[:] = self._looks[False]
        if look.hand:
            self._hand()
        if look.distractors:
            self._distract(seed, time)
        image = np.empty((*size, 3), np.uint8)
        area = mujoco.MjrRect(0, 0, size[1], size[0])
        mujoco.mjr_render(area, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, area, self._context)
        # MuJoCo's rows begin at the bottom, and its camera corner2 hangs upside down.
        return image[::-1] if look.moved else np.ascontiguousarray(image[:, ::-1])

    def _group(self, groups: np.ndarray, bodies: np.ndarray) -> None:
        """Puts what is seen of the arm and of the gripper in groups of their own."""
        for part, group in ((self._arm, _ARM), (self._gripper, _GRIPPER)):
            groups[np.isin(bodies, part) & (groups <= 2)] = group

    def _option(self, shows: tuple[int, ...]) -> Any:
        option = self._mujoco.MjvOption()
        for group in shows:
            option.geomgroup[group] = option.sitegroup[group] = 1
        return option

    def _fixed_camera(self) -> Any:
        camera = self._mujoco.MjvCamera()
        camera.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = self.model.camera(_CAMERA).id
        return camera

    def _other_camera(self) -> Any:
        camera = self._mujoco.MjvCamera()
        camera.lookat[:] = (0.05, 0.55, 0.12)
        camera.distance, camera.azimuth, camera.elevation = 1.6, -18.0, -32.0
        return camera

    def _uploaded(self) -> Any:
        simple = copy.copy(self.model)
        quality = simple.vis.quality
        quality.offsamples = quality.shadowsize = 0
        quality.numslices, quality.numstacks = _SLICES, _STACKS
        simple.vis.global_.offwidth = simple.vis.global_.offheight = 16
        meshes.simplify(simple, MESH_CELL, _DETAILED)
        return self._mujoco.MjrContext(simple, self._mujoco.mjtFontScale.mjFONTSCALE_100)

    def _recoloured(self) -> tuple[np.ndarray, np.ndarray]:
        model = self.model
        materials, colours = model.geom_matid.copy(), model.geom_rgba.copy()
        parts = {
            "arm": self._arm,
            "gripper": self._gripper,
            "floor": [0],
            "table": _named(model, "tablelink"),
            "walls": _named(model, "RetainingWall"),  # not every task has them
        }
        for name, bodies in parts.items():
            of = np.isin(model.geom_bodyid, bodies) & (colours[:, 3] > 0)
            materials[of], colours[of] = -1, _COLOURS[name]
        return materials, colours

    # --- What the model does not have ---

    def _add(self, kind: str, colour: tuple[float, ...], size: float, *ends: np.ndarray) -> None:
        """A sphere at one end, or a capsule between two."""
        mujoco, scene = self._mujoco, self._scene
        geom = scene.geoms[scene.ngeom]
        kind = getattr(mujoco.mjtGeom, f"mjGEOM_{kind}")
        place = np.asarray(ends[0], np.float64)
        rgba = np.array(colour, np.float32)
        mujoco.mjv_initGeom(geom, kind, np.full(3, size), place, np.eye(3).ravel(), rgba)
        if len(ends) == 2:
            mujoco.mjv_connector(geom, kind, size, place, np.asarray(ends[1], np.float64))
        scene.ngeom += 1

    def _hand(self) -> None:
        """A hand whose thumb and fingers are where the gripper's pads are, on an arm that comes
        from where the robot stands."""
        hand = self.data.body("hand").xpos
        thumb, finger = self.data.body("rightpad").xpos, self.data.body("leftpad").xpos
        wrist = hand + (-0.015, -0.07, 0.075)
        elbow = 0.6 * wrist + 0.4 * _SHOULDER + (-0.08, 0.0, -0.04)
        knuckle = 0.35 * hand + 0.65 * finger + (0.0, 0.0, 0.045)
        self._add("CAPSULE", _SLEEVE, 0.050, _SHOULDER, elbow)
        self._add("CAPSULE", _SLEEVE, 0.042, elbow, 0.35 * elbow + 0.65 * wrist)
        self._add("CAPSULE", _SKIN, 0.032, elbow, wrist)
        self._add("CAPSULE", _SKIN, 0.036, wrist, hand + (0.0, 0.0, 0.02))
        self._add("CAPSULE", _SKIN, 0.014, hand + (0.0, -0.02, 0.03), thumb + (0.0, 0.0, 0.02))
        self._add("CAPSULE", _SKIN, 0.012, thumb + (0.0, 0.0, 0.02), thumb + (0.0, 0.0, -0.02))
        for across in (-0.024, 0.0, 0.024):
            side = np.array((across, 0.0, 0.0))
            self._add("CAPSULE", _SKIN, 0.012, hand + side, knuckle + side)
            tip = finger + 0.5 * side + (0.0, 0.0, -0.02)
            self._add("CAPSULE", _SKIN, 0.011, knuckle + side, tip)

    def _distract(self, seed: int, time: int) -> None:
        """Balls that wander over the table, as a function of the episode's seed and of the time
        only. They keep to its far half and to its sides, off the task."""
        for k, (colour, radius) in enumerate(_DISTRACTORS):
            phase = 2 * np.pi * (seed >> 6 * k & 63) / 64
            turn = (0.11 + 0.04 * k) * time
            side = 1 if k % 2 else -1
            x = side * (0.42 + 0.12 * np.sin(turn + phase))
            y = 0.62 + 0.22 * np.cos((0.7 + 0.2 * k) * turn + 2.3 * phase + k)
            self._add("SPHERE", colour, radius, np.array((x, y, radius)))


def _named(model: Any, name: str) -> list[int]:
    return [body for body in range(model.nbody) if model.body(body).name == name]


def _parts(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bodies of the arm and of the gripper."""

    def below(root: str) -> set[int]:
        found = {model.body(root).id}
        for body, parent in enumerate(model.body_parentid):
            if parent in found:
                found.add(body)
        return found

    gripper = below(_GRIPPER_ROOT)
    return np.array(sorted(below(_ARM_ROOT) - gripper)), np.array(sorted(gripper))
