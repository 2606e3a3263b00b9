"""DINOv2 in Hugging Face's names (Dinov2Model, Dinov2WithRegistersModel) ↔ our ViT.

Axis names of the patterns: d width, k heads, c head width, f feed-forward width, rgb i j a patch, n
positions, r registers.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lapa_jax.interop.mapping import Constant, Rule, to_ours
from lapa_jax.nn.module import Functional, Tree
from lapa_jax.nn.vit import ViT, ViTConfig

HEAD_DIM = 64  # of every DINOv2; the shapes do not tell it
PREFIXES = ("dinov2.", "dinov2_with_registers.")  # in files that hold a classifier, too
CLASSIFIER = ("classifier.weight", "classifier.bias")
MASK_TOKEN = "embeddings.mask_token"  # of the self-supervised training


def rules(config: ViTConfig) -> list[Rule | Constant]:
    """In the order of a Dinov2Model's state dict."""
    t, o, n = "encoder.layer.{i}", "blocks/layers", config.depth
    found: list[Rule | Constant] = [
        Rule("embeddings.cls_token", "cls", "1 1 d -> d"),
        Constant(MASK_TOKEN, np.zeros((1, config.dim), np.float32), lambda x: True),
    ]
    if config.registers:
        found.append(Rule("embeddings.register_tokens", "registers", "1 r d -> r d"))
    projection = "embeddings.patch_embeddings.projection"
    found += [
        Rule("embeddings.position_embeddings", "positions", "1 n d -> n d"),
        Rule(f"{projection}.weight", "project/kernel", "d rgb i j -> (rgb i j) d"),
        Rule(f"{projection}.bias", "project/bias"),
        *_norm(f"{t}.norm1", f"{o}/attention_norm", n),
    ]
    for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v")):
        one = f"{t}.attention.attention.{theirs}", f"{o}/attention/{ours}"
        found += _linear(*one, n, "(k c) d -> d k c", "(k c) -> k c")
    found += _linear(f"{t}.attention.output.dense", f"{o}/attention/out", n, "d (k c) -> k c d")
    found.append(Rule(f"{t}.layer_scale1.lambda1", f"{o}/attention_scale", layers=n))
    found += _norm(f"{t}.norm2", f"{o}/mlp_norm", n)
    wi, wo = f"{o}/mlp/wi", f"{o}/mlp/wo"
    if config.swiglu:
        gate = "(two f) d -> d two f", "(two f) -> two f"
        found += _linear(f"{t}.mlp.weights_in", wi, n, *gate)
        found += _linear(f"{t}.mlp.weights_out", wo, n, "d f -> f d")
    else:
        found += _linear(f"{t}.mlp.fc1", wi, n, "f d -> d f")
        found += _linear(f"{t}.mlp.fc2", wo, n, "d f -> f d")
    found.append(Rule(f"{t}.layer_scale2.lambda1", f"{o}/mlp_scale", layers=n))
    return found + _norm("layernorm", "norm")


def _linear(theirs: str, ours: str, layers: int, weight: str, bias: str = "") -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"{ours}/kernel", weight, layers),
        Rule(f"{theirs}.bias", f"{ours}/bias", bias, layers),
    ]


def _norm(theirs: str, ours: str, layers: int = 0) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"{ours}/scale", layers=layers),
        Rule(f"{theirs}.bias", f"{ours}/bias", layers=layers),
    ]


def sizes(config: ViTConfig) -> dict[str, int]:
    """Of the axes that the patterns split."""
    p = config.patch_size
    return {"k": config.heads, "c": config.head_dim, "two": 2, "rgb": 3, "i": p, "j": p}


def read(tensors: Mapping[str, np.ndarray]) -> tuple[ViTConfig, Tree]:
    """Config and parameters of a state dict: of the model alone, or with a classifier, which is
    dropped. Raises ValueError."""
    tensors = _without_classifier(tensors)
    config = infer_config(tensors)
    tensors = {MASK_TOKEN: np.zeros((1, config.dim), np.float32)} | tensors  # some lack it
    expected = Functional(lambda rngs: ViT(config, dtype=jnp.float32, rngs=rngs)).abstract()[0]
    return config, to_ours(tensors, rules(config), sizes(config), expected)


def infer_config(tensors: Mapping[str, np.ndarray]) -> ViTConfig:
    """The config that the shapes of a state dict tell."""

    def shape(name: str, *known: int | None) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(f"tensor {name!r} is missing: not a DINOv2")
        found = tuple(tensors[name].shape)
        fits = len(found) == len(known) and all(
            k in (None, n) for n, k in zip(found, known, strict=True)
        )
        if not fits:
            wanted = ", ".join("?" if k is None else str(k) for k in known)
            raise ValueError(f"tensor {name!r} of shape {found} should be ({wanted})")
        return found

    projection = "embeddings.patch_embeddings.projection.weight"
    dim, _, patch_size, _ = shape(projection, None, 3, None, None)
    if dim % HEAD_DIM:
        raise ValueError(f"a width of {dim} is no multiple of DINOv2's head width {HEAD_DIM}")
    positions = shape("embeddings.position_embeddings", 1, None, dim)[1] - 1
    side = math.isqrt(positions)
    if side < 1 or side**2 != positions:
        raise ValueError(
            f"tensor 'embeddings.position_embeddings' has {positions} positions beside that of the "
            "class: not those of a square"
        )
    registers = 0
    if "embeddings.register_tokens" in tensors:
        registers = shape("embeddings.register_tokens", 1, None, dim)[1]
    swiglu = "encoder.layer.0.mlp.weights_in.weight" in tensors
    wo = f"encoder.layer.0.mlp.{'weights_out' if swiglu else 'fc2'}.weight"
    return ViTConfig(
        grid=(side, side),
        patch_size=patch_size,
        dim=dim,
        depth=_depth(tensors),
        heads=dim // HEAD_DIM,
        head_dim=HEAD_DIM,
        mlp_dim=shape(wo, dim, None)[1],
        registers=registers,
        swiglu=swiglu,
    )


def _depth(tensors: Mapping[str, np.ndarray]) -> int:
    pattern = re.compile(r"encoder\.layer\.(\d+)\.")
    layers = {int(m[1]) for name in tensors if (m := pattern.match(name))}
    if layers != set(range(len(layers))) or not layers:
        raise ValueError(f"layers of 'encoder' are {sorted(layers)}: not 0, 1, ...")
    return len(layers)


def _without_classifier(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            rest = {name: x for name, x in tensors.items() if name not in CLASSIFIER}
            return {name.removeprefix(prefix): x for name, x in rest.items()}
    return dict(tensors)


def load_file(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, which holds nothing else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no safetensors file of NumPy arrays: {error}") from error
