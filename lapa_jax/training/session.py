"""What a training tells while it goes: metrics, alarms, a bar, signs of life, traces, its time.

Process 0 writes the files of the run.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lapa_jax.parallel import distributed
from lapa_jax.training import heartbeat
from lapa_jax.training.clock import HINTS, Clock, Work, starving
from lapa_jax.training.guard import Guard
from lapa_jax.training.metrics import Alarms, LateMetrics, MetricWriter, Progress
from lapa_jax.training.profiling import Profiler
from lapa_jax.training.profiling import parse as parse_profile
from launch.run_files import EXIT_RESTART

__all__ = ["EXIT_RESTART", "Clock", "Session", "parse_profile"]  # what the loop takes


class Session:
    """One attempt at a run, which starts after step `begin`; entered around its loop."""

    def __init__(
        self,
        workdir: Path,
        config: Mapping[str, Any],
        begin: int,
        *,
        clock: Clock,
        guard: Guard,
        work: Work,
        alarms: Mapping[str, str],
        profile: tuple[int, int] | None,
    ):
        """`config`: plain, of the run. `guard`: sees the metrics of each step before others do."""
        self._workdir, self._config, self._begin = workdir, config, begin
        self._clock, self._guard, self._work = clock, guard, work
        self._alarms, self._first = Alarms(alarms | HINTS), distributed.is_first()
        # Scalars are fetched one step late, so that the device never waits.
        self.late, self.profiler = LateMetrics(), Profiler(workdir, profile)

    def __enter__(self) -> "Session":
        config = self._config
        with contextlib.ExitStack() as stack:
            if self._first:
                writer = MetricWriter(
                    self._workdir, self._begin, config=config, **config["logging"]
                )
                self._writer = stack.enter_context(writer)
                self._progress = Progress(config["steps"], self._begin, name=config["stage"])
                stack.callback(self._progress.close)
            stack.enter_context(self.profiler.on_signal())
            self._clock.begin(self._begin)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._stack.__exit__(*exc_info)

    def tell(self, due: list[tuple[int, dict[str, Any]]]) -> None:
        """Of steps that are done: (step, host metrics). Raises where the guard stops the run."""
        for step, metrics in due:
            if not self._guard.goes_back:  # else it follows from a step that will not have been
                self._guard.check(step, metrics)
            if self._guard.goes_back:
                return
            heartbeat.beat(step)
            every, steps = self._config["log_every_steps"], self._config["steps"]
            if self._first and (step % every == 0 or step == steps):
                speed = self._clock.report(self._work)
                self._writer.write(step, metrics | speed)
                self._alarms.check(step, metrics | starving(speed))
                self._progress.update(step, float(metrics["loss"]), speed["examples_per_second"])
                self._clock.write(step)

    def tell_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Into evaluation.jsonl."""
        if self._first:
            self._writer.write_evaluation(step, metrics)

    def sync(self) -> None:
        """What was told is on disk: a run that restarts from here does not write it again."""
        if self._first:
            self._writer.sync()
