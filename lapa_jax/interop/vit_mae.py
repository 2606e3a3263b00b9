"""A masked autoencoder's encoder in Hugging Face's names (ViTMAEModel, and within
ViTMAEForPreTraining), or in those of its authors' files → our ViT. A decoder is left out.

Axis names of the patterns: as in vision.py; n positions.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax.interop import dinov2, exact, tensor_files, vision
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, Shapes, linear, norm, unwrapped
from lapa_jax.nn.module import Tree
from lapa_jax.nn.vit import ViTConfig

WHAT = "a ViT-MAE"
AUTHORS = {768: 12, 1024: 16, 1280: 16}  # heads of each width
_AUTHORS = (
    (r"^(encoder\.layer\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"^(encoder\.layer\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"^(encoder\.layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"^(encoder\.layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)
ANCHOR = "embeddings.patch_embeddings.projection.weight"  # of every one


def read(source: Path, options: Any) -> Imported:
    """`lapa import --format vit_mae`: a teacher."""
    return vision.teacher(*of_source(source))


def of_source(source: Path) -> tuple[ViTConfig, Tree]:
    """Config and parameters of a directory with config.json and the weights, or of one of the
    authors' files."""
    if source.is_file():
        tensors = from_authors(tensor_files.tensors(source))
        dim = Shapes(tensors, WHAT)(ANCHOR, None, 3, None, None)[0]
        if dim not in AUTHORS:
            raise ValueError(
                f"{source}: a width of {dim} is of no ViT-MAE that its authors gave away "
                f"({sorted(AUTHORS)}), and its heads are told nowhere"
            )
        return from_tensors(tensors, AUTHORS[dim], 1e-6)
    settings, path = vision.given_config(source, "vit_mae"), source / "config.json"
    vision.expect(settings, path, hidden_act="gelu", qkv_bias=True)
    heads = vision.number(settings, "num_attention_heads", int, path, 12)
    eps = vision.number(settings, "layer_norm_eps", float, path, 1e-12)
    return from_tensors(tensor_files.tensors(source), heads, eps)


def from_authors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of the authors' files under Hugging Face's names. Raises ValueError."""
    tensors = unwrapped(tensors, "patch_embed.proj.weight", WHAT)
    for prefix in ("decoder_", "mask_token"):
        tensors = exact.without(tensors, prefix, "of the decoder")
    found = {}
    for name, tensor in dinov2.from_hub(tensors).items():
        for pattern, theirs in _AUTHORS:
            name = re.sub(pattern, theirs, name)
        found[name] = tensor
    return found


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
    return vision.parameters(tensors, config, rules(config))


def infer_config(tensors: Mapping[str, np.ndarray], heads: int, norm_eps: float) -> ViTConfig:
    """The config that the shapes of a state dict tell, and these two."""
    shape = Shapes(tensors, WHAT)
    dim, _, patch_size, _ = shape(ANCHOR, None, 3, None, None)
    name = "embeddings.position_embeddings"
    return ViTConfig(
        grid=vision.square(name, shape(name, 1, None, dim)[1] - 1),
        patch_size=patch_size,
        dim=dim,
        depth=shape.count("encoder.layer.{i}."),
        heads=heads,
        head_dim=vision.head_dim(dim, heads),
        mlp_dim=shape("encoder.layer.0.output.dense.weight", dim, None)[1],
        layer_scale=False,
        norm_eps=norm_eps,
    )
