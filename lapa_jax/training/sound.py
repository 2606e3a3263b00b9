"""Which saved step of a run is used: the newest that is sound, the same in all processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from data_pipelines.storage import places
from lapa_jax.parallel import distributed
from lapa_jax.training.manifest import CheckpointDamagedError, CheckpointMismatchError
from lapa_jax.training.run_files import step_folders

T = TypeVar("T")


def list_steps(directory: str | Path) -> list[int]:
    """Steps in a checkpoint directory, oldest first; that one is damaged shows when it is read."""
    return step_folders(places.directory(directory))


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
