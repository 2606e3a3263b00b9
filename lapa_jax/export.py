"""`lapa export`: a run's weights in a foreign format.

What is written is checked before it gets its name: --out exists only if the check passed, and
parity.json in it (beside a file: OUT.parity.json) tells what was compared and how closely.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from lapa_jax import export_policy, export_quantizer, pairs, runs
from lapa_jax.export_files import exported_config, staged
from lapa_jax.interop import laq_pt, plain
from lapa_jax.interop.safetensors_files import SafetensorsDirectory, Tensor
from lapa_jax.models.module import flatten
from lapa_jax.parity import Parity


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: lapa export --format safetensors --workdir runs/policy --out policy\n"
        "         lapa export --format laq_pt --workdir runs/laq_openx --out laq.pt",
    )
    what = "; ".join(f"{name}: {one.what}" for name, one in FORMATS.items())
    parser.add_argument("--format", required=True, choices=sorted(FORMATS), help=what)
    parser.add_argument("--workdir", required=True, help="the run to read")
    parser.add_argument("--out", required=True, help="a new file (laq_pt) or directory")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        help="of the weights of a policy; default: as the run has them",
    )
    parser.add_argument(
        "--image_tokenizer",
        metavar="RUN",
        help="the run that made the cached tokens of a policy's images (hf): with it the policy "
        "takes pixels",
    )
    args = parser.parse_args(argv)
    if args.image_tokenizer and args.format != "hf":
        raise ValueError(f"--format {args.format} does not take --image_tokenizer")
    out = Path(args.out)
    if out.exists():
        raise ValueError(f"--out {out} exists: exports go to a new place")
    run = runs.load(args.workdir)
    sys.stdout.write(f"{args.workdir} -> {out}: {FORMATS[args.format].write(run, out, args)}\n")
    return 0


def _laq_pt(run: runs.Run, out: Path, args: argparse.Namespace) -> str:
    if args.precision:
        raise ValueError("--format laq_pt does not take --precision: it is float32")
    pairs.require_quantizer(run)
    model, params = run.stage.model_config, jax.tree.map(np.asarray, run.params)
    tensors = laq_pt.write(model, params)
    with staged(out, run, one_file=True) as (directory, parity):
        path = directory / out.name
        laq_pt.save_file(path, tensors)
        found = laq_pt.load_file(path)
        different = set(found) ^ set(tensors)
        different |= {
            name for name in set(found) & set(tensors) if not _same(found[name], tensors[name])
        }
        parity.at_most("tensors_that_differ", len(different), 0)
        _, back = laq_pt.read(found, model.image_size[0], model.code_length)
        ours, back = flatten(params), flatten(back)
        different = {name for name in ours if not _same(ours[name], back[name])}
        parity.at_most("parameters_that_differ_when_imported", len(different), 0)
    return f"{len(tensors)} tensors"


def _safetensors(run: runs.Run, out: Path, args: argparse.Namespace) -> str:
    config, dtype = exported_config(run, args.precision)
    tensors = plain.tensors(run.params, run.variables, dtype)
    with staged(out, run) as (directory, parity):
        plain.write(directory, config, run.assets, tensors)
        check_arrays(parity, directory, tensors)
    return f"{len(tensors)} tensors"


class Format(NamedTuple):
    write: Callable[[runs.Run, Path, argparse.Namespace], str]
    what: str


FORMATS = {
    "hf": Format(
        export_policy.write,
        "a policy for PyTorch, a Hugging Face directory with its own model file",
    ),
    "laq_pt": Format(_laq_pt, "the original's quantizer, a state dict"),
    "laq_torch": Format(
        export_quantizer.write, "a quantizer for PyTorch, a directory with its own model file"
    ),
    "safetensors": Format(_safetensors, "any run, plain arrays with our names"),
}


def check_arrays(parity: Parity, directory: Path, tensors: dict[str, Tensor]) -> None:
    """Reads every tensor back and compares its bits."""
    found = SafetensorsDirectory(directory)
    different = set(found) ^ set(tensors)
    for name in sorted(set(found) & set(tensors)):
        if not _same(tensors[name].make(), found[name]):
            different.add(name)
    parity.at_most("tensors_that_differ", len(different), 0)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """To the last bit."""
    return (a.shape, a.dtype) == (b.shape, b.dtype) and a.tobytes() == b.tobytes()
