"""The tabletop's units, scene configuration, state and random layout.

Lengths are metres, the origin is the table's centre, x points right and y up in the picture.
Blocks are discs of BLOCK_RADIUS for contact (their shape is drawn only) and keep the angle
drawn at reset. Blocks live inside the lip of the board; the effector passes over the lip, so
that it always fits between a block and the edge.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from data_pipelines import keys

SHAPES = ("cube", "star", "moon", "ring")
COLOURS = ("red", "blue", "green", "yellow")
NUM_KINDS = len(SHAPES) * len(COLOURS)  # kind = shape * 4 + colour

FAMILIES = (
    "block_to_block",
    "block_to_absolute",
    "block_to_block_relative",
    "block_to_relative",
    "separate_blocks",
    "reach",
)

CONTROL_HZ = 10.0
MAX_STEP = 0.03  # per axis and control step, metres
TABLE_HALF = 0.28  # half width of what the camera sees
BOARD_HALF = 0.24  # half width of the board inside the lip
BLOCK_RADIUS = 0.036
EFFECTOR_RADIUS = 0.014
BLOCK_LIMIT = BOARD_HALF - BLOCK_RADIUS  # block centres stay within +-BLOCK_LIMIT
EFFECTOR_LIMIT = 0.27

_CANDIDATES = 32


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """Which scenes and tasks exist; as it is without arguments, a simple one for a first policy.
    FULL has all."""

    blocks: Annotated[int, "[2, 8]", "on the table; 3 or more with separate_blocks"] = 4
    families: Annotated[tuple[str, *tuple[str, ...]], FAMILIES, "of tasks"] = ("reach",)
    horizon: Annotated[int, "[1, 1e6]", "steps of an episode at most"] = 40
    min_gap: Annotated[float, "[0, 0.03]", "free space between block discs at reset, metres"] = (
        0.016
    )
    combinations: Annotated[
        str,
        ("all", "train", "held_out"),
        "of family, block and argument: all, or a part, for tests on what was never trained on",
    ] = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families))
        keys.check(SceneConfig, dataclasses.asdict(self), "evaluation.env")
        if len(set(self.families)) != len(self.families):
            raise ValueError(f"SceneConfig.families = {list(self.families)}: repeated family")
        if "separate_blocks" in self.families and self.blocks < 3:
            raise ValueError(
                f"SceneConfig.blocks = {self.blocks}: must be 3 or more with separate_blocks"
            )


FULL = SceneConfig(blocks=8, families=FAMILIES, horizon=200)


@struct.dataclass
class State:
    """One scene and its task. Batches are this pytree with leading axes."""

    effector: jax.Array  # (2,) f32
    blocks: jax.Array  # (n, 2) f32
    angles: jax.Array  # (n,) f32, radians
    kinds: jax.Array  # (n,) int32, shape * 4 + colour; no kind twice
    family: jax.Array  # int32, index into FAMILIES
    a: jax.Array  # int32, the block the task names first
    b: jax.Array  # int32, the second block (families with two blocks)
    which: jax.Array  # int32, direction or location id (families with one)
    goal: jax.Array  # (2,) f32, fixed goal point of absolute and relative tasks
    seed: jax.Array  # uint32, drives what is only drawn (distractors)
    time: jax.Array  # int32, control steps since reset


def first_valid(valid: jax.Array, fallback_score: jax.Array) -> jax.Array:
    """Index of the first valid candidate, or the best-scored one where none is valid."""
    return jnp.where(valid.any(), jnp.argmax(valid), jnp.argmax(fallback_score))


def draws(key: jax.Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """Uniform numbers in [0, 1) by name, from one call (each call costs compile time)."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    parts = jnp.split(jax.random.uniform(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    return {k: p.reshape(shapes[k]) for k, p in zip(shapes, parts, strict=True)}


def layout_shapes(scene: SceneConfig) -> dict[str, tuple[int, ...]]:
    """The draws that `place` needs."""
    c = _CANDIDATES
    return {"centres": (scene.blocks, c, 2), "beside": (c, 2), "effector": (c, 2)}


def place(u: dict[str, jax.Array], scene: SceneConfig) -> tuple[jax.Array, jax.Array]:
    """Block centres (n, 2) with scene.min_gap between discs, and the effector's place (2,)."""
    n = scene.blocks
    spacing = 2 * BLOCK_RADIUS + scene.min_gap
    centres = BLOCK_LIMIT * (2.0 * u["centres"] - 1.0)
    radius = spacing + 0.002 + 0.028 * u["beside"][:, 0]
    angle = 2 * np.pi * u["beside"][:, 1]
    beside = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    close_pair = "separate_blocks" in scene.families

    def add(i, placed):
        # One close pair in every scene, whatever the task, so that the picture does not give
        # the family away.
        options = centres[i]
        if close_pair:
            options = jnp.where(i == 1, placed[0] + beside, options)
        inside = (jnp.abs(options) <= BLOCK_LIMIT).all(-1)
        nearest = jnp.linalg.norm(options[:, None] - placed[None], axis=-1).min(-1)
        pick = first_valid(inside & (nearest >= spacing), nearest - 10.0 * ~inside)
        return placed.at[i].set(options[pick])

    placed = jax.lax.fori_loop(0, n, add, jnp.full((n, 2), 10.0))
    options = BOARD_HALF * (2.0 * u["effector"] - 1.0)
    nearest = jnp.linalg.norm(options[:, None] - placed[None], axis=-1).min(-1)
    clear = nearest >= BLOCK_RADIUS + EFFECTOR_RADIUS + 0.015
    return placed, options[first_valid(clear, nearest)]
