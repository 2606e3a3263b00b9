"""`lapa import`: foreign weights → a run directory that every other verb reads.

The directory holds a checkpoint of step 0 with the parameters and the config that describes them;
training starts from it through `init_from`.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import base
from lapa_jax import config as configs
from lapa_jax import runs, stages
from lapa_jax.interop import dinov2, laq_pt, vqgan
from lapa_jax.models.module import Tree, flatten
from lapa_jax.training.checkpoint import Checkpoints
from lapa_jax.training.state import TrainState


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa import",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: lapa import --format laq_pt --source laq_openx.pt --image_size 256 "
        "--code_length 4 --out runs/laq_openx\n"
        "         lapa import --format dinov2 --source model.safetensors --out runs/dinov2\n"
        "         lapa import --format vqgan_pickle --source vqgan --out runs/vqgan",
    )
    parser.add_argument(
        "--format",
        required=True,
        choices=sorted(FORMATS),
        help="laq_pt: the original's quantizer; dinov2: a teacher, from Hugging Face's "
        "safetensors; vqgan_pickle: LWM's image tokenizer",
    )
    parser.add_argument("--source", required=True, help="the file to read")
    parser.add_argument("--out", required=True, help="a new run directory")
    parser.add_argument("--image_size", type=int, help="pixels a side (laq_pt)")
    parser.add_argument("--code_length", type=int, help="checked against the shapes (laq_pt)")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} is not empty: imports go to a new directory")
    config, params = FORMATS[args.format](args)
    write_run(out, config, params, source=args.source, source_format=args.format)
    count = sum(x.size for x in flatten(params).values())
    sys.stdout.write(f"{args.source} -> {out}: {len(flatten(params))} tensors, {count} values\n")
    return 0


def _laq_pt(args: argparse.Namespace) -> tuple[ConfigDict, Tree]:
    if not args.image_size:
        raise ValueError("--format laq_pt needs --image_size: the shapes do not tell it")
    tensors = laq_pt.load_file(args.source)
    model, params = laq_pt.read(tensors, args.image_size, args.code_length)
    config = base.stage_defaults("quantizer")
    config.data.image_size = model.image_size
    config.compute_dtype = model.compute_dtype
    settings = dataclasses.asdict(model)
    for key in ("image_size", "num_frames", "compute_dtype"):  # of the data and of the stage
        del settings[key]
    config.model = ConfigDict(settings)
    return config.lock(), params


def _dinov2(args: argparse.Namespace) -> tuple[ConfigDict, Tree]:
    _no_quantizer_flags(args)
    encoder, params = dinov2.read(dinov2.load_file(args.source))
    config = base.stage_defaults("teacher")
    config.data.image_size = tuple(side * encoder.patch_size for side in encoder.grid)
    config.compute_dtype = "float32"
    config.model = base.teacher_model()
    config.model.update(encoder.architecture())
    config.model.decoder_depth, config.model.unroll = 0, 1
    return config.lock(), {"encoder": params}


def _vqgan_pickle(args: argparse.Namespace) -> tuple[ConfigDict, Tree]:
    _no_quantizer_flags(args)
    model, params = vqgan.read(vqgan.load_file(args.source))
    config = base.stage_defaults("image_tokenizer")
    config.compute_dtype = "float32"
    config.model = ConfigDict(model.architecture())
    return config.lock(), params


def _no_quantizer_flags(args: argparse.Namespace) -> None:
    if args.image_size or args.code_length:
        raise ValueError("--image_size and --code_length are of --format laq_pt")


FORMATS = {"dinov2": _dinov2, "laq_pt": _laq_pt, "vqgan_pickle": _vqgan_pickle}


def write_run(
    out: Path, config: ConfigDict, params: Tree, *, source: str, source_format: str
) -> None:
    """Writes a run directory with a checkpoint of step 0, without optimizer state."""
    stage = stages.build(config, {})
    variables = jax.jit(stage.init)(jax.random.key(config.seed))[1]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={},
        ema=None,
        variables=variables,
        seed=jnp.asarray(config.seed, jnp.uint32),
    )
    runs.claim(out, config)
    meta = {
        "config": configs.to_dict(config),
        "data": {},
        "assets": {},
        "provenance": {
            "code_version": runs.code_version(),
            "imported": {"format": source_format, "source": Path(source).name},
        },
    }
    with Checkpoints(out / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(0, state, meta)
