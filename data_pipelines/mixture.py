"""A weighted set of corpora and their samples: which frames may be drawn, and which rows they are.

`open_mixture` opens indexes and label sets of `config.data` and counts the eligible samples of each
corpus; a sample number then gives frame rows without any state. What does not fit raises an error
that names the corpus and the config key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging

from data_pipelines import order, sidecar
from data_pipelines.index import CorpusIndex, load_index
from data_pipelines.labels import LabelSet

FIELDS = ("frames", "instruction", "action", "latent_action")
_PER_VIDEO_SALT = 0x7669646  # keeps the draw of t apart from the permutation of episodes
_FRACTION_SALT = 0x66726163


@dataclass(frozen=True, eq=False)
class Corpus:
    """One corpus of a mixture and its eligible start frames.

    counts[e] of the frames of episode e are eligible: the first ones, or `rows` (all eligible rows,
    ascending) where that is given. horizon[e] is the window in steps, between neighbours of the
    num_frames frames of a sample; None where that is one.
    """

    name: str
    number: int
    weight: float
    index: CorpusIndex
    labels: LabelSet | None
    counts: np.ndarray
    rows: np.ndarray | None
    horizon: np.ndarray | None
    num_frames: int
    per_video: bool

    def __post_init__(self):
        object.__setattr__(self, "ends", np.cumsum(self.counts))
        object.__setattr__(self, "videos", np.flatnonzero(self.counts))

    @property
    def num_samples(self) -> int:
        return len(self.videos) if self.per_video else int(self.ends[-1])

    def frame_rows(self, samples: np.ndarray, epochs: np.ndarray, seed: int) -> np.ndarray:
        """Frame rows of samples, int64 (n, num_frames)."""
        if self.per_video:
            episode = self.videos[samples]
            place = (
                order.mix(_PER_VIDEO_SALT, seed, self.number, epochs, episode)
                % self.counts[episode].astype(np.uint64)
            ).astype(np.int64)
        else:
            episode = np.searchsorted(self.ends, samples, side="right")
            place = samples - (self.ends[episode] - self.counts[episode])
        start = self.index.episode_start[episode]
        if self.rows is None:
            first = start + place
        else:
            first = self.rows[self.ends[episode] - self.counts[episode] + place].astype(np.int64)
        if self.horizon is None:
            return first[:, None]
        last = start + self.index.episode_length[episode] - 1
        rows = first[:, None] + self.horizon[episode][:, None] * np.arange(self.num_frames)
        return np.minimum(rows, last[:, None])


@dataclass(frozen=True, eq=False)
class Mixture:
    """Corpora in the order of their names; num_frames and image_size of every example."""

    corpora: list[Corpus]
    fields: tuple[str, ...]
    num_frames: int
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
    for key, known in (
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
        "sampling": data.sampling,
        "tail": data.tail,
        "corpora": [
            [
                corpus.name,
                float(corpus.weight),
                corpus.num_samples,
                corpus.labels.hash if corpus.labels else "",
                *(
                    _plain(getattr(getattr(data.corpora, corpus.name), key))
                    for key in (
                        "split",
                        "fraction",
                        "window_seconds",
                        "fps",
                        "image_key",
                        "action_key",
                        "instruction_key",
                    )
                ),
            ]
            for corpus in corpora
        ],
    }
    height, width = data.image_size
    return Mixture(
        corpora,
        tuple(fields),
        data.num_frames,
        (int(height), int(width)),
        sidecar.value_hash(settings),
        sidecar.value_hash([corpus.index.hash for corpus in corpora]),
    )


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else value


def _open_corpus(number: int, name: str, config: Any, data: Any, fields: Sequence[str]) -> Corpus:
    index = load_index(
        config.path,
        split=config.split,
        sidecar_dir=config.sidecar_dir or None,
        image_key=config.image_key,
        action_key=config.action_key,
        instruction_key=config.instruction_key,
    )
    if (
        "frames" in fields
        and index.image_size is not None
        and index.image_size != tuple(data.image_size)
    ):
        raise wrong_size(name, index.image_size, tuple(data.image_size))
    key = f"data.corpora.{name}"
    labels = None
    if "latent_action" in fields and not config.label_set:
        raise ValueError(
            f"corpus {name!r} needs latent actions, but {key}.label_set is empty; "
            "make a label set with `lapa label`"
        )
    if config.label_set and ("latent_action" in fields or data.num_frames == 1):
        labels = LabelSet.open(index.sidecar_dir, config.label_set, index)
        if data.num_frames > 1 and labels.provenance["window_seconds"] != config.window_seconds:
            raise ValueError(
                f"{key}.window_seconds is {config.window_seconds}, but label set "
                f"{config.label_set!r} was made with "
                f"{labels.provenance['window_seconds']}; make them equal"
            )
    if "action" in fields and index.actions is None:
        raise ValueError(
            f"corpus {name!r} has no actions under steps/{index.action_key} "
            f"({key}.action_key); float features: "
            f"{[key for key, kind in index.keys.items() if kind == 'float']}"
        )
    length, horizon = index.episode_length, None
    counts = length
    if data.num_frames > 1:
        horizon = _horizon(name, config, index, data.num_frames)
        beyond = horizon * (data.num_frames - 1)
        counts = length if data.tail == "clamp" else length - beyond
    if "action" in fields:
        counts = np.minimum(counts, length - 1)  # RLDS: the last step's action means nothing
    counts = np.where(_chosen(name, config.fraction, index.num_episodes), np.maximum(counts, 0), 0)
    if "instruction" in fields:
        without = index.instruction_of_episode < 0
        if without.all():
            raise ValueError(
                f"corpus {name!r} has no instructions under "
                f"steps/{index.instruction_key} ({key}.instruction_key); features of "
                f"its first episode: {list(index.keys)}"
            )
        if without.any():
            logging.warning(
                "Corpus %r: %d of %d episodes have no instruction and are not drawn.",
                name,
                without.sum(),
                len(without),
            )
        counts = np.where(without, 0, counts)
    rows = None
    if labels is not None:
        rows, counts = _labelled(index, labels, counts)
    if not counts.any():
        raise ValueError(
            f"corpus {name!r} ({index.directory}, {index.num_episodes} episodes, the "
            f"longest of {length.max()} steps) has no eligible frame for fields "
            f"{list(fields)}; see {key} and data.tail"
        )
    return Corpus(
        name,
        number,
        config.weight,
        index,
        labels,
        counts.astype(np.int64),
        rows,
        horizon,
        data.num_frames,
        data.sampling == "per_video",
    )


def _chosen(name: str, fraction: float, episodes: int) -> np.ndarray:
    """Which episodes belong to the fraction, bool (episodes,): those of a smaller one are among
    those of a larger."""
    if not 0 < fraction <= 1:
        raise ValueError(f"data.corpora.{name}.fraction is {fraction}; it must be in (0, 1]")
    place = order.mix(_FRACTION_SALT, np.arange(episodes)) / 2.0**64
    return place < fraction if fraction < 1 else np.ones(episodes, bool)


def _horizon(name: str, config: Any, index: CorpusIndex, num_frames: int) -> np.ndarray:
    """The window in steps, by episode: the distance of neighbouring frames."""
    key, seconds = f"data.corpora.{name}", config.window_seconds
    fps = (
        np.full(index.num_episodes, config.fps, np.float64)
        if config.fps
        else index.fps.astype(np.float64)
    )
    bad = np.flatnonzero(~(np.isfinite(fps) & (fps > 0)))
    if len(bad):
        raise ValueError(
            f"the fps of corpus {name!r} is unknown: {key}.fps is {config.fps} and "
            f"{len(bad)} of {len(fps)} episodes have no valid episode_metadata/fps; "
            f"set {key}.fps"
        )
    if not (np.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{key}.window_seconds is {seconds}; it must be positive")
    horizon = np.rint(seconds * fps).astype(np.int64)
    if horizon.min() < 1:
        raise ValueError(
            f"{key}.window_seconds {seconds} is shorter than half a step at "
            f"{fps[horizon.argmin()]:g} fps; the window needs at least one step"
        )
    if (horizon * (num_frames - 1) >= index.episode_length).all():
        longest = int(index.episode_length.argmax())
        times = f", {num_frames - 1} times" if num_frames > 2 else ""
        raise ValueError(
            f"corpus {name!r}: the window ({key}.window_seconds {seconds} at "
            f"{fps[longest]:g} fps = {horizon[longest]} steps{times}) is longer than every "
            f"episode; the longest has {index.episode_length[longest]} steps"
        )
    return horizon


def _labelled(
    index: CorpusIndex, labels: LabelSet, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Labelled rows among the first counts[e] of each episode, and how many in each episode."""
    rows = np.flatnonzero(labels.valid)
    episode = index.episode_of_rows(rows)
    keep = rows - index.episode_start[episode] < counts[episode]
    rows, episode = rows[keep], episode[keep]
    if index.num_frames <= 2**32:
        rows = rows.astype(np.uint32)
    return rows, np.bincount(episode, minlength=index.num_episodes)


def _check_equal(corpora: list[Corpus], fields: Sequence[str]) -> None:
    checks = []
    if "action" in fields:
        checks.append(("action_dim", lambda corpus: corpus.index.action_dim))
    if "latent_action" in fields:
        for what in ("code_length", "codebook_size", "quantizer_hash"):
            checks.append((what, lambda corpus, what=what: corpus.labels.provenance[what]))
    for what, value in checks:
        if len({value(corpus) for corpus in corpora}) > 1:
            raise ValueError(
                f"the corpora of a mixture must agree in {what}: "
                + ", ".join(f"{corpus.name} has {value(corpus)}" for corpus in corpora)
            )


def wrong_size(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> ValueError:
    return ValueError(
        f"corpus {name!r} has images of {found[0]}x{found[1]} (height x width), but "
        f"data.image_size is {wanted}; images are never resized while training: set "
        "data.image_size or rewrite the corpus with `lapa data convert`"
    )
