"""Chunks of actions as FAST tokens, one after the other; as many as a chunk needs, then the end.

Shape suffixes: B examples, R rows, n slots, V ids and the end, T steps, D dimensions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from data_pipelines.normalise import Normaliser
from lapa_jax.nn.module import Functional, Tree
from lapa_jax.policy.codecs.fast import PROCESSORS, Fast
from lapa_jax.policy.decoding import decode, if_finite
from lapa_jax.policy.grammar import Grammar
from lapa_jax.policy.heads.base import Assets, Decoded, HeadConfig, Sources
from lapa_jax.policy.heads.vectors import STATISTICS, Normalisation, VectorHead, masked_mean

TOKENS = "fast_tokenizer.json"  # the asset
_LEARNT = 4096  # chunks that merges are learnt of, at least, where there are more


@dataclass(frozen=True, kw_only=True)
class FastConfig(HeadConfig):
    """Those of every head, and how chunks become tokens."""

    vocab: Annotated[int, "[2, 1e6]", "tokens at most"] = 1024
    scale: Annotated[
        float, "(0, 1e6]", "coefficients are rounded in units of 1 / scale: larger is more exact"
    ] = 10.0
    normalisation: Normalisation = "q01_q99"
    clip: Annotated[
        bool, "normalised actions to [-1, 1], as for a tokenizer of other data; else they are kept"
    ] = False
    tokenizer: Annotated[
        str,
        "folder with the tokenizer.json and processor_config.json of a published processor, which "
        "has a scale of its own; empty: fitted on the corpora's chunks",
    ] = ""
    max_tokens: Annotated[
        int, "[0, 65536]", "of a chunk; 0: those of the longest in the corpora"
    ] = 0


class FastHead(VectorHead):
    next_token = samples = True
    name = "fast"
    settings: FastConfig

    def __init__(self, modality: str, settings: FastConfig, config: ConfigDict, assets: Assets):
        self.modality, self.settings = modality, settings
        if not self.acts:
            raise ValueError(f"model.targets.{modality}.name='fast' is of actions: set 'tokens'")
        if settings.loss_weight:
            super().__init__(modality, settings, config, assets)
        self.end = settings.vocab
        self.vocab = self.num_outputs = settings.vocab + 1
        self.horizon, self.num_slots = config.data.action_horizon, 0
        if not settings.loss_weight:  # only kept: what its codec needs may be missing
            return
        self.codec, self.dim = Fast.from_json(assets[TOKENS]), self.vectors.dim
        shape = self.codec.time_horizon, self.codec.action_dim
        if shape != (self.horizon, self.dim):
            raise ValueError(
                f"{TOKENS} is for chunks of {shape[0]} steps and {shape[1]} dimensions, but "
                f"data.action_horizon is {self.horizon}, and actions have {self.dim}"
            )
        _check_size(self.codec, settings)
        self.num_slots = self.codec.max_tokens + 1
        least = self.grammar.least_SR[0, -1] + 1
        if least > self.num_slots:
            raise ValueError(
                f"model.targets.{modality}.max_tokens={self.num_slots - 1} is too small: no chunk "
                f"of {self.horizon} x {self.dim} has fewer than {least - 1} tokens"
            )

    @staticmethod
    def make_assets(
        modality: str, settings: FastConfig, config: ConfigDict, sources: Sources
    ) -> dict[str, bytes]:
        """Statistics of this run's own labelled actions, and tokens of their chunks."""
        normaliser = sources.statistics(modality, settings.normalisation)
        normaliser = replace(normaliser, clip=settings.clip)
        codec, lines = _fitted(settings, config.data.action_horizon, normaliser, sources)
        for line in lines:
            logging.warning("%s", line)
        return {TOKENS: codec.to_json(), STATISTICS.format(modality): normaliser.to_json()}

    # --- On the host ---

    def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        found = self.vectors.rows(batch)
        known = found["mask"][:, 0]
        said = [[] for _ in known]  # of unknown chunks none, which do not count
        for row, tokens in zip(
            np.flatnonzero(known), _tokens(self.codec, found["targets"][known]), strict=True
        ):
            said[row] = tokens
        longest = max(map(len, said), default=0)
        if longest >= self.num_slots:
            raise ValueError(
                f"a chunk of actions has {longest} FAST tokens, more than the {self.num_slots - 1} "
                f"of model.targets.{self.modality}.max_tokens (0: the longest of the corpora when "
                "the run began): raise it in a new run"
            )
        ids = np.full((len(said), self.num_slots), self.end, np.int32)
        for row, tokens in zip(ids, said, strict=True):
            row[: len(tokens)] = tokens
        length = np.array([len(tokens) for tokens in said])[:, None]
        counted = np.arange(self.num_slots) <= length  # the end, and nothing that fills up
        counted &= known[:, None]
        return ids, found | {"targets": ids, "counted": counted, "values": found["targets"]}

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        found = self.vectors.spec()
        return found | {
            "targets": jax.ShapeDtypeStruct((self.num_slots,), jnp.int32),
            "counted": jax.ShapeDtypeStruct((self.num_slots,), jnp.bool_),
            "values": found["targets"],
        }

    # --- In the model ---

    @cached_property
    def grammar(self) -> Grammar:
        codec = self.codec
        return Grammar.of(
            codec.pairs.tokens,
            self.end,
            self.horizon * self.dim,
            codec.max_token - codec.min_token + 1,
            codec.pairs.dead.tolist(),
        )

    def loss(
        self, outputs_RnV: jax.Array, targets: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy, mean over the tokens of each chunk and its end, then over examples.

        `decodable` is the share of chunks whose likeliest tokens, each after the true ones, say a
        chunk; `l1` the absolute error of normalised actions of the likeliest that may follow each
        other, over the steps that are known.
        """
        n, V = self.num_slots, self.num_outputs
        logits, ids = outputs_RnV.reshape(-1, n, V), targets["targets"].reshape(-1, n)
        counted = targets["counted"].reshape(-1, n)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        loss = masked_mean(each.mean(axis=1, where=counted), counted[:, 0])
        logits = jax.lax.stop_gradient(logits)
        likeliest = jnp.argmax(logits, axis=-1)
        correct = likeliest == ids
        true = targets["values"].reshape(-1, self.horizon, self.dim)
        error = jnp.abs(self._said(self._confined(logits)) - true).mean(axis=-1)
        return loss, {
            "token_accuracy": masked_mean(correct, counted),
            "sequence_accuracy": masked_mean((correct | ~counted).all(axis=-1), counted[:, 0]),
            "decodable": masked_mean(self.grammar.read(likeliest)[1], counted[:, 0]),
            "l1": masked_mean(error, targets["mask"].reshape(error.shape)),
        } | self.out_of_range(targets)

    def _confined(self, logits_BnV: jax.Array) -> jax.Array:
        """The likeliest ids of each slot that may follow those before, int32 (B, n)."""
        n = self.num_slots

        def step(state, at):
            logits_BV, slot = at
            allowed = self.grammar.allowed(state, n - slot)
            token = jnp.argmax(jnp.where(allowed, logits_BV, -jnp.inf), axis=-1)
            return self.grammar.advance(state, token), token

        given = jnp.moveaxis(logits_BnV, 1, 0), jnp.arange(n)
        return jax.lax.scan(step, self.grammar.start(len(logits_BnV)), given)[1].T

    def _said(self, ids_Bn: jax.Array) -> jax.Array:
        """Normalised actions float32 (B, T, D); NaN of ids that say none."""
        numbers, good = self.grammar.read(ids_Bn)
        found = (numbers + self.codec.min_token).reshape(-1, self.horizon, self.dim)
        inverse = self.codec.restored(np.eye(self.horizon))  # (T, frequencies), with the scale
        actions = jnp.einsum(
            "tf,bfd->btd",
            inverse.astype(np.float32),
            found.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        return jnp.where(good[:, None, None], actions, jnp.nan)

    def decode(
        self,
        model: Functional,
        params: Tree,
        variables: Tree,
        prompts: Mapping[str, jax.Array],
        images: jax.Array | None,
        **options: Any,
    ) -> Decoded:
        """Greedy unless `options` (of policy/decoding.decode) ask for more, among the tokens that
        lead to a chunk. Where the model's outputs are not finite the actions are NaN."""
        ids, logits = decode(
            model,
            params,
            variables,
            prompts,
            images,
            self.modality,
            self.num_slots,
            grammar=self.grammar,
            **options,
        )
        actions = self.vectors.restored(self._said(ids))
        return Decoded(if_finite(actions, logits), ids, logits)

    # --- For others ---

    def nearest(self, actions: np.ndarray) -> np.ndarray | None:
        return _nearest(self.codec, self.vectors.statistics, actions)

    def describe(self) -> dict[str, Any]:
        codec = self.codec
        return super().describe() | {
            "num_tokens": len(codec.pairs),
            "max_tokens": codec.max_tokens,
            "scale": codec.scale,
        }


def _fitted(
    settings: FastConfig, horizon: int, normaliser: Normaliser, sources: Sources
) -> tuple[Fast, list[str]]:
    """(the codec of a run, what is to be known of it)."""

    def chunks() -> Iterator[np.ndarray]:
        for part in sources.action_chunks("fit FAST tokens"):
            yield normaliser.normalise(part)

    if settings.tokenizer:
        codec = _published(Path(settings.tokenizer))
    else:
        given = dict(scale=settings.scale, vocab_size=settings.vocab)
        codec = Fast.fit(chunks(), **given, every_byte=True, most=_LEARNT)
    shape = dict(time_horizon=horizon, action_dim=normaliser.dim)
    codec = replace(codec, **shape)
    _check_size(codec, settings)
    longest, total, count, errors = 0, 0, 0, np.zeros(normaliser.dim)
    for part in sources.action_chunks("count FAST tokens"):
        lengths = [len(ids) for ids in _tokens(codec, normaliser.normalise(part))]
        longest, total = max(longest, *lengths), total + sum(lengths)
        count += len(part)
        off = np.abs(_nearest(codec, normaliser, part) - part)
        errors = np.maximum(errors, off.max(axis=(0, 1)))
    if settings.max_tokens and settings.max_tokens < longest:
        raise ValueError(
            f"model.targets.action.max_tokens={settings.max_tokens}, but a chunk of the corpora "
            f"has {longest} FAST tokens: raise it, lower scale, or set 0"
        )
    if not count:
        raise ValueError(
            f"no chunk of data.action_horizon={horizon} actions is known in the corpora"
        )
    told = ", ".join(f"{error:.3g}" for error in errors)
    lines = [
        f"the largest error of an action said by FAST tokens of scale {codec.scale:g}, in each "
        f"dimension in its units: {told}",
        f"a chunk of {horizon} actions has {total / count:.1f} FAST tokens of "
        f"{len(codec.pairs)}, at most {longest}",
    ]
    return replace(codec, max_tokens=settings.max_tokens or longest), lines


def _tokens(codec: Fast, chunks: np.ndarray) -> list[list[int]]:
    """Of normalised chunks (B, T, D). ValueError also for what a policy could not say again."""
    found = codec.coefficients(chunks)
    if found.size and (most := found.max()) > codec.max_token:
        dimension = int(np.argwhere(found == most)[0][-1])
        raise ValueError(
            f"action dimension {dimension} has a coefficient of {most}, above the "
            f"{codec.max_token} of the FAST tokens: set model.targets.action.clip, or fit them on "
            "these data"
        )
    return codec.said(found)


def _published(folder: Path) -> Fast:
    places = [folder / name for name in PROCESSORS]
    processor = next((place for place in places if place.exists()), places[0])
    try:
        return Fast.from_files((folder / "tokenizer.json").read_bytes(), processor.read_bytes())
    except OSError as error:
        raise ValueError(
            f"model.targets.action.tokenizer={str(folder)!r} cannot be read: {error}"
        ) from error


def _check_size(codec: Fast, settings: FastConfig) -> None:
    if len(codec.pairs) > settings.vocab:
        raise ValueError(
            f"model.targets.action.vocab={settings.vocab} is too small: there are "
            f"{len(codec.pairs)} FAST tokens"
        )


def _nearest(codec: Fast, normaliser: Normaliser, actions: np.ndarray) -> np.ndarray:
    """What tokens say at best of actions (B, T, D): coefficients beyond theirs as the outermost."""
    found = np.around(codec.transformed(normaliser.normalise(actions)))
    found = codec.restored(np.clip(found, codec.min_token, codec.max_token))
    return normaliser.restore(found).astype(np.float32)
