"""The heads of a policy, and its state, in the directory that hf.py writes: tensors and settings
of torch_files/modeling_heads.py and modeling_answers.py."""

import json
from typing import Any

from data_pipelines.normalise import Normaliser
from lapa_jax.interop.hf_llama import layer_rules
from lapa_jax.interop.mapping import Rule, linear, norm
from lapa_jax.policy.heads.align import AlignHead
from lapa_jax.policy.heads.base import Head
from lapa_jax.policy.heads.chunk import ChunkHead
from lapa_jax.policy.heads.decoders import PooledDecoder
from lapa_jax.policy.heads.fast import TOKENS, FastHead
from lapa_jax.policy.heads.flow import FlowHead
from lapa_jax.policy.heads.sequence import SequenceHead
from lapa_jax.policy.heads.tokens import CODEC, TokenHead
from lapa_jax.policy.heads.vectors import STATISTICS, Vectors
from lapa_jax.policy.modality import LATENT, MODALITIES, STATE
from lapa_jax.policy.state import STATISTICS as STATE_STATISTICS
from lapa_jax.stages.policy import PolicyStage

# What heads and the state need of a run, where it has them.
ASSETS = (
    *(CODEC, TOKENS, STATE_STATISTICS),
    *(STATISTICS.format(name) for name in MODALITIES[LATENT:STATE]),
)
FAST_GRAMMAR = "fast_grammar.json"
SIZES = {"three": 3, "p": PooledDecoder.HEADS}  # axes that shapes alone do not tell


# --- Tensors ---


def rules(stage: PolicyStage) -> list[Rule]:
    """Of tables, heads and the embedding of the state, all but those of text."""
    found = []
    for modality, size in stage.vocabularies.items():
        if size and modality != "text":
            found.append(Rule(f"embeddings.{modality}.weight", f"embeddings/{modality}/table"))
            if modality not in stage.parts:
                found += _readout(modality)
    for modality, head in stage.parts.items():
        found += _head_rules(modality, head)
        if isinstance(head, SequenceHead):
            found += linear(f"fed.{modality}", f"embeddings/{modality}/into")
    if stage.state is not None:
        found += linear("state.into", "embeddings/state/into")
        found += linear("state.out", "embeddings/state/out")
        found.append(Rule("state.hidden", "embeddings/state/hidden"))
    return found


def _readout(modality: str) -> list[Rule]:
    return [Rule(f"heads.{modality}.weight", f"heads/{modality}/kernel", "v d -> d v")]


def _head_rules(modality: str, head: Head) -> list[Rule]:
    theirs, ours = f"heads.{modality}", f"heads/{modality}"
    if isinstance(head, FlowHead):
        return _expert_rules(theirs, ours, head)
    if isinstance(head, AlignHead):
        found = norm(f"{theirs}.norm", f"{ours}/norm")
        for name in ("into", "out"):
            found += linear(f"{theirs}.{name}", f"{ours}/{name}")
        return found
    if isinstance(head, ChunkHead) and head.settings.decoder != "linear":
        return decoder_rules(theirs, f"{ours}/", head.settings.decoder)
    return _readout(modality)


def decoder_rules(theirs: str, ours: str, decoder: str) -> list[Rule]:
    """Of the layers "mlp" or "pool" of a chunk; `ours` is what our paths begin with."""
    found = linear(f"{theirs}.out", f"{ours}out")
    if decoder == "mlp":
        found += norm(f"{theirs}.norm", f"{ours}norm")
        for name in ("into", "first", "second"):
            found += norm(f"{theirs}.{name}.norm", f"{ours}{name}/norm")
            found += linear(f"{theirs}.{name}.linear", f"{ours}{name}/linear")
        return found
    ours = f"{ours}pool"
    found.append(Rule(f"{theirs}.latents", f"{ours}/latents"))
    for name in ("project", "value", "gate", "down"):
        found += linear(f"{theirs}.{name}", f"{ours}/{name}")
    for name in "qkv":
        found.append(Rule(f"{theirs}.{name}.weight", f"{ours}/{name}/kernel", "(p w) d -> d p w"))
    found += linear(f"{theirs}.o", f"{ours}/out", "d (p w) -> p w d")
    for name in ("attention_norm", "mlp_norm"):
        found.append(Rule(f"{theirs}.{name}.weight", f"{ours}/{name}/scale"))
    return found


def _expert_rules(theirs: str, ours: str, head: FlowHead) -> list[Rule]:
    found = []
    for name in head.streams:
        for way in ("into", "out"):
            found += linear(f"{theirs}.{way}.{name}", f"{ours}/{way}/{name}")
    for name in ("time_in", "time_out"):
        found += linear(f"{theirs}.{name}", f"{ours}/{name}")

    def of_norm(theirs: str, ours: str, layers: int = 0) -> list[Rule]:
        if head.settings.conditioning != "adaptive":
            return [Rule(f"{theirs}.weight", f"{ours}/scale", layers=layers)]
        shapes = "(three e) i -> i three e", "(three e) -> three e"
        return linear(f"{theirs}.change", f"{ours}/change", *shapes, layers)

    found += of_norm(f"{theirs}.norm", f"{ours}/norm")
    layer, depth = f"{theirs}.layers.{{i}}", head.depth
    for rule in layer_rules(layer, f"{ours}/layers/layers", depth):
        name, _, leaf = rule.theirs.rpartition(".")
        adapted = rule.ours.endswith("_norm/scale") and leaf == "weight"
        found += of_norm(name, rule.ours.removesuffix("/scale"), depth) if adapted else [rule]
    if head.settings.form == "head":
        halves = {"k": "(k two half) d -> d k (half two)", "v": "(k c) d -> d k c"}
        for name, pattern in halves.items():
            place = f"{ours}/layers/layers/context_{name}/kernel"
            found.append(Rule(f"{layer}.context_{name}.weight", place, pattern, depth))
    return found


# --- Settings ---


def settings(stage: PolicyStage) -> dict[str, Any]:
    """Of config.json, under "lapa"."""
    state = None if stage.state is None else _columns(stage.state.statistics)
    return {
        "head": stage.head.modality,
        "before": [head.modality for head in stage.heads[:-1] if not head.pulls],
        "heads": {modality: _spec(head) for modality, head in stage.parts.items()},
        "state": state,
    }


def _spec(head: Head) -> dict[str, Any]:
    found = {"kind": head.name, "outputs": head.num_outputs, "horizon": head.horizon}
    if isinstance(head, TokenHead):
        return found | {"slots": head.num_slots, "limits": list(head.limits)}
    if isinstance(head, FastHead):
        vectors = {"vectors": _vectors(head.vectors)} if head.settings.loss_weight else {}
        return found | {"slots": head.num_slots} | vectors
    if isinstance(head, AlignHead):
        return found | {"dim": head.settings.dim}
    if isinstance(head, SequenceHead):
        return found | {"vectors": _vectors(head.vectors)}
    if isinstance(head, ChunkHead):
        decoder = {name: getattr(head.settings, name) for name in ("decoder", "decoder_dim")}
        return found | decoder | {"vectors": _vectors(head.vectors)}
    if isinstance(head, FlowHead):
        names = ("form", "dim", "mlp_dim", "activation", "conditioning", "convention", "steps")
        streams = {name: _vectors(vectors) for name, vectors in head.streams.items()}
        chosen = {name: getattr(head.settings, name) for name in names}
        return found | chosen | {"depth": head.depth, "streams": streams}
    raise ValueError(
        f"model.targets.{head.modality}.name={head.name!r}: PyTorch's LapaPolicy lacks this head"
    )


def _vectors(vectors: Vectors) -> dict[str, Any]:
    single = vectors.acts and vectors.count == 1
    columns = _columns(vectors.statistics)
    columns["scale"] = [a * b for a, b in zip(columns["scale"], columns.pop("live"), strict=True)]
    return {"count": vectors.count, "dim": vectors.dim, "single": single} | columns


def _columns(statistics: Normaliser) -> dict[str, list[float]]:
    centre, scale, live, *_ = (column.tolist() for column in statistics.columns)
    return {"centre": centre, "scale": scale, "live": live}


def files(stage: PolicyStage) -> dict[str, bytes]:
    """What the policy in PyTorch reads besides the run's assets."""
    heads = [head for head in stage.heads if isinstance(head, FastHead)]
    found = {}
    for head in heads:
        tables = {
            name.split("_")[0]: table.tolist() for name, table in head.grammar._asdict().items()
        }
        shape = [head.horizon, head.dim]
        numbers = {"min_token": head.codec.min_token, "scale": head.codec.scale, "shape": shape}
        found[FAST_GRAMMAR] = json.dumps(tables | numbers).encode()
    return found
