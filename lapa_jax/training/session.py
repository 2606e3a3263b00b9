"""What a training tells while it goes: metrics, alarms, a bar, signs of life, traces, its time.

Process 0 writes the files of the run.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.progress import Progress
from lapa_jax.parallel import distributed
from lapa_jax.training import heartbeat
from lapa_jax.training.clock import HINTS, Clock, Work, starving
from lapa_jax.training.guard import Guard
from lapa_jax.training.metrics import Alarms, LateMetrics, MetricWriter
from lapa_jax.training.profiling import Profiler
from lapa_jax.training.profiling import parse as parse_profile
from lapa_jax.training.run_files import EXIT_RESTART

# What the loop takes.
__all__ = ["EXIT_RESTART", "Clock", "Session", "parse_profile", "tell_end"]

# By stage: what a run of it is for.
NEXT = {
    "quantizer": (
        "lapa evaluate --workdir {run} --report {run}/evaluation.html",
        "lapa label --workdir {run} --corpus DATA --name NAME",
    ),
    "latent_pretraining": (
        "lapa evaluate --workdir {run}",
        "lapa train --config action_vla/NAME:init_from={run} --workdir OTHER",
    ),
    "action_finetuning": ("lapa evaluate --workdir {run}", "lapa serve --workdir {run}"),
    "inverse_dynamics": ("lapa label --what actions --workdir {run} --corpus DATA --name NAME",),
}


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
                name, steps = config["stage"], config["steps"]
                bar = Progress(name, steps, unit="step", done=self.begin)
                self._bar = stack.enter_context(bar)
                if self.begin < steps:
                    self._bar.waits()
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
            if not self._first:
                continue
            shown = {}
            if step % every == 0 or step == steps:
                speed = self.clock.report(self.work)
                self._writer.write(step, metrics | speed)
                self._alarms.check(step, metrics | starving(speed))
                self.clock.write(step)
                rate = f"{speed['examples_per_second']:.1f}"
                shown = {"loss": f"{float(metrics['loss']):.4f}", "examples/s": rate}
            self._bar.update(step - self._bar.done, **shown)  # steps that are left out are not told

    def tell_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Into evaluation.jsonl."""
        if self._first:
            self._writer.write_evaluation(step, metrics)

    def sync(self) -> None:
        """What was told is on disk: a run that restarts from here does not write it again."""
        if self._first:
            self._writer.sync()


def tell_end(workdir: str | Path, config: Mapping[str, Any], done: bool) -> None:
    """Says where the run is and what it is good for, or how it goes on; process 0 does."""
    if not distributed.is_first():
        return
    lines = [f"run: {workdir}" + ("" if done else ", not at its end: the same command continues")]
    kind = "inverse_dynamics" if config["model"].get("inverse_dynamics") else config["stage"]
    lines += [f"next: {line.format(run=workdir)}" for line in NEXT.get(kind, ()) if done]
    sys.stdout.write("\n".join(lines) + "\n")
