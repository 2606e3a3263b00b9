"""Captions of videos, or of stretches of them, from a .csv or .jsonl."""

from __future__ import annotations

import csv
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.convert import decode, reading
from data_pipelines.rlds import selection

_CLOCK = re.compile(r"(?:(\d+):(?=[0-5]?\d:))?(\d+):([0-5]?\d(?:\.\d+)?)")


class Caption(NamedTuple):
    """A text for the seconds from start to before end; end None: to the end of the video."""

    text: str
    start: float = 0.0
    end: float | None = None

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.end is None

    @property
    def span(self) -> decode.Span:
        end = None if self.end is None else Fraction(str(self.end))
        return decode.Span(Fraction(str(self.start)), end)

    @property
    def suffix(self) -> str:
        """Behind the name of the video in the id of an episode."""
        end = "" if self.end is None else format(self.end, ".10g")
        return "" if self.is_whole else f"@{self.start:.10g}-{end}"


Captions = dict[str, tuple[Caption, ...]]


def read(path: str | Path, text_key: str = "caption") -> tuple[Captions, list[str]]:
    """(file → its captions, the columns that are not used) of a .csv (columns file, caption, start,
    end) or .jsonl (the same keys).

    text_key: a selection of columns; the first text of a row that is not blank counts. start and
    end, seconds or H:MM:SS, may be absent or empty.
    """
    path, wanted = Path(path), selection.paths(text_key)
    try:
        if path.suffix == ".csv":
            rows = _csv(path)
        elif path.suffix == ".jsonl":
            rows = [row for _, row in reading.json_lines(path)]
        else:
            raise ValueError(f"captions {path} must end in .csv or .jsonl")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    found: dict[str, list[Caption]] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}, entry {number}"
        file, texts = row.get("file"), [_value(row, key) for key in wanted]
        if not isinstance(file, str) or not all(isinstance(text, str) for text in texts):
            names = " and ".join(map(repr, ["file", *wanted]))
            raise ValueError(f"{where}: needs the text fields {names}, has {row}")
        text = next(filter(None, (text.strip() for text in texts)), "")
        start, end = (_seconds(row.get(key), f"{where}: {key}") for key in ("start", "end"))
        one = Caption(text, start or 0.0, end)
        if end is not None and end <= one.start:
            raise ValueError(f"{where}: end is {end:g}, start {one.start:g}")
        others = found.setdefault(Path(file).as_posix(), [])
        if any((one.start, one.end) == (other.start, other.end) for other in others):
            raise ValueError(f"{where}: second caption for {file + one.suffix!r}")
        others.append(one)
    if not found:
        raise ValueError(f"{path} holds no captions")
    used = {"file", "start", "end", *wanted, *(key.partition("/")[0] for key in wanted)}
    unused = dict.fromkeys(str(key) for row in rows for key in row if key not in used)
    ordered = {file: tuple(sorted(ones, key=lambda one: one.start)) for file, ones in found.items()}
    return ordered, list(unused)


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file, strict=True)
        try:
            rows, names = list(lines), list(lines.fieldnames or ())
        except csv.Error as error:
            raise ValueError(
                f"{path}, after line {lines.line_num}: {error}; a text that begins with a quote "
                'must end with one, and quotes within it are double, as "the ""red"" block"'
            ) from error
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has several columns {', '.join(map(repr, twice))}")
    for number, row in enumerate(rows, 1):
        if None in row:
            raise ValueError(
                f"{path}, entry {number}: more cells than the {len(names)} columns, {row[None]} "
                'among them; a text with a comma must stand in quotes, as "pick, then place"'
            )
    return rows


def _value(row: dict, key: str) -> Any:
    """What a path leads to in a row."""
    if key in row:
        return row[key]
    first, _, rest = key.partition("/")
    inner = row.get(first)
    return _value(inner, rest) if rest and isinstance(inner, dict) else None


def _seconds(value: Any, where: str) -> float | None:
    """Of a number, or of a text that is one, [H:]MM:SS or empty."""
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    try:
        if clock := _CLOCK.fullmatch(text):
            hours, minutes, seconds = (float(part or 0) for part in clock.groups())
            number = 3600 * hours + 60 * minutes + seconds
        else:
            number = float(text)
    except ValueError as error:
        raise ValueError(f"{where} is {text!r}, neither seconds nor H:MM:SS") from error
    if isinstance(value, bool) or not math.isfinite(number) or number < 0:
        raise ValueError(f"{where} is {text}; it must be seconds from the beginning of the video")
    return number
