"""Many episodes at once, jitted: expert demonstrations and closed-loop runs of a policy.

Everything is a scan over time of a vmap over episodes. Trajectories come back time-second,
(N, T, ...), as state pytrees: render them afterwards in any view.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lapa_jax.envs.env import Environment

Act = Callable[[jax.Array, Any, jax.Array], jax.Array]


@struct.dataclass
class Demonstrations:
    """N expert episodes of T actions. Episode i is steps [0, length[i]); the rest is padding
    (after success the expert rests)."""

    states: Any  # State, (N, T+1, ...): state t, and what action t led to at t+1
    actions: jax.Array  # (N, T, A) f32, as executed (noise included)
    success: jax.Array  # (N,) bool
    length: jax.Array  # (N,) int32, actions up to and with the one that succeeded; T if none
    done: jax.Array  # (N, T+1) bool, success at that or an earlier state


@struct.dataclass
class Rollouts:
    """N closed-loop episodes of T actions."""

    success: jax.Array  # (N,) bool, at any time
    length: jax.Array  # (N,) int32, actions until success; T if none
    states: Any  # State, (N, T+1, ...)
    actions: jax.Array  # (N, T, A)


def _time_second(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def _trajectory(first: Any, rest: Any) -> Any:
    return jax.tree.map(
        lambda x, y: jnp.concatenate([x[:, None], jnp.swapaxes(y, 0, 1)], 1), first, rest
    )


def _summary(done_t1: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    success = done_t1[:, -1]
    return success, jnp.where(success, jnp.argmax(done_t1, 1), steps).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("env", "steps"))
def collect_expert(
    env: Environment,
    keys: jax.Array,
    families: jax.Array | None,
    steps: int,
    noise: float | jax.Array = 0.0,
) -> Demonstrations:
    """Expert episodes from reset keys (N,), family indices (N,) or None for any of the scene's.

    noise: standard deviation of Gaussian exploration added to the executed action, as a part
    of the action range; the sum stays within the action's bounds and is what is recorded.
    """
    if families is None:
        states = jax.vmap(env.reset)(keys)
    else:
        states = jax.vmap(env.reset)(keys, families)
    low, high = jnp.asarray(env.spec.action_low), jnp.asarray(env.spec.action_high)

    def body(carry, t):
        state, done = carry
        action = jax.vmap(env.expert)(state)
        draw = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, t), (len(low),)))(keys)
        moving = (~done)[:, None]
        action = jnp.clip(action + moving * noise * 0.5 * (high - low) * draw, low, high)
        state = jax.vmap(env.step)(state, action)
        done = done | jax.vmap(env.success)(state)
        return (state, done), (state, action, done)

    none_done = jnp.zeros(keys.shape[0], bool)
    _, (rest, actions, done) = jax.lax.scan(body, (states, none_done), jnp.arange(steps))
    done = jnp.concatenate([none_done[:, None], _time_second(done)], 1)
    success, length = _summary(done, steps)
    return Demonstrations(
        states=_trajectory(states, rest),
        actions=_time_second(actions),
        success=success,
        length=length,
        done=done,
    )


def rollout(
    env: Environment,
    act: Act,
    states0: Any,
    prompts: Any,
    key: jax.Array,
    *,
    steps: int,
    view: str = "robot",
    size: int = 64,
) -> Rollouts:
    """Run a policy from start states (N,) for `steps` actions.

    act(images uint8 (N, size, size, 3), prompts, key) -> actions (N, A) is traced.
    Give `jax.tree_util.Partial(fn, params)` to pass parameters as arguments, not constants.
    """
    if not isinstance(act, jax.tree_util.Partial):
        act = jax.tree_util.Partial(act)
    return _rollout(env, act, states0, prompts, key, steps, view, size)


@functools.partial(jax.jit, static_argnames=("env", "steps", "view", "size"))
def _rollout(env, act, states0, prompts, key, steps, view, size) -> Rollouts:
    def body(carry, t):
        state, done = carry
        images = jax.vmap(lambda s: env.render(s, size, view))(state)
        action = act(images, prompts, jax.random.fold_in(key, t)).astype(jnp.float32)
        state = jax.vmap(env.step)(state, action)
        done = done | jax.vmap(env.success)(state)
        return (state, done), (state, action, done)

    done0 = jax.vmap(env.success)(states0)
    _, (rest, actions, done) = jax.lax.scan(body, (states0, done0), jnp.arange(steps))
    done = jnp.concatenate([done0[:, None], _time_second(done)], 1)
    success, length = _summary(done, steps)
    return Rollouts(
        success=success,
        length=length,
        states=_trajectory(states0, rest),
        actions=_time_second(actions),
    )
