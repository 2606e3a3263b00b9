"""Metrics of a run: metrics.jsonl (one object per logged step), evaluation.jsonl, and what shows
them (TensorBoard, Weights & Biases).

On resume from step s the lines after s are dropped, so that a killed and restarted run leaves the
file of an uninterrupted one, TIMING_KEYS apart. Metrics are fetched one step late, so that the
device never waits for the host.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from data_pipelines.storage import places
from lapa_jax.training.event_files import EventFile
from lapa_jax.training.run_files import EVALUATION_FILE, METRICS_FILE, all_metrics

# The fields that differ between two runs of the same work.
TIMING_KEYS = (
    "data_wait_fraction",
    "device_memory_gib",
    "device_peak_gib",
    "elapsed_seconds",
    "examples_per_second",
    "host_memory_gib",
    "mfu",
    "step_seconds",
    "tflops_per_device",
    "tokens_per_second_per_device",
)


class MetricWriter:
    """Writes host metrics of process 0. `step`: the step the run starts from (0: a fresh run).

    `wandb_project`: of Weights & Biases, which takes its key from WANDB_API_KEY or its own login.
    """

    def __init__(
        self,
        workdir: str | Path,
        step: int = 0,
        *,
        tensorboard: bool = True,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        workdir = places.directory(workdir)
        places.make(workdir)
        self._files = {
            "": _Lines(workdir / METRICS_FILE, step),
            "evaluation/": _Lines(workdir / EVALUATION_FILE, step),
        }
        self._board = self._wandb = None
        if tensorboard:
            self._board = EventFile(places.scratch(workdir) / "tensorboard", step + 1)
        if wandb_project:
            self._wandb = _start_wandb(workdir, wandb_project, config or {})

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        try:
            self.close()
        except OSError as error:
            if kind is None:
                raise
            logging.error("closing the metrics: %s", error)  # a full disk: what came first counts

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line, on disk before the call returns; behind a URL after a while, or `sync`. NaN and
        infinities are written as strings."""
        self._write("", step, metrics)

    def write_evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The same, into evaluation.jsonl."""
        self._write("evaluation/", step, metrics)

    def _write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        values = self._files[kind].write(step, metrics)
        if self._board is not None:
            self._board.write(step, {kind + key: value for key, value in values.items()})
        if self._wandb is not None:
            self._wandb.log({kind + key: value for key, value in values.items()}, step=step)

    def sync(self) -> None:
        """What was written is there when this returns: also behind a URL."""
        for file in self._files.values():
            file.sync()

    def close(self) -> None:
        """Flushes everything."""
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class _Lines:
    """One file of lines; it appears with its first one."""

    def __init__(self, path: Path, step: int):
        self._path, self._file = path, None
        self._last_step = _keep_until(path, step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, int | float]:
        if step <= self._last_step:
            raise ValueError(f"metrics of step {step} after those of step {self._last_step}")
        if "step" in metrics:
            raise ValueError("'step' is a field of every line, not a metric")
        values = {key: _number(key, metrics[key]) for key in sorted(metrics)}
        line = json.dumps({"step": step, **{k: _json(v) for k, v in values.items()}})
        if self._file is None:
            remote = places.is_remote(self._path)
            self._file = (
                places.Upload(self._path) if remote else open(self._path, "a", encoding="utf-8")
            )
        self._file.write(line + "\n")
        self._file.flush()
        self._last_step = step
        return values

    def sync(self) -> None:
        if isinstance(self._file, places.Upload):
            self._file.sync()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _start_wandb(workdir: Path, project: str, config: Mapping[str, Any]) -> Any:
    """The run of a workdir, continued where it has one."""
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"logging.wandb_project={project!r} needs the package wandb: pip install wandb, or "
            f"leave it empty"
        ) from error
    file = workdir / "wandb_id"
    if not file.exists():
        file.write_text(wandb.util.generate_id() + "\n")
    return wandb.init(
        project=project,
        id=file.read_text().strip(),
        resume="allow",
        dir=str(places.scratch(workdir)),
        name=workdir.name,
        config=dict(config),
    )


def read_metrics(workdir: str | Path, file: str = METRICS_FILE) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or of evaluation.jsonl, which there need not be; NaN and
    infinities are floats again."""
    path = places.directory(workdir) / file
    return all_metrics(path) if file == METRICS_FILE or path.exists() else []


def _keep_until(path: Path, step: int) -> int:
    """Drops the lines after `step` and a torn last line, atomically; returns the last step kept."""
    if not path.exists():
        return -1
    with path.open("rb") as file:
        lines = file.readlines()
    whole = [line for line in lines if line.endswith(b"\n")]
    steps = [row["step"] for row in all_metrics(path)]
    kept = [line for line, line_step in zip(whole, steps, strict=True) if line_step <= step]
    if len(kept) < len(lines):
        logging.info(
            "%s: dropped %d lines after step %d, where this run starts",
            path,
            len(lines) - len(kept),
            step,
        )
        places.replace(path, b"".join(kept).decode(), durable=True)
    return max((x for x in steps if x <= step), default=-1)


def _number(key: str, value: Any) -> int | float:
    value = np.asarray(value)
    if value.ndim or value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
        raise ValueError(f"metric {key!r} of shape {value.shape}, {value.dtype} is not a number")
    return int(value) if value.dtype.kind in "biu" else float(value)


def _json(value: int | float) -> int | float | str:
    return value if math.isfinite(value) else str(value)


class LateMetrics:
    """Fetches the metrics of step N when step N+1 has been dispatched.

    Before a checkpoint of step s is saved, `flush` must have written what is due up to s: a run
    that restarts from s does not write it again.
    """

    def __init__(self) -> None:
        self._held: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> list[tuple[int, Any]]:
        """Takes device metrics of `step`; gives (step, host metrics) of the push before, if any."""
        due = self.flush()
        for leaf in jax.tree.leaves(metrics):
            leaf.copy_to_host_async()
        self._held = (step, metrics)
        return due

    def flush(self) -> list[tuple[int, Any]]:
        """Gives what is held, waiting for it."""
        held, self._held = self._held, None
        return [] if held is None else [(held[0], jax.device_get(held[1]))]


class Alarms:
    """Tells when a metric that stands for something wrong becomes 1, and when it is 0 again."""

    def __init__(self, texts: Mapping[str, str]):
        self._texts = texts
        self._on: set[str] = set()

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        for name in self._texts.keys() & metrics.keys():
            on = metrics[name] >= 0.5  # an average over microbatches may lie between
            if on and name not in self._on:
                logging.warning("step %d: %s: %s", step, name, self._texts[name])
                self._on.add(name)
            elif not on and name in self._on:
                logging.warning("step %d: no longer %s", step, name)
                self._on.remove(name)
