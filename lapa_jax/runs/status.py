"""What runs are doing, from their files alone: knows no JAX."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.storage import given_folder, lease, places
from lapa_jax.runs import attempt as attempts
from lapa_jax.training import clock
from lapa_jax.training.run_files import (
    GUARD_FILE,
    METRICS_FILE,
    last_metrics,
    sampled_metrics,
    saved_steps,
)

POINTS = 32  # of the loss
PATIENCE = 3  # times the usual time between lines, and
AT_LEAST_SECONDS = 180.0
START_SECONDS = 3600.0  # to the first line
BAD = ("stalled", "failed", "damaged")


def runs_below(top: Path) -> Iterator[Path]:
    """`top` if it is a run, else the runs below it, in order."""
    if not places.is_remote(top):
        given_folder(top, "the directory of a run, or one with runs below it,")
    config = top / "config.json"
    attempted = any((top / name).is_file() for name in (attempts.ENDED_FILE, attempts.LOCK_FILE))
    if attempted or (config.is_file() and not _holds_runs(config)):
        yield top
        return
    for folder in sorted(path for path in top.iterdir() if path.is_dir()):
        yield from runs_below(folder)


def _holds_runs(config: Path) -> bool:
    """Whether it is of a demo, whose runs lie below."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False  # a damaged run's
    return isinstance(values, dict) and "stage" not in values


@dataclass(frozen=True)
class Status:
    """What is known of a run; None where nothing is."""

    workdir: Path
    state: str
    stage: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    losses: tuple[float, ...] = ()
    examples_per_second: float | None = None
    seconds_left: float | None = None
    saved: int | None = None  # step of the newest checkpoint
    age: float | None = None  # seconds since the newest line
    attempts: int = 1
    goodput: str = ""  # where its time went
    guarded: int = 0  # steps skipped or rolled back
    told: str = ""  # the newest word of its supervisor, or what is damaged


def look(workdir: Path, now: float) -> Status:
    """Reads a run's files."""
    try:
        return _look(workdir, now)
    except (ValueError, KeyError, OSError) as error:
        return Status(workdir, "damaged", told=str(error))


def _look(workdir: Path, now: float) -> Status:
    holder, ended = lease.holder_of(workdir / attempts.LOCK_FILE), attempts.ended(workdir)
    path = workdir / "config.json"
    if not path.exists():
        if holder is None and ended is not None:
            return Status(workdir, ended.state, told=ended.reason)
        return Status(workdir, "starting", told=str(holder or ""))
    config = _config(path)
    rows = sampled_metrics(workdir, POINTS)
    rows += [last] if (last := last_metrics(workdir)) else []
    newest: dict[str, Any] = {}
    for row in rows:  # a line need not have every field
        newest |= row
    step, steps = newest.get("step", 0), config["steps"]
    saved = max(saved_steps(workdir / "checkpoints"), default=None)
    written = _written(workdir / (METRICS_FILE if rows else "config.json"))
    age = now - written
    per_step = newest.get("step_seconds")
    patience = START_SECONDS
    if per_step is not None:
        patience = max(AT_LEAST_SECONDS, PATIENCE * per_step * config["log_every_steps"])
    event, told_at, tries = _supervisor(workdir)
    if told_at < written and event in ("given up", "stopped"):
        event = ""  # it has been started since, by other means
    supervised = now - told_at <= AT_LEAST_SECONDS and event not in ("given up", "stopped")
    reached = max(step, saved or 0)
    moves, told = "running" if rows else "starting", event
    if not rows and saved == 0:
        state, steps = "imported", 0
    elif reached >= steps:
        state = "finished"
    elif event == "given up":
        state, told = "failed", f"{event}: {ended.reason}" if ended and ended.reason else event
    elif holder is not None:
        silent = lease.silent_seconds(workdir / attempts.LOCK_FILE)
        dead = holder.is_gone() or silent > lease.DEAD_SECONDS
        state = "stalled" if dead or age > patience else moves
        if dead and event == "stopped":
            state = event
        elif dead:
            state = moves if supervised else state
            told = event or f"{holder} is gone: it was killed, or its machine"
        elif state == "stalled":
            told = f"{holder} lives, and tells nothing"
    elif ended is not None:
        state, told = ended.state, ended.reason or event
        if supervised and state == "failed":
            state = moves
    # Of earlier code there is no word on how it ended.
    elif event == "stopped":
        state = "stopped"
    elif age <= patience or supervised:
        state = moves
    elif saved is not None and saved >= step and saved % config["checkpoint"]["every_steps"]:
        state = "stopped"
    else:
        state = "stalled"
    tried, goodput = _goodput(workdir)
    moving = state == "running" and per_step is not None
    return Status(
        workdir=workdir,
        state=state,
        stage=config["stage"],
        step=reached,
        steps=steps,
        loss=newest.get("loss"),
        losses=tuple(row["loss"] for row in rows if "loss" in row),
        examples_per_second=newest.get("examples_per_second"),
        seconds_left=(steps - step) * per_step if moving else None,
        saved=saved,
        age=age if rows else None,
        attempts=max(tries, tried),
        goodput=goodput,
        guarded=len(_lines(workdir / GUARD_FILE)),
        told=told,
    )


def _config(path: Path) -> dict[str, Any]:
    """What is read of a run's config; raises ValueError naming the file where that is not there."""
    config = places.read_json(path, "`lapa train` with the config of the run writes it anew")
    try:
        for key, kind in (("steps", int), ("log_every_steps", int), ("stage", str)):
            if not isinstance(config[key], kind):
                raise ValueError(f"{key} is {config[key]!r}")
        int(config["checkpoint"]["every_steps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not of a run ({type(error).__name__}: {error})") from error
    return config


def _goodput(workdir: Path) -> tuple[int, str]:
    """(attempts, where the time went)."""
    try:
        tried = clock.read_goodput(workdir)
    except ValueError as error:
        return 0, str(error)
    return len(tried), _split(tried)


def _supervisor(workdir: Path) -> tuple[str, float, int]:
    """(newest event, when it was written, attempts), of all machines' supervisors."""
    newest, written, attempts = "", 0.0, 1
    for file in sorted((workdir / "supervisor").glob("*.jsonl")):
        lines = _lines(file)
        events = [event for line in lines if (event := _event(line))]
        attempts = max(attempts, sum(event["event"] == "started" for event in events))
        if events and _written(file) > written:
            newest, written = events[-1]["event"], _written(file)
    return newest, written, attempts


def _event(line: str) -> dict[str, Any] | None:
    """A line of a supervisor; None for one that was torn."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        event = json.loads(line)
        return {"event": str(event["event"])}
    return None


def _written(path: Path) -> float:
    """When, in seconds."""
    found = path.stat()
    return found.mtime if places.is_remote(path) else found.st_mtime


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _split(attempts: list[dict[str, Any]]) -> str:
    """The parts of the time, the largest first; empty where nothing is known."""
    seconds = clock.split_goodput(attempts)
    total = seconds.pop("total")
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {x / total:.1%}" for name, x in parts if total and x / total >= 1e-3)
