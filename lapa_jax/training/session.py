"""What a training tells while it goes: metrics, alarms, a bar, signs of life, traces, its time.

Process 0 writes the files of the run.
"""

import contextlib
import dataclasses
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


@dataclasses.dataclass
class Session:
    """One attempt at a run; entered around its loop."""

    workdir: Path
    config: Mapping[str, Any]  # plain, of the run
    begin: int  # the step that it starts after
    clock: Clock
    guard: Guard  # sees the metrics of each step before others do
    work: Work
    alarms: Mapping[str, str]
    profile: tuple[int, int] | None

    def __post_init__(self) -> None:
        self._first, self._alarms = distributed.is_first(), Alarms(self.alarms | HINTS)
        # Scalars are fetched one step late, so that the device never waits.
        self.late, self.profiler = LateMetrics(), Profiler(self.workdir, self.profile)

    def __enter__(self) -> "Session":
        config = self.config
        with contextlib.ExitStack() as stack:
            if self._first:
                writer = MetricWriter(self.workdir, self.begin, config=config, **config["logging"])
                self._writer = stack.enter_context(writer)
                self._progress = Progress(config["steps"], self.begin, name=config["stage"])
                stack.callback(self._progress.close)
            stack.enter_context(self.profiler.on_signal())
            self.clock.begin(self.begin)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._stack.__exit__(*exc_info)

    def tell(self, due: list[tuple[int, dict[str, Any]]]) -> None:
        """Of steps that are done: (step, host metrics). Raises where the guard stops the run."""
        for step, metrics in due:
            if not self.guard.goes_back:  # else it follows from a step that will not have been
                self.guard.check(step, metrics)
            if self.guard.goes_back:
                return
            heartbeat.beat(step)
            every, steps = self.config["log_every_steps"], self.config["steps"]
            if self._first and (step % every == 0 or step == steps):
                speed = self.clock.report(self.work)
                self._writer.write(step, metrics | speed)
                self._alarms.check(step, metrics | starving(speed))
                self._progress.update(step, float(metrics["loss"]), speed["examples_per_second"])
                self.clock.write(step)

    def tell_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Into evaluation.jsonl."""
        if self._first:
            self._writer.write_evaluation(step, metrics)

    def sync(self) -> None:
        """What was told is on disk: a run that restarts from here does not write it again."""
        if self._first:
            self._writer.sync()
