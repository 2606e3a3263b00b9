"""A masked autoencoder's encoder in Hugging Face's names (ViTMAEModel, and within
ViTMAEForPreTraining, whose decoder is left out) ↔ our ViT.

Axis names of the patterns: as in vision.py; n positions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lapa_jax.interop import tensor_files, vision
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, Shapes, functional, linear, norm, to_ours, unwrapped
from lapa_jax.nn.module import Tree
from lapa_jax.nn.vit import ViT, ViTConfig

WHAT = "a ViT-MAE in Hugging Face's names"
ANCHOR = "embeddings.patch_embeddings.projection.weight"  # of every one


def read(source: Path, options: Any) -> Imported:
    """`lapa import --format vit_mae`: a teacher."""
    return vision.teacher(*from_directory(source))


def from_directory(source: Path) -> tuple[ViTConfig, Tree]:
    """Config and parameters of a directory with config.json and the weights."""
    settings, path = vision.given_config(source, "vit_mae"), source / "config.json"
    vision.expect(settings, path, hidden_act="gelu", qkv_bias=True)
    heads = vision.number(settings, "num_attention_heads", int, path, 12)
    eps = vision.number(settings, "layer_norm_eps", float, path, 1e-12)
    return from_tensors(tensor_files.tensors(source), heads, eps)


def rules(config: ViTConfig) -> list[Rule]:
    """In the order of a ViTMAEModel's state dict."""
    return [
        Rule("embeddings.cls_token", "cls", "1 1 d -> d"),
        Rule("embeddings.position_embeddings", "positions", "1 n d -> n d"),
        *linear("embeddings.patch_embeddings.projection", "project", vision.PATCHES),
        *vision.layers("encoder.layer", "blocks", config.depth),
        *norm("layernorm", "norm"),
    ]


def from_tensors(
    tensors: Mapping[str, np.ndarray], heads: int, norm_eps: float
) -> tuple[ViTConfig, Tree]:
    """Config and parameters of a state dict. Raises ValueError."""
    tensors = unwrapped(tensors, ANCHOR, WHAT)
    config = infer_config(tensors, heads, norm_eps)
    expected = functional(ViT, config, dtype=jnp.float32).abstract()[0]
    return config, to_ours(tensors, rules(config), vision.sizes(config), expected)


def infer_config(tensors: Mapping[str, np.ndarray], heads: int, norm_eps: float) -> ViTConfig:
    """The config that the shapes of a state dict tell, and these two."""
    shape = Shapes(tensors, WHAT)
    dim, _, patch_size, _ = shape(ANCHOR, None, 3, None, None)
    if dim % heads:
        raise ValueError(f"a width of {dim} is no multiple of num_attention_heads={heads}")
    name = "embeddings.position_embeddings"
    return ViTConfig(
        grid=vision.square(name, shape(name, 1, None, dim)[1] - 1),
        patch_size=patch_size,
        dim=dim,
        depth=shape.count("encoder.layer.{i}."),
        heads=heads,
        head_dim=dim // heads,
        mlp_dim=shape("encoder.layer.0.output.dense.weight", dim, None)[1],
        layer_scale=False,
        norm_eps=norm_eps,
    )
