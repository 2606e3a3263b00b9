"""Runs of policies with random weights, small and as loud as trained ones."""

import functools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.normalise import Normaliser
from experiments import base
from experiments.quantizer import tabletop
from lapa_jax import stages
from lapa_jax.interop.imported import Imported, write_run
from lapa_jax.policy import heads, text
from lapa_jax.policy.codecs import Bins
from lapa_jax.policy.heads.tokens import CODEC
from lapa_jax.policy.state import STATISTICS
from lapa_jax.stages.policy import TOKENIZER

EDGES = [np.linspace(-1, 1, 6), np.array([-0.5, 0.1, 0.5, 1.5])]
BINS = Bins(EDGES, [np.linspace(-0.8, 0.8, 5), np.array([-0.2, 0.2, 1.0])])
ACTIONS = Normaliser.fit(np.array([[-1.0, 0.0], [1.0, 2.0]]), "min_max", control_hz=5.0)
TOKENIZER_MODEL = dict(
    dim=32, multipliers=(1, 2, 1, 1), blocks=1, latent_dim=16, code_dim=8, codebook_size=64
)  # a code for 8 x 8 pixels
INSTRUCTIONS = ["push the red block", "move the green square to place 2"]


def token_heads(length: int = 1, **vocabularies: int) -> dict[str, heads.Head]:
    """Heads of so many tokens, with vocabularies by modality."""
    targets = {
        m: heads.head_settings("tokens", codec="codes", vocab=n) for m, n in vocabularies.items()
    }
    data = {"action_horizon": 1}
    config = ConfigDict({"model": {"targets": targets}, "code_length": length, "data": data})
    return heads.build(config, {})


@functools.cache
def tokenizer() -> bytes:
    return text.train([*INSTRUCTIONS, "<vision> </vision> <delta> </delta>"], 320)


def make_policy(out: Path, head: str, **model) -> Path:
    """A run of random weights, as loud as trained ones; `model` as of `policy_config`."""
    return write(out, *policy_config(head, **model))


def policy_config(head: str, **model) -> tuple[ConfigDict, dict[str, bytes]]:
    """(config, assets). `state`: the statistics of the robot's, of a policy that sees it."""
    config = base.stage_defaults("action_finetuning" if head == "action" else "latent_pretraining")
    config.compute_dtype = model.pop("compute_dtype", "float32")
    config.data.image_size = model.pop("image_size", (32, 48))
    corpus = model.pop("corpus", "")
    if corpus:
        config.data.corpora.robot = base.corpus(str(corpus))
    config.data.action_horizon = model.pop("action_horizon", 1)
    config.data.num_frames = model.pop("num_frames", 1)
    inverse = model.get("inverse_dynamics", False)
    config.data.history_seconds = 1.0 if config.data.num_frames > 1 and not inverse else 0.0
    target = model.pop("target", None)  # settings of another head than of tokens
    config.evaluation.execution_horizon = model.pop("execution_horizon", 1)
    statistics = model.pop("state", None)
    config.model = base.policy_model(**{f"{head}_vocab": 8})
    config.model.state.enabled = statistics is not None
    if target:
        config.model.targets = ConfigDict({head: target})
    config.model.update(
        {"text_vocab": 320, "text_length": 24, "dim": 32, "heads": 4, "head_dim": 8}
    )
    config.model.depth = model.pop("depth", 2)
    config.model.front_end = base.front_end(model.pop("front_end", "patches"))
    if config.model.front_end.name == "patches":
        config.model.front_end.stem_channels = (6,)
    elif config.model.front_end.name == "cached_tokens":
        config.model.front_end.num_tokens = model.pop("num_tokens", 6)
    else:
        config.model.front_end.tokenizer = TOKENIZER_MODEL
    config.model.update(mlp_dim=48, unroll=1, init_std=0.3, **model)
    assets = {TOKENIZER: tokenizer()}
    if statistics:
        assets[STATISTICS] = statistics.to_json()
    if target:
        assets["action_statistics.json"] = ACTIONS.to_json()
    elif head == "action":
        assets[CODEC] = BINS.to_json()
    else:
        config.code_length = 3
    return config.lock(), assets


def quantizer_config() -> ConfigDict:
    """Of a quantizer of what `make_policy` says of latent actions."""
    config = tabletop.get_config("quick=True")
    config.data.image_size = (32, 48)
    config.model.update(
        dim=32, mlp_dim=64, heads=4, head_dim=8, spatial_depth=1, temporal_depth=1, decoder_depth=1
    )
    config.model.code_length = 3
    return config.lock()


def write(out: Path, config, assets) -> Path:
    stage = stages.build(config, assets)
    params, variables = jax.jit(stage.model.init)(jax.random.key(3))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (np.asarray(x, np.float32) + 0.1 * rng.normal(size=x.shape)).astype(x.dtype),
        params,
    )
    made = Imported(config, params, assets, variables)
    write_run(out, made, source="random", source_format="random")
    return out
