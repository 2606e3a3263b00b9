"""`lapa study`: several runs that answer one question, as a file says.

A study file has `get_study(arg, workdir)`, which gives a Study (lapa_jax/studies/study.py): its
cells, and their parts, each done once. Cell i is done by the machine with i mod COUNT = INDEX; the
same command continues. WORKDIR/report.html is the page of what was found so far; whoever finds all
cells done writes their rows to rows.csv.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.progress import Progress
from data_pipelines.storage import places
from lapa_jax import config as configs
from lapa_jax.runs import program as programs
from lapa_jax.studies import page, record
from lapa_jax.studies.study import Cell, Interrupted, Study, name_of, text_of, write_csv
from lapa_jax.train import EXIT_RESTART
from lapa_jax.verbs import flags, text

SIZES = ("quick", "cpu", "gpu")
PAGE_SECONDS = 120.0  # between two pages while cells are being done


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa study", __doc__, "lapa study my_study.py --workdir runs/my_study")
    parser.add_argument("study", metavar="FILE[:args]", help="a file with get_study")
    add_flags(parser, "files of the study, and its runs")
    parser.add_argument(
        "--size",
        choices=SIZES,
        help="how large, where the file has sizes: quick runs through in minutes and claims "
        "nothing, cpu (as without this) is for a few cores, gpu is larger",
    )
    parser.add_argument(
        "--record",
        metavar="FILE",
        help="what was found, as JSON, written after each cell; cells that it has are not done "
        "again, wherever they were done",
    )
    args = parser.parse_args(argv)
    check_flags(args)
    workdir = Path(args.workdir)
    places.make(workdir)  # what cannot be written is told before the study's file is read
    sized, size, others = size_of(args.study, args.size)
    study, of = read_study(sized, workdir), {"arguments": others, "size": size}
    kept = record.Record(Path(args.record), command(args), study, of) if args.record else None
    study.claim(of)
    last = time.monotonic()

    def write_page() -> None:
        nonlocal last
        page.write(study, args.study, command(args), claims=study.claims["size"] != "quick")
        last = time.monotonic()

    def after_cell() -> None:
        if kept:
            kept.write()
        if time.monotonic() - last > PAGE_SECONDS:
            write_page()

    code = run(study, args, after_cell)
    if code:
        return code
    made = [workdir / "report.html"]
    if not study.missing():
        rows = study.rows()
        write_csv(workdir / "rows.csv", rows)
        if kept:
            kept.write()
        show_rows(rows)
        made.insert(0, workdir / "rows.csv")
    write_page()
    text.show("\n" + ", ".join(map(str, made)))
    return 0


def command(args: argparse.Namespace) -> str:
    """What makes the same results anywhere."""
    return f"lapa study {args.study}" + (f" --size {args.size}" if args.size else "")


def size_of(spec: str, size: str | None) -> tuple[str, str, str]:
    """(the spec with its size, where one is given; the size; its other arguments) of
    `FILE[:args]` and --size. ValueError where both give one, and not the same."""
    name, _, given = spec.partition(":")
    arguments = [one for one in given.split(",") if one]
    inside = [one.removeprefix("size=") for one in arguments if one.startswith("size=")]
    if size and inside and inside[-1] != size:
        raise ValueError(f"{spec} is of size {inside[-1]}, and --size is {size}: give one of them")
    if size and not inside:
        arguments.append(f"size={size}")
    others = ",".join(one for one in arguments if not one.startswith("size="))
    size = size or (inside or [SIZES[1]])[-1]
    return f"{name}:{','.join(arguments)}" if arguments else name, size, others


def read_study(spec: str, workdir: Path) -> Study:
    study = configs.call(spec, "get_study", workdir)
    if not isinstance(study, Study):
        raise ValueError(f"get_study of {spec} gives a {type(study).__name__}, not a Study")
    if not study.cells:
        raise ValueError(f"{spec} has no cell: its arguments leave nothing to compare")
    return study


def add_flags(parser: argparse.ArgumentParser, workdir: str) -> None:
    """Those of everything that machines share."""
    parser.add_argument("--workdir", required=True, help=workdir)
    parser.add_argument(
        "--index",
        type=flags.number(int, "[0, 1e9]"),
        default=0,
        help="this machine's number (from 0)",
    )
    parser.add_argument(
        "--count",
        type=flags.number(int, "[1, 1e9]"),
        default=1,
        help="machines that share the work",
    )


def check_flags(args: argparse.Namespace) -> None:
    if not 0 <= args.index < args.count:
        raise ValueError(f"--index {args.index} must be from 0 to --count {args.count} - 1")


def run(
    study: Study, args: argparse.Namespace, after_cell: Callable[[], Any] = lambda: None
) -> int:
    """Does this machine's cells, and says what others have not done yet; the exit code."""
    programs.keep_compiled(study.workdir)  # cells that differ in a seed run the same programs
    mine = study.cells[args.index :: args.count]
    done = sum(map(study.is_done, mine))

    def told(cell: Cell) -> None:
        bar.update(last=name_of(cell.values))
        after_cell()

    try:
        with Progress("study", len(mine), unit="cell", done=done) as bar:
            study.run(args.index, args.count, told)
    except Interrupted:
        sys.stderr.write("lapa: interrupted; the same command continues where it was\n")
        return EXIT_RESTART
    if missing := study.missing():
        first = name_of(missing[0].values)
        text.show(f"{len(missing)} points are not done yet, the first: {first}")
    return 0


def show_rows(rows: list[dict[str, Any]]) -> None:
    keys = [key for key in rows[0] if not isinstance(rows[0][key], list)] if rows else []
    text.show(text.table([keys, *([_cell(row.get(key)) for key in keys] for row in rows)]))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else text_of(value)
