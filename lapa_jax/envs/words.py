"""What policies are told: an episode's own instruction, none, or that of another task.

Without JAX: workers and those that evaluate here ask the same function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lapa_jax.envs.env import Environment

NONE, SHUFFLED = "none", "shuffled"


def told(
    env: Environment,
    phrasings: str,
    state: Any,
    task: str,
    number: int,
    start: Callable[[str], Any],
) -> str:
    """The instruction of the episode of that number and task, which starts in `state`.

    phrasings: a split of the instructions, whose phrasings take turns; NONE: ""; SHUFFLED: that of
    another task, which `start(task)`, the start state of this number there, says in other words
    than all of the episode's own. ValueError where there is no such task.
    """
    if phrasings == NONE:
        return ""

    def said(state: Any, phrasing: int) -> str:
        return env.instructions(state if env.spec.traceable else [state], phrasing)[0]

    shuffled = phrasings == SHUFFLED
    known = env.phrasings("train" if shuffled else phrasings)
    phrasing = known[number % len(known)]
    if not shuffled:
        return said(state, phrasing)
    own = {said(state, number) for number in env.phrasings("all")}
    others = [one for one in env.spec.tasks if one != task]
    for i in range(len(others)):  # another task may be asked for by the same words
        text = said(start(others[(number + i) % len(others)]), phrasing)
        if text not in own:
            return text
    raise ValueError(f"phrasings={SHUFFLED}: all tasks have the words of {task}")


def of_all(env: Environment, phrasings: str, states: Any, task: str, seed: int) -> list[str]:
    """Those of the first episodes of (seed, task), which start in `states`, a batch."""
    count = len(env.tasks_of(states))
    if phrasings not in (NONE, SHUFFLED):  # at once
        known = np.array(env.phrasings(phrasings))
        return env.instructions(states, known[np.arange(count) % len(known)])
    starts = functools.cache(lambda other: env.evaluation_states(seed, other, count))

    def one(states: Any, i: int) -> Any:
        if not env.spec.traceable:
            return states[i]
        import jax

        return jax.tree.map(lambda x: x[i], states)

    return [
        told(env, phrasings, one(states, i), task, i, lambda other, i=i: one(starts(other), i))
        for i in range(count)
    ]
