"""`lapa sweep`: a grid of quantizer runs, each an ordinary run, and what came of them.

A sweep file has `get_sweep(arg)`: {config, grid: {config key: values}}. Point i of n is run by the
machine with i mod COUNT = INDEX; the same command continues. Whoever finds all points done writes
the table, sweep.csv, and sweep.html with charts that mark the best point.
"""

from pathlib import Path

from lapa_jax.studies import sweep
from lapa_jax.verbs import flags, text
from lapa_jax.verbs.study import add_flags, check_flags, run, show_rows


def main(argv: list[str]) -> int:
    parser = flags.parser(
        "lapa sweep",
        __doc__,
        "lapa sweep sweeps/codebook:quick=True --workdir runs/sweep",
    )
    add = parser.add_argument
    add("sweep", metavar="FILE[:args]", help="a file, or a shipped one (`lapa configs`)")
    add_flags(parser, "point i goes to WORKDIR/points/<name>")
    add("--corpus", action="append", help="evaluate on these directories instead")
    add(
        "--max_pairs",
        type=flags.number(int, "[1, 1e9]"),
        default=2000,
        help="of the evaluation, per corpus",
    )
    add("--dry_run", action="store_true", help="only list the points")
    args = parser.parse_args(argv)
    check_flags(args)
    points = sweep.read_points(args.sweep)
    if args.dry_run:
        mine = points[args.index :: args.count]
        text.show("\n".join([*(p.name for p in mine), f"{len(mine)} of {len(points)} points"]))
        return 0
    workdir = Path(args.workdir)
    study = sweep.open_sweep(points, workdir, args.corpus, args.max_pairs)
    code = run(study, args)
    if code or study.missing():
        return code
    show_rows(sweep.write_results(study))
    text.show(f"\n{workdir}/sweep.csv, {workdir}/sweep.html")
    return 0
