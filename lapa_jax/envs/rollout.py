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

from lapa_jax.envs.env import GOING_ON, OWN, Environment, Size, clip
from lapa_jax.envs.execution import Execution, action_at, going_on

# (images uint8 (N, height, width, 3), prompts, key) → actions (N, A), or chunks of them (N, K, A).
# Prompts that are a mapping with OWN hold there what `env.proprioception` gives then, (N, S); those
# with GOING_ON what `execution.going_on` gives, ((N, K, A), (K,)), at first as they are given.
Act = Callable[[jax.Array, Any, jax.Array], jax.Array]
EVERY_STEP = Execution(execute=1)


@struct.dataclass
class Episodes:
    """N episodes of T actions. Episode i is steps [0, length[i]); a demonstration rests after its
    success, a policy goes on."""

    states: Any  # State, (N, T+1, ...): state t, and what action t led to at t+1; None if stepped
    actions: jax.Array  # (N, T, A) f32, as executed (noise included)
    clipped: jax.Array  # (N,) int32, of [0, length) that were to be beyond the bounds
    success: jax.Array  # (N,) bool, at any time
    length: jax.Array  # (N,) int32, actions up to and with the one that succeeded; T if none
    done: jax.Array  # (N, T+1) bool, success at that or an earlier state


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
) -> Episodes:
    """Expert episodes from reset keys (N,), family indices (N,) or None for any of the scene's.

    noise: standard deviation of Gaussian exploration added to the executed action, as a part
    of the action range; the sum stays within the action's bounds and is what is recorded. Raises
    ValueError for an environment that cannot be traced or has no expert.
    """
    if not env.spec.traceable or env.expert is None:
        raise ValueError(f"{env.spec.name}: demonstrations take a traceable world with an expert")
    given = (keys,) if families is None else (keys, families)
    low, high = jnp.asarray(env.spec.action_low), jnp.asarray(env.spec.action_high)

    def choose(state, done, t, held):
        action = jax.vmap(env.expert)(state)
        draw = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, t), (len(low),)))(keys)
        moving = (~done)[:, None]
        return jnp.clip(action + moving * noise * 0.5 * (high - low) * draw, low, high), held

    return _scan(env, jax.vmap(env.reset)(*given), jnp.zeros(len(keys), bool), choose, (), steps)


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
    how: Execution = EVERY_STEP,
) -> Episodes:
    """Run a policy in a traceable environment from start states (N,) for `steps` actions.

    `act` is traced: give `jax.tree_util.Partial(fn, params)` to pass parameters as arguments, not
    constants. `how` its chunks are acted on: see envs/execution.py. `view` and `size` of the images
    are those of the spec where they are not given.
    """
    if not isinstance(act, jax.tree_util.Partial):
        act = jax.tree_util.Partial(act)
    view, size = view or env.spec.views[0], size or env.spec.image_size
    return _rollout(env, act, states0, prompts, key, steps, view, size, how)


@functools.partial(jax.jit, static_argnames=("env", "steps", "view", "size", "how"))
def _rollout(env, act, states0, prompts, key, steps, view, size, how) -> Episodes:
    def ask(state, t, chunks):
        images = render_states(env, state, size, view)
        given = prompts
        if told(prompts, OWN):
            given = given | {OWN: jax.vmap(env.proprioception)(state)}
        if told(prompts, GOING_ON):
            given = given | {GOING_ON: going_on(chunks, t, how, jnp)}
        new = as_chunks(act(images, given, jax.random.fold_in(key, t)))
        return jnp.concatenate([new[None], chunks[:-1]])

    def choose(state, done, t, chunks):
        if how.execute == 1:
            chunks = ask(state, t, chunks)
        else:
            due = t % how.execute == 0
            chunks = jax.lax.cond(due, ask, lambda *given: given[-1], state, t, chunks)
        return action_at(chunks, t, how, jnp), chunks

    def first(state):
        images = render_states(env, state, size, view)
        return as_chunks(act(images, prompts, key))

    shape = jax.eval_shape(first, states0).shape
    how.check(shape[1])
    none_yet = jnp.zeros((how.kept(shape[1]), *shape), jnp.float32)
    return _scan(env, states0, jax.vmap(env.success)(states0), choose, none_yet, steps)


def told(prompts: Any, what: str) -> bool:
    """Whether the policy is to be told this at each question: OWN, GOING_ON."""
    return isinstance(prompts, dict) and what in prompts


def as_chunks(actions: Any) -> Any:
    """Actions (N, A) as chunks (N, 1, A), and chunks as they are."""
    return (actions[:, None] if actions.ndim == 2 else actions).astype("float32")


def _scan(env, states0, done0, choose, held0, steps) -> Episodes:
    """choose(state, done, t, held) -> (actions (N, A), held)."""

    def body(carry, t):
        state, done, held = carry
        action, held = choose(state, done, t, held)
        action, beyond = clip(env.spec, action, jnp)
        state = jax.vmap(env.step)(state, action)
        beyond, done = beyond & ~done, done | jax.vmap(env.success)(state)
        return (state, done, held), (state, action, beyond, done)

    _, rest = jax.lax.scan(body, (states0, done0, held0), jnp.arange(steps))
    states, actions, beyond, done = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rest)
    states, done = jax.tree.map(
        lambda x, y: jnp.concatenate([x[:, None], y], 1), (states0, done0), (states, done)
    )
    success = done[:, -1]
    length = jnp.where(success, jnp.argmax(done, 1), steps).astype(jnp.int32)
    return Episodes(states, actions, beyond.sum(1, dtype=jnp.int32), success, length, done)
