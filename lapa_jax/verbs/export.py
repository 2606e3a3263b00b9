"""`lapa export`: a run's weights in a foreign format.

What is written is checked before it gets its name: --out exists only if the check passed, and
parity.json in it (beside a file: OUT.parity.json) tells what was compared and how closely.
"""

import sys
from pathlib import Path

from data_pipelines import storage
from lapa_jax.interop import hub
from lapa_jax.interop.formats import FORMATS
from lapa_jax.runs.loaded import load
from lapa_jax.verbs import flags

EXAMPLE = """lapa export --format safetensors --workdir runs/policy --out policy
  lapa export --format hf --workdir runs/policy --out policy --push ORG/policy
  lapa export --format laq_pt --workdir runs/laq_openx --out laq.pt"""
WAYS = {name: one.write for name, one in FORMATS.items() if one.write}


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa export", __doc__, EXAMPLE)
    choices = {name: (way.what, way.options) for name, way in WAYS.items()}
    flags.add_choice(parser, "format", choices)
    parser.add_argument("--workdir", required=True, help="the run to read")
    parser.add_argument("--out", required=True, help="a new file (laq_pt) or directory")
    parser.add_argument(
        "--push", metavar="ORG/NAME", help="then push the directory to this model on the hub"
    )
    args = parser.parse_args(argv)
    options = flags.read_choice(args, "format", choices)
    out = Path(args.out)
    if out.exists():
        raise ValueError(f"--out {out} exists: exports go to a new place")
    to = hub.target(args.push) if args.push else None
    if to and WAYS[args.format].one_file:
        raise ValueError(
            f"--push takes a directory with its card, --format {args.format} is a file"
        )
    storage.make_directory(out.parent)
    count = WAYS[args.format].call(load(args.workdir), out, options)
    sys.stdout.write(f"{args.workdir} -> {out}: {count} tensors\n")
    if to:
        sys.stdout.write(f"{out} -> {hub.push(out, to)}\n")
    return 0
