"""`lapa sweep`: a grid of quantizer runs, each an ordinary run, and what came of them.

A sweep file has `get_sweep(arg)`: {config, grid: {config key: values}}. Point i of n is run by the
machine with i mod COUNT = INDEX; the same command continues. Whoever finds all points done writes
the table, sweep.csv and the heat maps of sweep.html.
"""

import argparse
import csv
import dataclasses
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from lapa_jax import config as configs
from lapa_jax.evidence import measures
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.report import figures
from lapa_jax.report.html import Report, estimate
from lapa_jax.runs import program as programs
from lapa_jax.runs import run as runs
from lapa_jax.train import EXIT_RESTART, train


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: lapa sweep experiments/sweeps/codebook.py:quick=True --workdir runs/sweep",
    )
    parser.add_argument("sweep", metavar="FILE.py[:args]", help="shipped ones: experiments/sweeps")
    parser.add_argument("--workdir", required=True, help="point i goes to WORKDIR/points/<name>")
    parser.add_argument("--corpus", action="append", help="evaluate on these directories instead")
    parser.add_argument("--max_pairs", type=int, default=2000, help="of the evaluation, per corpus")
    parser.add_argument("--index", type=int, default=0, help="this machine's number (from 0)")
    parser.add_argument("--count", type=int, default=1, help="machines that share the sweep")
    parser.add_argument("--dry_run", action="store_true", help="only list the points")
    args = parser.parse_args(argv)
    if not 0 <= args.index < args.count:
        raise ValueError(f"--index {args.index} must be from 0 to --count {args.count} - 1")
    points = read_points(args.sweep)
    mine = points[args.index :: args.count]
    workdir = Path(args.workdir)
    if args.dry_run:
        for point in mine:
            sys.stdout.write(f"{point.name}\n")
        sys.stdout.write(f"{len(mine)} of {len(points)} points\n")
        return 0
    # Points that differ in a seed or a window run the same programs.
    programs.keep_compiled(workdir)
    for number, point in enumerate(mine, 1):
        logging.info("=== point %d of %d: %s ===", number, len(mine), point.name)
        if not run_point(point, workdir / "points" / point.name, args.corpus, args.max_pairs):
            return EXIT_RESTART
        jax.clear_caches()  # the next point is another program
    return write_results(workdir, points)


@dataclasses.dataclass(frozen=True)
class Point:
    values: dict[str, Any]  # config key → value
    config: ConfigDict

    @property
    def name(self) -> str:
        return ",".join(f"{key.split('.')[-1]}={_text(v)}" for key, v in self.values.items())


def read_points(spec: str) -> list[Point]:
    """The points of a sweep file, the last key of its grid fastest."""
    path, _, arg = spec.partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"sweep file {path} does not exist; shipped ones are in experiments/sweeps"
        )
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    sweep = module.get_sweep(arg or None)
    points = []
    for values in itertools.product(*sweep["grid"].values()):
        config = ConfigDict(sweep["config"].to_dict())
        chosen = dict(zip(sweep["grid"], values, strict=True))
        known = configs.to_dict(config)
        for key, value in chosen.items():
            _set(config, key, value, known, path)
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
    for node in nodes:
        node[last] = value


def run_point(point: Point, directory: Path, corpora: list[str] | None, max_pairs: int) -> bool:
    """Trains and evaluates a point that is not done; False if a signal stopped it."""
    done = directory / "evaluation.json"
    if done.exists():
        runs.claim(directory, point.config)  # another sweep's point is an error
        return True
    if not train(point.config, directory):
        return False
    run = runs.load(directory)
    if corpora:
        chosen = {path: {"path": path} for path in corpora}
    else:
        chosen = {name: c.to_dict() for name, c in point.config.data.corpora.items()}
    reports = {
        name: evaluate_quantizer(run, corpus, max_pairs=max_pairs).report
        for name, corpus in chosen.items()
    }
    runs.write_json(done, reports)
    return True


def write_results(workdir: Path, points: list[Point]) -> int:
    """The table, CSV and heat maps, if every point is done."""
    rows, missing = [], []
    for point in points:
        path = workdir / "points" / point.name / "evaluation.json"
        if not path.exists():
            missing.append(point.name)
            continue
        for corpus, report in json.loads(path.read_text()).items():
            rows.append({"corpus": corpus, **point.values, **measured(report)})
    if missing:
        sys.stdout.write(f"{len(missing)} points are not done yet, the first: {missing[0]}\n")
        return 0
    with open(workdir / "sweep.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_report(workdir, points, rows)
    sys.stdout.write(_table(rows) + f"\n\n{workdir}/sweep.csv, {workdir}/sweep.html\n")
    return 0


def measured(report: dict[str, Any]) -> dict[str, float | None]:
    """One row's numbers, with intervals where the evaluation gives them."""
    row: dict[str, float | None] = {}
    for found in measures.rows(report, deep=False):
        row[found["measure"]] = found["value"]
        if found["low"] is not None:
            row |= {f"{found['measure']}_{end}": found[end] for end in ("low", "high")}
    return row


def write_report(workdir: Path, points: list[Point], rows: list[dict[str, Any]]) -> None:
    keys = list(points[0].values)
    report = Report("Sweep", f"{len(points)} points over {', '.join(keys)}.")
    shown = [row["measure"] for row in measures.rows({}, deep=False)]
    names = [n for n in shown if any(row[n] is not None for row in rows)]
    for corpus in dict.fromkeys(row["corpus"] for row in rows):
        found = [row for row in rows if row["corpus"] == corpus]
        section = report.section(corpus, "Every point was trained and evaluated alike.")
        for name in names if len(keys) == 2 else []:
            section.figure(figures.heat_map(found, keys[0], keys[1], name))
        section.table(
            [*keys, *names],
            [
                [_text(r[k]) for k in keys]
                + [estimate(r[n], r.get(f"{n}_low"), r.get(f"{n}_high")) for n in names]
                for r in found
            ],
        )
    report.write(workdir / "sweep.html")


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [list(rows[0])] + [
        [f"{v:.4g}" if isinstance(v, float) else "–" if v is None else _text(v) for v in r.values()]
        for r in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
