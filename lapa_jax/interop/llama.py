"""LLaMA backbones ↔ our policy: the original's checkpoints and Hugging Face's.

Axis names of the patterns: l layers, d width, k heads, c head width, f feed-forward width, v
vocabulary.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lapa_jax.interop.mapping import Rule
from lapa_jax.policy.vla import SIZES

# our modality → the original's table and head
_ORIGINAL = {
    "text": ("wte", "lm_head"),
    "image": ("vte", "vision_head"),
    "latent": ("dte", "delta_head"),
    "action": ("ate", "action_head"),
}
# the original's configuration key → ours
_ORIGINAL_KEYS = {
    "vocab_size": "text_vocab",
    "vision_vocab_size": "image_vocab",
    "delta_vocab_size": "latent_vocab",
    "action_vocab_size": "action_vocab",
    "hidden_size": "dim",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "rms_norm_eps": "norm_eps",
    "theta": "rope_theta",
    "initializer_range": "init_std",
}
LWM = {"norm_eps": 1e-6, "rope_theta": 5e7, "init_std": 0.02}  # of LWM-Chat-1M and of LAPA


def original_shape(size: str | None, model_json: str | None) -> dict[str, Any]:
    """Settings of `VLAConfig` from a size's name, or from a file with the original's keys."""
    if (size is None) == (model_json is None):
        raise ValueError("give the model's shape: one of --size and --model_json")
    if size is not None:
        if size not in SIZES:
            raise ValueError(f"--size {size!r} must be one of {sorted(SIZES)}")
        return SIZES[size] | LWM
    values = json.loads(Path(model_json).read_text())
    found = {ours: values[theirs] for theirs, ours in _ORIGINAL_KEYS.items() if theirs in values}
    missing = [k for k in ("dim", "mlp_dim", "depth", "heads") if k not in found]
    if missing:
        theirs = [k for k, ours in _ORIGINAL_KEYS.items() if ours in missing]
        raise ValueError(f"{model_json} lacks the keys {theirs}")
    if found["dim"] % found["heads"]:
        raise ValueError(
            f"{model_json}: hidden_size={found['dim']} is no multiple of "
            f"num_attention_heads={found['heads']}"
        )
    return LWM | found | {"head_dim": found["dim"] // found["heads"]}


def original_vocabularies(tensors: Mapping[str, Any]) -> dict[str, int]:
    """{text_vocab, ...}: how many rows each table has; 0 where there is none."""
    found = {}
    for modality, (table, _) in _ORIGINAL.items():
        tensor = tensors.get(f"transformer/{table}/embedding")
        found[f"{modality}_vocab"] = 0 if tensor is None else tensor.shape[0]
    return found


def original_rules(depth: int, modalities: list[str], *, stacked: bool) -> list[Rule]:
    """The original's names; `stacked`: with its layers in one array each (scan_layers)."""
    rules = []
    for modality in modalities:
        table, head = _ORIGINAL[modality]
        rules.append(Rule(f"transformer/{table}/embedding", f"embeddings/{modality}/table"))
        rules.append(Rule(f"{head}/kernel", f"heads/{modality}/kernel"))
    rules.append(Rule("transformer/ln_f/kernel", "norm/scale"))
    layer = {
        "attention_norm/kernel": ("attention_norm/scale", ""),
        "ffn_norm/kernel": ("mlp_norm/scale", ""),
        "feed_forward/w1/kernel": ("mlp/gate/kernel", ""),
        "feed_forward/w3/kernel": ("mlp/up/kernel", ""),
        "feed_forward/w2/kernel": ("mlp/down/kernel", ""),
        "attention/wo/kernel": ("attention/out/kernel", "(k c) d -> k c d"),
    } | {f"attention/w{x}/kernel": (f"attention/{x}/kernel", "d (k c) -> d k c") for x in "qkv"}
    for theirs, (ours, pattern) in layer.items():
        ours = f"backbone/layers/{ours}"
        if stacked:
            pattern = " -> ".join(f"l {side}" for side in pattern.split(" -> ")) if pattern else ""
            rules.append(Rule(f"transformer/h/scan_decoder/{theirs}", ours, pattern))
        else:
            rules.append(Rule(f"transformer/h/{{i}}/{theirs}", ours, pattern, depth))
    return rules


def is_stacked(tensors: Mapping[str, Any]) -> bool:
    return any("/scan_decoder/" in name for name in tensors)


def hf_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `VLAConfig` from a Hugging Face LlamaConfig (config.json)."""
    if config.get("model_type") != "llama":
        raise ValueError(f"config.json has model_type={config.get('model_type')!r}, not 'llama'")
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    odd = {
        "num_key_value_heads": config.get("num_key_value_heads", heads) != heads,
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "hidden_act": config.get("hidden_act", "silu") != "silu",
    }
    if any(odd.values()):
        wrong = {name: config.get(name) for name, is_odd in odd.items() if is_odd}
        raise ValueError(f"config.json asks for what this model does not have: {wrong}")
    return {
        "text_vocab": config["vocab_size"],
        "dim": dim,
        "mlp_dim": config["intermediate_size"],
        "depth": config["num_hidden_layers"],
        "heads": heads,
        "head_dim": config.get("head_dim") or dim // heads,
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        "init_std": config.get("initializer_range", 0.02),
    }


def hf_rules(depth: int) -> list[Rule]:
    """Hugging Face's names. Its rotary embedding turns halves of a head (i, i + c/2), ours pairs
    (2i, 2i + 1): queries and keys are reordered."""
    rules = [
        Rule("model.embed_tokens.weight", "embeddings/text/table"),
        Rule("lm_head.weight", "heads/text/kernel", "v d -> d v"),
        Rule("model.norm.weight", "norm/scale"),
    ]
    layer = {
        "input_layernorm.weight": ("attention_norm/scale", ""),
        "post_attention_layernorm.weight": ("mlp_norm/scale", ""),
        "self_attn.q_proj.weight": ("attention/q/kernel", "(k two half) d -> d k (half two)"),
        "self_attn.k_proj.weight": ("attention/k/kernel", "(k two half) d -> d k (half two)"),
        "self_attn.v_proj.weight": ("attention/v/kernel", "(k c) d -> d k c"),
        "self_attn.o_proj.weight": ("attention/out/kernel", "d (k c) -> k c d"),
        "mlp.gate_proj.weight": ("mlp/gate/kernel", "f d -> d f"),
        "mlp.up_proj.weight": ("mlp/up/kernel", "f d -> d f"),
        "mlp.down_proj.weight": ("mlp/down/kernel", "d f -> f d"),
    }
    for theirs, (ours, pattern) in layer.items():
        rules.append(
            Rule(f"model.layers.{{i}}.{theirs}", f"backbone/layers/{ours}", pattern, depth)
        )
    return rules


def sizes(heads: int, head_dim: int) -> dict[str, int]:
    """Axes of the patterns that shapes alone do not tell."""
    return {"k": heads, "c": head_dim, "two": 2, "half": head_dim // 2}
