"""A LLaMA in Hugging Face's names ↔ the backbone of our policy. Axis names: llama.py."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from data_pipelines.storage import given_folder
from lapa_jax.interop import llama, tensor_files
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, Tensor, unwrapped
from lapa_jax.stages.policy import TOKENIZER

ANCHOR = "layers.0.input_layernorm.weight"  # of every one
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(llama.Options):
    """Of imports.

    tokenizer: the SentencePiece .model that the weights belong to; default (hf_llama): the
        tokenizer.model beside them
    """

    tokenizer: str | None = None


def read(source: Path, options: Options) -> Imported:
    """`lapa import --format hf_llama`: a policy that knows text alone."""
    folder = given_folder(source, "a LLaMA in Hugging Face's form")
    config = tensor_files.json_object(folder / "config.json", "LLaMA's configuration")
    try:
        model = shape(config) | {"image_vocab": 0}
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    tensors = own_names(tensor_files.tensors(folder))
    if config.get("tie_word_embeddings"):
        tied = tensors.get(TABLE, tensors.get(HEAD))
        if tied is not None:
            tensors |= {TABLE: tied, HEAD: tied}
            logging.info("tie_word_embeddings: the head is a copy of the embeddings")
    elif HEAD not in tensors:
        raise ValueError(
            f"{source} has no {HEAD}, and config.json does not tie it to the embeddings: it holds "
            "the backbone alone; save the LlamaForCausalLM"
        )
    groups = config.get("num_key_value_heads") or model["heads"]
    if groups != model["heads"]:
        logging.info(
            "num_key_value_heads: %d, each repeated for %d queries",
            groups,
            model["heads"] // groups,
        )
        for name in tensors:
            if name.endswith(("self_attn.k_proj.weight", "self_attn.v_proj.weight")):
                tensors[name] = repeated(name, tensors[name], groups, model)
    options = dataclasses.replace(options, tokenizer=options.tokenizer or folder / TOKENIZER)
    return llama.policy(options, tensors, rules(model["depth"]), model)


def own_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """As LlamaForCausalLM has them; without the rotary tables that old files hold."""
    tensors = {name: x for name, x in tensors.items() if ".rotary_emb." not in name}
    whole = unwrapped(tensors, f"model.{ANCHOR}", "a LLaMA")
    if f"model.{ANCHOR}" in whole:
        return whole
    tensors = unwrapped(tensors, ANCHOR, "a LLaMA")  # saved without its head
    return {f"model.{name}": x for name, x in tensors.items()}


def repeated(name: str, tensor: Tensor, groups: int, model: Mapping[str, Any]) -> Tensor:
    """Keys or values of `groups` heads as those of all heads."""
    heads, width, dim = model["heads"], model["head_dim"], model["dim"]
    if tuple(tensor.shape) != (groups * width, dim):
        raise ValueError(
            f"tensor {name!r} of shape {tuple(tensor.shape)} should be ({groups * width}, {dim}): "
            f"num_key_value_heads={groups} of {width}"
        )

    def make() -> np.ndarray:
        x = np.asarray(tensor).reshape(groups, width, dim)
        return np.repeat(x, heads // groups, axis=0).reshape(heads * width, dim)

    return Tensor((heads * width, dim), tensor.dtype, make)


def shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `VLAConfig` from a Hugging Face LlamaConfig (config.json)."""
    if config.get("model_type") != "llama":
        raise ValueError(f"config.json has model_type={config.get('model_type')!r}, not 'llama'")
    sizes = {
        name: llama.positive(config, name)
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads",
        )
    }  # fmt: skip
    heads, dim = sizes["num_attention_heads"], sizes["hidden_size"]
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key) or {}
        if not isinstance(given, dict):
            raise ValueError(f"config.json: {key}={given!r} must be an object")
        rope |= given
    odd = {
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "rope_parameters": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0) != 1.0,
        "hidden_act": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "quantization_config": config.get("quantization_config") is not None,
    }
    if any(odd.values()):
        wrong = {name: config.get(name, rope) for name, is_odd in odd.items() if is_odd}
        raise ValueError(f"config.json asks for what this model does not have: {wrong}")
    groups = config.get("num_key_value_heads")
    if groups is not None and heads % llama.positive(config, "num_key_value_heads"):
        raise ValueError(
            f"config.json: num_attention_heads={heads} is no multiple of "
            f"num_key_value_heads={groups}"
        )
    if config.get("head_dim") is None and dim % heads:
        raise ValueError(
            f"config.json: hidden_size={dim} is no multiple of num_attention_heads={heads}"
        )
    return {
        "text_vocab": sizes["vocab_size"],
        "dim": dim,
        "mlp_dim": sizes["intermediate_size"],
        "depth": sizes["num_hidden_layers"],
        "heads": heads,
        "head_dim": llama.positive(config, "head_dim", dim // heads),
        "norm_eps": llama.positive(config, "rms_norm_eps", 1e-6),
        "rope_theta": float(llama.positive(config | rope, "rope_theta", 10_000.0)),
        "init_std": llama.positive(config, "initializer_range", 0.02),
    }


def rules(depth: int) -> list[Rule]:
    """Hugging Face's names. Its rotary embedding turns halves of a head (i, i + c/2), ours pairs
    (2i, 2i + 1): queries and keys are reordered."""
    found = [
        Rule(TABLE, "embeddings/text/table"),
        Rule(HEAD, "heads/text/kernel", "v d -> d v"),
        Rule("model.norm.weight", "norm/scale"),
    ]
    return found + layer_rules("model.layers.{i}", "backbone/layers", depth)


def layer_rules(theirs: str, ours: str, depth: int) -> list[Rule]:
    """Of a stack of layers, in LLaMA's names and in ours."""
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
    return [
        Rule(f"{theirs}.{name}", f"{ours}/{path}", pattern, depth)
        for name, (path, pattern) in layer.items()
    ]
