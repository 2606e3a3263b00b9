"""Chunks that may end early: after some steps somebody looks whether the world goes as expected.

The policy is asked when its chunk is acted on for `execute` steps, or at a look at which the rest
is dropped. So each episode asks when it must, and calls are counted. Python steps here, whatever
the environment; without looks the outcomes are those of envs/rollout.py and envs/drive.py, whose
keys and frames these are. Pushes, which no policy has said, are what looking is for.

Shape suffixes: N episodes side by side, T steps, n steps of a chunk, A dimensions of an action.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import jax
import numpy as np

from data_pipelines import keys
from lapa_jax.envs.drive import call
from lapa_jax.envs.env import OWN, Environment, EnvSpec, Size, clip
from lapa_jax.envs.execution import Execution
from lapa_jax.envs.rollout import Episodes, as_chunks, render_states, told


class Check(Protocol):
    """Who looks at an episode, at every `every`-th step of a chunk but its last."""

    every: int

    def asked(self, t: int, images: np.ndarray, chunks: np.ndarray, due: np.ndarray) -> None:
        """At step t, of those `due`, bool (N,), the policy has seen these frames, uint8 (N, height,
        width, 3), and said these actions, float32 (N, n, A). Of the others frames are those of now,
        and actions what they are acting on."""

    def drops(self, t: int, images: np.ndarray, looks: np.ndarray) -> np.ndarray:
        """Whose chunks end at step t, bool (N,), by what is seen then. looks: at how many looks
        since its question each episode is with this one, int (N,), 0 where none is due."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pushes:
    """Disturbances: for some steps the world moves the robot in a way that nobody said."""

    push_rate: Annotated[
        float, "[0, 1]", "chance, at each step that none lasts, that a push begins; 0: none"
    ] = 0.0
    push_steps: Annotated[
        int,
        "[1, 1e4]",
        "that one lasts: so long one action, drawn evenly within the bounds, is taken in the place "
        "of the policy's",
    ] = 4

    def __post_init__(self) -> None:
        keys.check(Pushes, vars(self), "")

    def drawn(self, spec: EnvSpec, seed: int, episodes: int, steps: int) -> np.ndarray:
        """float32 (episodes, steps, A): the actions that are taken instead, NaN where none is. A
        function of (seed, number of the episode), however many there are."""
        found = np.full((episodes, steps, spec.action_dim), np.nan, np.float32)
        for number, one in enumerate(found if self.push_rate else ()):
            rng, t = np.random.default_rng((seed, number)), 0
            while t < steps:
                if rng.random() < self.push_rate:
                    one[t : t + self.push_steps] = rng.uniform(spec.action_low, spec.action_high)
                    t += self.push_steps
                else:
                    t += 1
        return found


@dataclasses.dataclass(frozen=True)
class Checked:
    """Episodes, and per episode (N,) how many calls of the policy and looks there were until its
    end, at its success or its last step, and how many looks dropped the rest of a chunk."""

    episodes: Episodes
    calls: np.ndarray
    looks: np.ndarray
    drops: np.ndarray


def checked_loop(
    env: Environment,
    act: jax.tree_util.Partial,
    states: Any,
    prompts: Any,
    key: jax.Array,
    *,
    steps: int,
    how: Execution,
    check: Check | None = None,
    pushes_NTA: np.ndarray | None = None,
    view: str = "",
    size: Size | None = None,
) -> Checked:
    """Run a policy from N start states, each for `steps` actions or until its success.

    how: at most `how.execute` actions of a chunk are acted on. pushes_NTA: of `Pushes.drawn`. The
    rest as of `rollout`; an episode that is over has actions of 0. Raises ValueError for ensembles
    and delays, where several chunks meet, for chunks that are too short, for a check that would
    not look before a chunk ends or not at whole parts of it, and for actions that are not finite.
    """
    if how.ensembles or how.delay:
        raise ValueError(
            f"ensemble={how.ensemble}, delay={how.delay}: chunks that may end early, or are "
            "pushed, are acted on one after the other: leave both out"
        )
    if check is not None and (how.execute % check.every or how.execute <= check.every):
        raise ValueError(
            f"execute={how.execute}: looks are {check.every} steps apart, so it must be a multiple "
            f"of that, and more: {2 * check.every}, {3 * check.every}, ..."
        )
    view, size = view or env.spec.views[0], size or env.spec.image_size
    world = (_Traced if env.spec.traceable else _Listed)(env, states, size, view)
    done = world.success()
    N, every = len(done), check.every if check is not None else how.execute
    length, actions = np.where(done, 0, steps), np.zeros((N, steps, env.spec.action_dim), "float32")
    since, calls, looks, drops = np.full(N, how.execute), *np.zeros((3, N), int)
    clipped = np.zeros(N, np.int32)
    chunks = None
    for t in range(steps):
        if done.all():
            break
        due = ~done & (since == how.execute)
        looking = ~done & ~due & (since % every == 0)
        looking &= since > 0
        if due.any() or looking.any():
            images = world.images()
            if looking.any():
                dropped = looking & check.drops(t, images, np.where(looking, since // every, 0))
                looks, drops, due = looks + looking, drops + dropped, due | dropped
            if due.any():
                given = prompts
                if told(prompts, OWN):
                    given = given | {OWN: world.own()}
                new = np.asarray(as_chunks(call(act, images, given, jax.random.fold_in(key, t))))
                how.check(new.shape[1])
                if not np.isfinite(new[due]).all():
                    raise ValueError(f"at step {t} the policy's actions are not finite")
                chunks = new if chunks is None else np.where(due[:, None, None], new, chunks)
                since, calls = np.where(due, 0, since), calls + due
                if check is not None:
                    check.asked(t, images, chunks, due)
        action = chunks[np.arange(N), np.minimum(since, how.execute - 1)]
        if pushes_NTA is not None:
            action = np.where(np.isnan(pushes_NTA[:, t]), action, pushes_NTA[:, t])
        action, beyond = clip(env.spec, action)
        actions[:, t] = np.where(done[:, None], np.float32(0), action)
        clipped += beyond & ~done
        since = np.minimum(since + 1, how.execute)
        now = world.step(actions[:, t], ~done)
        length[now & ~done] = t + 1
        done |= now
    by_then = done[:, None] & (np.arange(steps + 1) >= length[:, None])
    found = Episodes(None, actions, clipped, done, length.astype(np.int32), by_then)
    return Checked(found, calls, looks, drops)


class _Traced:
    """N states of a traceable environment, as one."""

    def __init__(self, env: Environment, states: Any, size: Size, view: str):
        self.env, self.states, self.size, self.view = env, states, size, view

    def success(self) -> np.ndarray:
        return np.array(_success(self.env, self.states))

    def images(self) -> np.ndarray:
        return np.asarray(render_states(self.env, self.states, self.size, self.view))

    def own(self) -> np.ndarray:
        return np.asarray(jax.vmap(self.env.proprioception)(self.states))

    def step(self, actions: np.ndarray, acting: np.ndarray) -> np.ndarray:
        del acting  # who is done goes on as well as any
        self.states = _step(self.env, self.states, actions)
        return self.success()


@functools.partial(jax.jit, static_argnames="env")
def _step(env: Environment, states: Any, actions: jax.Array) -> Any:
    return jax.vmap(env.step)(states, actions)


@functools.partial(jax.jit, static_argnames="env")
def _success(env: Environment, states: Any) -> jax.Array:
    return jax.vmap(env.success)(states)


class _Listed:
    """N states of any other, one by one; an episode that is over shows its last frame."""

    def __init__(self, env: Environment, states: Sequence[Any], size: Size, view: str):
        self.env, self.states, self.how = env, list(states), (size, view)
        self.changed, self.seen = set(range(len(self.states))), [None] * len(self.states)

    def success(self) -> np.ndarray:
        self.over = np.array([bool(self.env.success(state)) for state in self.states])
        return self.over.copy()

    def images(self) -> Any:
        for i in self.changed:
            self.seen[i] = self.env.render(self.states[i], *self.how)
        self.changed.clear()
        return jax.tree.map(lambda *x: np.stack(x), *self.seen)

    def own(self) -> np.ndarray:
        return np.stack([np.asarray(self.env.proprioception(s), np.float32) for s in self.states])

    def step(self, actions: np.ndarray, acting: np.ndarray) -> np.ndarray:
        for i in np.flatnonzero(acting):
            self.states[i] = self.env.step(self.states[i], actions[i])
            self.over[i] = bool(self.env.success(self.states[i]))
            self.changed.add(int(i))
        return self.over.copy()
