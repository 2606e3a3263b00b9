"""What the files of a run say of it. Reads little of them, and only what is complete.

A run behind a URL is given as what has the methods of a path.
"""

import json
from pathlib import Path
from typing import Any, BinaryIO

METRICS_FILE = "metrics.jsonl"
COMMITTED = "commit_success.txt"
GUARD_FILE = "guard.jsonl"  # of steps that were skipped or rolled back
TAIL_BYTES = 1 << 16
SMALL_BYTES = 1 << 20  # files that are read whole


def saved_steps(workdir: Path) -> list[int]:
    """Steps with a complete checkpoint, in order; one that is being written has another name, or
    behind a URL lacks the file that is written last."""
    try:
        found = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()]
    except FileNotFoundError:
        return []
    if not isinstance(workdir, Path):
        found = [p for p in found if (p / COMMITTED).exists()]
    return sorted(int(p.name) for p in found)


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
    return _row(lines[-1], workdir) if lines else None


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
    return [_row(line, workdir) for line in lines if line.endswith(b"\n")]


def _line_after(file: BinaryIO, offset: int) -> bytes:
    """The first whole line that begins at the offset or after it."""
    file.seek(max(0, offset - 1))
    if offset:
        file.readline()
    return file.readline()


def _row(line: bytes, workdir: Path) -> dict[str, Any]:
    """NaN and infinities, which the file has as strings, are floats again."""
    try:
        row = json.loads(line)
        row["step"] = int(row["step"])
    except (ValueError, KeyError, TypeError) as error:
        path = workdir / METRICS_FILE
        raise ValueError(f"{path} has a line that is no line of metrics: {line[:80]!r}") from error
    return {k: float(v) if isinstance(v, str) else v for k, v in row.items()}
