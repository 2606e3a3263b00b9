"""LWM's VQGAN, a pickle of Flax's parameters ↔ our image tokenizer."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from lapa_jax.interop.array_pickle import load_arrays
from lapa_jax.interop.mapping import Rule, to_ours, to_theirs
from lapa_jax.nn.module import Functional, Tree
from lapa_jax.policy.image_tokenizer import ImageTokenizer, ImageTokenizerConfig

__all__ = ["infer_config", "load_file", "read", "rules", "write"]

load_file = load_arrays


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


def read(tensors: Mapping[str, np.ndarray]) -> tuple[ImageTokenizerConfig, Tree]:
    """Config and parameters of {slash-separated path: array}. Raises ValueError."""
    config = infer_config(tensors)
    model = Functional(lambda rngs: ImageTokenizer(config, dtype=jnp.float32, rngs=rngs))
    return config, to_ours(tensors, rules(config), {}, model.abstract()[0])


def write(config: ImageTokenizerConfig, params: Tree) -> dict[str, np.ndarray]:
    """The way back."""
    return to_theirs(params, rules(config), {})


def infer_config(tensors: Mapping[str, np.ndarray]) -> ImageTokenizerConfig:
    """The config that the shapes tell."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(f"tensor {name!r} is missing: not a VQGAN of LWM")
        if len(tensors[name].shape) != dimensions:
            raise ValueError(
                f"tensor {name!r} of shape {tensors[name].shape} should have {dimensions} "
                "dimensions"
            )
        return tuple(tensors[name].shape)

    dim = shape("encoder/Conv_0/kernel", 4)[3]
    level = "encoder/DownsamplingBlock_{}/ResnetBlock_{}/Conv_0/kernel"
    widths = [
        shape(level.format(i, 0), 4)[3]
        for i in range(_count(tensors, r"encoder/DownsamplingBlock"))
    ]
    if dim < 1 or any(width % dim for width in widths):
        raise ValueError(
            f"the levels of the encoder are {widths} wide: not multiples of its first "
            f"convolution's {dim}"
        )
    codebook_size, code_dim = shape("quantize/embeddings", 2)
    return ImageTokenizerConfig(
        dim=dim,
        multipliers=tuple(width // dim for width in widths),
        blocks=_count(tensors, r"encoder/DownsamplingBlock_0/ResnetBlock"),
        latent_dim=shape("encoder/Conv_1/kernel", 4)[3],
        code_dim=code_dim,
        codebook_size=codebook_size,
    )


def _count(tensors: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many modules `prefix`_0, `prefix`_1, ... there are."""
    numbers = {int(m[1]) for name in tensors if (m := re.match(rf"{prefix}_(\d+)/", name))}
    if numbers != set(range(len(numbers))) or not numbers:
        raise ValueError(f"modules {prefix}_* are numbered {sorted(numbers)}: not 0, 1, ...")
    return len(numbers)
