"""AdaWorld's latent action model (lam.ckpt, its trainer's) → a quantizer without codes."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax.interop import exact, tensor_files
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Constant, Rule, Shapes, linear, unwrapped
from lapa_jax.interop.tensor_files import given_file
from lapa_jax.latent.exact.adaworld import AdaWorldConfig
from lapa_jax.latent.exact.blocks import ROTARY_THETA

ORIGINAL = "AdaWorld's latent action model"
ANCHOR = "action_prompt"  # of every one
ROUNDED = 1e-3  # of a number in 16 bits
_FREQUENCIES = "encoder.transformer_blocks.{i}.temporal_attn.rotary_embedding.freqs"


@dataclasses.dataclass(frozen=True)
class Options:
    """Of `read`.

    image_size: pixels a side
    """

    image_size: int = 256


def read(source: Path, options: Options) -> Imported:
    """`lapa import --format adaworld`."""
    tensors = tensor_files.tensors(given_file(source, ORIGINAL))
    return from_tensors(tensors, options.image_size).imported()


def from_tensors(
    tensors: Mapping[str, Any], image_size: int | tuple[int, int], **settings: Any
) -> exact.Mapped:
    """Of a state dict, also of one within what a trainer wrote. Raises ValueError."""
    tensors = unwrapped(tensors, ANCHOR, ORIGINAL)
    settings = infer(tensors) | settings
    check_frequencies(tensors, settings["encoder_depth"])
    return exact.mapped("adaworld", image_size, tensors, rules, **settings)


def infer(tensors: Mapping[str, Any]) -> dict[str, int]:
    """The settings that the shapes of a state dict tell."""
    shape = Shapes(tensors, ORIGINAL)
    pixels = shape(ANCHOR, 1, 1, 1, None)[-1]
    patch_size = math.isqrt(pixels // 3)
    if 3 * patch_size**2 != pixels:
        raise ValueError(f"tensor {ANCHOR!r} holds {pixels} values, which are no square RGB patch")
    dim, width = shape("action_up.weight", None, None)
    head_dim = 2 * shape(_FREQUENCIES.format(i=0), None)[0]
    if dim % head_dim:
        raise ValueError(f"a width of {dim} is no multiple of the head width {head_dim}")
    blocks = "{part}.transformer_blocks.{{i}}."
    return {
        "patch_size": patch_size,
        "dim": dim,
        "heads": dim // head_dim,
        "encoder_depth": shape.count(blocks.format(part="encoder")),
        "decoder_depth": shape.count(blocks.format(part="decoder")),
        "quant_dim": width,
    }


def check_frequencies(tensors: Mapping[str, Any], depth: int) -> None:
    """Raises ValueError where the frozen frequencies of the rotary embedding are not those that are
    computed here."""
    for i in range(depth):
        found = np.asarray(tensors[_FREQUENCIES.format(i=i)]).astype(np.float32)
        expected = ROTARY_THETA ** -(np.arange(len(found)) / len(found))
        if not np.allclose(found, expected, rtol=ROUNDED):
            raise ValueError(
                f"tensor {_FREQUENCIES.format(i=i)!r} does not hold 10000^(-2i/{2 * len(found)}): "
                "of another version"
            )


def rules(config: AdaWorldConfig) -> list[Rule | Constant]:
    """In the order of their state dict."""
    frequencies = np.zeros(config.dim // config.heads // 2, np.float32)
    return [
        Rule(ANCHOR, "prompt", "1 1 n p -> n p"),
        *exact.transformer("encoder", "encoder", config.encoder_depth, time=True, out=True),
        Constant(_FREQUENCIES, frequencies, config.encoder_depth, any_value=True),
        *linear("fc", "moments"),
        *linear("patch_up", "patch_up"),
        *linear("action_up", "action_up"),
        *exact.transformer("decoder", "decoder", config.decoder_depth, out=True),
    ]
