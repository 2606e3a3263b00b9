"""The exact optical flow of the tabletop: where what a pixel shows is in a later state.

What is drawn is rigid, but for the sleeve, which is stretched between the cuff and the elbow. What
lies still has the flow 0 unless the camera moves.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg

from data_pipelines.convert.decode import encode_jpeg
from data_pipelines.index import CorpusIndex
from lapa_jax.envs.demonstrations import split_seed
from lapa_jax.envs.env import Environment, Size
from lapa_jax.envs.rollout import render_states
from lapa_jax.envs.tabletop.render import (
    DISTRACTORS,
    constants,
    distractor,
    hand_axes,
    hand_cuff,
    layers,
)
from lapa_jax.envs.tabletop.state import State
from lapa_jax.envs.tabletop.views import VIEWS, View, camera_place, to_pixels

DIFFERENCE = 1.0  # grey levels, of 255, in the mean: more is another scene, less is rounding


def flow(state: State, later: State, size: Size = 64, view: str = "robot") -> jax.Array:
    """Float32 (height, width, 2): pixels to the right and down, at the pixel's place in `state`."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    x, y, *_ = constants(view, size)
    look = VIEWS[view]
    before = to_pixels(look, size, x, y)
    camera = camera_place(look, later) if look.sway else np.zeros(2, np.float32)
    if look.sway:
        right, up = camera_place(look, state)
        x, y = x + right, y + up
    moved_x, moved_y = jnp.asarray(x), jnp.asarray(y)
    gone = _moved(x, y, state, later, look)
    for (distance, _), (to_x, to_y) in zip(layers(x, y, state, look), gone, strict=True):
        shown = distance < 0
        moved_x, moved_y = jnp.where(shown, to_x, moved_x), jnp.where(shown, to_y, moved_y)
    after = to_pixels(look, size, moved_x - camera[0], moved_y - camera[1])
    return jnp.stack([new - old for old, new in zip(before, after, strict=True)], -1)


def _moved(x, y, state: State, later: State, look: View):
    """Where the places x, y of each layer go, in the order of `layers`."""

    def by(a, b):
        return x + (b[0] - a[0]), y + (b[1] - a[1])

    found = []
    if look.distractors:
        found += [by(distractor(state, k), distractor(later, k)) for k in range(len(DISTRACTORS))]
    found += [by(state.blocks[i], later.blocks[i]) for i in range(state.blocks.shape[0])]
    tip, there = state.effector, later.effector
    with_tip = by(tip, there)
    if look.actor == "robot":  # a beam for each axis, and the tool
        return [*found, (with_tip[0], y), (x, with_tip[1]), with_tip, with_tip]
    elbow, away, side = hand_axes(tip)
    _, new_away, new_side = hand_axes(there)
    along = (x - tip[0]) * away[0] + (y - tip[1]) * away[1]
    across = (x - tip[0]) * side[0] + (y - tip[1]) * side[1]
    hand = tuple(there[i] + along * new_away[i] + across * new_side[i] for i in range(2))
    cuff, new_cuff = hand_cuff(tip, away, side), hand_cuff(there, new_away, new_side)
    sleeve, new_sleeve = elbow - cuff, elbow - new_cuff
    length = jnp.sqrt((sleeve * sleeve).sum())
    new_length = jnp.sqrt((new_sleeve * new_sleeve).sum())
    dx, dy = x - cuff[0], y - cuff[1]
    part = (dx * sleeve[0] + dy * sleeve[1]) / length**2
    beside = (dy * sleeve[0] - dx * sleeve[1]) / length
    new_normal = jnp.stack([-new_sleeve[1], new_sleeve[0]]) / new_length
    arm = tuple(new_cuff[i] + part * new_sleeve[i] + beside * new_normal[i] for i in range(2))
    return [*found, hand, arm, hand]


class Replay:
    """The flow of a corpus that `lapa data collect` made: its episodes again, from their ids and
    the actions as executed. A scene of other settings than theirs shows other pictures, which is an
    error. `frames`: uint8 (N, H, W, 3) of rows of the corpus."""

    def __init__(self, env: Environment, index: CorpusIndex, frames):
        if index.actions is None or index.action_key != "action":
            raise ValueError(
                f"{index.directory} is indexed with action_key {index.action_key!r}: its episodes "
                "are made again from 'action', which must be there"
            )
        self.env, self.index, self.frames = env, index, frames

    def __call__(self, index: CorpusIndex, episode: int, window: int) -> np.ndarray:
        """Float32 (steps of the episode, H, W, 2)."""
        told = index.metadata(episode)
        id_, view = str(told.get("episode_id")), str(told.get("camera"))
        view = view if index.image_key == "image" else index.image_key
        found = re.fullmatch(r"(.+)-(\d+)-(\d{7,})", id_)
        if told.get("source") != "tabletop" or not found or view not in VIEWS:
            raise ValueError(
                f"{index.directory}: episode {id_!r} of {told.get('source')!r}, camera {view!r}, "
                "is none that `lapa data collect` makes of the tabletop"
            )
        split, seed, number = found[1], int(found[2]), int(found[3])
        first, length = int(index.episode_start[episode]), int(index.episode_length[episode])
        padded = -(-length // 32) * 32  # few programs for many lengths
        actions = np.zeros((padded, index.action_dim), np.float32)
        actions[:length] = index.actions[first : first + length]
        keys = self.env.training_keys(split_seed(split, seed), -(-(number + 1) // 1024) * 1024)
        later = np.minimum(np.arange(padded) + window, length - 1)
        size = index.image_size
        flow, ends = _replayed(self.env, keys[number], actions, later, length - 1, size, view)
        shown = np.asarray(render_states(self.env, ends, size, view))
        shown = np.stack([simplejpeg.decode_jpeg(encode_jpeg(one)) for one in shown]).astype(int)
        stored = self.frames(np.array([first, first + length - 1]))
        apart = float(np.abs(shown - stored).mean(axis=(1, 2, 3)).max())
        if apart > DIFFERENCE:
            raise ValueError(
                f"{index.directory}: episode {id_!r} made again shows other pictures ({apart:.1f} "
                "grey levels apart): give --blocks, --families, --min_gap and --combinations as "
                "`lapa data collect` had them"
            )
        return np.asarray(flow)[:length]


@functools.partial(jax.jit, static_argnames=("env", "size", "view"))
def _replayed(env, key, actions, later, last, size, view):
    """(flow of each step, the first and the last state)."""

    def step(state, action):
        state = env.step(state, action)
        return state, state

    start = env.reset(key)
    _, after = jax.lax.scan(step, start, actions[:-1])
    states = jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), start, after)
    at = lambda i: jax.tree.map(lambda v: v[i], states)  # noqa: E731
    shown = jax.vmap(lambda one, two: flow(one, two, size, view))(states, at(later))
    return shown, at(jnp.stack([jnp.zeros_like(last), last]))
