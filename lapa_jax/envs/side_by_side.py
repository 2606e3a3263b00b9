"""Start states stepped side by side, an action each at a time: for whoever looks in between.

The same for an environment that is traced and for one that Python steps. Rollouts of a policy that
nobody watches are faster in envs/rollout.py and envs/drive.py.

Shape suffixes: N episodes, H, W image rows and columns, A dimensions of an action.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.envs import words
from lapa_jax.envs.env import Environment, Size
from lapa_jax.envs.rollout import render_states


@dataclasses.dataclass(frozen=True)
class Starts:
    """N start states of an environment, in the order of its tasks. number: in the list of its
    task."""

    env: Environment
    states: Any
    tasks: list[str]
    numbers: list[int]
    instructions: list[str]

    def __len__(self) -> int:
        return len(self.tasks)


def starts_of(env: Environment, count: int, seed: int) -> Starts:
    """The first fixed start states of each task, `count` in all: of the first tasks one more where
    they do not divide."""
    tasks = env.spec.tasks
    counts = {task: len(range(i, count, len(tasks))) for i, task in enumerate(tasks)}
    counts = {task: n for task, n in counts.items() if n}
    parts = [env.evaluation_states(seed, task, n) for task, n in counts.items()]
    said = [
        words.of_all(env, "train", states, task, seed)
        for task, states in zip(counts, parts, strict=True)
    ]
    if env.spec.traceable:
        states = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    else:
        states = [state for part in parts for state in part]
    return Starts(
        env,
        states,
        [task for task, n in counts.items() for _ in range(n)],
        [i for n in counts.values() for i in range(n)],
        [text for part in said for text in part],
    )


class SideBySide:
    """N episodes from start states. `view` and `size` are of the pictures.

    success: bool (N,), at any time. One that has succeeded stays as it is, whatever it is told.
    """

    def __init__(self, starts: Starts, *, view: str, size: Size):
        env, states = starts.env, starts.states
        self.env, self.view, self.size = env, view, size
        self._states = states if env.spec.traceable else list(states)
        self._images: list[np.ndarray | None] = []
        if env.spec.traceable:
            self.success = np.array(_succeeded(env, states))
        else:
            self.success = np.array([bool(env.success(state)) for state in self._states])
            self._images = [None] * len(self._states)

    def look(self) -> np.ndarray:
        """Pictures of now, uint8 (N, H, W, 3)."""
        if self.env.spec.traceable:
            return np.asarray(render_states(self.env, self._states, self.size, self.view))
        for i, state in enumerate(self._states):
            if self._images[i] is None:
                self._images[i] = np.asarray(self.env.render(state, self.size, self.view))
        return np.stack(self._images)

    def expert(self) -> np.ndarray:
        """What the expert does now, float32 (N, A)."""
        if self.env.spec.traceable:
            return np.asarray(_expert(self.env, self._states))
        return np.stack([np.float32(self.env.expert(state)) for state in self._states])

    def step(self, actions_NA: np.ndarray, going_N: np.ndarray) -> np.ndarray:
        """One control step of the episodes `going`, bool (N,), that have not succeeded; returns
        which these were, bool (N,)."""
        moves = going_N & ~self.success
        if self.env.spec.traceable:
            self._states, done = _stepped(self.env, self._states, actions_NA, moves)
            self.success = self.success | np.asarray(done)
            return moves
        for i in np.flatnonzero(moves):
            self._states[i] = self.env.step(self._states[i], actions_NA[i])
            self.success[i], self._images[i] = bool(self.env.success(self._states[i])), None
        return moves


@functools.partial(jax.jit, static_argnames="env")
def _succeeded(env: Environment, states: Any) -> jax.Array:
    return jax.vmap(env.success)(states)


@functools.partial(jax.jit, static_argnames="env")
def _expert(env: Environment, states: Any) -> jax.Array:
    return jax.vmap(env.expert)(states)


@functools.partial(jax.jit, static_argnames="env")
def _stepped(env: Environment, states: Any, actions: jax.Array, moves: jax.Array) -> Any:
    def one(state, action, moves):
        after = env.step(state, action)
        kept = jax.tree.map(lambda x, y: jnp.where(moves, y, x), state, after)
        return kept, moves & env.success(kept)

    return jax.vmap(one)(states, actions, moves)
