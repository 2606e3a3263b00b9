"""villa-X's latent action model: a directory with model_config.json and model.safetensors ↔ a
quantizer of architecture "villax".

Axis names of the patterns: d width, k heads, c head width, f feed-forward width, rgb i j a patch, l
code slots, q latent width.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.storage import given_folder
from lapa_jax.interop import exact, tensor_files, vision
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, Shapes, linear, norm
from lapa_jax.latent.exact.villax import VillaXConfig, places, waves
from lapa_jax.nn.registry import default_settings, typed_config

ORIGINAL = "villa-X's latent action model"
CONFIG = "model_config.json"
ROUNDED = 5e-3  # of numbers up to 1 in bfloat16
# Whose values change nothing here: augmentation, which attention is used, what others tell.
DEFAULTS = {"map_heads": 24}  # that of the code, where a config lacks one
_UNUSED = re.compile("augment_.*|random_crop_.*|use_xformers|embed_tokens|grid_size")
# Ours by theirs, of what is one number in both.
_NUMBERS = {
    "patch_size": "patch_size",
    "d_t": "max_frames",
    "encoder_depth": "depth",
    "encoder_embed_dim": "dim",
    "encoder_n_heads": "heads",
    "st_use_qk_norm": "qk_norm",
    "map_heads": "pool_heads",
    "action_latent_dim": "quant_dim",
    "n_codes": "codebook_size",
    "num_learned_tokens": "code_length",
    "decoder_depth": "decoder_depth",
    "decoder_embed_dim": "decoder_dim",
    "decoder_n_heads": "decoder_heads",
    "use_qk_norm": "decoder_qk_norm",
}


def read(source: Path, options: Any) -> Imported:
    """`lapa import --format villax`."""
    return of_folder(source).imported()


def of_folder(source: Path) -> exact.Mapped:
    """Of its folder, as it is given away. Raises ValueError."""
    given_folder(source, f"{ORIGINAL}, a folder with {CONFIG} and its weights,")
    side, settings = infer(source / CONFIG)
    filled_in = {"image_size": (side, side), "num_frames": 2, "compute_dtype": "float32"}
    whole = default_settings(VillaXConfig, **settings, **filled_in)
    tensors = without_tables(
        tensor_files.tensors(source), typed_config(VillaXConfig, whole, "model")
    )
    return exact.mapped("villax", side, tensors, rules, sizes, **settings)


def infer(path: Path) -> tuple[int, dict[str, Any]]:
    """(pixels a side, settings) of its model_config.json."""
    whole = tensor_files.json_object(path, f"the config of {ORIGINAL}")
    vision.expect(whole, path, architecture="IgorModel")
    found = whole.get("config")
    if not isinstance(found, dict):
        raise ValueError(f"{path}: config={found!r} must be an object")
    vision.expect(found, path, in_channels=3)
    known = {*_NUMBERS, "resolution", "mlp_ratio", "in_channels"}
    if unknown := [key for key in found if key not in known and not _UNUSED.fullmatch(key)]:
        raise ValueError(f"{path}: unknown keys {unknown}: the file is of another version")
    settings = {}
    for theirs, ours in _NUMBERS.items():
        kind, default = (bool, None) if "qk_norm" in ours else (int, DEFAULTS.get(theirs))
        settings[ours] = vision.number(found, theirs, kind, path, default)
    ratio = vision.number(found, "mlp_ratio", float, path)
    for ours in ("", "decoder_"):
        settings[f"{ours}mlp_dim"] = int(settings[f"{ours}dim"] * ratio)
    return vision.number(found, "resolution", int, path), settings


def without_tables(tensors: Mapping[str, Any], config: VillaXConfig) -> dict[str, Any]:
    """All but the tables of positions, which must be those that the code makes: they are not
    trained. Raises ValueError."""
    shape, names = Shapes(tensors, ORIGINAL), []
    for name, count, dim, make in tables(config):
        shape(name, 1, count, dim)
        found = np.asarray(tensors[name])[0].astype(np.float32)
        if not np.allclose(found, make(), atol=ROUNDED):
            raise ValueError(
                f"tensor {name!r} does not hold the waves by column and row, or by frame, that the "
                "code makes: it is of another version"
            )
        names.append(name)
    return {name: x for name, x in tensors.items() if name not in names}


def tables(config: VillaXConfig) -> list[tuple[str, int, int, Callable[[], np.ndarray]]]:
    """Of positions: name, how many, width, and what makes one (count, width)."""
    wide, count = (config.dim, config.decoder_dim), math.prod(config.grid)
    frames = config.max_frames
    return [
        ("encoder.pe_spatial", count, wide[0], lambda: places(config.grid, wide[0])),
        ("encoder.pe_temporal", frames, wide[0], lambda: waves(np.arange(frames), wide[0])),
        ("decoder.pe", count, wide[1], lambda: places(config.grid, wide[1])),
    ]


def rules(config: VillaXConfig) -> list[Rule]:
    """Of all but the tables of positions."""
    found = [
        *linear("encoder.embed.proj", "patches", vision.PATCHES),
        Rule("encoder.norm.g", "norm/scale"),
        Rule("encoder.map_block.latents", "pool/queries"),
        *linear("encoder.map_block.pre_projection", "pool/before"),
        *_cross("encoder.map_block.attn", "pool/attention", "pool_", 0),
        Rule("encoder.map_block.attn_norm.g", "pool/attention_norm/scale"),
        Rule("encoder.map_block.mlp_norm.g", "pool/mlp_norm/scale"),
        *_gated("encoder.map_block.mlp.0", "encoder.map_block.mlp.1", "pool/mlp"),
        *linear("encoder.map_block.final_proj.0", "pool/out"),
        Rule("vq.embedding.weight", "codebook/codes"),
        *linear("decoder.embed.proj", "decoder_patches", vision.PATCHES),
        *linear("decoder.action_embed", "action", "d (l q) -> l q d"),
        Rule("decoder.norm.g", "decoder_norm/scale"),
        *linear("decoder.pred_head", "pixels"),
    ]
    t, o, n = "encoder.layers.{i}", "encoder/layers", config.depth
    found.append(Rule(f"{t}.scale_shift_table", f"{o}/table", layers=n))
    for theirs, ours in (("attn", "spatial"), ("attn_temp", "temporal")):
        packed = "(three k c) d -> d three k c", "(three k c) -> three k c"
        found += linear(f"{t}.{theirs}.qkv", f"{o}/{ours}/qkv", *packed, n)
        found += _out(f"{t}.{theirs}.proj", f"{o}/{ours}/out", n)
        if config.qk_norm:
            for x in "qk":
                found += norm(f"{t}.{theirs}.{x}_norm", f"{o}/{ours}/{x}_norm", n)
    found += linear(f"{t}.mlp.fc1", f"{o}/wi", layers=n)
    found += linear(f"{t}.mlp.fc2", f"{o}/wo", layers=n)

    t, o, n = "decoder.layers.{i}", "decoder/layers", config.decoder_depth
    found += _cross(f"{t}.attn", f"{o}/attention", "decoder_", n)
    if config.decoder_qk_norm:
        for x in "qk":
            found += norm(f"{t}.attn.{x}_layernorm", f"{o}/attention/{x}_norm", n)
    for theirs, ours in (("attn", "attention"), ("mlp", "mlp")):
        found.append(Rule(f"{t}.pre_norm_{theirs}.g", f"{o}/{ours}_norm/scale", layers=n))
        found.append(Rule(f"{t}.layer_scale_{theirs}.gamma", f"{o}/{ours}_scale", layers=n))
    return found + _gated(f"{t}.mlp.0", f"{t}.mlp.2", f"{o}/mlp", n)


def _out(theirs: str, ours: str, layers: int) -> list[Rule]:
    return linear(theirs, ours, "d (k c) -> k c d", layers=layers)


def _cross(theirs: str, ours: str, heads: str, layers: int) -> list[Rule]:
    """`heads`: before the names of the sizes of its heads."""
    k, c = f"{heads}k", f"{heads}c"
    q = f"({k} {c}) d -> d {k} {c}", f"({k} {c}) -> {k} {c}"
    kv = f"(two {k} {c}) d -> d two {k} {c}", f"(two {k} {c}) -> two {k} {c}"
    return [
        *linear(f"{theirs}.q", f"{ours}/q", *q, layers),
        *linear(f"{theirs}.kv", f"{ours}/kv", *kv, layers),
        *linear(f"{theirs}.proj", f"{ours}/out", f"d ({k} {c}) -> {k} {c} d", layers=layers),
    ]


def _gated(into: str, out: str, ours: str, layers: int = 0) -> list[Rule]:
    gate = "(two f) d -> d two f", "(two f) -> two f"
    return [
        *linear(f"{into}.project", f"{ours}/wi", *gate, layers),
        *linear(out, f"{ours}/wo", layers=layers),
    ]


def sizes(config: VillaXConfig) -> dict[str, int]:
    """Of the axes that the patterns split: heads of the encoder, of its pooling and of the
    decoder."""
    found = {"three": 3, "two": 2, "rgb": 3, "i": config.patch_size, "j": config.patch_size}
    found |= {"l": config.code_length, "q": config.quant_dim}
    for name, heads, dim in (
        ("", config.heads, config.dim),
        ("pool_", config.pool_heads, config.dim),
        ("decoder_", config.decoder_heads, config.decoder_dim),
    ):
        found |= {f"{name}k": heads, f"{name}c": dim // heads}
    return found
