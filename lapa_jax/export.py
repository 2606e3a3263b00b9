"""`lapa export`: a run's weights in a foreign format.

What is written is checked before it gets its name: --out exists only if the check passed, and
parity.json in it tells what was compared and how closely.
"""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lapa_jax import config as configs
from lapa_jax import export_policy, pairs, runs
from lapa_jax.interop import laq_pt, plain
from lapa_jax.interop.safetensors_files import SafetensorsDirectory, Tensor, float_dtype
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
    args = parser.parse_args(argv)
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
    tensors = laq_pt.write(run.stage.model_config, jax.tree.map(np.asarray, run.params))
    laq_pt.save_file(out, tensors)
    return f"{len(tensors)} tensors"


def _safetensors(run: runs.Run, out: Path, args: argparse.Namespace) -> str:
    config, dtype = exported_config(run, args.precision)
    tensors = plain.tensors(run.params, run.variables, dtype)
    with staged(out, run) as (directory, parity):
        plain.write(directory, config, run.assets, tensors)
        check_arrays(parity, directory, tensors)
    return f"{len(tensors)} tensors"


def _hf(run: runs.Run, out: Path, args: argparse.Namespace) -> str:
    return export_policy.write(run, args, staged, exported_config)


class Format(NamedTuple):
    write: Callable[[runs.Run, Path, argparse.Namespace], str]
    what: str


FORMATS = {
    "hf": Format(_hf, "a policy for PyTorch, a Hugging Face directory with its own model file"),
    "laq_pt": Format(_laq_pt, "the original's quantizer, a state dict"),
    "safetensors": Format(_safetensors, "any run, plain arrays with our names"),
}


def exported_config(run: runs.Run, precision: str | None) -> tuple[dict[str, Any], np.dtype]:
    """The config that describes what is exported, and the dtype of its parameters."""
    config = configs.to_dict(run.config)
    config["optimizer"]["ema_decay"] = 0.0  # where there was an average, it is what is exported
    dtype = config["model"].get("param_dtype", "float32")
    if precision:
        dtype = float_dtype(precision).name
    if "param_dtype" in config["model"]:
        config["model"]["param_dtype"] = dtype
    elif dtype != "float32":
        raise ValueError(f"--precision {precision}: a run of stage {run.config.stage!r} is float32")
    return config, float_dtype({"float32": "fp32", "bfloat16": "bf16"}[dtype])


@contextlib.contextmanager
def staged(out: Path, run: runs.Run) -> Iterator[tuple[Path, Parity]]:
    """(a directory, the checks to make of it). It gets the name `out` if all went well and the
    checks passed; else it is removed, or, for those who want to look, renamed to OUT.failed."""
    staging, failed = (out.with_name(f"{out.name}.{x}") for x in ("incomplete", "failed"))
    for leftover in (staging, failed):
        if leftover.exists():
            shutil.rmtree(leftover)
    staging.mkdir(parents=True)
    parity = Parity()
    try:
        yield staging, parity
    except BaseException:
        shutil.rmtree(staging)
        raise
    runs.write_json(
        staging / "parity.json",
        {"run": run.workdir.name, "step": run.step, "params_hash": run.params_hash}
        | parity.to_json(),
    )
    if parity.passed:
        os.replace(staging, out)
        return
    os.replace(staging, failed)
    raise ValueError(
        f"what was written does not do what the run does, and is kept as {failed}: "
        f"{parity.failures()}"
    )


def check_arrays(parity: Parity, directory: Path, tensors: dict[str, Tensor]) -> None:
    """Reads every tensor back and compares its bits."""
    found = SafetensorsDirectory(directory)
    different = set(found) ^ set(tensors)
    for name in sorted(set(found) & set(tensors)):
        ours, read = tensors[name].make(), found[name]
        same = (ours.shape, ours.dtype) == (read.shape, read.dtype)
        if not same or ours.tobytes() != read.tobytes():
            different.add(name)
    parity.at_most("tensors_that_differ", len(different), 0)
