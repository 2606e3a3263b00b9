"""What the files of a run say of it. Reads little of them, and only what is complete.

A run behind a URL is given as what has the methods of a path.
"""

import json
from pathlib import Path
from typing import Any, BinaryIO

METRICS_FILE, EVALUATION_FILE = "metrics.jsonl", "evaluation.jsonl"
GUARD_FILE = "guard.jsonl"  # of steps that were skipped or rolled back
COMMITTED = "commit_success.txt"  # which Orbax writes last into a step behind a URL
META = "meta"  # of a step, what it says of itself
EXIT_RESTART = 75  # of lapa train: stopped by a signal after saving, the same command continues
TAIL_BYTES = 1 << 16
SMALL_BYTES = 1 << 20  # files that are read whole


def saved_steps(checkpoints: Path) -> list[int]:
    """Steps of `step_folders` that have their meta, without which nothing is a checkpoint."""
    folders = step_folders(checkpoints)
    return [step for step in folders if (checkpoints / str(step) / META).is_dir()]


def step_folders(checkpoints: Path) -> list[int]:
    """What is named as a step in a directory of checkpoints, oldest first, whole or damaged; one
    that is being written has another name, or behind a URL lacks the file that is written last.
    Raises ValueError for what looks like a step and is none."""
    local = isinstance(checkpoints, Path)
    if not checkpoints.is_dir():
        if local and checkpoints.exists():
            raise ValueError(f"{checkpoints} is no directory of checkpoints: move it away")
        return []
    found = [p for p in checkpoints.iterdir() if p.name.isdecimal()]
    if not local:
        found = [p for p in found if (p / COMMITTED).exists()]
    for path in found:
        if path.name != str(int(path.name)) or local and not path.is_dir():
            raise ValueError(
                f"{path} is no checkpoint, which is a directory named by its step alone: move it "
                f"away"
            )
    return sorted(int(p.name) for p in found)


def all_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl or evaluation.jsonl; not one that was torn by a kill."""
    with path.open("rb") as file:
        lines = [line for line in file if line.endswith(b"\n")]
    return [row_of(line, path, number) for number, line in enumerate(lines, 1)]


def last_metrics(workdir: Path) -> dict[str, Any] | None:
    """The newest line of metrics.jsonl; None where there is none."""
    try:
        with (workdir / METRICS_FILE).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return None
    lines = tail[: tail.rfind(b"\n") + 1].splitlines()  # what follows was torn by a kill
    return row_of(lines[-1], workdir / METRICS_FILE) if lines else None


def sampled_metrics(workdir: Path, count: int) -> list[dict[str, Any]]:
    """At most `count` lines of metrics.jsonl, evenly spread over the file, in order."""
    try:
        with (workdir / METRICS_FILE).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size <= SMALL_BYTES:
                whole = [line for line in file if line.endswith(b"\n")]
                number = min(count, len(whole))
                lines = [whole[len(whole) * i // number] for i in range(number)]
            else:
                lines = [_line_after(file, size * i // count) for i in range(count)]
    except FileNotFoundError:
        return []
    return [row_of(line, workdir / METRICS_FILE) for line in lines if line.endswith(b"\n")]


def _line_after(file: BinaryIO, offset: int) -> bytes:
    """The first whole line that begins at the offset or after it."""
    file.seek(max(0, offset - 1))
    if offset:
        file.readline()
    return file.readline()


def row_of(line: bytes, path: Path, number: int = 0) -> dict[str, Any]:
    """NaN and infinities, which the file has as strings, are floats again. `number`: of the line,
    from 1, where it is known."""
    try:
        row = json.loads(line)
        row["step"] = int(row["step"])
        return {k: float(v) if isinstance(v, str) else v for k, v in row.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        where = f"{path}:{number} is not a" if number else f"{path} has a line that is no"
        raise ValueError(
            f"{where} line of metrics: {line[:80]!r}. Restore the file; or move it away, and the "
            f"run goes on without its earlier lines"
        ) from error
