"""DINOv2 in Hugging Face's names (Dinov2Model, Dinov2WithRegistersModel) ↔ our ViT.

Axis names of the patterns: as in vision.py; f feed-forward width, n positions, r registers.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax.interop import tensor_files, vision
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import (
    Constant,
    Rule,
    Shapes,
    Tensor,
    linear,
    norm,
    unwrapped,
)
from lapa_jax.nn.module import Tree
from lapa_jax.nn.vit import ViTConfig

HEAD_DIM = 64  # of every DINOv2; the shapes do not tell it
ANCHOR = "embeddings.patch_embeddings.projection.weight"  # of every one
HUB_ANCHOR = "patch_embed.proj.weight"  # the same in Meta's own files
MASK_TOKEN = "embeddings.mask_token"  # of the self-supervised training


def read(source: Path, options: Any) -> Imported:
    """`lapa import --format dinov2`: a teacher."""
    return vision.teacher(*from_tensors(from_hub(tensor_files.tensors(source))))


_HUB = (
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^(cls_token|register_tokens|mask_token)$", r"embeddings.\1"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.ls([12])\.gamma$", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"^blocks\.(\d+)\.mlp\.w12\.", r"encoder.layer.\1.mlp.weights_in."),
    (r"^blocks\.(\d+)\.mlp\.w3\.", r"encoder.layer.\1.mlp.weights_out."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
)


def from_hub(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of Meta's own files (torch.hub), where queries, keys and values are one, under
    Hugging Face's names; what has other names is as it is."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        packed = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name)
        if packed:
            each = f"encoder.layer.{packed[1]}.attention.attention.{{}}.{packed[2]}"
            if not tensor.shape or tensor.shape[0] % 3:
                raise ValueError(f"tensor {name!r} of shape {tensor.shape} is not three of one")
            for i, part in enumerate(("query", "key", "value")):
                found[each.format(part)] = _third(tensor, i)
            continue
        for pattern, theirs in _HUB:
            name, count = re.subn(pattern, theirs, name)
            if count:
                break
        found[name] = tensor
    return found


def _third(tensor: Any, i: int) -> Tensor:
    n, *rest = tensor.shape
    size = n // 3
    return Tensor(
        (size, *rest), tensor.dtype, lambda: np.asarray(tensor)[i * size : (i + 1) * size]
    )


def rules(config: ViTConfig) -> list[Rule | Constant]:
    """In the order of a Dinov2Model's state dict."""
    t, o, n = "encoder.layer.{i}", "blocks/layers", config.depth
    found: list[Rule | Constant] = [
        Rule("embeddings.cls_token", "cls", "1 1 d -> d"),
        Constant(MASK_TOKEN, np.zeros((1, config.dim), np.float32), any_value=True),
    ]
    if config.registers:
        found.append(Rule("embeddings.register_tokens", "registers", "1 r d -> r d"))
    found += [
        Rule("embeddings.position_embeddings", "positions", "1 n d -> n d"),
        *linear("embeddings.patch_embeddings.projection", "project", vision.PATCHES),
        *norm(f"{t}.norm1", f"{o}/attention_norm", n),
    ]
    found += vision.attention(
        f"{t}.attention.", "attention.query attention.key attention.value output.dense", o, n
    )
    found.append(Rule(f"{t}.layer_scale1.lambda1", f"{o}/attention_scale", layers=n))
    found += norm(f"{t}.norm2", f"{o}/mlp_norm", n)
    wi, wo = f"{o}/mlp/wi", f"{o}/mlp/wo"
    if config.swiglu:
        gate = "(two f) d -> d two f", "(two f) -> two f"
        found += linear(f"{t}.mlp.weights_in", wi, *gate, n)
        found += linear(f"{t}.mlp.weights_out", wo, layers=n)
    else:
        found += linear(f"{t}.mlp.fc1", wi, layers=n)
        found += linear(f"{t}.mlp.fc2", wo, layers=n)
    found.append(Rule(f"{t}.layer_scale2.lambda1", f"{o}/mlp_scale", layers=n))
    return found + norm("layernorm", "norm")


def from_tensors(tensors: Mapping[str, np.ndarray]) -> tuple[ViTConfig, Tree]:
    """Config and parameters of a state dict: of the model alone, or within another, whose
    classifier is left out. Raises ValueError."""
    tensors = unwrapped(tensors, ANCHOR, "a DINOv2 in Hugging Face's names")
    config = infer_config(tensors)
    tensors = {MASK_TOKEN: np.zeros((1, config.dim), np.float32)} | tensors  # some lack it
    return vision.parameters(tensors, config, rules(config))


def infer_config(tensors: Mapping[str, np.ndarray]) -> ViTConfig:
    """The config that the shapes of a state dict tell."""
    shape = Shapes(tensors, "a DINOv2 in Hugging Face's names")
    dim, _, patch_size, _ = shape(ANCHOR, None, 3, None, None)
    if dim % HEAD_DIM:
        raise ValueError(f"a width of {dim} is no multiple of DINOv2's head width {HEAD_DIM}")
    positions = shape("embeddings.position_embeddings", 1, None, dim)[1] - 1
    registers = 0
    if "embeddings.register_tokens" in tensors:
        registers = shape("embeddings.register_tokens", 1, None, dim)[1]
    swiglu = "encoder.layer.0.mlp.weights_in.weight" in tensors
    wo = f"encoder.layer.0.mlp.{'weights_out' if swiglu else 'fc2'}.weight"
    return ViTConfig(
        grid=vision.square("embeddings.position_embeddings", positions),
        patch_size=patch_size,
        dim=dim,
        depth=shape.count("encoder.layer.{i}."),
        heads=dim // HEAD_DIM,
        head_dim=HEAD_DIM,
        mlp_dim=shape(wo, dim, None)[1],
        registers=registers,
        swiglu=swiglu,
    )
