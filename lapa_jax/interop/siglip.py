"""SigLIP's image encoder in Hugging Face's names (SiglipVisionModel, and within SiglipModel), or in
those of its authors' .npz files → our ViT. Its pooling head, and the text's side, are left out.

Axis names of the patterns: as in vision.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax.interop import exact, tensor_files, vision
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, Shapes, linear, norm, unwrapped
from lapa_jax.nn.module import Tree
from lapa_jax.nn.vit import ViTConfig

WHAT = "a SigLIP in Hugging Face's names"
ANCHOR = "embeddings.patch_embedding.weight"  # of every one
POSITIONS = "embeddings.position_embedding.weight"
HEADS = ("head.", "MAPHead_0/")  # pools the patches into one vector
_KIND = dict(class_token=False, layer_scale=False, activation="gelu_tanh", pixels="centred")
AUTHORS = "Transformer/encoder_norm/scale"  # of every one of theirs


def read(source: Path, options: Any) -> Imported:
    """`lapa import --format siglip`: a teacher."""
    if source.is_file():
        return vision.teacher(*from_authors(tensor_files.tensors(source)))
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
    tensors = exact.without(unwrapped(tensors, ANCHOR, WHAT), HEADS[0], "which pools the patches")
    config = infer_config(tensors, heads, norm_eps)
    return vision.parameters(tensors, config, rules(config))


def infer_config(tensors: Mapping[str, np.ndarray], heads: int, norm_eps: float) -> ViTConfig:
    """The config that the shapes of a state dict tell, and these two."""
    shape = Shapes(tensors, WHAT)
    dim, _, patch_size, _ = shape(ANCHOR, None, 3, None, None)
    return ViTConfig(
        grid=vision.square(POSITIONS, shape(POSITIONS, None, dim)[0]),
        patch_size=patch_size,
        dim=dim,
        depth=shape.count("encoder.layers.{i}."),
        heads=heads,
        head_dim=vision.head_dim(dim, heads),
        mlp_dim=shape("encoder.layers.0.mlp.fc2.weight", dim, None)[1],
        norm_eps=norm_eps,
        **_KIND,
    )


def from_authors(tensors: Mapping[str, np.ndarray]) -> tuple[ViTConfig, Tree]:
    """The same of an .npz of its authors (big_vision), whose names have slashes, and whose layers
    are apart or stacked. Raises ValueError."""
    tensors = unwrapped(tensors, AUTHORS, "a SigLIP of its authors", sep="/")
    tensors = exact.without(tensors, HEADS[1], "which pools the patches")
    shape = Shapes(tensors, "a SigLIP of its authors")
    stacked = "Transformer/encoderblock/LayerNorm_0/scale" in tensors
    t = f"Transformer/encoderblock{'' if stacked else '_{i}'}"
    o, attention = "blocks/layers", "MultiHeadDotProductAttention_0"
    patch_size, _, _, dim = shape("embedding/kernel", None, None, 3, None)
    if stacked:
        depth, _, heads, head_dim = shape(f"{t}/{attention}/query/kernel", None, dim, None, None)
        mlp_dim = shape(f"{t}/MlpBlock_0/Dense_0/kernel", depth, dim, None)[2]
    else:
        depth, first = shape.count(f"{t}/"), t.format(i=0)
        _, heads, head_dim = shape(f"{first}/{attention}/query/kernel", dim, None, None)
        mlp_dim = shape(f"{first}/MlpBlock_0/Dense_0/kernel", dim, None)[1]
    config = ViTConfig(
        grid=vision.square("pos_embedding", shape("pos_embedding", 1, None, dim)[1]),
        **{"patch_size": patch_size, "dim": dim, "depth": depth, "mlp_dim": mlp_dim},
        **{"heads": heads, "head_dim": head_dim},
        **_KIND,
    )
    parts = {"LayerNorm_0": "attention_norm", "LayerNorm_1": "mlp_norm"}
    parts |= {"MlpBlock_0/Dense_0": "mlp/wi", "MlpBlock_0/Dense_1": "mlp/wo"}
    names = zip(("query", "key", "value", "out"), ("q", "k", "v", "out"), strict=True)
    parts |= {f"{attention}/{name}": f"attention/{ours}" for name, ours in names}
    found = [
        Rule("embedding/kernel", "project/kernel", "i j rgb d -> (rgb i j) d"),
        Rule("embedding/bias", "project/bias"),
        Rule("pos_embedding", "positions", "1 n d -> n d"),
        *(Rule(f"Transformer/encoder_norm/{x}", f"norm/{x}") for x in ("scale", "bias")),
    ]
    for name, ours in parts.items():
        for x in ("scale" if "Norm" in name else "kernel", "bias"):
            layers = 0 if stacked else depth
            found.append(Rule(f"{t}/{name}/{x}", f"{o}/{ours}/{x}", layers=layers))
    return vision.parameters(tensors, config, found)
