"""`lapa import`: foreign weights → a run directory that every other verb reads.

The directory holds a checkpoint of step 0 with the parameters and the config that describes them;
training starts from it through `init_from`.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.interop import (
    dinov2,
    laq_pt,
    laq_torch,
    llama,
    msgpack_stream,
    plain,
    torch_code,
    torch_policy,
    vqgan,
)
from lapa_jax.interop.imported import Imported, write_run
from lapa_jax.interop.mapping import Rule, Rules, to_ours
from lapa_jax.interop.safetensors_files import SafetensorsDirectory
from lapa_jax.latent.teacher import MaskedAutoencoderConfig
from lapa_jax.nn.layers import DTYPES
from lapa_jax.nn.module import Tree, flatten, unflatten
from lapa_jax.nn.registry import default_settings
from lapa_jax.parallel import sharding
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.policy import heads
from lapa_jax.policy.codecs import Bins
from lapa_jax.policy.front_end import front_end_settings
from lapa_jax.policy.heads.tokens import CODEC
from lapa_jax.policy.modality import MODALITIES
from lapa_jax.settings import stage_settings
from lapa_jax.stages.policy import TOKENIZER, policy_settings


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa import",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: lapa import --format laq_pt --source laq_openx.pt --image_size 256 "
        "--code_length 4 --out runs/laq_openx\n"
        "         lapa import --format dinov2 --source model.safetensors --out runs/dinov2\n"
        "         lapa import --format vqgan_pickle --source vqgan --out runs/vqgan\n"
        "         lapa import --format lapa_stream --source params --size 7b "
        "--tokenizer tokenizer.model --out runs/lapa_7b",
    )
    parser.add_argument("--format", required=True, choices=sorted(FORMATS), help=_formats())
    parser.add_argument("--source", required=True, help="the file or directory to read")
    parser.add_argument("--out", required=True, help="a new run directory")
    for flag, settings in FLAGS.items():
        formats = [name for name, one in FORMATS.items() if flag in one.flags]
        settings = settings | {"help": f"{settings['help']} ({', '.join(formats)})"}
        parser.add_argument(f"--{flag}", **settings)
    args = parser.parse_args(argv)
    chosen = FORMATS[args.format]
    foreign = [f for f in FLAGS if getattr(args, f) is not None and f not in chosen.flags]
    if foreign:
        raise ValueError(f"--format {args.format} does not take --{foreign[0]}")
    out = Path(args.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} is not empty: imports go to a new directory")
    found = chosen.read(args)
    write_run(out, found, source=args.source, source_format=args.format)
    flat = flatten(found.params)
    count = sum(x.size for x in flat.values())
    sys.stdout.write(f"{args.source} -> {out}: {len(flat)} tensors, {count} values\n")
    return 0


FLAGS: dict[str, dict[str, Any]] = {
    "image_size": {"type": int, "help": "pixels a side"},
    "code_length": {"type": int, "help": "codes of a latent action"},
    "size": {"help": "the name of the model's shape, such as 7b"},
    "model_json": {"help": "a file with the model's shape, in the original's configuration keys"},
    "tokenizer": {"help": "the SentencePiece .model that the weights belong to"},
    "action_bins": {"help": "the original's csv of bin edges: the policy gives actions"},
    "compute_dtype": {"choices": sorted(DTYPES), "help": "default: bfloat16"},
}


def _laq_pt(args: argparse.Namespace) -> Imported:
    if not args.image_size:
        raise ValueError("--format laq_pt needs --image_size: the shapes do not tell it")
    tensors = laq_pt.load_file(args.source)
    model, params = laq_pt.read(tensors, args.image_size, args.code_length)
    config = stage_settings("quantizer")
    config.data.image_size = model.image_size
    config.compute_dtype = model.compute_dtype
    settings = dataclasses.asdict(model)
    for key in ("image_size", "num_frames", "compute_dtype"):  # of the data and of the stage
        del settings[key]
    config.model = ConfigDict(settings)
    return Imported(config.lock(), params)


def _dinov2(args: argparse.Namespace) -> Imported:
    encoder, params = dinov2.read(dinov2.load_file(args.source))
    config = stage_settings("teacher")
    config.data.image_size = tuple(side * encoder.patch_size for side in encoder.grid)
    config.compute_dtype = "float32"
    config.model = default_settings(MaskedAutoencoderConfig)
    config.model.update(encoder.architecture())
    config.model.decoder_depth, config.model.unroll = 0, 1
    return Imported(config.lock(), {"encoder": params})


def _vqgan_pickle(args: argparse.Namespace) -> Imported:
    model, params = vqgan.read(vqgan.load_file(args.source))
    config = stage_settings("image_tokenizer")
    config.compute_dtype = "float32"
    config.model = ConfigDict(model.architecture())
    return Imported(config.lock(), params)


def _lapa_stream(args: argparse.Namespace) -> Imported:
    tensors = msgpack_stream.read(args.source)
    shape = llama.original_shape(args.size, args.model_json)
    told = llama.original_vocabularies(tensors)
    for name, size in told.items():
        if size and shape.get(name, size) != size:
            raise ValueError(f"{args.model_json} gives {name}={shape[name]}, the file holds {size}")
    settings = shape | told | {"legacy": True, "text_length": 128, "sequence_length": 384}
    present = [name for name in MODALITIES if told[f"{name}_vocab"]]
    stacked = llama.is_stacked(tensors)
    rules = llama.original_rules(shape["depth"], present, stacked=stacked)
    return _policy(args, settings, tensors, rules)


def _hf_llama(args: argparse.Namespace) -> Imported:
    with open(Path(args.source) / "config.json") as file:
        settings = llama.hf_shape(json.load(file))
    return _policy(
        args,
        settings | {"image_vocab": 0},
        SafetensorsDirectory(args.source),
        llama.hf_rules(settings["depth"]),
    )


def _policy(
    args: argparse.Namespace, settings: dict[str, Any], tensors: Mapping[str, Any], rules: Rules
) -> Imported:
    """A policy whose images are given as tokens; tensor by tensor to where it is kept."""
    if not args.tokenizer:
        raise ValueError(f"--format {args.format} needs --tokenizer: it belongs to the weights")
    assets = {TOKENIZER: Path(args.tokenizer).read_bytes()}
    if args.action_bins:
        text = Path(args.action_bins).read_text()
        assets[CODEC] = Bins.from_csv(text).to_json()
    config = stage_settings("action_finetuning" if args.action_bins else "latent_pretraining")
    config.data.image_size = (256, 256)
    config.compute_dtype = args.compute_dtype or "bfloat16"
    config.model = policy_settings(front_end=front_end_settings("cached_tokens"))
    if not args.action_bins:
        config.code_length = args.code_length or 4
    sizes = {modality: settings.pop(f"{modality}_vocab", 0) for modality in ("latent", "action")}
    config.model.targets = heads.token_settings(**sizes)
    for modality, head in config.model.targets.items():  # one of them is what the policy predicts
        head.loss_weight = float((modality == "action") == bool(args.action_bins))
    config.model.update(settings)
    config.model.param_dtype = str(next(iter(tensors.values())).dtype)
    config.model.unroll = 1
    config.lock()
    stage = stages.build(config, assets)
    mesh = make_mesh({"data": 1, "fsdp": -1, "seq": 1, "tensor": 1}, jax.local_devices())
    places = flatten(
        sharding.tree_shardings(stage.axes(), stage.model.abstract()[0], mesh, "fsdp"),
        is_leaf=lambda x: isinstance(x, jax.sharding.Sharding),
    )

    def place(path: str, array: np.ndarray) -> jax.Array:
        placed = jax.make_array_from_callback(array.shape, places[path], lambda index: array[index])
        return placed.block_until_ready()  # else several tensors are on this host twice

    sizes = llama.sizes(config.model.heads, config.model.head_dim)
    params = to_ours(tensors, rules, sizes, stage.model.abstract()[0], place)
    return Imported(config, params, assets)


def _safetensors(args: argparse.Namespace) -> Imported:
    config, assets = plain.read_settings(args.source)
    config = configs.from_dict(config)
    abstract = stages.build(config, assets).model.abstract()
    return Imported(config, assets=assets, **plain.read(args.source, *abstract))


def _hf(args: argparse.Namespace) -> Imported:
    source = Path(args.source)
    config = _run_config(source)
    names = [n for n in (TOKENIZER, CODEC) if (source / n).exists()]
    assets = {name: (source / name).read_bytes() for name in names}
    stage = stages.build(config, assets)
    # A tokenizer beside a policy of cached tokens is of another run.
    beside = None if stage.from_pixels else f"{torch_policy.IMAGE_TOKENIZER}."
    theirs = SafetensorsDirectory(source, without=beside)
    rules = torch_policy.rules(stage)
    sizes = llama.sizes(config.model.heads, config.model.head_dim)
    return Imported(config, assets=assets, **_from_torch(theirs, rules, sizes, stage))


def _laq_torch(args: argparse.Namespace) -> Imported:
    source = Path(args.source)
    config = _run_config(source)
    stage = stages.build(config, {})
    model = stage.model_config
    rules, sizes = laq_torch.rules(model), laq_torch.sizes(model)
    return Imported(config, **_from_torch(SafetensorsDirectory(source), rules, sizes, stage))


def _run_config(source: Path) -> ConfigDict:
    path = source / torch_code.RUN_CONFIG
    if not path.exists():
        raise ValueError(f"{path} is missing: {source} is not from lapa export")
    return configs.from_dict(json.loads(path.read_text()))


def _from_torch(
    theirs: Mapping[str, Any], rules: list[Rule], sizes: Mapping[str, int], stage: stages.Stage
) -> dict[str, Tree]:
    """{params, variables} of a directory that `lapa export` made."""
    params, variables = (flatten(tree) for tree in stage.model.abstract())
    expected = unflatten(params | variables)
    found = flatten(to_ours(theirs, rules, sizes, expected))
    return {
        "params": unflatten({path: found[path] for path in params}),
        "variables": unflatten({path: found[path] for path in variables}),
    }


class Format(NamedTuple):
    read: Callable[[argparse.Namespace], Imported]
    flags: tuple[str, ...]
    what: str


_POLICY_FLAGS = ("tokenizer", "compute_dtype", "code_length", "action_bins")
FORMATS = {
    "dinov2": Format(_dinov2, (), "a teacher, from Hugging Face's safetensors"),
    "hf": Format(_hf, (), "a policy, from lapa export --format hf"),
    "hf_llama": Format(
        _hf_llama, ("tokenizer", "compute_dtype"), "a LLaMA from a Hugging Face directory"
    ),
    "lapa_stream": Format(
        _lapa_stream,
        ("size", "model_json", *_POLICY_FLAGS),
        "the original's policy, streaming msgpack",
    ),
    "laq_torch": Format(_laq_torch, (), "a quantizer, from lapa export --format laq_torch"),
    "laq_pt": Format(_laq_pt, ("image_size", "code_length"), "the original's quantizer"),
    "safetensors": Format(_safetensors, (), "any run, from lapa export --format safetensors"),
    "vqgan_pickle": Format(_vqgan_pickle, (), "LWM's image tokenizer"),
}


def _formats() -> str:
    return "; ".join(f"{name}: {one.what}" for name, one in FORMATS.items())
