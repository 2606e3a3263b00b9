"""One attempt at a run: the lock of its directory, and a word on how it ended. Knows no JAX."""

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.storage import places
from data_pipelines.storage.lease import Lease

LOCK_FILE, ENDED_FILE = "run.lock", "ended.json"
REASON_CHARACTERS = 400


@dataclasses.dataclass(frozen=True)
class Ended:
    """How the newest attempt ended: state is finished, stopped (by a signal, after saving) or
    failed, `reason` one line, `time` in seconds since the epoch."""

    state: str
    reason: str
    time: float


class Attempt:
    """Entered around a training: holds the run's directory, and notes how it ended. `first`: of
    process 0, the others do nothing.

    Raises LockedError, naming who has it, where another process does.
    """

    def __init__(self, workdir: str | Path, *, first: bool = True):
        self._workdir, self._end = places.directory(workdir), ("", "")
        self._lease: Lease | None = None
        if first:
            self._lease = Lease(
                self._workdir / LOCK_FILE,
                self._workdir,
                "stop it (SIGTERM: it saves first), or choose another --workdir; `lapa status` "
                "tells what it is doing",
            )

    def confirm(self) -> None:
        """Raises LockedError where another process has taken the directory meanwhile."""
        if self._lease is not None:
            self._lease.confirm()

    def end(self, state: str, reason: str = "") -> None:
        """What it will have come to, unless an error comes."""
        self._end = state, reason

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, _: type | None, error: BaseException | None, *__: Any) -> None:
        if self._lease is None:
            return
        with self._lease:
            if self._lease.lost:
                return  # the directory is another's
            if error is not None:
                self._end = _told(error)
            self._note(*self._end)

    def _note(self, state: str, reason: str = "") -> None:
        values = dataclasses.asdict(Ended(state, reason, time.time()))
        try:
            places.replace(self._workdir / ENDED_FILE, json.dumps(values) + "\n")
        except OSError as error:  # a full disk has its own message
            logging.warning("%s: %s", self._workdir / ENDED_FILE, error)


def note_failure(workdir: str | Path, error: BaseException) -> None:
    """Of a start that found no devices, before it held the directory; nothing where another holds
    it."""
    if isinstance(error, AssertionError) and not str(error):  # as JAX says it of GPUs
        error = RuntimeError(f"no device with JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}")
    with contextlib.suppress(OSError, ValueError), Attempt(workdir) as attempt:
        attempt.end(*_told(error))


def _told(error: BaseException) -> tuple[str, str]:
    """(state, reason in one line)."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "interrupted"
    text = " ".join(str(error).split("\n", 1)[0].split())[:REASON_CHARACTERS]
    return "failed", f"{type(error).__name__}: {text}"


def ended(workdir: Path) -> Ended | None:
    """What an attempt left last; None where nothing is known."""
    try:
        found: Any = json.loads((workdir / ENDED_FILE).read_text(encoding="utf-8"))
        return Ended(str(found["state"]), str(found["reason"]), float(found["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
