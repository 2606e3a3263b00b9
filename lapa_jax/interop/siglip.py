"""SigLIP's image encoder in Hugging Face's names (SiglipVisionModel, and within SiglipModel) ↔ our
ViT. Its pooling head, and the text's side, are left out.

Axis names of the patterns: as in vision.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from lapa_jax.interop import tensor_files, vision
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, Shapes, functional, linear, norm, to_ours, unwrapped
from lapa_jax.nn.module import Tree
from lapa_jax.nn.vit import ViT, ViTConfig

WHAT = "a SigLIP in Hugging Face's names"
ANCHOR = "embeddings.patch_embedding.weight"  # of every one
POSITIONS = "embeddings.position_embedding.weight"
HEAD = "head."  # pools the patches into one vector


def read(source: Path, options: Any) -> Imported:
    """`lapa import --format siglip`: a teacher."""
    settings, path = vision.given_config(source, "siglip_vision_model"), source / "config.json"
    vision.expect(settings, path, hidden_act="gelu_pytorch_tanh")
    heads = vision.number(settings, "num_attention_heads", int, path, 12)
    eps = vision.number(settings, "layer_norm_eps", float, path, 1e-6)
    return vision.teacher(*from_tensors(tensor_files.tensors(source), heads, eps))


def rules(config: ViTConfig) -> list[Rule]:
    """In the order of a SiglipVisionModel's state dict, without its head."""
    t, o, n = "encoder.layers.{i}", "blocks/layers", config.depth
    names = "q_proj k_proj v_proj out_proj"
    return [
        *linear("embeddings.patch_embedding", "project", vision.PATCHES),
        Rule(POSITIONS, "positions"),
        *norm(f"{t}.layer_norm1", f"{o}/attention_norm", n),
        *vision.attention(f"{t}.self_attn.", names, o, n),
        *norm(f"{t}.layer_norm2", f"{o}/mlp_norm", n),
        *linear(f"{t}.mlp.fc1", f"{o}/mlp/wi", layers=n),
        *linear(f"{t}.mlp.fc2", f"{o}/mlp/wo", layers=n),
        *norm("post_layernorm", "norm"),
    ]


def from_tensors(
    tensors: Mapping[str, np.ndarray], heads: int, norm_eps: float
) -> tuple[ViTConfig, Tree]:
    """Config and parameters of a state dict. Raises ValueError."""
    tensors = unwrapped(tensors, ANCHOR, WHAT)
    if head := [name for name in tensors if name.startswith(HEAD)]:
        logging.info("left out: %s* (%d tensors), which pools the patches", HEAD, len(head))
    tensors = {name: x for name, x in tensors.items() if not name.startswith(HEAD)}
    config = infer_config(tensors, heads, norm_eps)
    expected = functional(ViT, config, dtype=jnp.float32).abstract()[0]
    return config, to_ours(tensors, rules(config), vision.sizes(config), expected)


def infer_config(tensors: Mapping[str, np.ndarray], heads: int, norm_eps: float) -> ViTConfig:
    """The config that the shapes of a state dict tell, and these two."""
    shape = Shapes(tensors, WHAT)
    dim, _, patch_size, _ = shape(ANCHOR, None, 3, None, None)
    if dim % heads:
        raise ValueError(f"a width of {dim} is no multiple of num_attention_heads={heads}")
    return ViTConfig(
        grid=vision.square(POSITIONS, shape(POSITIONS, None, dim)[0]),
        patch_size=patch_size,
        dim=dim,
        depth=shape.count("encoder.layers.{i}."),
        heads=heads,
        head_dim=dim // heads,
        mlp_dim=shape("encoder.layers.0.mlp.fc2.weight", dim, None)[1],
        class_token=False,
        layer_scale=False,
        activation="gelu_tanh",
        norm_eps=norm_eps,
        pixels="centred",
    )
