"""Many episodes at once, jitted: expert demonstrations and closed-loop runs of a policy.

Everything is a scan over time of a vmap over episodes. Trajectories come back time-second,
(N, T, ...), as state pytrees: render them afterwards in any view.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lapa_jax.envs.env import Environment, Size

# (images uint8 (N, height, width, 3), prompts, key) → actions (N, A), or chunks of them (N, K, A)
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
    states: Any  # State, (N, T+1, ...); None of environments that are not traceable
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


@functools.partial(jax.jit, static_argnames=("env", "size", "view"))
def render_states(env: Environment, states: Any, size: Size, view: str) -> jax.Array:
    """Pictures uint8 (N, height, width, 3) of a batch of states."""
    return jax.vmap(lambda state: env.render(state, size, view))(states)


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
    of the action range; the sum stays within the action's bounds and is what is recorded. Raises
    ValueError for an environment that cannot be traced or has no expert.
    """
    if not env.spec.traceable or env.expert is None:
        raise ValueError(f"{env.spec.name}: demonstrations take a traceable world with an expert")
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
    view: str = "",
    size: Size | None = None,
    execute: int = 1,
) -> Rollouts:
    """Run a policy in a traceable environment from start states (N,) for `steps` actions.

    `act` is traced: give `jax.tree_util.Partial(fn, params)` to pass parameters as arguments, not
    constants. It is asked again after `execute` actions of a chunk. `view` and `size` of the images
    are those of the spec where they are not given.
    """
    if not isinstance(act, jax.tree_util.Partial):
        act = jax.tree_util.Partial(act)
    view, size = view or env.spec.views[0], size or env.spec.image_size
    return _rollout(env, act, states0, prompts, key, steps, view, size, execute)


def as_chunks(actions: Any, execute: int) -> Any:
    """Actions (N, A) as chunks (N, 1, A), and chunks as they are; raises ValueError for those of
    fewer than `execute` actions."""
    chunks = actions[:, None] if actions.ndim == 2 else actions
    if not 1 <= execute <= chunks.shape[1]:
        raise ValueError(
            f"execute={execute} must be from 1 to {chunks.shape[1]}, the actions that the policy "
            "gives at once"
        )
    return chunks.astype("float32")


@functools.partial(jax.jit, static_argnames=("env", "steps", "view", "size", "execute"))
def _rollout(env, act, states0, prompts, key, steps, view, size, execute) -> Rollouts:
    def ask(state, t):
        images = render_states(env, state, size, view)
        return as_chunks(act(images, prompts, jax.random.fold_in(key, t)), execute)

    def body(carry, t):
        state, done, chunks = carry
        if execute == 1:
            chunks = ask(state, t)
        else:
            chunks = jax.lax.cond(t % execute == 0, ask, lambda *_: chunks, state, t)
        action = chunks[:, t % execute]
        state = jax.vmap(env.step)(state, action)
        done = done | jax.vmap(env.success)(state)
        return (state, done, chunks), (state, action, done)

    done0 = jax.vmap(env.success)(states0)
    chunks = jax.eval_shape(ask, states0, 0)
    first = (states0, done0, jnp.zeros(chunks.shape, chunks.dtype))
    _, (rest, actions, done) = jax.lax.scan(body, first, jnp.arange(steps))
    done = jnp.concatenate([done0[:, None], _time_second(done)], 1)
    success, length = _summary(done, steps)
    return Rollouts(
        success=success,
        length=length,
        states=_trajectory(states0, rest),
        actions=_time_second(actions),
    )
