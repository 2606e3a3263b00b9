"""Several runs that answer one question: cells of parts, each part done once, and rows of results.

A cell is what is compared: an arm, a seed, a point of a grid. Its parts are done in order, and the
last one gives its rows; a part that several cells name is done by the first of them. A part that is
done leaves a file, so that the same command continues, and processes may share the cells: where one
needs a part that another is doing, it does its other cells first.
"""

import csv
import dataclasses
import functools
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data_pipelines.loader import DataSettings
from data_pipelines.storage import LockedError, places
from data_pipelines.storage.lease import Lease
from lapa_jax import config as configs
from lapa_jax import settings
from lapa_jax.diagnostics.statistics import Interval, paired_difference_of_proportions
from lapa_jax.machine.environment import code_revision
from lapa_jax.runs import run as runs
from lapa_jax.train import train
from lapa_jax.version import __version__

UNKNOWN = "an earlier version"  # which did not note itself
WAIT_SECONDS = 10.0  # between looks at a part that another process is doing


class Interrupted(Exception):
    """A signal stopped a training run after it saved."""


class HeldError(LockedError):
    """Another process is doing a part."""


@dataclasses.dataclass(frozen=True)
class Part:
    """name: of its file. work: gives its result, as JSON values. decides: what that depends on
    beside the parts before it; it is noted, and a part that is done is refused where it has
    changed. late: only the parts before it tell that. run: the directory of the run that it makes.
    starts_from: the runs that it needs, by what they are for it; those of the study are made by
    parts before it."""

    name: str
    work: Callable[[], Any]
    decides: Callable[[], ConfigDict] | None = None
    run: Path | None = None
    starts_from: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    late: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """values: what tells it from other cells, as {"arm": "lapa", "seed": 0}."""

    values: dict[str, Any]
    parts: Sequence[Part]


def name_of(values: dict[str, Any]) -> str:
    """A cell's name, for files and tables."""
    return ",".join(f"{key.split('.')[-1]}={text_of(value)}" for key, value in values.items())


def kind_of(part: str) -> str:
    """What a part of this name is without its seed and its number of labels ("_s0", "_n50", "_0"),
    as "success_lapa"."""
    return re.sub(r"_[a-z]?\d+(?=_|$)", "", part)


def text_of(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def train_part(name: str, config: ConfigDict | Callable[[], ConfigDict], workdir: Path) -> Part:
    """A part that trains by a config, which is checked now, or which the parts before it decide.
    `Interrupted` where a signal stopped it."""
    starts_from, late = {}, callable(config)
    if not late:
        settings.check(config)
        starts_from = {
            key: Path(value)
            for key, value in configs.flatten(config).items()
            if isinstance(value, str) and "/" in value and not key.startswith(("data.", "eval"))
        }

    def decides() -> ConfigDict:
        return configs.today(config() if late else config)

    def work() -> None:
        if not train(decides(), workdir):
            raise Interrupted

    return Part(name, work, decides, workdir, starts_from, late)


@functools.cache
def version() -> str:
    """This code's, with the git revision where it is known."""
    code = code_revision()
    if code is None:
        return __version__
    return f"{__version__}+{code['revision'][:7]}" + ".modified" * bool(code["modified"])


def with_corpora(stage: ConfigDict, paths: Mapping[str, Path], **more: Any) -> ConfigDict:
    """A stage's config with its corpora, by name, at these paths; `more`: keys of all of them. What
    differs from the stage's first corpus is the weight of those whose names it has."""
    stage = ConfigDict(stage.to_dict())
    known = DataSettings.of(stage.data)
    weights = {one.name: one.weight for one in known.corpora}
    own = {
        name: {"path": str(path)} | ({"weight": weights[name]} if name in weights else {})
        for name, path in paths.items()
    }
    there = known.on(own, **more)
    stage.data.corpora = ConfigDict({one.name: one.as_dict() for one in there.corpora})
    return stage.lock()


class Study:
    """The cells of a study under a directory, the files of whose parts are in WORKDIR/parts."""

    def __init__(self, workdir: Path, cells: Sequence[Cell]):
        """Raises ValueError for cells that are the same or share their last part, and for a
        training that starts from a run which no part before it makes."""
        self.workdir, self.cells = workdir, cells
        # Rows of cells by their names, and the versions of the code, of a result of record.
        self.recorded: dict[str, list[dict[str, Any]]] = {}
        self.recorded_by: list[str] = []
        self._check_cells()
        self._claim = workdir / "study.json"
        places.make(workdir / "parts")

    def _check_cells(self) -> None:
        named: dict[str, Cell] = {}
        last: dict[str, Cell] = {}
        runs_of: dict[Path, str] = {}
        for cell in self.cells:
            name = name_of(cell.values)
            if not cell.parts:
                raise ValueError(f"cell {name} has no part")
            if name in named:
                raise ValueError(f"two cells are {name}: cells differ in an arm, a seed, ...")
            named[name] = cell
            if (other := last.setdefault(cell.parts[-1].name, cell)) is not cell:
                raise ValueError(
                    f"cells {name_of(other.values)} and {name} both take their rows from part "
                    f"{cell.parts[-1].name!r}: each cell has a last part of its own"
                )
            made: list[Path] = []
            for part in cell.parts:
                for key, path in part.starts_from.items():
                    inside = path.is_relative_to(self.workdir)
                    if inside and not any(path.is_relative_to(run) for run in made):
                        raise ValueError(
                            f"cell {name}: part {part.name!r} starts from {path} ({key}), which "
                            "no part before it makes"
                        )
                if part.run:
                    made.append(part.run)
                    if runs_of.setdefault(part.run, part.name) != part.name:
                        both = f"{runs_of[part.run]!r} and {part.name!r}"
                        raise ValueError(f"parts {both} both train in {part.run}")

    def claim(self, decides: dict[str, Any], *, replace: bool = False) -> bool:
        """Notes in WORKDIR/study.json what decides the results beside the cells, by a name for
        each, or checks what is noted of these; returns whether it was something else, which
        `replace` allows.

        Raises ValueError that names what differs.
        """
        known = self.claims
        noted = {key: known[key] for key in decides if key in known}
        changes = configs.difference(noted, {key: decides[key] for key in noted})
        if changes and not replace:
            lines = [f"  {key}: {old} there, {new} now" for key, (old, new) in changes.items()]
            more = f"\n  and {len(lines) - 8} more" if len(lines) > 8 else ""
            raise ValueError(
                f"{self.workdir} holds results of other data or settings; choose another "
                "folder, or remove that one to make it anew:\n" + "\n".join(lines[:8]) + more
            )
        runs.write_json(self._claim, {"name": uuid.uuid4().hex} | known | decides)
        return bool(changes)

    @property
    def name(self) -> str:
        """Tells the directory from others of the same study; "" before `claim`."""
        return self.claims.get("name", "")

    @property
    def claims(self) -> dict[str, Any]:
        """What is noted in WORKDIR/study.json."""
        if not self.claimed:
            return {}
        remedy = "what the results are of is not known: take another --workdir"
        return places.read_json(self._claim, remedy)

    @property
    def claimed(self) -> bool:
        """Whether `claim` was called, now or by an earlier process."""
        return self._claim.exists()

    def run(
        self, index: int = 0, count: int = 1, told: Callable[[Cell], Any] = lambda cell: None
    ) -> None:
        """Does what is not done of every `count`-th cell from `index` on; `told` is called with
        each that was done. Cells that need a part which another process is doing come last.

        Raises ValueError, before anything is done, where a part that is done was made by another
        config, as the difference.
        """
        self.check()
        open_cells = [cell for cell in self.cells[index::count] if not self.is_done(cell)]
        while open_cells:
            held = []
            for cell in open_cells:
                try:
                    for part in cell.parts:
                        self.do(part)
                except HeldError as error:
                    held.append((cell, error))
                else:
                    told(cell)
            if len(held) == len(open_cells):  # there is nothing else to do
                logging.info("waiting: %s", held[0][1].strerror)
                time.sleep(WAIT_SECONDS)
            open_cells = [cell for cell, _ in held]

    def check(self) -> None:
        """Raises ValueError where a part that is done was made by another config."""
        for part in {part.name: part for cell in self.cells for part in cell.parts}.values():
            found = self._read(part.name)
            if found["done"]:
                self._check(part, found)

    def _check(self, part: Part, found: Mapping[str, Any]) -> None:
        there = found.get("decides")
        if there is None and part.run is not None:  # of earlier code
            path = part.run / runs.CONFIG_FILE
            there = configs.read(path) if path.exists() else None
        if there is None or part.decides is None:
            return
        runs.check_config(
            f"part {part.name!r} of {self.workdir}",
            there,
            configs.today(part.decides()),  # as what is there is read
            moved_to=self.workdir,
        )

    def is_done(self, cell: Cell) -> bool:
        """Whether its rows are there, here or in a result of record."""
        return self.done(cell.parts[-1].name) or name_of(cell.values) in self.recorded

    def do(self, part: Part) -> None:
        """Raises HeldError where another process is doing it."""
        if self._read(part.name)["done"]:
            return
        lock = self.workdir / "parts" / f"{part.name}.lock"
        what = f"part {part.name!r} of {self.workdir}"
        try:
            lease = Lease(lock, what, "give each process its own --index of --count")
        except LockedError as error:
            raise HeldError(error.errno, error.strerror) from error
        with lease:
            self._do(part)

    def _do(self, part: Part) -> None:
        before = self._read(part.name)
        if before["done"]:  # by another process, meanwhile
            return
        logging.info("=== %s%s ===", part.name, self._place(part))
        start, result, done = time.monotonic(), None, False
        try:
            given = part.work()
            last = any(cell.parts[-1].name == part.name for cell in self.cells)
            if last and given is not None:  # of who does not ask for rows
                _check_rows(part.name, given)
            result, done = given, True
        except Exception as error:
            error.add_note(f"in part {part.name!r} of the study in {self.workdir}")
            raise
        finally:
            # An interrupted part keeps its time: the sum is what the study cost.
            seconds = before["seconds"] + time.monotonic() - start
            versions = list(dict.fromkeys([*before["versions"], version()]))
            found = {"done": done, "seconds": seconds, "versions": versions}
            if done and part.decides is not None:
                found["decides"] = configs.to_dict(configs.today(part.decides()))
            runs.write_json(self._path(part.name), found | {"result": result})

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
        return [cell for cell in self.cells if not self.is_done(cell)]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the cells that are done, with the cells' values."""
        found = []
        for cell in filter(self.is_done, self.cells):
            last, name = cell.parts[-1].name, name_of(cell.values)
            rows = self.result(last) if self.done(last) else self.recorded[name]
            if rows is None:
                path = self._path(last)
                raise ValueError(f"cell {name} has no rows: remove {path}, and it is done again")
            _check_rows(last, rows)
            found += [cell.values | row for row in rows]
        return found

    def versions(self, cell: Cell) -> list[str]:
        """Those of the code that did its parts, as far as these are done."""
        if not self.done(cell.parts[-1].name) and name_of(cell.values) in self.recorded:
            return self.recorded_by
        found = [v for part in cell.parts for v in self._read(part.name)["versions"]]
        return list(dict.fromkeys(found))

    def seconds(self) -> dict[str, float]:
        """What each part took, in the order in which they were done."""
        files = sorted((self.workdir / "parts").glob("*.json"), key=lambda x: x.stat().st_mtime)
        return {path.stem: self._read(path.stem)["seconds"] for path in files}

    def minutes(self) -> dict[str, list[float]]:
        """Kind → [parts that are done, minutes of all of them]."""
        found: dict[str, list[float]] = {}
        for name, taken in self.seconds().items():
            if self.done(name):
                count, minutes = found.get(kind_of(name), (0, 0.0))
                found[kind_of(name)] = [count + 1, round(minutes + taken / 60, 2)]
        return found

    def _path(self, name: str) -> Path:
        return self.workdir / "parts" / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        if not path.exists():
            return {"done": False, "seconds": 0.0, "result": None, "versions": []}
        found = places.read_json(path, "remove it, and the part is done again")
        if not {"done", "seconds", "result"} <= found.keys():
            raise ValueError(f"{path} is not of a part: remove it, and the part is done again")
        return {"versions": [UNKNOWN]} | found


def _check_rows(part: str, rows: Any) -> None:
    """Raises ValueError unless it is what the last part of a cell gives."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"part {part!r} gives {rows!r:.80}, not the rows of its cell: a list of dicts"
        )
    try:
        json.dumps(rows)
    except TypeError as error:
        raise ValueError(f"part {part!r} gives rows that JSON does not hold: {error}") from None


def check_seeds(seeds: Mapping[str, int]) -> None:
    """Raises ValueError where two of these, by what they are of (training videos, held-out ones,
    ...), are the same, so that what was seen in one would be measured in the other."""
    first: dict[int, str] = {}
    for name, seed in seeds.items():
        if (other := first.setdefault(seed, name)) != name:
            raise ValueError(f"{other} and {name} have the same seed {seed}: each needs its own")


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
