"""The original implementation's policy, streaming msgpack ↔ our policy. Axis names: llama.py."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lapa_jax.interop import llama, msgpack_stream
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, unwrapped
from lapa_jax.interop.tensor_files import given_file, json_object, text_of
from lapa_jax.policy.codecs import Bins
from lapa_jax.policy.vla import SIZES

# our modality → its table and head
_TABLES = {
    "text": ("wte", "lm_head"),
    "image": ("vte", "vision_head"),
    "latent": ("dte", "delta_head"),
    "action": ("ate", "action_head"),
}
# its configuration key → ours
_KEYS = {
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
ANCHOR = "transformer/wte/embedding"  # of every one
LWM = {"norm_eps": 1e-6, "rope_theta": 5e7, "init_std": 0.02}  # of LWM-Chat-1M and of LAPA


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(llama.Options):
    """Of `read`.

    size: the name of the model's shape, such as 7b
    model_json: a file with the model's shape, in the original's configuration keys
    code_length: codes of a latent action
    action_bins: the original's csv of bin edges: the policy gives actions
    """

    size: str | None = None
    model_json: str | None = None
    code_length: int | None = None
    action_bins: str | None = None


def read(source: Path, options: Options) -> Imported:
    """`lapa import --format lapa_stream`."""
    given_file(source, "the original's params, streaming msgpack,")
    tensors = unwrapped(msgpack_stream.read(source), ANCHOR, "a policy of the original", sep="/")
    model, told = shape(options.size, options.model_json), vocabularies(tensors)
    for name, size in told.items():
        if size and model.get(name, size) != size:
            raise ValueError(
                f"{options.model_json} gives {name}={model[name]}, the file holds {size}"
            )
    bins = options.action_bins
    return llama.policy(
        options,
        tensors,
        rules(tensors, model["depth"]),
        model | told | {"legacy": True, "text_length": 128, "sequence_length": 384},
        code_length=options.code_length or 4,
        codec=Bins.from_csv(text_of(bins, "a csv of bin edges")).to_json() if bins else None,
    )


def shape(size: str | None, model_json: str | None) -> dict[str, Any]:
    """Settings of `VLAConfig` from a size's name, or from a file with the original's keys."""
    if (size is None) == (model_json is None):
        raise ValueError("give the model's shape: one of --size and --model_json")
    if size is not None:
        if size not in SIZES:
            raise ValueError(f"--size {size!r} must be one of {sorted(SIZES)}")
        return SIZES[size] | LWM
    values = json_object(model_json, "the model's shape")
    found = {ours: values[theirs] for theirs, ours in _KEYS.items() if theirs in values}
    for theirs, ours in _KEYS.items():
        kinds = int | float if ours in LWM else int
        value = found.get(ours, 1)
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise ValueError(f"{model_json}: {theirs}={value!r} must be a number, not below 0")
    missing = [k for k in ("dim", "mlp_dim", "depth", "heads") if k not in found]
    if missing:
        theirs = [k for k, ours in _KEYS.items() if ours in missing]
        raise ValueError(f"{model_json} lacks the keys {theirs}")
    if not found["heads"] or found["dim"] % found["heads"]:
        raise ValueError(
            f"{model_json}: hidden_size={found['dim']} is no multiple of "
            f"num_attention_heads={found['heads']}"
        )
    return LWM | found | {"head_dim": found["dim"] // found["heads"]}


def vocabularies(tensors: Mapping[str, Any]) -> dict[str, int]:
    """{text_vocab, ...}: how many rows each table has; 0 where there is none."""
    found = {}
    for modality, (table, _) in _TABLES.items():
        tensor = tensors.get(f"transformer/{table}/embedding")
        found[f"{modality}_vocab"] = 0 if tensor is None else tensor.shape[0]
    return found


def rules(tensors: Mapping[str, Any], depth: int) -> list[Rule]:
    """Of a file with these names, whose layers are in one array each (scan_layers) or apart."""
    stacked = any("/scan_decoder/" in name for name in tensors)
    found = [Rule("transformer/ln_f/kernel", "norm/scale")]
    for modality, (table, head) in _TABLES.items():
        if f"transformer/{table}/embedding" in tensors:
            found.append(Rule(f"transformer/{table}/embedding", f"embeddings/{modality}/table"))
            found.append(Rule(f"{head}/kernel", f"heads/{modality}/kernel"))
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
            found.append(Rule(f"transformer/h/scan_decoder/{theirs}", ours, pattern))
        else:
            found.append(Rule(f"transformer/h/{{i}}/{theirs}", ours, pattern, depth))
    return found
