"""One corpus of a mixture: at which frames its examples stand, and which rows an example is.

An example stands at one frame, whose action and labels it has. Its `num_frames` frames lie equal
times apart: a clip begins at that frame, a history ends there. Of every frame there is an image by
each camera.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from data_pipelines import storage
from data_pipelines.index import CorpusIndex, load_or_build
from data_pipelines.index.labels import IMAGE_TOKENS, Kind, LabelSet
from data_pipelines.loader import order
from data_pipelines.loader.chains import Chains

_PER_VIDEO_SALT = 0x7669646  # keeps the draw of t apart from the permutation of episodes
_FRACTION_SALT = 0x66726163


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of an example: `offsets` times steps[e] from that at which it stands, in episode
    e; in the first and last frame of the episode where that lies beyond it."""

    index: CorpusIndex
    offsets: np.ndarray  # int64 (num_frames,): 0, 1, ... of a clip, ..., -1, 0 of a history
    steps: np.ndarray  # int64 (E,)

    @property
    def current(self) -> int:
        """Which of its frames is the one at which an example stands."""
        return int(np.flatnonzero(self.offsets == 0)[0])

    def rows(self, standing: np.ndarray, episode: np.ndarray) -> np.ndarray:
        """int64 (n, num_frames) of examples that stand at these rows."""
        first = self.index.episode_start[episode][:, None]
        last = first + self.index.episode_length[episode][:, None] - 1
        rows = standing[:, None] + self.steps[episode][:, None] * self.offsets
        return np.clip(rows, first, last)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A sample is one of `chains`, which holds one example or several in a row. counts[e] of those
    of episode e are eligible: all, or those that `kept` numbers (ascending) where that is given."""

    name: str
    number: int
    weight: float
    cameras: tuple[CorpusIndex, ...]  # row for row the same frames; labels belong to the first
    labels: LabelSet | None
    tokens: tuple[LabelSet, ...]  # of the cameras, where they are asked for
    motion: LabelSet | None  # of the pairs, where data.min_pair_difference asks for it
    frames: Frames
    chains: Chains
    counts: np.ndarray
    kept: np.ndarray | None
    per_video: bool

    @property
    def index(self) -> CorpusIndex:
        return self.cameras[0]

    @cached_property
    def ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    @cached_property
    def videos(self) -> np.ndarray:
        return np.flatnonzero(self.counts)

    @property
    def samples_of_episode(self) -> np.ndarray:
        """int64 (E,); samples are numbered episode by episode."""
        return (self.counts > 0).astype(np.int64) if self.per_video else self.counts

    @property
    def num_samples(self) -> int:
        return len(self.videos) if self.per_video else int(self.ends[-1])

    def frame_rows(
        self, samples: np.ndarray, epochs: np.ndarray, seed: int, member: int | np.ndarray = 0
    ) -> np.ndarray:
        """Frame rows of samples, int64 (n, num_frames): of example `member` of each."""
        if self.per_video:
            episode = self.videos[samples]
            place = (
                order.mix(_PER_VIDEO_SALT, seed, self.number, epochs, episode)
                % self.counts[episode].astype(np.uint64)
            ).astype(np.int64)
        else:
            episode = np.searchsorted(self.ends, samples, side="right")
            place = samples - (self.ends[episode] - self.counts[episode])
        key = order.mix(seed, self.number, epochs)
        if self.kept is not None:
            chosen = self.kept[self.ends[episode] - self.counts[episode] + place]
            place = chosen.astype(np.int64) - self.chains.starts[episode]
            key = None  # what is kept was chosen for these steps
        step = self.chains.first_steps(episode, place, key) + member * self.chains.window[episode]
        return self.frames.rows(self.index.episode_start[episode] + step, episode)


def open_cameras(name: str, config: Any) -> tuple[CorpusIndex, ...]:
    """The indexes of `image_key` and of each of `extra_image_keys`, which must agree."""
    cameras = tuple(
        load_or_build(
            config.path,
            split=config.split,
            sidecar_dir=config.sidecar_dir or None,
            image_key=image_key,
            action_key=config.action_key,
            instruction_key=config.instruction_key,
        )
        for image_key in (config.image_key, *config.extra_image_keys)
    )
    for other in cameras[1:]:
        for what in ("shard_of_episode", "record_of_episode", "episode_length"):
            if not np.array_equal(getattr(other, what), getattr(cameras[0], what)):
                raise ValueError(
                    f"corpus {name!r}: the indexes of image_key {cameras[0].image_key!r} and "
                    f"{other.image_key!r} differ in {what}: index both with the same exclusions "
                    f"(data.corpora.{name}.extra_image_keys)"
                )
    return cameras


def open_tokens(name: str, config: Any, cameras: Sequence[CorpusIndex]) -> tuple[LabelSet, ...]:
    """The image tokens of each camera."""
    if not config.image_token_set:
        raise ValueError(
            f"corpus {name!r} needs image tokens, but data.corpora.{name}.image_token_set is "
            f"empty; make a set with {IMAGE_TOKENS.command}"
        )
    return tuple(open_set(config.image_token_set, index, IMAGE_TOKENS) for index in cameras)


def open_set(name: str, index: CorpusIndex, kind: Kind) -> LabelSet:
    """A set of this name and kind, fetched first where the sidecars lie behind a URL."""
    folder = kind.folder(".", name, index.image_key)
    return LabelSet.open(storage.fetch(index.sidecar_dir, str(folder)), name, index, kind)


def open_frames(name: str, config: Any, data: Any, index: CorpusIndex) -> Frames:
    """Where the frames of an example lie, from data.num_frames and the time between them."""
    offsets = np.arange(data.num_frames)
    if data.num_frames == 1:
        return Frames(index, offsets, np.zeros(index.num_episodes, np.int64))
    if data.history_seconds > 0:
        what, key, seconds = "history", "data.history_seconds", data.history_seconds
        offsets -= offsets[-1]
    else:
        key = f"data.corpora.{name}.window_seconds"
        what, seconds = "window", config.window_seconds
    fps_key = f"data.corpora.{name}.fps"
    steps = steps_between(what, key, seconds, index, name, config.fps, fps_key)
    if (steps * (data.num_frames - 1) >= index.episode_length).all():
        longest = int(index.episode_length.argmax())
        times = f", {data.num_frames - 1} times" if data.num_frames > 2 else ""
        fps = _fps(name, config.fps, fps_key, index)[longest]
        raise ValueError(
            f"corpus {name!r}: the {what} ({key} {seconds} at {fps:g} fps = "
            f"{steps[longest]} steps{times}) is longer than every episode; the longest has "
            f"{index.episode_length[longest]} steps"
        )
    return Frames(index, offsets, steps)


def steps_between(
    what: str, key: str, seconds: float, index: CorpusIndex, name: str, fps: float, fps_key: str
) -> np.ndarray:
    """Steps of each episode in a time, int64 (E,). The time is that of `key` and the fps of
    `fps_key`; 0.0: of the episodes."""
    if not (np.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{key} is {seconds}; it must be positive")
    found = _fps(name, fps, fps_key, index)
    steps = np.rint(seconds * found).astype(np.int64)
    if steps.min() < 1:
        raise ValueError(
            f"{key} {seconds} is shorter than half a step at {found[steps.argmin()]:g} fps; the "
            f"{what} needs at least one step"
        )
    return steps


def _fps(name: str, given: float, key: str, index: CorpusIndex) -> np.ndarray:
    """Frames per second of each episode."""
    if given:
        fps = np.full(index.num_episodes, given, np.float64)
    else:
        fps = index.fps.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(fps) & (fps > 0)))
    if len(bad):
        raise ValueError(
            f"the fps of corpus {name!r} is unknown: {key} is {given} and "
            f"{len(bad)} of {len(fps)} episodes have no valid episode_metadata/fps; "
            f"set {key}"
        )
    return fps


def eligible(
    name: str,
    config: Any,
    data: Any,
    fields: Sequence[str],
    frames: Frames,
) -> tuple[np.ndarray, np.ndarray]:
    """(skip, counts), int64 (E,): examples of episode e may stand at so many steps from skip[e] on,
    but for filters."""
    index = frames.index
    length = index.episode_length
    skip, stop = np.zeros_like(length), length
    if data.tail == "drop":
        skip, stop = -frames.offsets[0] * frames.steps, length - frames.offsets[-1] * frames.steps
    if "action" in fields:
        stop = np.minimum(stop, length - 1)  # RLDS: the last step's action means nothing
    counts = np.maximum(stop - skip, 0)
    counts = np.where(_chosen(name, config.fraction, index.num_episodes), counts, 0)
    counts = np.where(length < _min_steps(name, config), 0, counts)
    if "instruction" in fields or config.require_instruction:
        counts = np.where(_without_instruction(name, index), 0, counts)
    return skip, counts


class Filter(NamedTuple):
    """At which rows an example may stand, bool (n,) of int64 (n,), and what is said of the rest."""

    keep: Callable[[np.ndarray], np.ndarray]
    why: str


def labelled(labels: LabelSet) -> list[Filter]:
    if labels.valid.all():
        return []
    return [Filter(lambda rows: labels.valid[rows], "have no label and are not drawn")]


def tokenized(frames: Frames, tokens: Sequence[LabelSet]) -> list[Filter]:
    """Where every frame of an example has tokens."""

    def whole(one: LabelSet) -> Callable[[np.ndarray], np.ndarray]:
        return lambda rows: one.valid[frames.rows(rows, frames.index.episode_of_rows(rows))].all(
            axis=1
        )

    why = "lack image tokens and are not drawn"
    return [Filter(whole(one), why) for one in tokens if not one.valid.all()]


def select(
    name: str, index: CorpusIndex, chains: Chains, filters: Sequence[Filter]
) -> tuple[np.ndarray, np.ndarray | None]:
    """(counts, kept) of a corpus, see there: a chain is kept where all of its examples are."""
    if not filters:
        return chains.counts, None
    total, counts = int(chains.counts.sum()), np.zeros_like(chains.counts)
    kept = np.empty(total, np.uint32 if total <= 2**32 else np.int64)
    filled, left_out = 0, [0] * len(filters)
    for start in range(0, total, 2**20):  # arrays of all would not be small
        numbers = np.arange(start, min(start + 2**20, total))
        episode = np.searchsorted(chains.starts, numbers, side="right") - 1
        first = chains.first_steps(episode, numbers - chains.starts[episode], None)
        first += index.episode_start[episode]
        for which, one in enumerate(filters):
            keep = np.ones(len(numbers), bool)
            for member in range(chains.length):
                keep &= one.keep(first + member * chains.window[episode])
            left_out[which] += len(numbers) - int(keep.sum())
            numbers, episode, first = numbers[keep], episode[keep], first[keep]
        kept[filled : filled + len(numbers)] = numbers
        filled += len(numbers)
        counts += np.bincount(episode, minlength=index.num_episodes)
    what = "examples" if chains.length == 1 else f"chains of {chains.length} pairs"
    for one, count in zip(filters, left_out, strict=True):
        if count:
            logging.info("Corpus %r: of %d %s %d %s.", name, total, what, count, one.why)
    return counts, kept[:filled]


def _chosen(name: str, fraction: float, episodes: int) -> np.ndarray:
    """Which episodes belong to the fraction, bool (episodes,): those of a smaller one are among
    those of a larger."""
    if not 0 < fraction <= 1:
        raise ValueError(f"data.corpora.{name}.fraction is {fraction}; it must be in (0, 1]")
    place = order.mix(_FRACTION_SALT, np.arange(episodes)) / 2.0**64
    return place < fraction if fraction < 1 else np.ones(episodes, bool)


def _min_steps(name: str, config: Any) -> int:
    if config.min_episode_steps < 0:
        raise ValueError(
            f"data.corpora.{name}.min_episode_steps is {config.min_episode_steps}; it must not be "
            "negative"
        )
    return config.min_episode_steps


def _without_instruction(name: str, index: CorpusIndex) -> np.ndarray:
    """Which episodes have none, bool (episodes,)."""
    without = index.instruction_of_episode < 0
    if without.all():
        raise ValueError(
            f"corpus {name!r} has no instructions under steps/{index.instruction_key} "
            f"(data.corpora.{name}.instruction_key); features of its first episode: "
            f"{list(index.keys)}"
        )
    if without.any():
        logging.warning(
            "Corpus %r: %d of %d episodes have no instruction and are not drawn.",
            name,
            without.sum(),
            len(without),
        )
    return without
