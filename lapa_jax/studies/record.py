"""Results of record: what a finished study found, as a small file in the repository, and the tables
of documents that are made of it. No number of such a table is typed.

A study file has `tables(rows)`, {name: rows of cells, the first of them the header}; where it was
run with other arguments, too, its records are STUDY.json and STUDY.WHICH.json. A document holds a
table between the comments `<!-- results STUDY/NAME -->` and `<!-- end of results -->`.
"""

import datetime
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.storage import places
from lapa_jax import config as configs
from lapa_jax.diagnostics.statistics import Interval
from lapa_jax.runs import run as runs
from lapa_jax.studies.study import Study, kind_of, name_of
from lapa_jax.version import __version__

FOLDER = "results"  # beside the study files
_BLOCK = re.compile(r"(<!-- results ([\w./]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


class Record:
    """A file of what a study found so far: the rows of cells that are done, here or where an
    earlier process wrote the same file, and what all parts of a kind have in common."""

    def __init__(self, path: Path, command: str, study: Study, of: Mapping[str, Any]):
        """Gives the study the rows that are there, whose cells are not done again. `of`: its
        arguments and size. Raises ValueError where these were made by another study or config."""
        self.path, self.command, self.study = path, command, study
        self._configs, self._work = _common_configs(study), {}
        self._of = {key: of[key] for key in ("arguments", "size")}
        study.recorded = {}
        if not path.exists():
            places.make(path.parent)  # what cannot be written is told before the work
            return
        there = read(path)
        self._check(there)
        self._work = there["work"]
        names = {name_of(cell.values): cell for cell in study.cells}
        keys = sorted({tuple(cell.values) for cell in study.cells}, key=len, reverse=True)
        for row in there["rows"]:
            found = [name for k in keys if (name := _name(row, k)) in names]
            if not found:
                raise ValueError(f"{path} has a row that is of no cell of {command}: {row}")
            values = names[found[0]].values
            rest = {key: x for key, x in row.items() if key not in values}
            study.recorded.setdefault(found[0], []).append(rest)
        study.recorded_by = there["versions"]
        logging.info("%s has the rows of %d cells", path, len(study.recorded))

    def _check(self, found: dict[str, Any]) -> None:
        if _file(found.get("command", "")) != _file(self.command):
            raise ValueError(
                f"{self.path} is of `{found['command']}`, not of `{self.command}`: choose another "
                "--record"
            )
        if not {"configs", "of", "versions", "work"} <= found.keys():
            raise ValueError(
                f"{self.path} does not say by what configs it was made, so that nothing can be "
                "added to it: choose another --record"
            )
        changes = configs.difference(found["of"], self._of)
        there = {} if changes else _unfolded(found["configs"])  # which follow from arguments
        for kind in sorted(there.keys() & self._configs.keys()):
            old, new = configs.upgrade(there[kind]), self._configs[kind]
            noted = configs.flatten(there[kind])
            for key, (was, now) in configs.difference(old, new).items():
                # What differs from part to part is in neither, and an old one gets the default.
                completed = now == "absent" and key not in noted
                if not completed and not key.startswith(runs.MAY_CHANGE):
                    changes[f"{kind}: {key}"] = was, now
        if changes:
            lines = [f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in changes.items()]
            raise ValueError(
                f"{self.path} is of other settings; choose another --record, or restore\n"
                + "\n".join(lines)
            )

    def write(self) -> None:
        """The rows of all cells that are done, with `outcomes` as a text of 0 and 1."""
        study, rows = self.study, []
        for row in study.rows():
            rows.append({key: x for key, x in row.items() if key != "asked"})
            if "outcomes" in row:
                rows[-1]["outcomes"] = "".join("01"[x] for x in row["outcomes"])
        hours = sum(study.seconds().values()) / 3600
        self._work |= {study.name: {"hours": round(hours, 2), "minutes": study.minutes()}}
        minutes: dict[str, list[float]] = {}
        for one in self._work.values():
            for kind, (count, taken) in one["minutes"].items():
                known = minutes.get(kind, (0, 0.0))
                minutes[kind] = [known[0] + count, round(known[1] + taken, 2)]
        done = filter(study.is_done, study.cells)
        found = {
            "command": self.command,
            "version": __version__,
            "versions": list(dict.fromkeys(v for cell in done for v in study.versions(cell))),
            "date": datetime.date.today().isoformat(),
            "hours": round(sum(one["hours"] for one in self._work.values()), 2),
            "size": self._of["size"],
            "of": self._of,
            "cells": [len(study.cells) - len(study.missing()), len(study.cells)],
            "minutes": dict(sorted(minutes.items())),
            "work": dict(sorted(self._work.items())),
            "configs": _folded(self._configs),
            "rows": rows,
        }
        runs.write_json(self.path, found)


def _name(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return name_of({key: row[key] for key in keys}) if row.keys() >= set(keys) else ""


def _common_configs(study: Study) -> dict[str, dict[str, Any]]:
    """By kind of part, what the configs of all of them have in common, with paths in WORKDIR."""

    def below(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: below(x) for key, x in value.items() if key != "seed"}
        if isinstance(value, str) and value.startswith(f"{study.workdir}/"):
            return kind_of("WORKDIR" + value.removeprefix(str(study.workdir)))
        return value

    found: dict[str, dict[str, Any]] = {}
    for part in {part.name: part for cell in study.cells for part in cell.parts}.values():
        if part.decides is None or part.late:
            continue
        config = below(configs.to_dict(configs.today(part.decides())))
        kind = kind_of(part.name)
        found[kind] = _in_both(found[kind], config) if kind in found else config
    return found


def _in_both(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key in one.keys() & two.keys():
        if isinstance(one[key], dict) and isinstance(two[key], dict):
            found[key] = _in_both(one[key], two[key])
        elif one[key] == two[key]:
            found[key] = one[key]
    return dict(sorted(found.items()))


def _folded(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By stage what all of its kinds have in common, and the rest by kind."""
    found: dict[str, Any] = {}
    for stage in dict.fromkeys(config.get("stage", "") for config in kinds.values()):
        own = {kind: x for kind, x in kinds.items() if x.get("stage", "") == stage}
        common = functools.reduce(_in_both, own.values())
        rest = {kind: _without(config, common) for kind, config in own.items()}
        found[stage] = {"common": common, "kinds": rest}
    return found


def _unfolded(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        kind: _together(of["common"], rest)
        for of in found.values()
        for kind, rest in of["kinds"].items()
    }


def _without(config: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in config.items():
        if key not in common:
            found[key] = value
        elif isinstance(value, dict) and (rest := _without(value, common[key])):
            found[key] = rest
    return found


def _together(common: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    found = dict(common)
    for key, value in rest.items():
        both = key in common and isinstance(value, dict)
        found[key] = _together(common[key], value) if both else value
    return found


def read(path: Path) -> dict[str, Any]:
    """The same, with `outcomes` as bools."""
    found = places.read_json(path, "make it anew with `lapa study --record`")
    if not isinstance(found.get("rows"), list):
        raise ValueError(f"{path} has no rows: it is no result of record")
    for row in found["rows"]:
        if "outcomes" in row:
            row["outcomes"] = [x == "1" for x in row["outcomes"]]
    return found


def percent(found: Interval, unit: str = "%") -> str:
    """A rate with its interval, or with the unit "points" a difference of two."""
    value, low, high = (100 * x for x in (found.estimate, found.low, found.high))
    return f"{value:.1f} {unit} ({low:.1f} to {high:.1f})"


def interval(found: Interval) -> str:
    """A number with its interval, where it has one."""
    if not math.isfinite(found.low):
        return f"{found.estimate:.3g}"
    return f"{found.estimate:.3g} ({found.low:.3g} to {found.high:.3g})"


def filled(
    document: str,
    tables: Mapping[str, Sequence[Sequence[str]]],
    unfinished: Mapping[str, tuple[int, int]] | None = None,
) -> str:
    """A document with its tables made anew, each below an anchor "results-STUDY-NAME"; in the place
    of those of a study of which nothing is on record it says so, and above those of an
    `unfinished` one, or in their place, how many of its cells are done. ValueError for one that
    is not there."""
    studies = configs.shipped_files("get_study")

    def block(match: re.Match) -> str:
        name = match[2]
        begin = f'{match[1]}<a id="results-{name.replace("/", "-")}"></a>\n\n'
        study = _study(name.partition("/")[0])
        recorded = any(known.startswith(f"{name.partition('/')[0]}/") for known in tables)
        if study in studies and not recorded:
            return f"{begin}Not run yet (`lapa study {study}`).\n{match[3]}"
        if part := (unfinished or {}).get(name.partition("/")[0]):
            begin += "So far {:,} of {:,} cells are done.\n\n".format(*part)
            if name not in tables:
                return f"{begin}None of them is in this table.\n{match[3]}"
        if name not in tables:
            raise ValueError(f"the document has a table {name!r}: there are {sorted(tables)}")
        header, *rows = tables[name]
        lines = [header, ["---"] * len(header), *rows]
        return begin + "".join(f"| {' | '.join(row)} |\n" for row in lines) + match[3]

    return _BLOCK.sub(block, document)


def _file(command: str) -> str:
    """The name of the study's file in `lapa study FILE[:args] ...`, from wherever it is called."""
    named = re.match(r"lapa study ([^\s:]+)", command)
    return Path(named[1]).stem if named else ""


def _study(record: str) -> str:
    """The study of a record: of "headline.search" the one of "headline"."""
    return f"studies/{record.partition('.')[0]}"


def tables() -> dict[str, list[list[str]]]:
    """Those of all results of record, by STUDY/NAME."""
    found = {}
    for path in sorted((configs.shipped() / "studies" / FOLDER).glob("*.json")):
        made = configs.call(_study(path.stem), "tables", read(path)["rows"])
        found |= {f"{path.stem}/{name}": rows for name, rows in made.items()}
    return found


def unfinished() -> dict[str, tuple[int, int]]:
    """(cells that are done, all) of the records of studies that go on."""
    found = {}
    for path in sorted((configs.shipped() / "studies" / FOLDER).glob("*.json")):
        done, count = read(path).get("cells", (0, 0))
        if done < count:
            found[path.stem] = (done, count)
    return found
