"""Drawing by signed distances with one pixel of anti-aliasing, at any size and in any view.

Every block shape is one formula with per-shape numbers, so that a pixel costs the same few
operations whatever is drawn and the loop over pixels vectorises: no gathers, no branches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.envs.env import Size
from lapa_jax.envs.tabletop.state import BLOCK_RADIUS, COLOURS, EFFECTOR_RADIUS, State
from lapa_jax.envs.tabletop.views import (
    BLOCK_RGB,
    VIEWS,
    View,
    background,
    camera_grid,
    camera_place,
)

# Per shape: max(u * |p|_max + v * |p|_min - c, |p|^2 / 2R - R/2, R2/2 - |p - q|^2 / 2R2) with the
# last term cut out of the body (disabled by a hole far away). Order of state.SHAPES.
_R = BLOCK_RADIUS
_SHAPES = np.array(
    [
        # u, v, c, body radius, hole x, hole radius
        (1.0, 0.0, 0.84 * _R, 1.5 * _R, 9.0, 0.5 * _R),  # cube
        (0.52, 0.854, 0.66 * _R, 1.3 * _R, 9.0, 0.5 * _R),  # star with four points
        (0.0, 0.0, 1.0, 1.08 * _R, 0.68 * _R, 0.82 * _R),  # moon
        (0.0, 0.0, 1.0, 1.05 * _R, 0.0, 0.55 * _R),  # ring
    ],
    np.float32,
)

_BEAM = 0.008  # metres, half the width of the robot's beams
_ELBOW = np.array([0.55, -0.55], np.float32)  # where the forearm comes from


def _disc(x, y, centre, radius):
    """Signed distance, exact at the edge and good near it (no square root)."""
    dx, dy = x - centre[0], y - centre[1]
    return (dx * dx + dy * dy) * (0.5 / radius) - 0.5 * radius


def _capsule(x, y, a, b, radius_a, radius_b):
    """Distance to a segment of changing radius."""
    bax, bay = b[0] - a[0], b[1] - a[1]
    inverse = 1.0 / (bax * bax + bay * bay + 1e-9)
    t = jnp.clip((x - a[0]) * (bax * inverse) + (y - a[1]) * (bay * inverse), 0.0, 1.0)
    dx, dy = x - a[0] - t * bax, y - a[1] - t * bay
    radius = radius_a + t * (radius_b - radius_a)
    return (dx * dx + dy * dy) * (0.5 / radius) - 0.5 * radius


def _block(x, y, centre, cos, sin, shape):
    u, v, c, body, hole_x, hole = shape
    dx, dy = x - centre[0], y - centre[1]
    px, py = cos * dx + sin * dy, cos * dy - sin * dx
    ax, ay = jnp.abs(px), jnp.abs(py)
    square = px * px + py * py
    edge = u * jnp.maximum(ax, ay) + v * jnp.minimum(ax, ay) - c
    disc = square * (0.5 / body) - 0.5 * body
    cut = 0.5 * hole - (square + hole_x * (hole_x - 2.0 * px)) * (0.5 / hole)
    return jnp.maximum(jnp.maximum(edge, disc), cut)


def _robot(x, y, tip, view: View):
    """Layers (distance, colour) from below to above: a gantry, whose two beams cross over the tool.
    Each beam tells of motion along one axis, wherever on the table the tool is."""
    return [
        (jnp.abs(x - tip[0]) - _BEAM, view.arm),
        (jnp.abs(y - tip[1]) - _BEAM, view.arm),
        (_disc(x, y, tip, EFFECTOR_RADIUS + 0.010), view.tip),
        (_disc(x, y, tip, 0.010), view.joint),
    ]


def hand_axes(tip):
    """(where the forearm comes from, unit vectors from the tip to there and across)."""
    elbow = jnp.asarray(_ELBOW)
    away = elbow - tip
    away = away / jnp.sqrt((away * away).sum())
    return elbow, away, jnp.stack([-away[1], away[0]])


def _hand(x, y, tip, view: View):
    """A right hand from the operator's side, index finger at the effector's place."""
    elbow, away, side = hand_axes(tip)
    knuckle = tip + 0.062 * away
    palm = tip + 0.088 * away + 0.006 * side
    wrist = tip + 0.125 * away + 0.006 * side
    cuff = hand_cuff(tip, away, side)
    fist = palm + 0.014 * side - 0.016 * away
    thumb = palm - 0.030 * side - 0.024 * away
    skin = jnp.minimum(
        _capsule(x, y, knuckle, tip, 0.012, 0.010), _capsule(x, y, palm, fist, 0.024, 0.020)
    )
    skin = jnp.minimum(skin, _capsule(x, y, palm, thumb, 0.014, 0.008))
    skin = jnp.minimum(skin, _capsule(x, y, palm, wrist, 0.020, 0.017))
    return [
        (skin, view.arm),
        (_capsule(x, y, cuff, elbow, 0.020, 0.024), view.joint),
        (_disc(x, y, tip, 0.007), view.tip),
    ]


def hand_cuff(tip, away, side):
    """Where the hand ends and the sleeve begins."""
    return tip + 0.165 * away + 0.006 * side


DISTRACTORS = [(150, 60, 160), (90, 96, 104), (240, 140, 190), (70, 190, 200)]


def distractor(state: State, k: int):
    """Where the centre of one is."""
    bits = (state.seed >> (6 * k)).astype(jnp.int32) & 63
    phase = bits.astype(jnp.float32) * (2 * np.pi / 64)
    t = state.time.astype(jnp.float32) * (0.11 + 0.04 * k)
    return 0.21 * jnp.sin(t + phase), 0.21 * jnp.cos((0.7 + 0.2 * k) * t + 2.3 * phase + k)


def _distractors(x, y, state: State):
    """Discs on the table that wander as a function of the episode's seed and time only. They
    lie under the blocks, so that the task stays readable."""
    return [
        (_disc(x, y, distractor(state, k), 0.022 + 0.004 * k), colour)
        for k, colour in enumerate(DISTRACTORS)
    ]


@functools.lru_cache(maxsize=64)
def constants(view: str, size: tuple[int, int]):
    if view not in VIEWS:
        raise ValueError(f"view {view!r} is not one of {list(VIEWS)}")
    if min(size) < 16:
        raise ValueError(f"size {size}: images are at least 16 pixels high and wide")
    x, y, pixel = camera_grid(VIEWS[view], size)
    return x, y, pixel, background(VIEWS[view], x, y, pixel)


def layers(x, y, state: State, look: View):
    """What is drawn at places x, y of the table, from below to above: (distance, colour)."""
    shapes = jnp.asarray(_SHAPES)[state.kinds // len(COLOURS)]
    colours = jnp.asarray(BLOCK_RGB)[state.kinds % len(COLOURS)]
    cos, sin = jnp.cos(state.angles), jnp.sin(state.angles)
    found = _distractors(x, y, state) if look.distractors else []
    for i in range(state.blocks.shape[0]):
        distance = _block(x, y, state.blocks[i], cos[i], sin[i], shapes[i])
        found.append((distance, colours[i]))
    return found + (_robot if look.actor == "robot" else _hand)(x, y, state.effector, look)


def render(state: State, size: Size = 64, view: str = "robot") -> jax.Array:
    """The picture, uint8 (height, width, 3)."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    x, y, pixel, empty = constants(view, size)
    look, sharpness = VIEWS[view], 1.0 / pixel
    if look.sway:
        right, up = camera_place(look, state)
        x, y = x + right, y + up
        empty = background(look, x, y, pixel, jnp)
    image = [jnp.asarray(empty[..., c]) for c in range(3)]

    def paint(image, distance, colour):
        cover = jnp.clip(0.5 - distance * sharpness, 0.0, 1.0)
        return [p + cover * (colour[c] - p) for c, p in enumerate(image)]

    for distance, colour in layers(x, y, state, look):
        image = paint(image, distance, colour)
    return (jnp.stack(image, -1) + 0.5).astype(jnp.uint8)
