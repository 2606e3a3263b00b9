"""`lapa export`: a run's weights in a foreign format."""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

from lapa_jax import pairs, runs
from lapa_jax.interop import laq_pt


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa export",
        description=__doc__,
        epilog="example: lapa export --format laq_pt --workdir runs/laq_openx --out laq.pt",
    )
    parser.add_argument(
        "--format", required=True, choices=["laq_pt"], help="laq_pt: the original's state dict"
    )
    parser.add_argument("--workdir", required=True, help="the run to read")
    parser.add_argument("--out", required=True, help="a new file")
    args = parser.parse_args(argv)
    if Path(args.out).exists():
        raise ValueError(f"--out {args.out} exists: exports go to a new file")
    run = runs.load(args.workdir)
    pairs.require_quantizer(run)
    tensors = laq_pt.write(run.stage.model_config, jax.tree.map(np.asarray, run.params))
    laq_pt.save_file(args.out, tensors)
    sys.stdout.write(f"{args.workdir} -> {args.out}: {len(tensors)} tensors\n")
    return 0
