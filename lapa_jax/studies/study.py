"""Several runs that answer one question: cells of parts, each part done once, and rows of results.

A cell is what is compared: an arm, a seed, a point of a grid. Its parts are done in order, and the
last one gives its rows; a part that several cells name is done by the first of them. A part that is
done leaves a file, so that the same command continues, and machines may share the cells (not the
parts of several cells: one machine does these first).
"""

import csv
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data_pipelines.storage import places
from data_pipelines.storage.lease import Lease
from lapa_jax import config as configs
from lapa_jax import settings
from lapa_jax.diagnostics.statistics import Interval, paired_difference_of_proportions
from lapa_jax.runs import run as runs
from lapa_jax.train import train


class Interrupted(Exception):
    """A signal stopped a training run after it saved."""


@dataclasses.dataclass(frozen=True)
class Part:
    """name: of its file. work: gives its result, as JSON values."""

    name: str
    work: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """values: what tells it from other cells, as {"arm": "lapa", "seed": 0}."""

    values: dict[str, Any]
    parts: Sequence[Part]


def name_of(values: dict[str, Any]) -> str:
    """A cell's name, for files and tables."""
    return ",".join(f"{key.split('.')[-1]}={text_of(value)}" for key, value in values.items())


def text_of(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def train_part(name: str, config: ConfigDict | Callable[[], ConfigDict], workdir: Path) -> Part:
    """A part that trains by a config, which is checked now, or which the parts before it decide.
    `Interrupted` where a signal stopped it."""
    if not callable(config):
        settings.check(config)

    def work() -> None:
        if not train(config() if callable(config) else config, workdir):
            raise Interrupted

    return Part(name, work)


class Study:
    """The cells of a study under a directory, the files of whose parts are in WORKDIR/parts."""

    def __init__(self, workdir: Path, cells: Sequence[Cell]):
        self.workdir, self.cells = workdir, cells
        self._claim = workdir / "study.json"
        places.make(workdir / "parts")

    def claim(self, decides: dict[str, Any], *, replace: bool = False) -> bool:
        """Notes in WORKDIR/study.json what decides the results beside the cells, by a name for
        each, or checks what is noted of these; returns whether it was something else, which
        `replace` allows.

        Raises ValueError that names what differs.
        """
        known = {}
        if self.claimed:
            remedy = "what the results are of is not known: take another --workdir"
            known = places.read_json(self._claim, remedy)
        noted = {key: known[key] for key in decides if key in known}
        changes = configs.difference(noted, {key: decides[key] for key in noted})
        if changes and not replace:
            lines = [f"  {key}: {old} there, {new} now" for key, (old, new) in changes.items()]
            more = f"\n  and {len(lines) - 8} more" if len(lines) > 8 else ""
            raise ValueError(
                f"{self.workdir} holds results of other data or settings; choose another "
                "--workdir, or remove that one to make it anew:\n" + "\n".join(lines[:8]) + more
            )
        runs.write_json(self._claim, known | decides)
        return bool(changes)

    @property
    def claimed(self) -> bool:
        """Whether `claim` was called, now or by an earlier process."""
        return self._claim.exists()

    def run(self, index: int = 0, count: int = 1) -> None:
        """Does what is not done of every `count`-th cell from `index` on."""
        for cell in self.cells[index::count]:
            for part in cell.parts:
                self.do(part)

    def do(self, part: Part) -> None:
        """Raises LockedError where another process is doing it."""
        if self._read(part.name)["done"]:
            return
        lock = self.workdir / "parts" / f"{part.name}.lock"
        what = f"part {part.name!r} of {self.workdir}"
        with Lease(lock, what, "give each process its own --index of --count"):
            self._do(part)

    def _do(self, part: Part) -> None:
        before = self._read(part.name)
        if before["done"]:  # by another process, meanwhile
            return
        logging.info("=== %s%s ===", part.name, self._place(part))
        start, result, done = time.monotonic(), None, False
        try:
            result = part.work()
            done = True
        finally:
            # An interrupted part keeps its time: the sum is what the study cost.
            seconds = before["seconds"] + time.monotonic() - start
            found = {"done": done, "seconds": seconds, "result": result}
            runs.write_json(self._path(part.name), found)

    def _place(self, part: Part) -> str:
        """Which of all parts of the cells it is, for the reader of a log."""
        names = list(dict.fromkeys(p.name for cell in self.cells for p in cell.parts))
        if part.name not in names:
            return ""
        return f" (part {names.index(part.name) + 1} of {len(names)})"

    def result(self, name: str) -> Any:
        return self._read(name)["result"]

    def done(self, name: str) -> bool:
        """Whether the part of this name is."""
        return self._read(name)["done"]

    def missing(self) -> list[Cell]:
        """Cells that have no rows yet."""
        return [cell for cell in self.cells if not self.done(cell.parts[-1].name)]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all cells, with the cells' values."""
        return [
            cell.values | row for cell in self.cells for row in self.result(cell.parts[-1].name)
        ]

    def seconds(self) -> dict[str, float]:
        """What each part took, in the order in which they were done."""
        files = sorted((self.workdir / "parts").glob("*.json"), key=lambda x: x.stat().st_mtime)
        return {path.stem: self._read(path.stem)["seconds"] for path in files}

    def _path(self, name: str) -> Path:
        return self.workdir / "parts" / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        if not path.exists():
            return {"done": False, "seconds": 0.0, "result": None}
        found = places.read_json(path, "remove it, and the part is done again")
        if not {"done", "seconds", "result"} <= found.keys():
            raise ValueError(f"{path} is not of a part: remove it, and the part is done again")
        return found


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the columns of all of them; lists are left out."""
    plain = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in plain for key in row)))
        writer.writeheader()
        writer.writerows(plain)


def contrast(rows: Sequence[dict[str, Any]], one: str, other: str) -> Interval:
    """Success of arm `one` less that of arm `other`, whose rows have `outcomes` from the same start
    states in the same order."""
    outcomes = (
        np.concatenate([np.array(row["outcomes"], bool) for row in rows if row["arm"] == arm])
        for arm in (one, other)
    )
    return paired_difference_of_proportions(*outcomes)
