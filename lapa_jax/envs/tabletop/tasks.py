"""The task families: goals, success, and the choice of a feasible task for a scene.

A task is (family, a, b, which): block a, block b, and a direction or location. `success` is a
function of the state alone and false at reset: tasks are drawn among candidates that are not
solved, and among those whose goal is free and reachable.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.envs.tabletop.state import (
    BLOCK_LIMIT,
    BLOCK_RADIUS,
    EFFECTOR_RADIUS,
    FAMILIES,
    NUM_KINDS,
    SceneConfig,
    State,
    draws,
    first_valid,
    layout_shapes,
    place,
)

(BLOCK_TO_BLOCK, BLOCK_TO_ABSOLUTE, BLOCK_TO_BLOCK_RELATIVE, BLOCK_TO_RELATIVE, SEPARATE, REACH) = (
    range(len(FAMILIES))
)

_D = float(np.sqrt(0.5))
# right, up, left, down, then the diagonals: ids of language.DIRECTIONS.
DIRECTIONS = np.array(
    [(1, 0), (0, 1), (-1, 0), (0, -1), (_D, _D), (-_D, _D), (-_D, -_D), (_D, -_D)], np.float32
)
# centre, then sides and corners in the order of DIRECTIONS: ids of language.LOCATIONS.
LOCATIONS = 0.16 * np.array(
    [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)], np.float32
)
NUM_WHICH = (1, len(LOCATIONS), len(DIRECTIONS), len(DIRECTIONS), 1, 1)  # per family

NEXT_TO = 2 * BLOCK_RADIUS + 0.014  # block_to_block: centres nearer than this
AT_LOCATION = 0.065  # block_to_absolute
AT_POINT = 0.035  # both relative families
BESIDE = 0.1  # block_to_block_relative: distance of the goal from block b
NUDGE = 0.12  # block_to_relative: distance of the goal from the start
APART = 0.16  # separate_blocks: centres farther than this
TOUCH = BLOCK_RADIUS + EFFECTOR_RADIUS + 0.012  # reach: effector to centre nearer than this

_CANDIDATES = 64


def goal_point(state: State) -> jax.Array:
    """Where block a (or, for reach, the effector) should go; separate_blocks: block b itself."""
    other = state.blocks[state.b]
    beside = other + BESIDE * jnp.asarray(DIRECTIONS)[jnp.minimum(state.which, 7)]
    return jnp.select(
        [
            (state.family == BLOCK_TO_BLOCK) | (state.family == SEPARATE),
            state.family == BLOCK_TO_BLOCK_RELATIVE,
            state.family == REACH,
        ],
        [other, beside, state.blocks[state.a]],
        state.goal,
    )


def success(state: State) -> jax.Array:
    """bool: is the task done in this state."""
    mover = jnp.where(state.family == REACH, state.effector, state.blocks[state.a])
    distance = jnp.linalg.norm(mover - goal_point(state))
    thresholds = np.array([NEXT_TO, AT_LOCATION, AT_POINT, AT_POINT, APART, TOUCH], np.float32)
    threshold = jnp.asarray(thresholds)[state.family]
    return jnp.where(state.family == SEPARATE, distance > threshold, distance < threshold)


_MIX = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_KINDS), (2, 1)), axis=1)


def held_out_combination(family, kind_a, kind_b, which) -> jax.Array:
    """bool: is this combination in the held-out eighth. A fixed rule, under which every
    argument and every second block has held-out and trained first blocks."""
    two = (family == BLOCK_TO_BLOCK) | (family == BLOCK_TO_BLOCK_RELATIVE) | (family == SEPARATE)
    mix = jnp.asarray(_MIX)
    second = jnp.where(two, 3 * mix[1][kind_b], 0)
    return (mix[0][kind_a] + second + 5 * which + family) % 8 == 0


def _kinds_of_split(order, a, b, which, family, held_out: bool) -> jax.Array:
    """Kinds (NUM_KINDS,) made from the random `order`, so that the task's combination belongs
    to the split: the first that does among the order's rotations with relabelled kinds."""
    shift, flip = jnp.divmod(jnp.arange(NUM_KINDS * NUM_KINDS), NUM_KINDS)
    options = order[(jnp.arange(NUM_KINDS) + shift[:, None]) % NUM_KINDS] ^ flip[:, None]
    held = held_out_combination(family, options[:, a], options[:, b], which)
    return options[jnp.argmax(held == held_out)]


def _with_task(state: State, a: jax.Array, b: jax.Array, which: jax.Array) -> State:
    goal = jnp.where(
        state.family == BLOCK_TO_ABSOLUTE,
        jnp.asarray(LOCATIONS)[which],
        state.blocks[a] + NUDGE * jnp.asarray(DIRECTIONS)[jnp.minimum(which, 7)],
    )
    return state.replace(a=a, b=b, which=which, goal=goal)


def _feasible(state: State) -> jax.Array:
    """bool: the goal is inside, free of other blocks, and a proper way off."""
    n = state.blocks.shape[0]
    start, goal = state.blocks[state.a], goal_point(state)
    index = jnp.arange(n)
    ignore = (index == state.a) | ((index == state.b) & (state.family == BLOCK_TO_BLOCK))
    room = jnp.where(ignore, 1.0, jnp.linalg.norm(state.blocks - goal, axis=-1)).min()
    inside = (jnp.abs(goal) <= BLOCK_LIMIT - 0.01).all()
    far = jnp.linalg.norm(start - goal)
    point = inside & (room > 2 * BLOCK_RADIUS + 0.01) & (far > AT_LOCATION + 0.035)
    return jnp.select(
        [state.family == BLOCK_TO_BLOCK, state.family == SEPARATE, state.family == REACH],
        [
            far > NEXT_TO + 0.03,
            far < 2 * BLOCK_RADIUS + 0.06,
            jnp.linalg.norm(state.effector - start) > TOUCH + 0.04,
        ],
        point,
    )


def sample_state(key: jax.Array, family: jax.Array | int | None, scene: SceneConfig) -> State:
    """A scene and a task. family: index into FAMILIES, or None for one of scene.families."""
    n = scene.blocks
    u = draws(
        key,
        {
            "kinds": (NUM_KINDS,),
            "angles": (n,),
            "family": (),
            "seed": (),
            "task": (3, _CANDIDATES),
            **layout_shapes(scene),
        },
    )
    blocks, effector = place(u, scene)
    order = jnp.argsort(u["kinds"]).astype(jnp.int32)
    if family is None:
        allowed = jnp.asarray([FAMILIES.index(f) for f in scene.families], jnp.int32)
        family = allowed[jnp.floor(u["family"] * len(scene.families)).astype(jnp.int32)]
    zero = jnp.zeros((), jnp.int32)
    state = State(
        effector=effector,
        blocks=blocks,
        angles=u["angles"] - 0.5,
        kinds=order[:n],
        family=jnp.asarray(family, jnp.int32),
        a=zero,
        b=zero,
        which=zero,
        goal=jnp.zeros(2),
        seed=jnp.floor(u["seed"] * 2.0**24).astype(jnp.uint32),
        time=zero,
    )
    a = jnp.floor(u["task"][0] * n).astype(jnp.int32)
    b = (a + 1 + jnp.floor(u["task"][1] * (n - 1)).astype(jnp.int32)) % n
    count = jnp.asarray(NUM_WHICH)[state.family]
    which = jnp.floor(u["task"][2] * count).astype(jnp.int32)
    # The first two slots hold the close pair; a uniform draw would seldom name it.
    close = state.family == SEPARATE
    half = jnp.arange(_CANDIDATES) % 2 == 0
    a, b = jnp.where(close & half, a % 2, a), jnp.where(close & half, 1 - a % 2, b)
    options = jax.vmap(_with_task, (None, 0, 0, 0))(state, a, b, which)
    unsolved = ~jax.vmap(success)(options)
    valid = unsolved & jax.vmap(_feasible)(options)
    pick = first_valid(valid, unsolved.astype(jnp.float32))
    a, b, which = a[pick], b[pick], which[pick]
    if scene.combinations != "all":
        held_out = scene.combinations == "held_out"
        order = _kinds_of_split(order, a, b, which, state.family, held_out)
    return _with_task(state.replace(kinds=order[:n]), a, b, which)
