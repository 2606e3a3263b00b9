"""What the formats of LLaMA backbones share: policies whose images are given as tokens.

Axis names of the patterns: l layers, d width, k heads, c head width, f feed-forward width, v
vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lapa_jax import stages
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rules, float_dtype, to_ours
from lapa_jax.interop.staged import PRECISIONS
from lapa_jax.interop.tensor_files import given_file
from lapa_jax.nn.layers import DTYPES
from lapa_jax.nn.module import flatten
from lapa_jax.parallel import sharding
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.policy.front_end import front_end_settings
from lapa_jax.policy.heads.tokens import CODEC
from lapa_jax.policy.text import TextTokenizer
from lapa_jax.settings import stage_settings
from lapa_jax.stages.policy import TOKENIZER, policy_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of imports.

    tokenizer: the SentencePiece .model that the weights belong to
    compute_dtype: default: bfloat16
    precision: of the weights; default: bf16 where all are, else fp32, which holds every float16
    """

    tokenizer: str = dataclasses.field(metadata={"why": "it belongs to the weights"})
    compute_dtype: str = dataclasses.field(default="bfloat16", metadata={"choices": sorted(DTYPES)})
    precision: str | None = dataclasses.field(default=None, metadata={"choices": PRECISIONS})


def sizes(heads: int, head_dim: int) -> dict[str, int]:
    """Axes of the patterns that shapes alone do not tell."""
    return {"k": heads, "c": head_dim, "two": 2, "half": head_dim // 2}


def positive(config: Mapping[str, Any], name: str, default: float | None = None) -> Any:
    """A value of config.json above 0, of the type of its default; an integer without one."""
    value = default if config.get(name) is None else config[name]
    kinds = float | int if isinstance(default, float) else int
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"config.json: {name}={value!r} must be a number above 0")
    return value


def policy(
    options: Options,
    tensors: Mapping[str, Any],
    rules: Rules,
    model: Mapping[str, Any],
    *,
    code_length: int = 4,
    codec: bytes | None = None,
) -> Imported:
    """A policy that predicts codes, or actions by a codec (JSON); tensor by tensor to where it is
    kept. `model`: as of `policy_settings`."""
    assets = {
        TOKENIZER: given_file(options.tokenizer, "a SentencePiece model (--tokenizer)").read_bytes()
    }
    try:
        pieces = TextTokenizer(assets[TOKENIZER]).vocab_size
    except ValueError as error:
        raise ValueError(f"--tokenizer {options.tokenizer}: {error}") from error
    if pieces > model["text_vocab"]:
        raise ValueError(
            f"--tokenizer {options.tokenizer} has {pieces} pieces, the weights have "
            f"{model['text_vocab']}: it belongs to others"
        )
    config = stage_settings("action_finetuning" if codec else "latent_pretraining")
    config.data.image_size = (256, 256)
    config.compute_dtype = options.compute_dtype
    config.model = policy_settings(
        front_end=front_end_settings("cached_tokens"),
        param_dtype=PRECISIONS.get(options.precision) or float_dtype(tensors.values()),
        unroll=1,
        **model,
    )
    if codec:
        assets[CODEC] = codec
    else:
        config.code_length = code_length
    for modality, head in config.model.targets.items():  # one of them is what the policy predicts
        head.loss_weight = float((modality == "action") == bool(codec))
    stage = stages.build(config.lock(), assets)
    mesh = make_mesh({"data": 1, "fsdp": -1, "seq": 1, "tensor": 1}, jax.local_devices())
    expected = stage.model.abstract()[0]
    places = flatten(
        sharding.tree_shardings(stage.axes(), expected, mesh, "fsdp"),
        is_leaf=lambda x: isinstance(x, jax.sharding.Sharding),
    )

    def place(path: str, array: np.ndarray) -> jax.Array:
        placed = jax.make_array_from_callback(array.shape, places[path], lambda index: array[index])
        return placed.block_until_ready()  # else several tensors are on this host twice

    axes = sizes(config.model.heads, config.model.head_dim)
    return Imported(config, to_ours(tensors, rules, axes, expected, place), assets)
