"""LWM's VQGAN, a pickle of Flax's parameters ↔ our image tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.interop.array_pickle import load_arrays
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import (
    Rule,
    Shapes,
    arrays,
    functional,
    to_ours,
    to_theirs,
    unwrapped,
)
from lapa_jax.interop.tensor_files import given_file
from lapa_jax.nn.module import Tree
from lapa_jax.policy.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from lapa_jax.settings import stage_settings

ORIGINAL = "a VQGAN of LWM"
ANCHOR = "encoder/Conv_0/kernel"  # of every one


def read(source: Path, options: Any) -> Imported:
    """`lapa import --format vqgan_pickle`."""
    model, params = from_tensors(
        load_arrays(given_file(source, "a pickle of LWM's image tokenizer"))
    )
    config = stage_settings("image_tokenizer")
    config.compute_dtype = "float32"
    config.model = ConfigDict({"architecture": "vqgan", **model.settings()})
    return Imported(config.lock(), params)


def rules(config: ImageTokenizerConfig) -> list[Rule]:
    """Both sides hold the same arrays under other names."""
    found = [
        *_conv("quant_conv", "encoder/to_code"),
        *_conv("post_quant_conv", "decoder/from_code"),
        Rule("quantize/embeddings", "encoder/codebook"),
    ]
    last = len(config.widths) - 1
    for side, level, resize, order, extra in (
        ("encoder", "DownsamplingBlock", "Downsample", config.widths, 0),
        ("decoder", "UpsamplingBlock", "Upsample", config.widths[::-1], 1),
    ):
        # The blocks before the levels are as wide as what comes first.
        inputs = (config.dim if side == "encoder" else order[0], *order)
        found += _conv(f"{side}/Conv_0", f"{side}/stem")
        found += _conv(f"{side}/Conv_1", f"{side}/out")
        found += _norm(f"{side}/GroupNorm_0", f"{side}/norm")
        for j in range(2):
            found += _block(f"{side}/MidBlock_0/ResnetBlock_{j}", f"{side}/middle/blocks/{j}")
        for i in range(last + 1):
            theirs, ours = f"{side}/{level}_{i}", f"{side}/levels/{i}"
            for j in range(config.blocks + extra):
                changes = j == 0 and inputs[i] != order[i]
                found += _block(f"{theirs}/ResnetBlock_{j}", f"{ours}/blocks/{j}", changes)
            if i < last:
                found += _conv(f"{theirs}/{resize}_0/Conv_0", f"{ours}/resize")
    return found


def _conv(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}/{x}", f"{ours}/{x}") for x in ("kernel", "bias")]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}/{x}", f"{ours}/{x}") for x in ("scale", "bias")]


def _block(theirs: str, ours: str, changes: bool = False) -> list[Rule]:
    found = []
    for i in range(2):
        found += _norm(f"{theirs}/GroupNorm_{i}", f"{ours}/norm_{i}")
        found += _conv(f"{theirs}/Conv_{i}", f"{ours}/conv_{i}")
    return found + (_conv(f"{theirs}/Conv_2", f"{ours}/shortcut") if changes else [])


def from_tensors(tensors: Mapping[str, np.ndarray]) -> tuple[ImageTokenizerConfig, Tree]:
    """Config and parameters of {slash-separated path: array}. Raises ValueError."""
    tensors = unwrapped(tensors, ANCHOR, ORIGINAL, sep="/")
    config = infer_config(tensors)
    expected = functional(ImageTokenizer, config, dtype=jnp.float32).abstract()[0]
    return config, to_ours(tensors, rules(config), {}, expected)


def to_tensors(config: ImageTokenizerConfig, params: Tree) -> dict[str, np.ndarray]:
    """The way back."""
    return arrays(to_theirs(params, rules(config), {}))


def infer_config(tensors: Mapping[str, np.ndarray]) -> ImageTokenizerConfig:
    """The config that the shapes tell."""
    shape = Shapes(tensors, ORIGINAL)
    dim = shape(ANCHOR, *[None] * 4)[3]
    widths = [
        shape(f"encoder/DownsamplingBlock_{i}/ResnetBlock_0/Conv_0/kernel", *[None] * 4)[3]
        for i in range(shape.count("encoder/DownsamplingBlock_{i}/"))
    ]
    if dim < 1 or any(width % dim for width in widths):
        raise ValueError(
            f"the levels of the encoder are {widths} wide: not multiples of its first "
            f"convolution's {dim}"
        )
    codebook_size, code_dim = shape("quantize/embeddings", None, None)
    return ImageTokenizerConfig(
        dim=dim,
        multipliers=tuple(width // dim for width in widths),
        blocks=shape.count("encoder/DownsamplingBlock_0/ResnetBlock_{i}/"),
        latent_dim=shape("encoder/Conv_1/kernel", *[None] * 4)[3],
        code_dim=code_dim,
        codebook_size=codebook_size,
    )
