"""A LLaMA in Hugging Face's names ↔ the backbone of our policy. Axis names: llama.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lapa_jax.interop import llama
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule
from lapa_jax.interop.safetensors_files import SafetensorsDirectory


def read(source: Path, options: llama.Options) -> Imported:
    """`lapa import --format hf_llama`: a policy that knows text alone."""
    model = shape(json.loads((source / "config.json").read_text())) | {"image_vocab": 0}
    return llama.policy(options, SafetensorsDirectory(source), rules(model["depth"]), model)


def shape(config: Mapping[str, Any]) -> dict[str, Any]:
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


def rules(depth: int) -> list[Rule]:
    """Hugging Face's names. Its rotary embedding turns halves of a head (i, i + c/2), ours pairs
    (2i, 2i + 1): queries and keys are reordered."""
    found = [
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
        found.append(
            Rule(f"model.layers.{{i}}.{theirs}", f"backbone/layers/{ours}", pattern, depth)
        )
    return found
