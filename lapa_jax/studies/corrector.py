"""A scripted corrector: what a person does on the page of `lapa play`, for as many games as wanted.

A simulator shadows the imagination: from the same start state it takes, at each step, the mean true
action of the z that was chosen. What the expert would do there names the z whose mean true action
is nearest: that is the right one, and a corrector chooses it at every step where the policy says
another. The frames are those that were imagined. Where the simulated task is done a game ends.

Shape suffixes: N games, K steps, H, W image rows and columns, C codes, A dimensions of an action.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.envs.env import Environment
from lapa_jax.envs.rollout import render_states
from lapa_jax.report.picture import to_uint8
from lapa_jax.runs.corrections import Game
from lapa_jax.world.imagination import Imagination

Say = Callable[[np.ndarray, Sequence[str]], np.ndarray]  # (frames, instructions) -> z int (N, 1)


@dataclass(frozen=True)
class Shadowed:
    """Games of K steps at most: of game n the first `length[n]`, 0 where it is done at the start.

    imagined, true: frames uint8, of what was chosen; those that the simulator draws. said, right,
    chosen: codes int (N, K), by the policy, by the corrector, and what the game went on by.
    """

    imagined_NKHWC: np.ndarray  # K + 1 of them
    true_NKHWC: np.ndarray
    said_NK: np.ndarray
    right_NK: np.ndarray
    chosen_NK: np.ndarray
    length_N: np.ndarray
    instructions: list[str]

    @property
    def played_NK(self) -> np.ndarray:
        """Which steps belong to a game, bool."""
        return np.arange(self.said_NK.shape[1]) < self.length_N[:, None]

    def games(self, told: dict[str, Any]) -> list[Game]:
        """For a corpus of corrections; of each game its number is told, too."""
        found = []
        for n in np.flatnonzero(self.length_N):
            K = self.length_N[n]
            z = self.chosen_NK[n, :K, None].astype(np.int32)
            by_person = self.chosen_NK[n, :K] != self.said_NK[n, :K]
            text = self.instructions[n]
            frames = self.imagined_NKHWC[n, : K + 1]
            found.append(Game(frames, z, by_person, text, told | {"game": int(n)}))
        return found


def shadow(
    imagination: Imagination,
    say: Say,
    env: Environment,
    states: Any,
    instructions: Sequence[str],
    actions_CA: np.ndarray,
    *,
    steps: int,
    window: int,
    corrects: bool,
    view: str = "",
) -> Shadowed:
    """Games of a latent VLA from start states (N,) of a traceable environment. actions: the mean
    true action of each code, summed over the `window` steps of the environment between two frames.
    corrects: whether the corrector overrides what `say` says, at every step where that is not the
    right code; else the policy goes on alone. Raises ValueError for z that is not one code, and for
    a code without actions."""
    if imagination.shape != (1,) or len(actions_CA) != imagination.codes:
        raise ValueError(
            f"z of {imagination.model.workdir} have the shape {imagination.shape} and "
            f"{imagination.codes} codes: a scripted corrector is of z of one code, with an action "
            f"for each, and {len(actions_CA)} have one"
        )
    if not np.isfinite(actions_CA).all():
        raise ValueError("a code has no pair in the corpus, so that what it does is not known")
    view = view or env.spec.views[0]
    moves, follow = jax.vmap(lambda s: _expert(env, s, window)), jax.vmap(_follow(env, window))
    moves, follow = jax.jit(moves), jax.jit(follow)
    done_of = jax.jit(jax.vmap(env.success))
    frame = np.asarray(render_states(env, states, imagination.image_size, view))
    state, here, found = imagination.start(frame), states, []
    imagined, true, done = [frame], [frame], [np.asarray(done_of(states))]
    for _ in range(steps):
        said = np.asarray(say(frame, instructions))
        right = nearest(actions_CA, np.asarray(moves(here)))
        chosen = right if corrects else said[:, 0]
        state, drawn = imagination.step(state, chosen[:, None].astype(np.int32))
        frame = to_uint8(np.asarray(drawn))  # as the policy sees frames
        here = follow(here, jnp.asarray(actions_CA[chosen], jnp.float32))
        imagined.append(frame)
        true.append(np.asarray(render_states(env, here, imagination.image_size, view)))
        done.append(done[-1] | np.asarray(done_of(here)))
        found.append((said[:, 0], right, chosen))
    said, right, chosen = (np.stack(x, axis=1) for x in zip(*found, strict=True))
    length = (~np.stack(done[:-1], axis=1)).sum(axis=1)
    frames = np.stack(imagined, axis=1), np.stack(true, axis=1)
    return Shadowed(*frames, said, right, chosen, length, list(instructions))


def nearest(actions_CA: np.ndarray, wanted_NA: np.ndarray) -> np.ndarray:
    """The code int (N,) whose action is nearest to what is wanted."""
    return np.square(wanted_NA[:, None] - actions_CA).sum(axis=2).argmin(axis=1)


def degrees(actions_CA: np.ndarray, one_N: np.ndarray, other_N: np.ndarray) -> np.ndarray:
    """Between the first two numbers of the actions of codes, float64 (N,) from 0 to 180."""
    a, b = (np.arctan2(x[:, 1], x[:, 0]) for x in (actions_CA[one_N], actions_CA[other_N]))
    return np.degrees(np.abs((a - b + np.pi) % (2 * np.pi) - np.pi))


def _expert(env: Environment, state: Any, window: int) -> jax.Array:
    """What it does in the steps of a window, summed."""
    total = 0.0
    for _ in range(window):
        action = env.expert(state)
        state, total = env.step(state, action), total + action
    return total


def _follow(env: Environment, window: int) -> Callable[[Any, jax.Array], Any]:
    def follow(state: Any, action: jax.Array) -> Any:
        for _ in range(window):
            state = env.step(state, action / window)
        return state

    return follow
