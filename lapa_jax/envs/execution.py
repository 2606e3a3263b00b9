"""How chunks of actions are acted on: how many of one, and what happens where two of them meet.

A policy is asked at every `execute`-th step; its chunk says the actions of n steps from there on.
Everybody who acts goes by `action_at`: rollouts that are traced, those that Python steps, workers
and adapters. No JAX: `xp` may be jax.numpy.

Shape suffixes: K chunks, the last one first; n steps of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from data_pipelines import keys

ENSEMBLES = ("none", "oldest_first", "newest_first")
# Fields of an observation: what `going_on` gives.
FOLLOWING = ("going_on/actions", "going_on/weights")
SCHEDULES = ("zeros", "ones", "linear", "exp")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Settings of whoever acts. Of n actions that an answer holds, execute + delay are needed."""

    execute: Annotated[
        int,
        "[0, 1e4]",
        "actions of an answer before the policy is asked again: the execution horizon; 0: as its "
        "run says (evaluation.execution_horizon)",
    ] = 0
    ensemble: Annotated[
        str,
        ENSEMBLES,
        "with execute=1: of a step the mean of what all answers say of it, by weights "
        "exp(-ensemble_decay i); i counts from the oldest answer (ACT) or from the newest (UniVLA)",
    ] = "none"
    ensemble_decay: Annotated[float, "[-10, 10]", "of these weights"] = 0.01
    delay: Annotated[
        int,
        "[0, 1e4]",
        "steps that an answer takes: until then the answer before goes on, and as many of the new "
        "one are dropped (real-time chunking); a head `flow` is guided by what goes on",
    ] = 0

    def __post_init__(self) -> None:
        keys.check(Execution, vars(self), "")
        if self.ensembles and (self.execute > 1 or self.delay):
            raise ValueError(
                f"ensemble={self.ensemble} asks at every step: execute={self.execute} must be 1, "
                f"and delay={self.delay} must be 0"
            )
        if 0 < self.execute < self.delay:
            raise ValueError(
                f"delay={self.delay} must be at most execute={self.execute}: an answer comes "
                "before the next question"
            )

    def of(self, execution_horizon: int) -> Execution:
        """With `execute` as a run says, where it is not given."""
        return self if self.execute else replace(self, execute=execution_horizon)

    def check(self, horizon: int) -> None:
        """ValueError where answers of `horizon` actions, the prediction horizon, are too short."""
        if not 1 <= self.execute <= horizon:
            raise ValueError(
                f"execute={self.execute} must be from 1 to {horizon}, the actions that the policy "
                "gives at once"
            )
        if self.execute + self.delay > horizon:
            raise ValueError(
                f"execute={self.execute} and delay={self.delay}: {self.execute + self.delay} "
                f"actions of an answer are needed, and the policy gives {horizon} at once"
            )

    @property
    def ensembles(self) -> bool:
        return self.ensemble != "none"

    def kept(self, horizon: int) -> int:
        """How many of the last answers an action may depend on."""
        return horizon if self.ensembles else 2 if self.delay else 1

    def weights(self, horizon: int) -> np.ndarray:
        """How much each step of an answer is to follow the one before it, float32 (horizon,)."""
        return prefix_weights(self.delay, horizon - self.execute, horizon)


BY_RUN = Execution()


def action_at(chunks: Any, t: Any, how: Execution, xp: Any = np) -> Any:
    """The action (..., A) of step t. chunks: the `how.kept(n)` last answers (K, ..., n, A), the
    newest first, before the first ones anything. t counts from the first question and may be
    traced."""
    since = t % how.execute
    if how.ensembles:
        K = chunks.shape[0]
        said = xp.stack([chunks[k][..., k, :] for k in range(K)])
        return blend(said, xp.minimum(t + 1, K), how, xp)
    new = xp.take(chunks[0], since, axis=-2)
    if not how.delay:
        return new
    before = xp.take(chunks[1], how.execute + xp.minimum(since, how.delay - 1), axis=-2)
    return xp.where((since < how.delay) & (t >= how.execute), before, new)


def blend(said: Any, count: Any, how: Execution, xp: Any = np) -> Any:
    """The mean (..., A) of what the `count` newest of K answers say of one step, (K, ..., A), the
    newest first. An answer counts by its place: one that says 0 is as good as any."""
    newest = xp.arange(said.shape[0])
    i = newest if how.ensemble == "newest_first" else count - 1 - newest
    power = xp.where(newest < count, -how.ensemble_decay * i, -xp.inf)
    weights = xp.exp(power - power.max())  # the greatest is 1, whatever decays
    weights = (weights / weights.sum()).reshape(-1, *[1] * (said.ndim - 1))
    known = xp.where(weights > 0, said, 0.0)  # what is not there may be NaN
    return (weights * known).sum(axis=0).astype(said.dtype)


def prefix_weights(delay: int, end: int, horizon: int, schedule: str = "exp") -> np.ndarray:
    """Of real-time chunking (Black et al. 2025, arXiv:2506.07339), float32 (horizon,): 1 for the
    `delay` steps that will have been taken, 0 from `end` on, where the answer before says nothing,
    and falling in between as SCHEDULES say."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} must be one of {SCHEDULES}")
    step, delay = np.arange(horizon), min(delay, end)
    if schedule == "zeros":
        found = (step < delay).astype(np.float64)
    elif schedule == "ones":
        found = np.ones(horizon)
    else:
        found = np.clip((delay - 1 - step) / (end - delay + 1) + 1, 0.0, 1.0)
        if schedule == "exp":
            found = found * np.expm1(found) / (np.e - 1)
    return np.where(step < end, found, 0.0).astype(np.float32)


def going_on(chunks: Any, t: Any, how: Execution, xp: Any = np) -> tuple[Any, Any]:
    """What a policy that is guided is given, asked at step t: what the answer before says of the
    steps from there on (..., n, A), 0 where it says nothing, and by which weights it is to be
    followed, (n,)."""
    n = chunks.shape[-2]
    wide = [(0, 0)] * (chunks.ndim - 1)
    wide[-2] = (0, how.execute)
    left_over = xp.pad(chunks[0][..., how.execute :, :], wide)
    return left_over, xp.where(t > 0, how.weights(n), np.float32(0.0))


class Chunks:
    """The actions of one episode, or of several side by side, as Python takes them:

    while ...:
        if chunks.due:
            chunks.answered(policy(...))
        act(chunks.next())
    """

    def __init__(self, how: Execution):
        self.how = how
        self.reset()

    def reset(self) -> None:
        """Begins an episode."""
        self._chunks: np.ndarray | None = None
        self._t = self._asked = 0

    @property
    def due(self) -> bool:
        """Whether the policy is to be asked before the next action."""
        return self._asked * self.how.execute == self._t

    def going_on(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the policy is to be asked: what `going_on` says; None before the first answer."""
        return None if self._chunks is None else going_on(self._chunks, self._t, self.how)

    def answered(self, actions: np.ndarray, acting: Any = ...) -> None:
        """actions: (..., n, A). ValueError for fewer than are needed, for another number or width
        than before, and where one is not finite, of those `acting` (an index): nothing is taken of
        these."""
        new = np.asarray(actions, np.float32)
        if self._chunks is None:
            self.how.check(new.shape[-2])
            self._chunks = np.zeros((self.how.kept(new.shape[-2]), *new.shape), np.float32)
        if new.shape != self._chunks.shape[1:]:
            raise ValueError(
                f"the policy gives actions of shape {list(new.shape)}, and before "
                f"{list(self._chunks.shape[1:])}"
            )
        if not np.isfinite(new[acting]).all():
            raise ValueError(
                f"at step {self._t} the policy's actions are not finite: none is taken"
            )
        self._chunks = np.concatenate([new[None], self._chunks[:-1]])
        self._asked += 1

    def next(self) -> np.ndarray:
        """The action float32 (..., A) of this step."""
        if self.due:
            raise RuntimeError("the policy is to be asked first")
        found = action_at(self._chunks, self._t, self.how)
        self._t += 1
        return found


def check_rate(theirs: float | None, ours: float | None, whose: str, at: str) -> None:
    """ValueError where actions of `theirs` a second are taken at `ours`, and for what is no rate;
    of what is not known (None, 0) nothing is said."""
    for rate, who in ((theirs, whose), (ours, at)):
        is_number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
        if rate is not None and not (is_number and math.isfinite(rate) and rate >= 0):
            raise ValueError(f"{who} acts at {rate!r} Hz: it must be positive, or 0: not known")
    if theirs and ours and not math.isclose(theirs, ours, rel_tol=0.02):
        raise ValueError(
            f"{whose} acts at {theirs:g} Hz, {at} at {ours:g} Hz: take a policy that was trained "
            "at this rate"
        )
