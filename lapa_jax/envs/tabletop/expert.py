"""The scripted expert: a stateless, pure function of the state.

Block a is pushed from behind along the cheapest path with at most one waypoint (points around
the other blocks, soft cost for coming near them); the effector walks round blocks by the same
planner to the place behind block a. It rests once the task is done.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.envs.tabletop.state import (
    BLOCK_LIMIT,
    BLOCK_RADIUS,
    EFFECTOR_LIMIT,
    EFFECTOR_RADIUS,
    MAX_STEP,
    State,
)
from lapa_jax.envs.tabletop.tasks import (
    APART,
    BLOCK_TO_BLOCK,
    REACH,
    SEPARATE,
    goal_point,
    success,
)

REACH_DISTANCE = BLOCK_RADIUS + EFFECTOR_RADIUS  # centres at contact
CIRCLE_RADIUS = REACH_DISTANCE + 0.008  # the effector's way round block a
PUSH_SPEED = 0.024  # metres per step while in contact
_NEAR_COST = 12.0  # metres of detour worth one metre of intrusion
_ANGLES = np.arange(8) * (2 * np.pi / 8) + np.pi / 8
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], -1).astype(np.float32)
_TWELVE = np.arange(12) * (2 * np.pi / 12) + np.pi / 12
_AROUND = np.stack([np.cos(_TWELVE), np.sin(_TWELVE)], -1).astype(np.float32)


def _intrusion(ax, ay, bx, by, ox, oy, clearance, active) -> jax.Array:
    """Summed depth by which the segment a-b comes nearer than `clearance` to the obstacles.

    a, b: broadcastable to (W, 1); o: (n,); the answer is (W,).
    """
    dx, dy = bx - ax, by - ay
    t = ((ox - ax) * dx + (oy - ay) * dy) / (dx * dx + dy * dy + 1e-9)
    t = jnp.clip(t, 0.0, 1.0)
    ex, ey = ax + t * dx - ox, ay + t * dy - oy
    depth = jnp.maximum(0.0, clearance - jnp.sqrt(ex * ex + ey * ey + 1e-12))
    return (depth * active).sum(-1)


def _norm(x, y):
    return jnp.sqrt(x * x + y * y + 1e-12)


def _leg(a, b, obstacles, active, clearance) -> jax.Array:
    """Cost (W,) of the straight ways a-b, each (W, 2) or (1, 2)."""
    ax, ay, bx, by = a[:, :1], a[:, 1:], b[:, :1], b[:, 1:]
    near = _intrusion(ax, ay, bx, by, obstacles[:, 0], obstacles[:, 1], clearance, active)
    return _norm(bx - ax, by - ay)[:, 0] + _NEAR_COST * near


def _plan(start, goal, obstacles, active, clearance, limit, heading_cost=None) -> jax.Array:
    """The next point to head for: the goal, or a waypoint on the way to it.

    start, goal (2,); obstacles (n, 2), active (n,).
    heading_cost: function of headings (W, 2) to a cost (W,), for what the first leg demands.
    """
    ring = obstacles[:, None] + 1.12 * clearance * _CIRCLE
    ring = jnp.clip(ring.reshape(-1, 2), -limit, limit)
    points = jnp.concatenate([ring, goal[None]])
    first = _leg(start[None], points, obstacles, active, clearance)
    rest = _leg(points, goal[None], obstacles, active, clearance)
    # A waypoint (almost) where we are gives no direction.
    distance = _norm(points[:, 0] - start[0], points[:, 1] - start[1])
    useless = jnp.where(distance < 0.02, 1.0, 0.0).at[-1].set(0.0)
    cost = first + rest.at[-1].set(0.0) + useless
    if heading_cost is not None:
        cost += heading_cost((points - start) / distance[:, None])
    return points[jnp.argmin(cost)]


def _limited(move: jax.Array, speed: float) -> jax.Array:
    return move * jnp.minimum(1.0, speed / _norm(move[0], move[1]))


def _round_block(effector, place, block, blocks, others) -> jax.Array:
    """`place` if block is not in the way, else a point on the circle round it, the cheaper way."""
    offset, wanted = effector - block, place - block
    start = jnp.arctan2(offset[1], offset[0])
    turn = jnp.mod(jnp.arctan2(wanted[1], wanted[0]) - start, 2 * np.pi)
    turns = jnp.stack([turn, turn - 2 * np.pi])  # counter-clockwise, clockwise
    angles = start + turns[:, None] * jnp.asarray(np.linspace(0.1, 1.0, 8, dtype=np.float32))
    x = block[0] + CIRCLE_RADIUS * jnp.cos(angles)
    y = block[1] + CIRCLE_RADIUS * jnp.sin(angles)
    outside = jnp.maximum(0.0, jnp.maximum(jnp.abs(x), jnp.abs(y)) - EFFECTOR_LIMIT)
    gap = _norm(x[..., None] - blocks[:, 0], y[..., None] - blocks[:, 1])
    inside = (jnp.maximum(0.0, REACH_DISTANCE - gap) * others).sum(-1)
    cost = CIRCLE_RADIUS * jnp.abs(turns) + 2.0 * (outside + inside).sum(-1)
    turn = turns[jnp.argmin(cost)]
    far = _norm(offset[0], offset[1]) > 2 * CIRCLE_RADIUS
    angle = start + jnp.clip(turn, -0.7 - 0.5 * far, 0.7 + 0.5 * far)
    aside = block + CIRCLE_RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    blocked = _intrusion(
        effector[:1],
        effector[1:],
        place[:1],
        place[1:],
        block[:1],
        block[1:],
        REACH_DISTANCE + 0.002,
        1.0,
    )
    return jnp.where(blocked > 0, aside, place)


def expert(state: State) -> jax.Array:
    """The expert's action (2,) f32, within +-MAX_STEP."""
    n = state.blocks.shape[0]
    index = jnp.arange(n)
    block, effector = state.blocks[state.a], state.effector
    goal = goal_point(state)

    # Where block a should head.
    ignore_b = (index == state.b) & (state.family == BLOCK_TO_BLOCK)
    others = ((index != state.a) & ~ignore_b).astype(jnp.float32)
    separate = state.family == SEPARATE
    # Holding on to the present side of the block more firmly every other second breaks the
    # rare cycles between two equally good ways, which a stateless rule cannot notice.
    firm = (state.time // 10) % 2 == 1
    turn_cost = jnp.where(separate, 0.1, 0.06) * jnp.where(firm, 3.0, 1.0)

    def approach_cost(heading):
        behind = block - heading * (REACH_DISTANCE + 0.004)
        gap = _norm(behind[:, :1] - state.blocks[:, 0], behind[:, 1:] - state.blocks[:, 1])
        blocked = jnp.maximum(0.0, REACH_DISTANCE - 0.006 - gap) * (index != state.a)
        toward = block - effector
        toward = toward / _norm(toward[0], toward[1])
        turn = 1.0 - (heading * toward).sum(-1)  # 0 when already behind, 2 when in front
        return 4.0 * blocked.sum(-1) + turn_cost * turn

    # separate_blocks: the best of some points round block b; the other families have one goal.
    clearance = 2 * BLOCK_RADIUS + 0.006
    away = goal + (APART + 0.02) * _AROUND
    cost = _leg(block[None], away, state.blocks, others, clearance)
    cost += 100.0 * jnp.maximum(0.0, jnp.abs(away).max(-1) - BLOCK_LIMIT)
    ways = away - block
    cost += approach_cost(ways / _norm(ways[:, :1], ways[:, 1:]))
    goal = jnp.where(separate, away[jnp.argmin(cost)], goal)
    target = _plan(block, goal, state.blocks, others, clearance, BLOCK_LIMIT, approach_cost)
    heading = target - block
    remaining = _norm(heading[0], heading[1])
    heading = heading / remaining

    # Push when behind the block, otherwise go there.
    offset = effector - block
    along = -(offset * heading).sum()
    lateral = offset + along * heading
    sideways = _norm(lateral[0], lateral[1])
    behind = (along > 0.75 * REACH_DISTANCE) & (along < REACH_DISTANCE + 0.02) & (sideways < 0.02)
    forward = jnp.minimum(PUSH_SPEED, remaining + jnp.maximum(0.0, along - REACH_DISTANCE))
    push = _limited(heading * forward - lateral, MAX_STEP)

    solid = (index != state.a).astype(jnp.float32)
    place = block - heading * CIRCLE_RADIUS
    reaching = state.family == REACH
    place = jnp.where(reaching, block, _round_block(effector, place, block, state.blocks, solid))
    waypoint = _plan(
        effector,
        place,
        state.blocks,
        solid,
        REACH_DISTANCE + 0.005,
        EFFECTOR_LIMIT,
    )
    walk = _limited(waypoint - effector, MAX_STEP)
    action = jnp.where(behind & ~reaching, push, walk)
    return jnp.where(success(state), 0.0, action)
