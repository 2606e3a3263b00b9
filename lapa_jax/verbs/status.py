"""`lapa status`: what runs are doing, from their files alone.

    lapa status runs/quantizer         # one run
    lapa status runs                   # every run below, as a table

running    its newest line of metrics is as young as the lines before let expect
finished   it has reached its last step
stopped    by a signal, after saving; the same command continues
failed     an error ended it, which is told; or its supervisor has given up
stalled    it lives and does not advance, or was killed
starting   there is no line yet, and it is young
imported   never trained: `lapa import` made it
damaged    a file of it cannot be read, which is told

Exit code 1 where a run is stalled, failed or damaged.
"""

import itertools
import sys
import time
from collections.abc import Sequence

from data_pipelines.storage import places
from lapa_jax.runs.status import BAD, Status, look, runs_below
from lapa_jax.verbs import flags, text


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa status", __doc__)
    parser.add_argument("directory", nargs="+", help="of a run, or with runs below it")
    args = parser.parse_args(argv)
    now = time.time()
    found = [
        look(workdir, now)
        for top in args.directory
        for workdir in runs_below(places.directory(top))
    ]
    if not found:
        raise FileNotFoundError(f"no run (config.json) in {', '.join(args.directory)}")
    sys.stdout.write((details(found[0]) if len(found) == 1 else table(found)) + "\n")
    return 1 if any(run.state in BAD for run in found) else 0


def details(run: Status) -> str:
    """One run, a line for each thing that is known."""
    percent = f" ({100 * run.step / run.steps:.1f} %)" if run.steps else ""
    lines = [
        ("run", str(run.workdir)),
        ("state", run.state + (f": {run.told}" if run.told else "")),
        ("stage", run.stage or "-"),
        ("step", f"{run.step} of {run.steps}{percent}" if run.steps else "-"),
        ("loss", f"{_number(run.loss)}  {text.sparkline(run.losses)}"),
        ("examples/s", _number(run.examples_per_second)),
        ("time left", duration(run.seconds_left)),
        ("checkpoint", "none" if run.saved is None else f"step {run.saved}"),
        ("newest line", "none" if run.age is None else f"{duration(run.age)} ago"),
        ("attempts", str(run.attempts)),
        ("time", run.goodput or "-"),
        ("guard", f"{run.guarded} steps skipped or rolled back" if run.guarded else "-"),
    ]
    if not run.stage:
        lines = lines[:2]  # nothing else is known
    return "\n".join(f"{name:<12} {value}" for name, value in lines)


def table(runs: Sequence[Status]) -> str:
    """A line for each run, and one for what is wrong with it."""
    head = ("run", "state", "step", "of", "loss", "", "ex/s", "left", "saved", "age", "attempts")
    rows = [
        (
            str(run.workdir),
            run.state,
            str(run.step) if run.steps else "-",
            str(run.steps) if run.steps else "-",
            _number(run.loss),
            text.sparkline(run.losses),
            _number(run.examples_per_second),
            duration(run.seconds_left),
            "-" if run.saved is None else str(run.saved),
            duration(run.age),
            str(run.attempts),
        )
        for run in runs
    ]
    wrong = [f"{run.workdir}: {run.told}" for run in runs if run.state in BAD and run.told]
    return "\n".join([text.table([head, *rows], left=(0, 1, 5)), *wrong])


def duration(seconds: float | None) -> str:
    """Two units at most: 3 d 4 h, 2 h 5 min, 45 s; - for None."""
    if seconds is None:
        return "-"
    left = max(0, round(seconds))
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (large, size), (small, part) in itertools.pairwise(units):
        if left >= size:
            rest = left % size // part
            return f"{left // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{left} s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
