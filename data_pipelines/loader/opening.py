"""Opening a corpus: its indexes and label sets, and at which frames examples may stand."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from data_pipelines import storage
from data_pipelines.index import CorpusIndex, load_or_build
from data_pipelines.index.labels import IMAGE_TOKENS, LATENT_ACTIONS, Kind, LabelSet
from data_pipelines.loader import order
from data_pipelines.loader.actions import Actions, open_actions
from data_pipelines.loader.chains import Chains
from data_pipelines.loader.corpus import Corpus, Frames
from data_pipelines.loader.motion import MOTION, STEPS_PER_LEVEL, check_window, set_name
from data_pipelines.loader.settings import CorpusSettings, DataSettings
from data_pipelines.loader.steps import fps_of, steps_between, window_steps

_FRACTION_SALT = 0x66726163


class Filter(NamedTuple):
    """At which rows an example may stand, bool (n,) of int64 (n,), and what is said of the rest."""

    keep: Callable[[np.ndarray], np.ndarray]
    why: str


def open_corpus(
    number: int, settings: CorpusSettings, data: DataSettings, fields: Sequence[str]
) -> Corpus:
    """The corpus of this number in its mixture."""
    name, cameras = settings.name, _open_cameras(settings)
    index = cameras[0]
    for camera in cameras:
        if "frames" in fields and camera.image_size not in (None, data.image_size):
            raise wrong_size(name, camera.image_size, data.image_size)
    if data.is_clip and len(cameras) > 1:
        raise ValueError(
            f"{settings.key('extra_image_keys')} is {settings.extra_image_keys}, but a clip (data."
            f"num_frames {data.num_frames}, data.history_seconds {data.history_seconds}) is of one "
            "camera"
        )
    frames, labels = _open_frames(settings, data, index), None
    if "latent_action" in fields or not data.is_clip:
        labels = _open_labels(settings, data, index, needed="latent_action" in fields)
    tokens = _open_tokens(settings, cameras) if "image_tokens" in fields else ()
    motion = _open_motion(settings, index) if data.min_pair_difference else None
    actions = _open_actions(settings, data, index, fields)
    skip, counts = _eligible(settings, data, fields, frames, actions)
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
    filters = _filters(data, frames, labels, tokens, motion)
    counts, kept = _select(name, index, chains, filters)
    if not counts.any():
        raise ValueError(
            f"corpus {name!r} ({index.directory}, {index.num_episodes} episodes, the "
            f"longest of {index.episode_length.max()} steps) has no eligible frame for fields "
            f"{list(fields)}; see data.corpora.{name}, data.tail, data.min_pair_difference and "
            "data.chain_pairs"
        )
    per_video = data.sampling == "per_video"
    return Corpus(
        settings,
        number,
        cameras,
        actions,
        labels,
        tokens,
        motion,
        frames,
        chains,
        counts,
        kept,
        per_video,
    )


def wrong_size(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> ValueError:
    return ValueError(
        f"corpus {name!r} has images of {found[0]}x{found[1]} (height x width), but "
        f"data.image_size is {wanted}; images are never resized while training: set "
        "data.image_size or rewrite the corpus with `lapa data convert`"
    )


# ---------------------------------------------------------------- what belongs to a corpus


def _open_cameras(settings: CorpusSettings) -> tuple[CorpusIndex, ...]:
    """The indexes of `image_key` and of each of `extra_image_keys`, which must agree."""
    cameras = tuple(
        load_or_build(
            settings.path,
            split=settings.split,
            sidecar_dir=settings.sidecar_dir or None,
            image_key=image_key,
            action_key=settings.action_key,
            instruction_key=settings.instruction_key,
        )
        for image_key in (settings.image_key, *settings.extra_image_keys)
    )
    for other in cameras[1:]:
        for what in ("shard_of_episode", "record_of_episode", "episode_length"):
            if not np.array_equal(getattr(other, what), getattr(cameras[0], what)):
                raise ValueError(
                    f"corpus {settings.name!r}: the indexes of image_key "
                    f"{cameras[0].image_key!r} and {other.image_key!r} differ in {what}: index "
                    f"both with the same exclusions ({settings.key('extra_image_keys')})"
                )
    return cameras


def _open_set(name: str, index: CorpusIndex, kind: Kind) -> LabelSet:
    """A set of this name and kind, fetched first where the sidecars lie behind a URL."""
    folder = kind.folder(".", name, index.image_key)
    return LabelSet.open(storage.fetch(index.sidecar_dir, str(folder)), name, index, kind)


def _open_labels(
    settings: CorpusSettings, data: DataSettings, index: CorpusIndex, *, needed: bool
) -> LabelSet | None:
    if not settings.label_set:
        if not needed:
            return None
        raise ValueError(
            f"corpus {settings.name!r} needs latent actions, but {settings.key('label_set')} is "
            "empty; make a label set with `lapa label`"
        )
    labels = _open_set(settings.label_set, index, LATENT_ACTIONS)
    made_with = labels.provenance["window_seconds"]
    if data.is_clip and made_with != settings.window_seconds:
        raise ValueError(
            f"{settings.key('window_seconds')} is {settings.window_seconds}, but label set "
            f"{settings.label_set!r} was made with {made_with}; make them equal"
        )
    return labels


def _open_actions(
    settings: CorpusSettings, data: DataSettings, index: CorpusIndex, fields: Sequence[str]
) -> Actions:
    if "action" in fields and "action_known" not in fields and index.actions is None:
        raise ValueError(
            f"corpus {settings.name!r} has no actions under steps/{index.action_key} "
            f"({settings.key('action_key')}); float features: "
            f"{[key for key, kind in index.keys.items() if kind == 'float']}"
        )
    longest = int(index.episode_length.max()) - 1
    if "action" in fields and data.action_horizon > max(longest, 1):
        raise ValueError(
            f"data.action_horizon is {data.action_horizon}, which is longer than every episode of "
            f"corpus {settings.name!r}: the longest has {longest} actions"
        )
    return open_actions(settings, data, index)


def _open_tokens(settings: CorpusSettings, cameras: Sequence[CorpusIndex]) -> tuple[LabelSet, ...]:
    """The image tokens of each camera."""
    if not settings.image_token_set:
        raise ValueError(
            f"corpus {settings.name!r} needs image tokens, but {settings.key('image_token_set')} "
            f"is empty; make a set with {IMAGE_TOKENS.command}"
        )
    return tuple(_open_set(settings.image_token_set, index, IMAGE_TOKENS) for index in cameras)


def _open_motion(settings: CorpusSettings, index: CorpusIndex) -> LabelSet:
    """How much pairs of a corpus differ, checked to be of the same pairs."""
    motion = _open_set(set_name(settings.window_seconds), index, MOTION)
    check_window(settings, motion, window_steps(settings, index))
    return motion


def _open_frames(settings: CorpusSettings, data: DataSettings, index: CorpusIndex) -> Frames:
    """Where the frames of an example lie, from data.num_frames and the time between them."""
    offsets = np.arange(data.num_frames)
    if data.num_frames == 1:
        return Frames(index, offsets, np.zeros(index.num_episodes, np.int64))
    if data.is_clip:
        what, key, seconds = "window", settings.key("window_seconds"), settings.window_seconds
        steps = window_steps(settings, index)
    else:
        what, key, seconds = "history", "data.history_seconds", data.history_seconds
        steps = steps_between(what, key, seconds, settings, index)
        offsets -= offsets[-1]
    if (steps * (data.num_frames - 1) >= index.episode_length).all():
        longest = int(index.episode_length.argmax())
        times = f", {data.num_frames - 1} times" if data.num_frames > 2 else ""
        raise ValueError(
            f"corpus {settings.name!r}: the {what} ({key} {seconds} at "
            f"{fps_of(settings, index)[longest]:g} fps = {steps[longest]} steps{times}) is longer "
            f"than every episode; the longest has {index.episode_length[longest]} steps"
        )
    return Frames(index, offsets, steps)


# ---------------------------------------------------------------- where examples may stand


def _eligible(
    settings: CorpusSettings,
    data: DataSettings,
    fields: Sequence[str],
    frames: Frames,
    actions: Actions,
) -> tuple[np.ndarray, np.ndarray]:
    """(skip, counts), int64 (E,): examples of episode e may stand at so many steps from skip[e] on,
    but for filters."""
    index = frames.index
    length = index.episode_length
    skip, stop = np.zeros_like(length), length
    if data.tail == "drop":
        skip, stop = -frames.offsets[0] * frames.steps, length - frames.offsets[-1] * frames.steps
    if "action" in fields:
        whole = data.action_padding == "drop"
        last = actions.steps - (data.action_horizon - 1 if whole else 0)
        if "action_known" in fields:  # what has no action is drawn, too
            last = np.where(actions.known & whole, last, length)
        stop = np.minimum(stop, last)
    drawn = length >= settings.min_episode_steps
    drawn &= order.part_of(settings.fraction, index.num_episodes, _FRACTION_SALT)
    if "instruction" in fields or settings.require_instruction:
        drawn &= ~_without_instruction(settings, index)
    return skip, np.where(drawn, np.maximum(stop - skip, 0), 0)


def _without_instruction(settings: CorpusSettings, index: CorpusIndex) -> np.ndarray:
    """Which episodes have none, bool (episodes,)."""
    without = index.instruction_of_episode < 0
    if without.all():
        raise ValueError(
            f"corpus {settings.name!r} has no instructions under steps/{index.instruction_key} "
            f"({settings.key('instruction_key')}); features of its first episode: "
            f"{list(index.keys)}"
        )
    if without.any():
        logging.warning(
            "Corpus %r: %d of %d episodes have no instruction and are not drawn.",
            settings.name,
            without.sum(),
            len(without),
        )
    return without


def _filters(
    data: DataSettings,
    frames: Frames,
    labels: LabelSet | None,
    tokens: Sequence[LabelSet],
    motion: LabelSet | None,
) -> list[Filter]:
    def with_tokens(one: LabelSet) -> Callable[[np.ndarray], np.ndarray]:
        """Where every frame of an example has tokens."""
        episode = frames.index.episode_of_rows
        return lambda rows: one.valid[frames.rows(rows, episode(rows))].all(axis=1)

    found = []
    if labels and not labels.valid.all():
        found.append(Filter(lambda rows: labels.valid[rows], "have no label and are not drawn"))
    why = "lack image tokens and are not drawn"
    found += [Filter(with_tokens(one), why) for one in tokens if not one.valid.all()]
    if motion:
        least = data.min_pair_difference * STEPS_PER_LEVEL
        why = "have frames that differ by less than data.min_pair_difference="
        why += f"{data.min_pair_difference} from those a window later, and are not drawn"
        found.append(Filter(lambda rows: motion.labels(rows)[:, 0] >= least, why))
    return found


def _select(
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
