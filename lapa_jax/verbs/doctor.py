"""`lapa doctor`: is this machine ready to train? What it finds, and what to do about it.

    lapa doctor                                      # what this machine should have, it must have
    lapa doctor --expect tpu --devices 32 --dir /mnt/lapa/runs --bucket gs://bucket/runs

On several machines start it on all of them, as `lapa train`: it then tests what is between them
too. Exit code 1 where there is a problem; a warning is what will cost time or surprise.
"""

import json
import sys
from typing import Any, NamedTuple

from lapa_jax.machine import devices, host
from lapa_jax.parallel import distributed
from lapa_jax.verbs import flags, text

CHECKS = (host.versions, host.memory, host.disk, host.bucket, devices.devices)


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: str  # ok, warning, problem
    found: str
    do: str = ""  # about it
    figures: dict[str, Any] = {}


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa doctor", __doc__)
    add = parser.add_argument
    add("--expect", choices=("cpu", "gpu", "tpu"), help="default: what hardware there is")
    add(
        "--devices",
        type=flags.number(int, "[1, 1e9]"),
        help="how many JAX must see, over all processes",
    )
    add("--dir", default=".", help="where runs will be: its disk is tested (default: here)")
    add("--bucket", help="gs://BUCKET/PATH or s3://BUCKET/PATH that runs use")
    add("--json", action="store_true", help="one JSON object instead of a table")
    distributed.add_flags(parser)
    args = parser.parse_args(argv)
    findings = [Finding(*parts) for check in CHECKS for parts in check(args)]
    ready = all(f.state != "problem" for f in findings)
    if args.json:
        found = {"ready": ready, "findings": [f._asdict() for f in findings]}
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        text.show(table(findings))
    return 0 if ready else 1


def table(findings: list[Finding]) -> str:
    """For people: a line for each finding, below it what to do."""
    rows = []
    for f in findings:
        rows += [("PROBLEM" if f.state == "problem" else f.state, f.name, f.found)]
        rows += [("", "", f"-> {f.do}")] if f.do else []
    counts = [sum(f.state == state for f in findings) for state in ("problem", "warning")]
    told = text.table(rows, left=range(3))
    return f"{told}\n\n{counts[0]} problems, {counts[1]} warnings"
