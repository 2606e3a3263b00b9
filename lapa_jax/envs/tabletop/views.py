"""What differs between the views of one state: camera, colours, and who acts.

A view is a static name. Views change pixels only: the state, the actions and the block colours
are the same in all of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.envs.tabletop.state import BOARD_HALF, TABLE_HALF, State

# Order of state.COLOURS.
BLOCK_RGB = np.array(
    [(214, 45, 38), (38, 92, 214), (44, 160, 64), (244, 198, 36)], np.float32
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class View:
    """Appearance of a view; colours are RGB in 0..255."""

    actor: str = "robot"  # "robot" | "hand"
    board: tuple[int, int, int] = (222, 214, 200)
    table: tuple[int, int, int] = (168, 154, 136)
    lip: tuple[int, int, int] = (132, 116, 98)
    arm: tuple[int, int, int] = (200, 195, 186)
    joint: tuple[int, int, int] = (120, 126, 136)
    tip: tuple[int, int, int] = (34, 36, 44)
    angle: float = 0.0  # camera roll, radians
    zoom: float = 1.0
    tilt: float = 0.0  # perspective: how much smaller the far edge is
    distractors: bool = False
    sway: float = 0.0  # metres by which the camera wanders over the table, each way


VIEWS: dict[str, View] = {
    "robot": View(),
    "human": View(actor="hand", arm=(150, 92, 62), joint=(196, 198, 200), tip=(186, 130, 100)),
    "recolour": View(
        board=(40, 40, 48),
        table=(98, 66, 52),
        lip=(150, 112, 88),
        arm=(86, 70, 92),
        joint=(142, 84, 160),
        tip=(250, 238, 250),
    ),
    "camera": View(angle=0.3, zoom=0.88, tilt=0.25),
    "distractors": View(distractors=True),
    "moving_camera": View(sway=0.05),
}


def camera_grid(view: View, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table coordinates x, y (height, width) of the pixel centres and metres per pixel there. The
    shorter side shows the table, the longer one what lies beside it, too."""
    half, shorter = TABLE_HALF, min(size)
    v, u = ((np.arange(side) + 0.5) / shorter * 2 - side / shorter for side in size)
    u, v = np.meshgrid(u, -v)  # v up
    # A plane seen from the bottom edge: the far (upper) part is smaller.
    depth = 1.0 / (1.0 - 0.5 * view.tilt * (v + 0.35))
    px, py = u * depth / view.zoom, (v + 0.0) * depth / view.zoom
    c, s = np.cos(view.angle), np.sin(view.angle)
    x, y = (c * px - s * py) * half, (s * px + c * py) * half
    gx = np.hypot(np.gradient(x, axis=1), np.gradient(y, axis=1))
    gy = np.hypot(np.gradient(x, axis=0), np.gradient(y, axis=0))
    return x.astype(np.float32), y.astype(np.float32), (0.5 * (gx + gy)).astype(np.float32)


def to_pixels(view: View, size: tuple[int, int], x, y):
    """Columns and rows of places on the table, from the middle of the picture: the inverse of
    `camera_grid`."""
    c, s = np.cos(view.angle), np.sin(view.angle)
    px, py = (c * x + s * y) / TABLE_HALF, (c * y - s * x) / TABLE_HALF
    far = 0.5 * view.tilt
    v = view.zoom * py * (1.0 - 0.35 * far) / (1.0 + far * view.zoom * py)
    u = view.zoom * px * (1.0 - far * (v + 0.35))
    return u * min(size) / 2, -v * min(size) / 2


def camera_place(view: View, state: State) -> jax.Array:
    """What the camera looks at, metres (2,): a function of the episode's seed and time only."""
    bits = jnp.stack([state.seed, state.seed >> 6]).astype(jnp.int32) & 63
    phase = bits.astype(jnp.float32) * (2 * np.pi / 64)
    pace = np.array([0.35, 0.27], np.float32)  # radians a step
    return view.sway * jnp.sin(pace * state.time.astype(jnp.float32) + phase)


def background(view: View, x, y, pixel, xp=np):
    """The empty table (height, width, 3) float32, anti-aliased, at these places; by NumPy, or what
    `xp` is."""
    edge = xp.maximum(xp.abs(x), xp.abs(y))
    board, table, lip = (np.array(c, np.float32) for c in (view.board, view.table, view.lip))
    inside = xp.clip((BOARD_HALF - edge) / pixel + 0.5, 0, 1)[..., None]
    on_lip = xp.clip((BOARD_HALF + 0.008 - edge) / pixel + 0.5, 0, 1)[..., None]
    beyond = xp.clip((TABLE_HALF + 0.03 - edge) / pixel + 0.5, 0, 1)[..., None]
    image = 0.5 * table * (1 - beyond) + table * beyond
    image = image * (1 - on_lip) + lip * on_lip
    return image * (1 - inside) + board * inside
