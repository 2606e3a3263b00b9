"""Which steps of a run are saved, and which one is used: the newest that is sound.

All processes come to the same answers.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from data_pipelines.storage import places
from lapa_jax.parallel import distributed
from lapa_jax.training.manifest import CheckpointDamagedError, CheckpointMismatchError

T = TypeVar("T")
COMMITTED = "commit_success.txt"  # which Orbax writes last into a step behind a URL


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
        if every_steps < 1 or every_minutes < 0:
            raise ValueError(
                f"checkpoint.every_steps={every_steps} must be at least 1, and "
                f"checkpoint.every_minutes={every_minutes} at least 0"
            )
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
        if best_is not in ("lowest", "highest"):
            raise ValueError(f"checkpoint.best_is={best_is!r} must be 'lowest' or 'highest'")
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


def list_steps(directory: str | Path) -> list[int]:
    """Complete steps in a checkpoint directory, oldest first."""
    directory = places.directory(directory)
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if path.name.isdecimal()]
    if places.is_remote(directory):
        found = [path for path in found if (path / COMMITTED).exists()]
    return sorted(int(path.name) for path in found)


def newest_sound(
    directory: Path, step: int | None, read: Callable[[int], T], verify: Callable[[T], None]
) -> tuple[T, list[tuple[int, str]]]:
    """(what `read` gave of a step, damaged steps passed over); an asked step has no substitute.

    `read` must not wait for other processes, `verify` may: a step that one process cannot read is
    damaged for all, and is not verified.
    """
    # As process 0 sees them: another host may see a new directory late.
    steps = json.loads(distributed.exchange(json.dumps(list_steps(directory)))[0])
    if step is not None and step not in steps or not steps:
        raise FileNotFoundError(
            f"no checkpoint {'' if step is None else f'of step {step} '}in {directory}; "
            f"steps there: {steps}"
        )
    damaged: list[tuple[int, str]] = []
    for candidate in [step] if step is not None else reversed(steps):
        found, reason = _attempt(read, candidate)
        if not reason:
            _, reason = _attempt(verify, found)
        if not reason:
            if damaged:
                logging.error("CHECKPOINT: using step %d of %s instead", candidate, directory)
            return found, damaged
        del found
        damaged.append((candidate, reason))
        bar = "!" * 80
        logging.error(
            "\n%s\nDAMAGED CHECKPOINT: %s/%d\n%s\n%s", bar, directory, candidate, reason, bar
        )
    listing = "".join(f"\n  step {number}: {reason}" for number, reason in damaged)
    raise CheckpointDamagedError(
        f"no readable checkpoint in {directory}:{listing}\nRestore these files from a copy, or "
        f"move them away to start anew; nothing was changed"
    )


def _attempt(action: Callable[[Any], Any], argument: Any) -> tuple[Any, str]:
    """(result, why this is damage, by any process: empty if it is not). Errors that are no damage
    are raised by all processes."""

    def attempt() -> tuple[Any, str]:
        try:
            return action(argument), ""
        except (CheckpointMismatchError, MemoryError, PermissionError):
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):  # memory of a device
                raise
            return None, f"{type(error).__name__}: {str(error)[:500]}"

    result, reason = distributed.together(attempt)
    reasons = distributed.exchange(reason)
    if len(reasons) == 1:
        return result, reason
    return result, "; ".join(f"process {i}: {text}" for i, text in enumerate(reasons) if text)


def quarantine(directory: Path, step: int) -> None:
    """Renames a damaged step, so that it is neither read nor in the way. On process 0."""

    def rename() -> None:
        aside, count = directory / f"{step}.damaged", 1
        while aside.exists():
            count += 1
            aside = directory / f"{step}.damaged{count}"
        (directory / str(step)).rename(aside)
        logging.error("step %d renamed to %s", step, aside)

    distributed.on_first(rename)
