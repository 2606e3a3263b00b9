"""Hashes, sizes and lines of the files of a source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path


def hash_of(items: Iterable) -> str:
    """A short hash of JSON values, for the settings of a conversion."""
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:16]


def hash_of_files(root: Path, files: Iterable[str]) -> str:
    """Of their names and sizes."""
    return hash_of((file, size_of(root / file)) for file in files)


def size_of(path: Path) -> int:
    """Of a file, or of those of a folder, in bytes; -1 where there is none."""
    try:
        if path.is_dir():
            return sum(max(0, size_of(one)) for one in path.iterdir() if not one.is_dir())
        return path.stat().st_size
    except OSError:  # absent, or a link to itself
        return -1


def json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a .jsonl file; blank lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, json_object(path, number, line)


def json_object(path: Path, number: int, line: str | bytes) -> dict:
    """The object on a line of a .jsonl file."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line {number}: not a JSON object")
    return value
