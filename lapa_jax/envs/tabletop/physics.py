"""Quasi-static contact of discs: the effector pushes blocks, blocks push blocks, the lip holds.

Overlaps are projected away a few times per substep. What remains (a block squeezed between
the effector and the lip) is taken from the effector, which stalls. Commands beyond MAX_STEP
saturate per axis, as an actuator's do.
"""

import jax
import jax.numpy as jnp

from lapa_jax.envs.tabletop.state import (
    BLOCK_LIMIT,
    BLOCK_RADIUS,
    EFFECTOR_LIMIT,
    EFFECTOR_RADIUS,
    MAX_STEP,
    State,
)

SUBSTEPS = 3
SWEEPS = 4  # projections per substep
_TINY = 1e-12


def _sweep(x: jax.Array, y: jax.Array, ex: jax.Array, ey: jax.Array, far: jax.Array):
    """One projection of all contacts; x, y (n,); `far` is the identity (no self-contact)."""
    # The effector first: blocks leave it entirely.
    dx, dy = x - ex, y - ey
    inverse = jax.lax.rsqrt(dx * dx + dy * dy + _TINY)
    push = jnp.maximum(0.0, (BLOCK_RADIUS + EFFECTOR_RADIUS) * inverse - 1.0)
    x, y = x + push * dx, y + push * dy
    # Then pairs of blocks: each gives half.
    dx, dy = x[:, None] - x[None, :], y[:, None] - y[None, :]
    inverse = jax.lax.rsqrt(dx * dx + dy * dy + far)
    push = jnp.maximum(0.0, BLOCK_RADIUS * inverse - 0.5)
    x, y = x + (push * dx).sum(1), y + (push * dy).sum(1)
    return jnp.clip(x, -BLOCK_LIMIT, BLOCK_LIMIT), jnp.clip(y, -BLOCK_LIMIT, BLOCK_LIMIT)


def step(state: State, action: jax.Array) -> State:
    """The state one control step (0.1 s) later."""
    n = state.blocks.shape[0]
    far = jnp.eye(n, dtype=jnp.float32) + _TINY
    delta = jnp.clip(action, -MAX_STEP, MAX_STEP) / SUBSTEPS

    def substep(_, carry):
        x, y, ex, ey = carry
        ex = jnp.clip(ex + delta[0], -EFFECTOR_LIMIT, EFFECTOR_LIMIT)
        ey = jnp.clip(ey + delta[1], -EFFECTOR_LIMIT, EFFECTOR_LIMIT)
        for _ in range(SWEEPS):
            x, y = _sweep(x, y, ex, ey, far)
        # What the blocks could not yield, the effector does.
        dx, dy = ex - x, ey - y
        inverse = jax.lax.rsqrt(dx * dx + dy * dy + _TINY)
        push = jnp.maximum(0.0, (BLOCK_RADIUS + EFFECTOR_RADIUS) * inverse - 1.0)
        return x, y, ex + (push * dx).sum(), ey + (push * dy).sum()

    carry = (state.blocks[:, 0], state.blocks[:, 1], state.effector[0], state.effector[1])
    x, y, ex, ey = jax.lax.fori_loop(0, SUBSTEPS, substep, carry)
    return state.replace(
        blocks=jnp.stack([x, y], -1),
        effector=jnp.clip(jnp.stack([ex, ey]), -EFFECTOR_LIMIT, EFFECTOR_LIMIT),
        time=state.time + 1,
    )
