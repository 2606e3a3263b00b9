"""How fast a run goes and what it waits for, between two reports.

Times are taken on the host. A step is dispatched, not awaited, so that only the mean over many
steps means something; the host falls in step with the device where it fetches metrics.
"""

import contextlib
import time
from collections.abc import Callable, Iterator


class Throughput:
    """Counts steps and the time spent waiting for data; its fields are among TIMING_KEYS."""

    def __init__(self, global_batch: int, clock: Callable[[], float] = time.monotonic):
        self._global_batch = global_batch
        self._clock = clock
        self._born = clock()
        self.reset()

    def reset(self) -> None:
        """Starts a new interval: also after a pause (checkpoint, evaluation, compilation)."""
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
        now = self._clock()
        seconds = max(now - self._start, 1e-9)
        fields = {
            "elapsed_seconds": now - self._born,
            "step_seconds": seconds / self._steps,
            "examples_per_second": self._global_batch * self._steps / seconds,
            "data_wait_fraction": self._waited / seconds,
        }
        self._start, self._steps, self._waited = now, 0, 0.0
        return fields
