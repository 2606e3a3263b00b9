"""A weighted set of corpora, and what they must have in common.

`open_mixture` opens indexes and label sets of `config.data` and counts the eligible samples of each
corpus; a sample number then gives frame rows without any state. What does not fit raises an error
that names the corpus and the config key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from absl import logging

from data_pipelines import sidecar
from data_pipelines.index import CorpusIndex
from data_pipelines.index.labels import LATENT_ACTIONS, LabelSet
from data_pipelines.loader.chains import Chains
from data_pipelines.loader.corpus import (
    Corpus,
    Filter,
    eligible,
    labelled,
    open_cameras,
    open_frames,
    open_set,
    open_tokens,
    select,
    steps_between,
    tokenized,
)
from data_pipelines.loader.motion import MOTION, STEPS_PER_LEVEL, check_window, set_name

FIELDS = ("frames", "instruction", "action", "latent_action", "image_tokens")


@dataclass(frozen=True, eq=False)
class Mixture:
    """Corpora in the order of their names; what every example has."""

    corpora: list[Corpus]
    fields: tuple[str, ...]
    num_frames: int
    num_cameras: int  # of which each frame has an image
    image_size: tuple[int, int]
    hash: str  # of everything but the shards that decides what an example is
    index_hash: str

    @property
    def sizes(self) -> list[int]:
        return [corpus.num_samples for corpus in self.corpora]

    @property
    def weights(self) -> list[float]:
        return [corpus.weight for corpus in self.corpora]


def open_mixture(data: Any, fields: Sequence[str] = ("frames",)) -> Mixture:
    """Opens the corpora of `config.data` for examples that consist of `fields`."""
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown or not fields:
        raise ValueError(f"fields are {list(fields)}; choose from {FIELDS}")
    if data.num_frames < 1:
        raise ValueError(f"data.num_frames is {data.num_frames}; it must be at least 1")
    clip = data.num_frames == 2 and data.history_seconds == 0
    if data.chain_pairs < 1 or data.chain_pairs > 1 and not clip:
        raise ValueError(
            f"data.chain_pairs is {data.chain_pairs}; it must be at least 1, and chains are of "
            f"pairs: data.num_frames 2 (is {data.num_frames}), data.history_seconds 0.0 (is "
            f"{data.history_seconds})"
        )
    if not 0 <= data.min_pair_difference <= 255:
        raise ValueError(
            f"data.min_pair_difference is {data.min_pair_difference}; it must be 0 to 255"
        )
    if not data.history_seconds >= 0:
        raise ValueError(f"data.history_seconds is {data.history_seconds}; it must not be negative")
    for key, known in (
        ("access", ("random", "windowed")),
        ("sampling", ("per_frame", "per_video")),
        ("tail", ("drop", "clamp")),
    ):
        if getattr(data, key) not in known:
            raise ValueError(f"data.{key} is {getattr(data, key)!r}; it must be one of {known}")
    names = sorted(data.corpora.keys())
    if not names:
        raise ValueError("data.corpora is empty; name at least one corpus")
    corpora = [
        _open_corpus(number, name, getattr(data.corpora, name), data, fields)
        for number, name in enumerate(names)
    ]
    _check_equal(corpora, fields)
    settings = {
        "fields": sorted(fields),
        "image_size": list(data.image_size),
        "num_frames": data.num_frames,
        "history_seconds": float(data.history_seconds),
        "sampling": data.sampling,
        "tail": data.tail,
        "corpora": [
            [
                corpus.name,
                float(corpus.weight),
                corpus.num_samples,
                corpus.labels.hash if corpus.labels else "",
                [tokens.hash for tokens in corpus.tokens],
                list(getattr(data.corpora, corpus.name).extra_image_keys),
                *(
                    _plain(getattr(getattr(data.corpora, corpus.name), key))
                    for key in (
                        "split",
                        "fraction",
                        "min_episode_steps",
                        "require_instruction",
                        "window_seconds",
                        "fps",
                    )
                ),
                corpus.index.image_key,
                corpus.index.action_key,
                corpus.index.instruction_key,
            ]
            for corpus in corpora
        ],
    }
    if data.access == "windowed":
        settings["windowed"] = [float(data.block_mib), data.window_blocks, data.lanes]
    if data.chain_pairs > 1:
        settings["chain_pairs"] = data.chain_pairs
    if data.min_pair_difference:
        motion = [corpus.motion.hash for corpus in corpora]
        settings["min_pair_difference"] = [float(data.min_pair_difference), motion]
    height, width = data.image_size
    return Mixture(
        corpora,
        tuple(fields),
        data.num_frames,
        len(corpora[0].cameras),
        (int(height), int(width)),
        sidecar.value_hash(settings),
        sidecar.value_hash([camera.hash for corpus in corpora for camera in corpus.cameras]),
    )


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else value


def _open_corpus(number: int, name: str, config: Any, data: Any, fields: Sequence[str]) -> Corpus:
    key, cameras = f"data.corpora.{name}", open_cameras(name, config)
    index = cameras[0]
    for camera in cameras:
        if "frames" in fields and camera.image_size not in (None, tuple(data.image_size)):
            raise wrong_size(name, camera.image_size, tuple(data.image_size))
    frames = open_frames(name, config, data, index)
    clip = frames.offsets[-1] > 0
    if clip and len(cameras) > 1:
        raise ValueError(
            f"{key}.extra_image_keys is {tuple(config.extra_image_keys)}, but a clip (data."
            f"num_frames {data.num_frames}, data.history_seconds {data.history_seconds}) is of one "
            "camera"
        )
    labels = None
    if "latent_action" in fields and not config.label_set:
        raise ValueError(
            f"corpus {name!r} needs latent actions, but {key}.label_set is empty; "
            "make a label set with `lapa label`"
        )
    if config.label_set and ("latent_action" in fields or not clip):
        labels = open_set(config.label_set, index, LATENT_ACTIONS)
        if clip and labels.provenance["window_seconds"] != config.window_seconds:
            raise ValueError(
                f"{key}.window_seconds is {config.window_seconds}, but label set "
                f"{config.label_set!r} was made with "
                f"{labels.provenance['window_seconds']}; make them equal"
            )
    tokens = open_tokens(name, config, cameras) if "image_tokens" in fields else ()
    if "action" in fields and index.actions is None:
        raise ValueError(
            f"corpus {name!r} has no actions under steps/{index.action_key} "
            f"({key}.action_key); float features: "
            f"{[key for key, kind in index.keys.items() if kind == 'float']}"
        )
    filters = [*(labelled(labels) if labels else ()), *tokenized(frames, tokens)]
    motion = _open_motion(name, config, data, index) if data.min_pair_difference else None
    if motion:
        least = data.min_pair_difference * STEPS_PER_LEVEL
        why = "have frames that differ by less than data.min_pair_difference="
        why += f"{data.min_pair_difference} from those a window later, and are not drawn"
        filters.append(Filter(lambda rows: motion.labels(rows)[:, 0] >= least, why))
    skip, counts = eligible(name, config, data, fields, frames)
    chains = Chains(data.chain_pairs, frames.steps, skip, counts)
    if chains.num_in_none:
        logging.warning(
            "Corpus %r: %d of %d pairs are in no chain of data.chain_pairs=%d and are never drawn: "
            "their episodes are too short.",
            name,
            chains.num_in_none,
            counts.sum(),
            data.chain_pairs,
        )
    counts, kept = select(name, index, chains, filters)
    if not counts.any():
        raise ValueError(
            f"corpus {name!r} ({index.directory}, {index.num_episodes} episodes, the "
            f"longest of {index.episode_length.max()} steps) has no eligible frame for fields "
            f"{list(fields)}; see {key}, data.tail, data.min_pair_difference and data.chain_pairs"
        )
    return Corpus(
        name=name,
        number=number,
        weight=config.weight,
        cameras=cameras,
        labels=labels,
        tokens=tokens,
        motion=motion,
        frames=frames,
        chains=chains,
        counts=counts,
        kept=kept,
        per_video=data.sampling == "per_video",
    )


def _open_motion(name: str, config: Any, data: Any, index: CorpusIndex) -> LabelSet:
    """How much pairs of a corpus differ, checked to be of the same pairs."""
    seconds, keys = config.window_seconds, f"data.corpora.{name}"
    steps = steps_between(
        "window", f"{keys}.window_seconds", seconds, index, name, config.fps, f"{keys}.fps"
    )
    motion = open_set(set_name(seconds), index, MOTION)
    check_window(name, motion, steps, config.fps)
    return motion


def _check_equal(corpora: list[Corpus], fields: Sequence[str]) -> None:
    found = {"the number of cameras": {c.name: len(c.cameras) for c in corpora}}
    if "action" in fields:
        found["action_dim"] = {c.name: c.index.action_dim for c in corpora}
    if "latent_action" in fields:
        for what in ("code_length", "codebook_size", "quantizer_hash"):
            found[what] = {c.name: c.labels.provenance[what] for c in corpora}
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


def wrong_size(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> ValueError:
    return ValueError(
        f"corpus {name!r} has images of {found[0]}x{found[1]} (height x width), but "
        f"data.image_size is {wanted}; images are never resized while training: set "
        "data.image_size or rewrite the corpus with `lapa data convert`"
    )
