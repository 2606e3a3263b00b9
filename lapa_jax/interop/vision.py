"""What the formats of vision transformers share: rules, and the encoder as a run.

Axis names of the patterns: d width, k heads, c head width, rgb i j a patch.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from data_pipelines.storage import given_folder
from lapa_jax.interop import tensor_files
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, functional, linear, norm, to_ours
from lapa_jax.latent.teacher import MaskedAutoencoderConfig
from lapa_jax.nn.module import Tree
from lapa_jax.nn.registry import default_settings
from lapa_jax.nn.vit import ViT, ViTConfig
from lapa_jax.settings import stage_settings

PATCHES = "d rgb i j -> (rgb i j) d"  # a convolution over patches


def teacher(encoder: ViTConfig, params: Tree) -> Imported:
    """A run of stage "teacher", which has no decoder."""
    config = stage_settings("teacher")
    config.data.image_size = tuple(side * encoder.patch_size for side in encoder.grid)
    config.compute_dtype = "float32"
    config.model = default_settings(MaskedAutoencoderConfig)
    config.model.update(encoder.architecture())
    config.model.decoder_depth, config.model.unroll = 0, 1
    return Imported(config.lock(), {"encoder": params})


def parameters(
    tensors: Mapping[str, np.ndarray], config: ViTConfig, rules: Sequence[Rule]
) -> tuple[ViTConfig, Tree]:
    """The config, and the encoder's parameters of a state dict. Raises ValueError."""
    expected = functional(ViT, config, dtype=jnp.float32).abstract()[0]
    return config, to_ours(tensors, rules, sizes(config), expected)


def head_dim(dim: int, heads: int) -> int:
    """Width of a head. Raises ValueError for heads that do not divide it."""
    if dim % heads:
        raise ValueError(f"a width of {dim} is no multiple of num_attention_heads={heads}")
    return dim // heads


def sizes(config: ViTConfig) -> dict[str, int]:
    """Of the axes that the patterns split."""
    p = config.patch_size
    return {"k": config.heads, "c": config.head_dim, "two": 2, "rgb": 3, "i": p, "j": p}


def attention(theirs: str, names: str, ours: str, layers: int, heads: str = "") -> list[Rule]:
    """Of a `SelfAttention`; `names`: of its four maps after `theirs`, the last the output's;
    `heads`: before the names of the sizes of its heads."""
    (*inputs, out), k, c = names.split(), f"{heads}k", f"{heads}c"
    found = []
    for name, part in zip(inputs, "qkv", strict=True):
        one = theirs + name, f"{ours}/attention/{part}"
        found += linear(*one, f"({k} {c}) d -> d {k} {c}", f"({k} {c}) -> {k} {c}", layers)
    out = theirs + out, f"{ours}/attention/out", f"d ({k} {c}) -> {k} {c} d"
    return found + linear(*out, layers=layers)


def layers(theirs: str, ours: str, count: int, heads: str = "") -> list[Rule]:
    """Of `Block`s as Hugging Face's ViT names them; `theirs`: before the number of a layer."""
    t, o = f"{theirs}.{{i}}", f"{ours}/layers"
    names = "attention.query attention.key attention.value output.dense"
    return [
        *attention(f"{t}.attention.", names, o, count, heads),
        *linear(f"{t}.intermediate.dense", f"{o}/mlp/wi", layers=count),
        *linear(f"{t}.output.dense", f"{o}/mlp/wo", layers=count),
        *norm(f"{t}.layernorm_before", f"{o}/attention_norm", count),
        *norm(f"{t}.layernorm_after", f"{o}/mlp_norm", count),
    ]


def square(name: str, positions: int) -> tuple[int, int]:
    """The patch grid of so many positions, of the tensor of that name."""
    side = math.isqrt(positions)
    if side < 1 or side**2 != positions:
        raise ValueError(
            f"tensor {name!r} has {positions} positions of patches: not those of a square"
        )
    return side, side


def given_config(source: Path, kind: str) -> dict[str, Any]:
    """config.json of a directory in Hugging Face's form, of a model of that kind: the heads of an
    attention are told nowhere else."""
    given_folder(source, f"the folder of a {kind}, with config.json and its weights,")
    path = source / "config.json"
    found = tensor_files.json_object(path, f"the config of a {kind}")
    if found.get("model_type") == kind.removesuffix("_vision_model"):
        found = found.get("vision_config", found)
    elif found.get("model_type") != kind:
        raise ValueError(f"{path}: model_type={found.get('model_type')!r} must be {kind!r}")
    if not isinstance(found, dict):
        raise ValueError(f"{path}: vision_config={found!r} must be an object")
    return found


def number(
    settings: Mapping[str, Any], key: str, kind: type, path: Path, default: Any = None
) -> Any:
    """A number above 0, or a flag, of a file of settings."""
    value = settings.get(key, default)
    if kind is float and type(value) in (int, str):  # YAML takes 1e-12 for a text
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) is not kind or (kind is not bool and not 0 < value < 1e9):
        what = "true or false" if kind is bool else f"a number above 0 ({kind.__name__})"
        raise ValueError(f"{path}: {key}={value!r} must be {what}")
    return value


def weight(settings: Mapping[str, Any], key: str, path: Path, default: float) -> float:
    """A weight of a loss: 0 or more."""
    if type(settings.get(key)) in (int, float) and settings[key] == 0:
        return 0.0
    return number(settings, key, float, path, default)


def expect(settings: Mapping[str, Any], path: Path, **wanted: Any) -> None:
    """Raises ValueError where a file of settings says something else; what it does not say is not
    asked."""
    for key, value in wanted.items():
        if (found := settings.get(key, value)) != value:
            raise ValueError(f"{path}: {key}={found!r} is not read here: {value!r} is")
