"""What policies predict. A new head is a file here and a line in `HEADS`."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lapa_jax.nn.registry import named_config, named_settings
from lapa_jax.policy.heads.align import AlignConfig, AlignHead
from lapa_jax.policy.heads.base import COLUMNS, Assets, Decoded, Head, HeadConfig, Sources, partly
from lapa_jax.policy.heads.chunk import ChunkConfig, ChunkHead
from lapa_jax.policy.heads.fast import FastConfig, FastHead
from lapa_jax.policy.heads.flow import FlowConfig, FlowHead
from lapa_jax.policy.heads.sequence import SequenceConfig, SequenceHead
from lapa_jax.policy.heads.tokens import TokenHead, TokensConfig
from lapa_jax.policy.modality import ACTION, LATENT, MODALITIES

__all__ = ["HEADS", "Decoded", "Head", "Sources", "build", "columns", "make_assets"]

# name → (config, head)
HEADS: dict[str, tuple[type[HeadConfig], type[Head]]] = {
    "tokens": (TokensConfig, TokenHead),
    "fast": (FastConfig, FastHead),
    "chunk": (ChunkConfig, ChunkHead),
    "flow": (FlowConfig, FlowHead),
    "vectors": (SequenceConfig, SequenceHead),
    "align": (AlignConfig, AlignHead),
}


def head_settings(name: str, **changes: Any) -> ConfigDict:
    """The settings of a head for a new config."""
    return named_settings(name, HEADS, "head", **changes)


def token_settings(*, latent: int = 0, action: int = 0) -> ConfigDict:
    """`model.targets` of tokens with these vocabularies; 0: not those."""
    found = ConfigDict()
    if latent:
        found.latent = head_settings("tokens", vocab=latent, codec="codes")
    if action:
        found.action = head_settings("tokens", vocab=action, codec="bins")
    return found


def build(config: ConfigDict, assets: Assets) -> dict[str, Head]:
    """The heads of a policy's config (`model.targets`), by modality, in the order of rows."""
    return {m: kind(m, found, config, assets) for m, (kind, found) in _chosen(config).items()}


def columns(config: ConfigDict) -> tuple[str, ...]:
    """What the loader must give for all heads that are trained."""
    trained = _trained(config)
    found = [kind.columns(m, config) for m, (kind, _) in trained.items()]
    if partly(config):
        if list(trained) != [MODALITIES[LATENT], MODALITIES[ACTION]]:
            raise ValueError(
                "model.cotrain=True: examples without actions are for a head of latent actions "
                f"beside one of actions, and model.targets trains {list(trained)}"
            )
        found.append(("action_mask", "action_known"))
    return tuple(dict.fromkeys(name for names in found for name in names))


def make_assets(config: ConfigDict, sources: Sources) -> dict[str, bytes]:
    """The files of a new run that its heads need."""
    made: dict[str, bytes] = {}
    for modality, (kind, settings) in _trained(config).items():
        own = kind.make_assets(modality, settings, config, sources)
        for name in [name for name in own if made.get(name, own[name]) != own[name]]:
            raise ValueError(f"two of model.targets want another {name}: set one normalisation")
        made |= own
    return made


def _chosen(config: ConfigDict) -> dict[str, tuple[type[Head], HeadConfig]]:
    targets: Mapping[str, Any] = config.model.targets
    unknown = sorted(set(targets) - set(COLUMNS))
    if unknown:
        raise ValueError(f"model.targets has {unknown}: known are {sorted(COLUMNS)}")
    found = {}
    for modality in (m for m in MODALITIES if m in targets):
        settings = targets[modality]
        name, typed = named_config(settings, HEADS, f"model.targets.{modality}")
        found[modality] = HEADS[name][1], typed
    return found


def _trained(config: ConfigDict) -> dict[str, tuple[type[Head], HeadConfig]]:
    return {m: found for m, found in _chosen(config).items() if found[1].loss_weight}
