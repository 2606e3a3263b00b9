"""Results of record: what a finished study found, as a small file in the repository, and the tables
of documents that are made of it. No number of such a table is typed.

A study file has `tables(rows)`, {name: rows of cells, the first of them the header}. A document
holds a table between the comments `<!-- results STUDY/NAME -->` and `<!-- end of results -->`.
"""

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.storage import places
from lapa_jax import config as configs
from lapa_jax.diagnostics.statistics import Interval
from lapa_jax.runs import run as runs
from lapa_jax.studies.study import Study
from lapa_jax.version import __version__

FOLDER = "results"  # beside the study files
_BLOCK = re.compile(r"(<!-- results ([\w/]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def write(path: Path, command: str, study: Study) -> None:
    """The rows of a study that is done by `command`, with `outcomes` as a text of 0 and 1."""
    rows = [
        row | {"outcomes": "".join("01"[x] for x in row["outcomes"])} if "outcomes" in row else row
        for row in study.rows()
    ]
    seconds = study.seconds()
    found = {
        "command": command,
        "version": __version__,
        "versions": list(dict.fromkeys(v for cell in study.cells for v in study.versions(cell))),
        "date": datetime.date.today().isoformat(),
        "hours": round(sum(seconds.values()) / 3600, 2),
        "size": study.claims.get("size", "cpu"),
        "minutes": study.minutes(),
        "rows": [{key: x for key, x in row.items() if key != "asked"} for row in rows],
    }
    runs.write_json(path, found)


def read(path: Path) -> dict[str, Any]:
    """The same, with `outcomes` as bools."""
    found = places.read_json(path, "make it anew with `lapa study --record`")
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


def filled(document: str, tables: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """A document with its tables made anew, each below an anchor "results-STUDY-NAME"; in the place
    of those of a study of which nothing is on record it says so. ValueError for one that is not
    there."""
    studies = configs.shipped_files("get_study")

    def block(match: re.Match) -> str:
        name = match[2]
        begin = f'{match[1]}<a id="results-{name.replace("/", "-")}"></a>\n\n'
        study = f"studies/{name.partition('/')[0]}"
        recorded = any(known.startswith(f"{name.partition('/')[0]}/") for known in tables)
        if study in studies and not recorded:
            return f"{begin}Not run yet (`lapa study {study}`).\n{match[3]}"
        if name not in tables:
            raise ValueError(f"the document has a table {name!r}: there are {sorted(tables)}")
        header, *rows = tables[name]
        lines = [header, ["---"] * len(header), *rows]
        return begin + "".join(f"| {' | '.join(row)} |\n" for row in lines) + match[3]

    return _BLOCK.sub(block, document)


def tables() -> dict[str, list[list[str]]]:
    """Those of all results of record, by STUDY/NAME."""
    found = {}
    for path in sorted((configs.shipped() / "studies" / FOLDER).glob("*.json")):
        made = configs.call(f"studies/{path.stem}", "tables", read(path)["rows"])
        found |= {f"{path.stem}/{name}": rows for name, rows in made.items()}
    return found
