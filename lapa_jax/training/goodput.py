"""Where a run's time goes, over all of its attempts: WORKDIR/goodput.json.

An attempt is one process from its start to its end, however it ends; the file is written while it
lives, so that a kill loses the time since the last writing alone. What an attempt did after the
checkpoint from which the next one started is lost, and so is the time between the two.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.storage import places

GOODPUT_FILE = "goodput.json"
PHASES = ("init", "compile", "data", "step", "checkpoint", "evaluation")


class Goodput:
    """Times the phases of this attempt; process 0 keeps the file."""

    def __init__(
        self,
        workdir: str | Path,
        *,
        first: bool = True,
        clock: Callable[[], float] = time.time,
    ):
        self._path, self._first = places.directory(workdir) / GOODPUT_FILE, first
        self._clock, self._due = clock, 0.0
        self._before = read(workdir)
        self._since = self._started = clock()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = "init"
        self._first_step = 0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time inside counts for this phase, that around it for the one around."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def begin(self, step: int) -> None:
        """The loop starts after `step`; from here on time counts for steps."""
        self._switch("step")
        self._first_step = step
        self.write(step)

    def _switch(self, name: str) -> str:
        """Time counts for another phase from here on; returns the one before."""
        now, old = self._clock(), self._phase
        self._seconds[old] += now - self._since
        self._since, self._phase = now, name
        return old

    def write(self, step: int, *, now: bool = False) -> None:
        """The attempt so far, which has done `step`; atomically. Behind a URL now and then, or
        `now`."""
        self._switch(self._phase)
        held = places.is_remote(self._path) and self._since < self._due and not now
        if not self._first or held:
            return
        self._due = self._since + places.UPLOAD_SECONDS
        attempt = {
            "started": self._started,
            "ended": self._since,
            "first_step": self._first_step,
            "last_step": step,
            "seconds": self._seconds,
        }
        places.replace(self._path, json.dumps([*self._before, attempt]) + "\n")


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """The attempts of a run, oldest first."""
    path = places.directory(workdir) / GOODPUT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def split(attempts: list[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of every phase, `lost` to restarts, and their sum `total`.

    Steps that a later attempt did again count as lost, in proportion to the steps of theirs, and
    so does the time in which no attempt lived.
    """
    found = {**dict.fromkeys(PHASES, 0.0), "lost": 0.0}
    for number, one in enumerate(attempts):
        seconds = dict(one["seconds"])
        if number + 1 < len(attempts):
            after = attempts[number + 1]
            done = one["last_step"] - one["first_step"]
            again = max(0, one["last_step"] - max(after["first_step"], one["first_step"]))
            if done:
                for phase in ("step", "data"):
                    lost = seconds[phase] * again / done
                    seconds[phase] -= lost
                    found["lost"] += lost
            found["lost"] += max(0.0, after["started"] - one["ended"])
        for phase in PHASES:
            found[phase] += seconds[phase]
    return found | {"total": sum(found.values())}
