"""Many episodes at once in environments that cannot be traced: Python steps, the policy in batches.

The same protocol, the same keys and the same chunks of actions as in envs/rollout.py: an
environment that has both gives the same successes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lapa_jax.envs.env import GOING_ON, OWN, Environment, Size, clip
from lapa_jax.envs.execution import Chunks, Execution
from lapa_jax.envs.rollout import EVERY_STEP, Act, Episodes, as_chunks, rollout, told


def drive(
    env: Environment,
    act: Act,
    states: Sequence[Any],
    prompts: Any,
    key: jax.Array,
    *,
    steps: int,
    view: str = "",
    size: Size | None = None,
    how: Execution = EVERY_STEP,
) -> Episodes:
    """Run a policy from start states, N of them, each for `steps` actions or until its success.

    Images are what `env.render` gives, stacked leaf by leaf, always all N of them: an episode that
    is over shows its last one, and has actions of 0 from there on. Otherwise as `rollout`.
    """
    states, spec = list(states), env.spec
    view, size = view or spec.views[0], size or spec.image_size
    images = [None] * len(states)
    done = np.array([bool(env.success(state)) for state in states])
    length, taken, chunks = np.where(done, 0, steps), [], Chunks(how)
    clipped = np.zeros(len(states), np.int32)
    for t in range(steps):
        if done.all():
            break
        if chunks.due:
            for i, state in enumerate(states):
                if not done[i] or images[i] is None:
                    images[i] = env.render(state, size, view)
            seen, given = jax.tree.map(lambda *x: np.stack(x), *images), prompts
            if told(prompts, OWN):  # of an episode that is over, its end's
                own = [np.asarray(env.proprioception(state), np.float32) for state in states]
                given = given | {OWN: np.stack(own)}
            if told(prompts, GOING_ON) and t:
                given = given | {GOING_ON: chunks.going_on()}
            found = act(seen, given, jax.random.fold_in(key, t))
            chunks.answered(as_chunks(found), acting=~done)
        action, beyond = clip(spec, chunks.next())
        taken.append(np.where(done[:, None], np.float32(0), action))
        clipped += beyond & ~done
        for i in np.flatnonzero(~done):
            states[i] = env.step(states[i], taken[-1][i])
            if env.success(states[i]):
                done[i], length[i] = True, t + 1
    actions = np.zeros((len(states), steps, spec.action_dim), np.float32)
    for t, action in enumerate(taken):
        actions[:, t] = action
    by_then = done[:, None] & (np.arange(steps + 1) >= length[:, None])
    return Episodes(None, actions, clipped, done, length.astype(np.int32), by_then)


def closed_loop(
    env: Environment,
    act: jax.tree_util.Partial,
    states: Any,
    prompts: Any,
    key: jax.Array,
    **options: Any,
) -> Episodes:
    """`rollout` where the environment is traceable, `drive` where it is not; `act` can be."""
    if env.spec.traceable:
        return rollout(env, act, states, prompts, key, **options)
    return drive(env, lambda *seen: call(act, *seen), states, prompts, key, **options)


@jax.jit
def call(act: jax.tree_util.Partial, *seen: Any) -> jax.Array:
    """What a policy that can be traced says, compiled."""
    return act(*seen)
