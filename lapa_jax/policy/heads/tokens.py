"""Tokens, one after the other: codes of a quantizer, or actions by a codec."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from lapa_jax.nn.module import Functional, Tree
from lapa_jax.policy import codecs
from lapa_jax.policy.decoding import decode
from lapa_jax.policy.heads.base import (
    COLUMNS,
    Assets,
    Decoded,
    Head,
    HeadConfig,
    Sources,
)

CODEC = "action_bins.json"  # the asset, of whatever kind the codec is


@dataclass(frozen=True, kw_only=True)
class TokensConfig(HeadConfig):
    """Those of every head, and what tokens stand for."""

    vocab: Annotated[
        int,
        "[1, 1e7]",
        "ids of a token at most: the quantizer's codebook_size, bins of an action dimension, "
        "clusters of actions",
    ]
    codec: Annotated[str, codecs.CODECS, "between values and tokens"]


class TokenHead(Head):
    next_token = True

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
        self.limits = () if self.codec is None else tuple(int(n) for n in self.codec.sizes)
        self.num_slots = len(self.limits)
        if max(self.limits, default=0) > self.vocab:
            raise ValueError(
                f"model.targets.{modality}.vocab={self.vocab} is too small: {max(self.limits)} ids "
                "are in use"
            )

    @staticmethod
    def make_assets(
        modality: str, settings: TokensConfig, config: ConfigDict, sources: Sources
    ) -> dict[str, bytes]:
        """Bins or clusters come from this run's own labelled data."""
        kind = codecs.CODECS[settings.codec]
        if not issubclass(kind, codecs.ActionCodec):
            return {}
        actions = sources.actions()
        codec = kind.fit(actions, settings.vocab)
        for line in codec.peculiarities(actions):
            logging.warning("%s", line)
        return {CODEC: codec.to_json()}

    def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        values = batch[COLUMNS[self.modality]]
        if self.acts and values.ndim != 2:
            raise ValueError(
                f"data.action_horizon is {values.shape[1]}, but this head predicts one action: set "
                "it to 1"
            )
        ids = self.codec.encode(values)
        return ids, {"targets": ids}

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"targets": jax.ShapeDtypeStruct((self.num_slots,), jnp.int32)}

    def loss(
        self, outputs_RnV: jax.Array, targets: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy, mean over tokens (every row has as many)."""
        loss, correct = cross_entropy(outputs_RnV, targets["targets"])
        return loss, {
            "token_accuracy": correct.mean(),
            "sequence_accuracy": correct.reshape(-1, self.num_slots).all(axis=-1).mean(),
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
        that each token has, so that none is out of range."""
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
        return Decoded(self.codec.values(ids, jnp), ids, logits)

    def describe(self) -> dict[str, Any]:
        return self.codec.describe()

    def reply(self, values: np.ndarray, probabilities: np.ndarray | None) -> dict[str, np.ndarray]:
        found = super().reply(values, probabilities)
        if isinstance(self.codec, codecs.Codes):  # whose tokens are the values
            found["probabilities"] = probabilities
        return found


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean over all tokens, whether the likeliest is the target (R, n))."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    return loss, jnp.argmax(logits, axis=-1) == targets
