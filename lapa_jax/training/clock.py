"""How fast a run goes, what it waits for and how much memory it takes; and where its time goes,
over all of its attempts: WORKDIR/goodput.json.

Times are taken on the host. A step is dispatched, not awaited, so that only the mean over many
steps means something; the host falls in step with the device where it fetches metrics.

Model FLOPs are those of the forward and backward pass of the model's own products, recomputation
not counted (the convention of PaLM, arXiv:2204.02311, appendix B); `mfu` is their rate over the
data sheet's peak in bfloat16 of the devices, where it is known (machine/chips.py).

An attempt is one process from its start to its end, however it ends; the file is written while it
lives, so that a kill loses the time since the last writing alone. What an attempt did after the
checkpoint from which the next one started is lost, and so is the time between the two.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.storage import places

GOODPUT_FILE = "goodput.json"
PHASES = ("init", "compile", "data", "step", "checkpoint", "evaluation")
WORKING = ("compile", "data", "step")  # the others count in elapsed_seconds only
# Of the time: waiting for data more than this is worth a word.
STARVING = 0.2
HINTS = {
    "data_starves": f"more than {STARVING:.0%} of the time goes into waiting for data: raise "
    "data.num_threads and data.prefetch_batches, or see docs/data.md, Speed",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does, over all devices."""

    examples: int
    tokens: int  # positions of a sequence model; 0: none
    count_flops: Callable[[], float]
    devices: int
    peak_flops: float | None = None  # of one device; None: not known

    @functools.cached_property
    def flops(self) -> float:
        """Counted when first asked for, which takes a second or more."""
        return self.count_flops()


_EPOCH = time.time() - time.monotonic()


def _now() -> float:
    """Seconds since the epoch, in which no correction of the machine's clock shows."""
    return _EPOCH + time.monotonic()


class Clock:
    """Times the phases of this attempt and counts its steps; process 0 keeps the file."""

    def __init__(
        self,
        workdir: str | Path,
        *,
        first: bool = True,
        clock: Callable[[], float] = _now,
    ):
        self._path, self._first = places.directory(workdir) / GOODPUT_FILE, first
        self._clock, self._due = clock, 0.0
        self._before = _before(workdir) if first else []
        self._since = self._started = clock()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = "init"
        self._first_step = self._steps = 0
        self._told = dict(self._seconds)  # at the last report

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

    def step(self) -> None:
        """One more step was dispatched."""
        self._steps += 1

    def report(self, work: Work) -> dict[str, float]:
        """Means since the last report, of steps that do this work; among metrics.TIMING_KEYS.
        Needs at least one step."""
        if self._steps == 0:
            raise ValueError("no step since the last report")
        with self.phase("init"):
            flops = work.flops
        spent = {name: self._seconds[name] - self._told[name] for name in WORKING}
        seconds = max(sum(spent.values()), 1e-9)
        rate = flops * self._steps / seconds / work.devices
        fields = {
            "elapsed_seconds": self._since - self._started - self._seconds["init"],
            "step_seconds": seconds / self._steps,
            "examples_per_second": work.examples * self._steps / seconds,
            "tflops_per_device": rate / 1e12,
            "data_wait_fraction": spent["data"] / seconds,
            **memory_gib(),
        }
        if work.tokens:
            fields["tokens_per_second_per_device"] = (
                work.tokens * self._steps / seconds / work.devices
            )
        if work.peak_flops:
            fields["mfu"] = rate / work.peak_flops
        self._told, self._steps = dict(self._seconds), 0
        return fields

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


def _before(workdir: str | Path) -> list[dict[str, Any]]:
    """The attempts so far; none where nobody can tell any more."""
    try:
        return read_goodput(workdir)
    except ValueError as error:
        logging.warning("%s", error)
        return []


def memory_gib() -> dict[str, float]:
    """Resident memory of this process; of its fullest device, where it tells, now and at most."""
    import jax  # not above: `lapa status` reads goodput without it
    import psutil

    found = {"host_memory_gib": psutil.Process().memory_info().rss / 2**30}
    stats = [s for d in jax.local_devices() if (s := d.memory_stats())]
    for field, key in (
        ("device_memory_gib", "bytes_in_use"),
        ("device_peak_gib", "peak_bytes_in_use"),
    ):
        values = [s[key] for s in stats if key in s]
        if values:
            found[field] = max(values) / 2**30
    return found


def starving(report: Mapping[str, float]) -> dict[str, float]:
    """The alarm of HINTS."""
    return {"data_starves": float(report["data_wait_fraction"] > STARVING)}


def read_goodput(workdir: str | Path) -> list[dict[str, Any]]:
    """The attempts of a run, oldest first. Raises ValueError where its file is damaged."""
    path = places.directory(workdir) / GOODPUT_FILE
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        split_goodput(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): `lapa train` begins it anew"
        ) from error
    return found


def split_goodput(attempts: list[Mapping[str, Any]]) -> dict[str, float]:
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
