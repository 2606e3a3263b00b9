"""Pictures of what a live simulator stands at: as the benchmark draws them, or by rules that make
them cheap on a CPU. All of a process are drawn in one OpenGL context (lapa_jax/envs/graphics.py):
of robosuite's own, the second of a process draws nothing.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from lapa_jax.envs import graphics, meshes

# name → camera of the model, and whether left is right: published sets of demonstrations and
# evaluators have pictures turned by half a turn from how robosuite gives them, upside down.
VIEWS = {
    "agentview": ("agentview", True),
    "wrist": ("robot0_eye_in_hand", True),
    "agentview_unmirrored": ("agentview", False),
    "wrist_unmirrored": ("robot0_eye_in_hand", False),
}
_CELL, _DETAILED = 0.005, 300  # metres, and faces from which on a mesh is simplified; if fast
_SIDES = (640, 480)  # pixels that the model has memory for; more is taken when it is asked for


class Painter:
    """Draws a model of MuJoCo. fast: no shadows, reflections and multisampling, simpler meshes."""

    def __init__(self, model: Any, data: Any, fast: bool):
        import mujoco

        self._mujoco, self._model, self._data = mujoco, model, data
        graphics.context()
        self._scene = mujoco.MjvScene(model, 1000)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # shapes that collide
        shown = copy.copy(model) if fast else model
        if fast:
            for flag in ("mjRND_SHADOW", "mjRND_REFLECTION"):
                self._scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
            shown.vis.quality.offsamples = shown.vis.quality.shadowsize = 0
            meshes.simplify(shown, _CELL, _DETAILED)
        self._context = mujoco.MjrContext(shown, mujoco.mjtFontScale.mjFONTSCALE_150)
        self._width, self._height = _SIDES
        mujoco.mjr_resizeOffscreen(*_SIDES, self._context)
        self._cameras = {view: self._camera(name) for view, (name, _) in VIEWS.items()}

    def draw(self, view: str, size: tuple[int, int]) -> np.ndarray:
        """uint8 (height, width, 3), row 0 at the top."""
        mujoco, (height, width) = self._mujoco, size
        if width > self._width or height > self._height:
            self._width, self._height = max(width, self._width), max(height, self._height)
            mujoco.mjr_resizeOffscreen(self._width, self._height, self._context)
        # Another task's picture may have been the last: else it is drawn there, and read here.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjv_updateScene(
            *(self._model, self._data, self._option, None, self._cameras[view]),
            *(mujoco.mjtCatBit.mjCAT_ALL, self._scene),
        )
        image, area = np.empty((*size, 3), np.uint8), mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(area, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, area, self._context)
        upright = image[::-1]  # MuJoCo's rows begin at the bottom
        return np.ascontiguousarray(upright[:, ::-1] if VIEWS[view][1] else upright)

    def free(self) -> None:
        self._context.free()

    def _camera(self, name: str) -> Any:
        camera = self._mujoco.MjvCamera()
        camera.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = self._model.camera(name).id
        return camera
