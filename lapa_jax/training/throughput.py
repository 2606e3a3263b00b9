"""How fast a run goes, what it waits for and how much memory it takes, between two reports.

Times are taken on the host. A step is dispatched, not awaited, so that only the mean over many
steps means something; the host falls in step with the device where it fetches metrics.

Model FLOPs are those of the forward and backward pass of the model's own products, recomputation
not counted (the convention of PaLM, arXiv:2204.02311, appendix B); `mfu` is their rate over the
data sheet's peak in bfloat16 of the devices, where it is known (machine/chips.py).
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import jax
import psutil

# Of the time: waiting for data more than this is worth a word.
STARVING = 0.2
HINTS = {
    "data_starves": f"more than {STARVING:.0%} of the time goes into waiting for data: raise "
    "data.num_threads and data.prefetch_batches, or see docs/data.md, Speed",
}


@dataclass(frozen=True)
class Work:
    """What a step does, over all devices."""

    examples: int
    tokens: int  # positions of a sequence model; 0: none
    devices: int
    count_flops: Callable[[], float]
    peak_flops: float | None = None  # of one device; None: not known

    @functools.cached_property
    def flops(self) -> float:
        """Counted when first asked for, which takes a second or more."""
        return self.count_flops()


class Throughput:
    """Counts steps and the time spent waiting for data; its fields are among TIMING_KEYS."""

    def __init__(self, work: Work, clock: Callable[[], float] = time.monotonic):
        self._work = work
        self._clock = clock
        self._born = clock()
        self.reset()

    def reset(self) -> None:
        """Starts a new interval."""
        self._start = self._clock()
        self._steps = 0
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around the call that gives the next batch."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around work that is no step; its time counts in elapsed_seconds only."""
        start = self._clock()
        try:
            yield
        finally:
            self._start += self._clock() - start

    def step(self) -> None:
        """One more step was dispatched."""
        self._steps += 1

    def report(self) -> dict[str, float]:
        """Means since the last report, and a new interval. Needs at least one step."""
        if self._steps == 0:
            raise ValueError("no step since the last report")
        work = self._work
        with self.paused():
            flops = work.flops
        now = self._clock()
        seconds = max(now - self._start, 1e-9)
        rate = flops * self._steps / seconds / work.devices
        fields = {
            "elapsed_seconds": now - self._born,
            "step_seconds": seconds / self._steps,
            "examples_per_second": work.examples * self._steps / seconds,
            "tflops_per_device": rate / 1e12,
            "data_wait_fraction": self._waited / seconds,
            **memory_gib(),
        }
        if work.tokens:
            fields["tokens_per_second_per_device"] = (
                work.tokens * self._steps / seconds / work.devices
            )
        if work.peak_flops:
            fields["mfu"] = rate / work.peak_flops
        self._start, self._steps, self._waited = now, 0, 0.0
        return fields


def memory_gib() -> dict[str, float]:
    """Resident memory of this process; of its fullest device, where it tells, now and at most."""
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
