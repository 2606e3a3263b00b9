"""Which steps of a run are saved, which of them is the best, and what the guard takes back.

All processes come to the same answers.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lapa_jax.parallel import distributed
from lapa_jax.training import guard as guards
from lapa_jax.training.checkpoint import Checkpoints
from lapa_jax.training.metrics import EVALUATION_FILE, read_metrics
from lapa_jax.training.state import TrainState


class Keeper:
    """Keeps the states of a run. `checkpoints` are there from the beginning, so that the first
    state can come from them; the rest is there from `begin`."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        """`config`: plain, of the run; its keys checkpoint and guard are read."""
        self._workdir, self._config = workdir, config
        settings = config["checkpoint"]
        self.checkpoints = Checkpoints(
            workdir / "checkpoints",
            keep=settings["keep"],
            keep_period_steps=settings["keep_every_steps"] or None,
            best=lambda: self.best.step,
        )

    def begin(self, step: int, **meta: Any) -> None:
        """The run starts after `step`. `meta`: what each checkpoint says of the run."""
        settings = self._config["checkpoint"]
        self._meta = {"config": self._config} | meta
        self._policy = SavePolicy(
            settings["every_steps"], settings["every_minutes"], self._config["log_every_steps"]
        )
        evaluated, guarded = distributed.from_first(
            lambda: (read_metrics(self._workdir, EVALUATION_FILE), guards.read(self._workdir))
        )
        rows = [row for row in evaluated if row["step"] <= step]
        self.best = Best(settings["best_metric"], settings["best_is"], rows)
        guard, first = guards.GuardConfig(**self._config["guard"]), distributed.is_first()
        self.guard = guards.Guard(guard, self._workdir, step, guarded, first=first)

    def due(self, step: int) -> bool:
        """Whether this step is to be saved, by the number of steps or by the time."""
        return self._policy.due(step)

    def save(self, step: int, state: TrainState, data: Mapping[str, Any]) -> None:
        """Returns when `state` may be donated. `data`: the loader's fingerprint."""
        self.checkpoints.save(step, state, self._meta | {"data": data})


class SavePolicy:
    """Which steps are saved: each that `every_steps` divides; and after `every_minutes` without one
    (0: however long) the next that `look_every_steps` divides."""

    def __init__(
        self,
        every_steps: int,
        every_minutes: float,
        look_every_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._every_steps, self._every_seconds = every_steps, 60 * every_minutes
        self._look_every_steps, self._clock = look_every_steps, clock
        self._since = clock()

    def due(self, step: int) -> bool:
        """Every process asks, after every step."""
        due = step % self._every_steps == 0
        if not due and self._every_seconds and step % self._look_every_steps == 0:
            late = self._clock() - self._since >= self._every_seconds
            # Clocks differ. To look takes a collective, hence not at every step.
            due = distributed.exchange("late" if late else "")[0] == "late"
        if due:
            self._since = self._clock()
        return due


class Best:
    """The step with the lowest or highest value of a metric of the evaluation, the first of equals.

    `rows`: earlier lines of evaluation.jsonl. `metric` "": there is none.
    """

    def __init__(self, metric: str, best_is: str, rows: Iterable[Mapping[str, float]] = ()):
        self._metric, self._sign = metric, 1.0 if best_is == "lowest" else -1.0
        self._value = math.inf
        self.step: int | None = None
        for row in rows:
            self.better(int(row["step"]), row)

    def better(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether this step is the best so far; then it is from now on."""
        if not self._metric:
            return False
        if self._metric not in metrics:
            raise ValueError(
                f"checkpoint.best_metric={self._metric!r} is not among {sorted(metrics)}"
            )
        value = self._sign * metrics[self._metric]
        if not value < self._value:  # nor is NaN
            return False
        self._value, self.step = value, step
        return True
