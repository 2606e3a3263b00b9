"""`lapa sweep`: a grid of quantizer runs, each an ordinary run, and what came of them.

A sweep file has `get_sweep(arg)`: {config, grid: {config key: values}}. Point i of n is run by the
machine with i mod COUNT = INDEX; the same command continues. Whoever finds all points done writes
the table, sweep.csv and the heat maps of sweep.html.
"""

import sys
from pathlib import Path
from typing import Any

from lapa_jax.runs import program as programs
from lapa_jax.studies import sweep
from lapa_jax.studies.study import Interrupted, name_of, text_of
from lapa_jax.train import EXIT_RESTART
from lapa_jax.verbs import flags, text


def main(argv: list[str]) -> int:
    parser = flags.parser(
        "lapa sweep",
        __doc__,
        "lapa sweep experiments/sweeps/codebook.py:quick=True --workdir runs/sweep",
    )
    add = parser.add_argument
    add("sweep", metavar="FILE.py[:args]", help="shipped ones: experiments/sweeps")
    add("--workdir", required=True, help="point i goes to WORKDIR/points/<name>")
    add("--corpus", action="append", help="evaluate on these directories instead")
    add("--max_pairs", type=int, default=2000, help="of the evaluation, per corpus")
    add("--index", type=int, default=0, help="this machine's number (from 0)")
    add("--count", type=int, default=1, help="machines that share the sweep")
    add("--dry_run", action="store_true", help="only list the points")
    args = parser.parse_args(argv)
    if not 0 <= args.index < args.count:
        raise ValueError(f"--index {args.index} must be from 0 to --count {args.count} - 1")
    points = sweep.read_points(args.sweep)
    if args.dry_run:
        mine = points[args.index :: args.count]
        text.show("\n".join([*(p.name for p in mine), f"{len(mine)} of {len(points)} points"]))
        return 0
    workdir = Path(args.workdir)
    # Points that differ in a seed or a window run the same programs.
    programs.keep_compiled(workdir)
    study = sweep.open_sweep(points, workdir, args.corpus, args.max_pairs)
    try:
        study.run(args.index, args.count)
    except Interrupted:
        sys.stderr.write("lapa: interrupted; the same command continues where it was\n")
        return EXIT_RESTART
    if missing := study.missing():
        first = name_of(missing[0].values)
        text.show(f"{len(missing)} points are not done yet, the first: {first}")
        return 0
    rows = sweep.write_results(study)
    keys = list(rows[0])
    text.show(text.table([keys, *([_cell(row.get(key)) for key in keys] for row in rows)]))
    text.show(f"\n{workdir}/sweep.csv, {workdir}/sweep.html")
    return 0


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else text_of(value)
