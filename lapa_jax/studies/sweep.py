"""A grid of quantizer runs, each an ordinary run, and what came of them.

A sweep file has `get_sweep(arg)`: {config, grid: {config key: values}}. Whoever finds all points
done writes the table, sweep.csv and the heat maps of sweep.html.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from markupsafe import Markup
from ml_collections import ConfigDict

from lapa_jax import config as configs
from lapa_jax import settings
from lapa_jax.evidence import measures
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.report import figures
from lapa_jax.report.html import Report, estimate
from lapa_jax.runs import run as runs
from lapa_jax.runs.loaded import load
from lapa_jax.studies.study import (
    Cell,
    Part,
    Study,
    name_of,
    text_of,
    train_part,
    write_csv,
)


@dataclasses.dataclass(frozen=True)
class Point:
    values: dict[str, Any]  # config key → value
    config: ConfigDict

    @property
    def name(self) -> str:
        return name_of(self.values)


def read_points(spec: str) -> list[Point]:
    """The points of a sweep file, the last key of its grid fastest."""
    sweep = configs.call(spec, "get_sweep")
    grid = sweep.get("grid") if isinstance(sweep, dict) else None
    if not isinstance(grid, dict) or sweep.keys() != {"config", "grid"}:
        raise ValueError(f"{spec}: get_sweep gives {sweep!r:.80}, not {{config, grid: {{...}}}}")
    for key, values in grid.items():
        if not isinstance(values, (tuple, list, range)):
            raise ValueError(f"{spec}: {key}={values!r} must be several values")
    base, points = configs.today(sweep["config"]), []
    keys = [configs.RENAMED.get(key, key) for key in sweep["grid"]]
    for values in itertools.product(*sweep["grid"].values()):
        config = ConfigDict(base.to_dict())
        chosen = dict(zip(keys, values, strict=True))
        known = configs.to_dict(config)
        for key, value in chosen.items():
            _set(config, key, value, known, spec)
        settings.check(config)
        points.append(Point(chosen, config.lock()))
    return points


def _set(config: ConfigDict, key: str, value: Any, known: dict, path: str) -> None:
    """Sets `a.b`; `*` stands for every key of a level (all corpora)."""
    *parents, last = key.split(".")
    nodes = [config]
    for name in parents:
        nodes = [child for n in nodes for child in (n.values() if name == "*" else [n.get(name)])]
    if not nodes or any(node is None or last not in node for node in nodes):
        raise ValueError(f"{path}: the config has no key {key!r}")
    try:
        for node in nodes:
            node[last] = value
    except TypeError as error:
        raise ValueError(f"{path}: {key}={value!r}: {error}") from error


def open_sweep(
    points: Sequence[Point], workdir: Path, corpora: Sequence[str] | None, max_pairs: int
) -> Study:
    """The study of these points, whose runs are in WORKDIR/points; raises ValueError where another
    sweep's point is there."""

    def cell(point: Point) -> Cell:
        directory = workdir / "points" / point.name
        if directory.exists():
            runs.claim(directory, point.config)

        def evaluate() -> list[dict[str, Any]]:
            run = load(directory)
            chosen = {path: {"path": path} for path in corpora or ()} or {
                name: c.to_dict() for name, c in point.config.data.corpora.items()
            }
            reports = {
                name: evaluate_quantizer(run, corpus, max_pairs=max_pairs).report
                for name, corpus in chosen.items()
            }
            runs.write_json(directory / "evaluation.json", reports)
            jax.clear_caches()  # the next point is another program
            return [{"corpus": name, **measured(report)} for name, report in reports.items()]

        trained = train_part(f"{point.name} trained", point.config, directory)
        return Cell(point.values, (trained, Part(point.name, evaluate)))

    study = Study(workdir, [cell(point) for point in points])
    study.claim({"corpora": list(corpora or ()), "max_pairs": max_pairs})
    return study


def measured(report: dict[str, Any]) -> dict[str, float | None]:
    """One row's numbers, with intervals where the evaluation gives them."""
    row: dict[str, float | None] = {}
    for found in measures.rows(report, deep=False):
        row[found["measure"]] = found["value"]
        if found["low"] is not None:
            row |= {f"{found['measure']}_{end}": found[end] for end in ("low", "high")}
    return row


def write_results(study: Study) -> list[dict[str, Any]]:
    """Writes sweep.csv and sweep.html of a study that is done; returns its rows."""
    rows = [{"corpus": row["corpus"], **row} for row in study.rows()]
    write_csv(study.workdir / "sweep.csv", rows)
    keys = list(study.cells[0].values)
    report = Report("Sweep", f"{len(study.cells)} points over {' × '.join(map(_short, keys))}.")
    shown = [row["measure"] for row in measures.rows({}, deep=False)]
    names = [name for name in shown if any(row[name] is not None for row in rows)]
    for corpus in dict.fromkeys(row["corpus"] for row in rows):
        found = [row for row in rows if row["corpus"] == corpus]
        best = {name: _best(found, name) for name in names if _known(found, name)}
        section = report.section(
            corpus,
            "Every point was trained once and measured alike; another seed would move it. Best is "
            "marked of the measures that compare codebooks of any size.",
        )
        for text in (_told(found, keys, name, row) for name, row in best.items() if row):
            section.text(text)
        if len(keys) == 2:
            section.figure(figures.heat_maps(found, *keys, best), "Outlined: the best point.")
        elif len(keys) == 1:
            section.figure(figures.measure_curves(found, keys[0], best), "A star: the best point.")
        section.table(
            [*map(_short, keys), *names],
            [
                [text_of(r[k]) for k in keys]
                + [_cell(r, n, best.get(n) is r and len(found) > 1) for n in names]
                for r in found
            ],
            "Bold: the best of a column. Intervals are 95 %, by resampling episodes.",
        )
    report.write(study.workdir / "sweep.html")
    return rows


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _known(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row[name] is not None]


def _best(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The row of the highest value, where higher is better whatever the point."""
    ranked = any(name in one.higher for one in measures.MEASURES)
    return max(_known(rows, name), key=lambda row: row[name]) if ranked else None


def _told(
    rows: Sequence[dict[str, Any]], keys: Sequence[str], name: str, best: dict[str, Any]
) -> str:
    """The best point by a measure, and how many others its interval does not tell from it."""
    low = best.get(f"{name}_low")
    text = f"Best by `{name}`: {name_of({key: best[key] for key in keys})}, "
    text += f"{estimate(best[name], low, best.get(f'{name}_high'))}."
    others = [row for row in _known(rows, name) if row is not best]
    if low is None or not others:
        return text
    close = sum((row.get(f"{name}_high") or row[name]) >= low for row in others)
    return f"{text} {close or 'None'} of the other {len(others)} reach into that interval."


def _cell(row: dict[str, Any], name: str, best: bool) -> Any:
    text = estimate(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))
    return Markup("<strong>{}</strong>").format(text) if best else text
