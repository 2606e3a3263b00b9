"""Tokens, one after the other: codes of a quantizer, or actions by a codec."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from lapa_jax.nn.module import Functional, Tree
from lapa_jax.policy import codecs
from lapa_jax.policy.decoding import decode, if_finite
from lapa_jax.policy.heads.base import (
    COLUMNS,
    Assets,
    Decoded,
    Head,
    HeadConfig,
    Sources,
    partly,
)
from lapa_jax.policy.heads.vectors import masked_mean

CODEC = "action_bins.json"  # the asset, of whatever kind the codec is


@dataclass(frozen=True, kw_only=True)
class TokensConfig(HeadConfig):
    """Those of every head, and what tokens stand for."""

    vocab: Annotated[
        int,
        "[1, 1e7]",
        "ids of a token at most: the quantizer's codebook_size, bins of an action dimension (256 "
        "of OpenVLA's uniform ones), clusters of actions",
    ]
    codec: Annotated[str, codecs.CODECS, "between values and tokens"]


class TokenHead(Head):
    name = "tokens"
    next_token = samples = True

    def __init__(self, modality: str, settings: TokensConfig, config: ConfigDict, assets: Assets):
        self.modality, self.settings = modality, settings
        # Small vocabularies of any size: neither the table nor the head is split.
        self.vocab = self.num_outputs = settings.vocab
        if not self.acts and issubclass(codecs.CODECS[settings.codec], codecs.ActionCodec):
            raise ValueError(
                f"model.targets.{modality}.codec={settings.codec!r} is of actions: set 'codes'"
            )
        self.codec = None  # of a head that is only kept: what its codec needs may be missing
        if settings.loss_weight and settings.codec == codecs.Codes.kind:
            if "code_length" not in config:
                raise ValueError("config.code_length is missing: how many codes a z has")
            self.codec = codecs.Codes(settings.vocab, config.code_length)
        elif settings.loss_weight:
            self.codec = codecs.from_json(assets[CODEC])
        if self.acts:
            self.horizon = config.data.action_horizon
        sizes = () if self.codec is None else tuple(int(n) for n in self.codec.sizes)
        self.masked = self.horizon > 1 or self.acts and partly(config)
        self.limits = sizes * self.horizon  # of all tokens of the first action, then the next
        self.num_slots = len(self.limits)
        if max(self.limits, default=0) > self.vocab:
            raise ValueError(
                f"model.targets.{modality}.vocab={self.vocab} is too small: {max(self.limits)} ids "
                "are in use"
            )

    @staticmethod
    def columns(modality: str, config: ConfigDict) -> tuple[str, ...]:
        chunks = COLUMNS[modality] == "action" and config.data.action_horizon > 1
        return (COLUMNS[modality], "action_mask") if chunks else (COLUMNS[modality],)

    @staticmethod
    def make_assets(
        modality: str, settings: TokensConfig, config: ConfigDict, sources: Sources
    ) -> dict[str, bytes]:
        """Bins or clusters come from this run's own labelled data, or from a file."""
        kind = codecs.CODECS[settings.codec]
        if not issubclass(kind, codecs.ActionCodec):
            return {}
        actions, path = sources.actions(), config.model.action_codec
        codec = _read(path, kind, actions) if path else kind.fit(actions, settings.vocab)
        for line in codec.peculiarities(actions):
            logging.warning("%s", line)
        return {CODEC: codec.to_json()}

    def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        ids = self.codec.encode(batch[COLUMNS[self.modality]])
        if not self.masked:
            return ids, {"targets": ids}
        # The tokens of actions past the end of the episode, and of unknown ones, do not count.
        mask = np.repeat(batch["action_mask"], len(self.codec.sizes), axis=1)
        ids = ids.reshape(len(ids), -1)
        return ids, {"targets": ids, "mask": mask}

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        found = {"targets": jax.ShapeDtypeStruct((self.num_slots,), jnp.int32)}
        if self.masked:
            found["mask"] = jax.ShapeDtypeStruct((self.num_slots,), jnp.bool_)
        return found

    def loss(
        self, outputs_RnV: jax.Array, targets: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy, mean over the tokens of actions that are known."""
        where = targets.get("mask")
        loss, correct = cross_entropy(outputs_RnV, targets["targets"], where)
        right = correct if where is None else correct | ~where
        weight = {} if where is None else {"loss_weight": where.sum()}
        return loss, weight | {
            "token_accuracy": correct.mean() if where is None else masked_mean(correct, where),
            "sequence_accuracy": right.reshape(-1, self.num_slots).all(axis=-1).mean(),
        }

    def decode(
        self,
        model: Functional,
        params: Tree,
        variables: Tree,
        prompts: Mapping[str, jax.Array],
        images: jax.Array | None,
        **options: Any,
    ) -> Decoded:
        """Greedy unless `options` (of policy/decoding.decode) ask for more. Confined to the ids
        that each token has, so that none is out of range. Where the model's outputs are not finite
        actions are NaN."""
        ids, logits = decode(
            model,
            params,
            variables,
            prompts,
            images,
            self.modality,
            self.num_slots,
            vocab_limit_n=jnp.asarray(self.limits),
            **options,
        )
        of_steps = ids if self.horizon == 1 else ids.reshape(len(ids), self.horizon, -1)
        values = self.codec.values(of_steps, jnp)
        if jnp.issubdtype(values.dtype, jnp.floating):
            values = if_finite(values, logits)
        return Decoded(values, ids, logits)

    def nearest(self, actions: np.ndarray) -> np.ndarray | None:
        return self.codec.values(self.codec.encode(actions))

    def describe(self) -> dict[str, Any]:
        return self.codec.describe()

    def reply(self, values: np.ndarray, probabilities: np.ndarray | None) -> dict[str, np.ndarray]:
        found = super().reply(values, probabilities)
        if isinstance(self.codec, codecs.Codes):  # whose tokens are the values
            found["probabilities"] = probabilities
        return found


def _read(path: str, kind: type[codecs.ActionCodec], actions: np.ndarray) -> codecs.ActionCodec:
    """The codec in the file of model.action_codec; ValueError unless it is of that kind, and of
    such actions."""
    try:
        codec = codecs.from_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"model.action_codec={path!r} cannot be read: {error}") from error
    if (codec.kind, codec.action_dim) != (kind.kind, actions.shape[1]):
        raise ValueError(
            f"model.action_codec={path!r} holds {codec.kind} of {codec.action_dim} dimensions, but "
            f"model.targets.action.codec is {kind.kind!r} and actions have {actions.shape[1]}"
        )
    return codec


def cross_entropy(
    logits: jax.Array, targets: jax.Array, where: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(mean over all tokens, or over those `where` it is True; whether the likeliest is the target
    (R, n))."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    loss = each.mean() if where is None else masked_mean(each, where)
    return loss, jnp.argmax(logits, axis=-1) == targets
