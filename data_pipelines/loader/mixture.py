"""A weighted set of corpora, and what they must have in common.

`open_mixture` opens indexes and label sets of `config.data` and counts the eligible samples of each
corpus; a sample number then gives frame rows without any state. What does not fit raises an error
that names the corpus and the config key.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from absl import logging

from data_pipelines import sidecar
from data_pipelines.loader.columns import COLUMNS, LATENT_ACTIONS, STATES
from data_pipelines.loader.corpus import Corpus
from data_pipelines.loader.opening import open_corpus
from data_pipelines.loader.settings import DataSettings

FIELDS = ("frames", *COLUMNS)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Corpora in the order of their names; what every example has."""

    corpora: list[Corpus]
    columns: tuple[str, ...]  # of a batch, beside frames
    num_frames: int
    num_cameras: int  # of which each frame has an image
    image_size: tuple[int, int]
    hash: str  # of everything but the shards that decides what an example is
    index_hash: str
    data: DataSettings
    fields: tuple[str, ...]

    def without(self, unusable: Sequence[np.ndarray]) -> "Mixture":
        """The mixture without these episodes, bool (E,) of each corpus."""
        pairs = zip(self.corpora, unusable, strict=True)
        corpora = [corpus.without(which) if which.any() else corpus for corpus, which in pairs]
        for corpus in corpora:
            if not corpus.counts.any():
                raise ValueError(
                    f"corpus {corpus.name!r}: every episode that would be drawn is one that "
                    "training cannot use (data.unusable_episodes)"
                )
        return replace(self, corpora=corpora, hash=_hash(corpora, self.data, self.fields))

    @property
    def sizes(self) -> list[int]:
        return [corpus.num_samples for corpus in self.corpora]

    @property
    def weights(self) -> list[float]:
        return [corpus.settings.weight for corpus in self.corpora]


def open_mixture(data: Any, fields: Sequence[str] = ("frames",)) -> Mixture:
    """Opens the corpora of `config.data`, or of `DataSettings`, for examples of `fields`."""
    data = DataSettings.of(data)
    if set(fields) - set(FIELDS) or not fields:
        raise ValueError(f"fields are {list(fields)}; choose from {FIELDS}")
    if not data.corpora:
        raise ValueError("data.corpora is empty; name at least one corpus")
    corpora = [open_corpus(n, one, data, fields) for n, one in enumerate(data.corpora)]
    _check_equal(corpora, fields)
    columns = set(fields)
    if "action" in fields:
        corpora = _with_action_dim(corpora, data)
        columns |= {"action_mask"} if data.action_horizon > 1 else set()
    if STATES & set(fields):
        corpora = _with_state_dim(corpora)
    height, width = data.image_size
    return Mixture(
        corpora,
        tuple(name for name in COLUMNS if name in columns),
        data.num_frames,
        len(corpora[0].cameras),
        (int(height), int(width)),
        _hash(corpora, data, fields),
        sidecar.value_hash([camera.hash for corpus in corpora for camera in corpus.cameras]),
        data,
        tuple(fields),
    )


def _hash(corpora: list[Corpus], data: DataSettings, fields: Sequence[str]) -> str:
    """Checkpoints hold it: keys of later are in it only where they say other than before them."""
    settings = {
        "fields": sorted(fields),
        "image_size": list(data.image_size),
        "num_frames": data.num_frames,
        "history_seconds": float(data.history_seconds),
        "sampling": data.sampling,
        "tail": data.tail,
        "corpora": [_of_corpus(corpus) for corpus in corpora],
    }
    if data.access == "windowed":
        settings["windowed"] = [float(data.block_mib), data.window_blocks, data.lanes]
    if data.chain_pairs > 1:
        settings["chain_pairs"] = data.chain_pairs
    if data.min_pair_difference:
        motion = [corpus.motion.hash for corpus in corpora]
        settings["min_pair_difference"] = [float(data.min_pair_difference), motion]
    if "flow" in fields:
        settings["flow"] = [corpus.flow.hash for corpus in corpora]
    if "action" in fields and data.action_horizon > 1:
        absolute = list(data.action_absolute)
        settings["action_chunks"] = [data.action_horizon, data.action_padding, absolute]
    known = [float(corpus.settings.action_fraction) for corpus in corpora]
    if {"action", "action_known"} & set(fields) and set(known) != {1.0}:
        settings["action_fraction"] = known
    said = [corpus.actions.said.hash if corpus.actions.said else "" for corpus in corpora]
    if any(said):
        settings["action_sets"] = said
    if STATES & set(fields):
        settings["state_keys"] = [corpus.settings.state_key for corpus in corpora]
    left_out = [np.flatnonzero(corpus.left_out).tolist() for corpus in corpora]
    if any(left_out):
        settings["left_out"] = left_out
    return sidecar.value_hash(settings)


def _of_corpus(corpus: Corpus) -> list[Any]:
    settings, index = corpus.settings, corpus.index
    return [
        settings.name,
        float(settings.weight),
        corpus.num_samples,
        corpus.labels.hash if corpus.labels else "",
        [tokens.hash for tokens in corpus.tokens],
        list(settings.extra_image_keys),
        settings.split,
        float(settings.fraction),
        float(settings.min_episode_steps),
        float(settings.require_instruction),
        float(settings.window_seconds),
        float(settings.fps),
        index.image_key,
        index.action_key,
        index.instruction_key,
    ]


def _with_action_dim(corpora: list[Corpus], data: DataSettings) -> list[Corpus]:
    """Corpora without actions give zeros of as many dimensions as the others have."""
    dim = max(corpus.actions.dim for corpus in corpora)
    if not dim:
        raise ValueError(
            f"no corpus of {[corpus.name for corpus in corpora]} has actions "
            "(data.corpora.<name>.action_key)"
        )
    for place in data.action_absolute:
        if not -dim <= place < dim:
            raise ValueError(
                f"data.action_absolute names dimension {place}, but actions have {dim}"
            )
    return [replace(c, actions=replace(c.actions, dim=dim)) for c in corpora]


def _with_state_dim(corpora: list[Corpus]) -> list[Corpus]:
    """Corpora without states give NaN of as many dimensions as the others have."""
    without = [corpus.name for corpus in corpora if not corpus.settings.state_key]
    if len(without) == len(corpora):
        raise ValueError(
            f"no corpus of {without} has the robot's state: data.corpora.<name>.state_key names "
            "what its index has, as observation/state"
        )
    if without:
        logging.warning(
            "%s have no state (data.corpora.<name>.state_key is empty): it is not shown there",
            ", ".join(without),
        )
    dim = max(corpus.index.state_dim for corpus in corpora if corpus.settings.state_key)
    return [replace(corpus, state_dim=dim) for corpus in corpora]


def _check_equal(corpora: list[Corpus], fields: Sequence[str]) -> None:
    found = {"the number of cameras": {c.name: len(c.cameras) for c in corpora}}
    if "action" in fields:
        found["action_dim"] = {c.name: c.actions.dim for c in corpora if c.actions.dim}
    if STATES & set(fields):
        found["state_dim"] = {c.name: c.index.state_dim for c in corpora if c.settings.state_key}
    if "flow" in fields:
        found["the cells of flow"] = {c.name: tuple(c.flow.provenance["grid"]) for c in corpora}
    if LATENT_ACTIONS & set(fields):
        for what in ("code_length", "codebook_size", "width", "quantizer_hash"):
            found[what] = {c.name: c.labels.provenance.get(what) for c in corpora}
    if "image_tokens" in fields:
        sets = {f"{c.name}/{t.provenance['image_key']}": t for c in corpora for t in c.tokens}
        for what in ("tokens_per_frame", "codebook_size", "tokenizer_hash"):
            found[f"{what} of image tokens"] = {
                name: tokens.provenance[what] for name, tokens in sets.items()
            }
    for what, values in found.items():
        if len(set(values.values())) > 1:
            raise ValueError(
                f"the corpora of a mixture must agree in {what}: "
                + ", ".join(f"{name} has {value}" for name, value in values.items())
            )
