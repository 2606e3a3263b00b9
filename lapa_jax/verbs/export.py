"""`lapa export`: a run's weights in a foreign format.

What is written is checked before it gets its name: --out exists only if the check passed, and
parity.json in it (beside a file: OUT.parity.json) tells what was compared and how closely.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lapa_jax.interop import export_policy, export_quantizer, laq_pt, laq_torch, plain, torch_code
from lapa_jax.interop.parity import Parity
from lapa_jax.interop.safetensors_files import SafetensorsDirectory, Tensor
from lapa_jax.interop.staged import exported_config, staged
from lapa_jax.nn.module import flatten
from lapa_jax.runs.loaded import LoadedQuantizer, Model, load, require


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
    run = load(args.workdir)
    sys.stdout.write(f"{args.workdir} -> {out}: {FORMATS[args.format].write(run, out, args)}\n")
    return 0


def _laq_pt(run: Model, out: Path, args: argparse.Namespace) -> str:
    if args.precision:
        raise ValueError("--format laq_pt does not take --precision: it is float32")
    require(run, LoadedQuantizer)
    model, params = run.stage.model_config, jax.tree.map(np.asarray, run.params)
    torch_code.require_torch()
    tensors = laq_pt.write(model, params)
    with staged(out, run, one_file=True) as (directory, parity):
        path = directory / out.name
        laq_pt.save_file(path, tensors)
        found = laq_pt.load_file(path)
        parity.at_most("tensors_that_differ", _differing(found, tensors), 0)
        imported, back = laq_pt.read(found, model.image_size[0], model.code_length)
        different = _differing(flatten(back), flatten(params))
        parity.at_most("parameters_that_differ_when_imported", different, 0)
        # What decides codes and frames, and a state dict may not hold: a normaliser, above all.
        ours, theirs = (laq_torch.torch_config(config) for config in (model, imported))
        different = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
        parity.at_most("settings_that_differ_when_imported", len(different), 0)
    return f"{len(tensors)} tensors"


def _safetensors(run: Model, out: Path, args: argparse.Namespace) -> str:
    config, dtype = exported_config(run, args.precision)
    tensors = plain.tensors(run.params, run.variables, dtype)
    with staged(out, run) as (directory, parity):
        plain.write(directory, config, run.assets, tensors)
        _check_arrays(parity, directory, tensors)
    return f"{len(tensors)} tensors"


class Format(NamedTuple):
    write: Callable[[Model, Path, argparse.Namespace], str]
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


def _check_arrays(parity: Parity, directory: Path, tensors: dict[str, Tensor]) -> None:
    """Reads every tensor back and compares its bits."""
    found = SafetensorsDirectory(directory)
    parity.at_most("tensors_that_differ", _differing(found, tensors), 0)


def _differing(found: Mapping[str, Any], ours: Mapping[str, Any]) -> int:
    """Names that one side alone has, or that have other bits. Of `ours` a Tensor is made only for
    its comparison."""

    def same(name: str) -> bool:
        a, b = found[name], ours[name]
        b = b.make() if isinstance(b, Tensor) else b
        return (a.shape, a.dtype) == (b.shape, b.dtype) and a.tobytes() == b.tobytes()

    names = set(found), set(ours)
    return len(names[0] ^ names[1]) + sum(not same(name) for name in names[0] & names[1])
