"""Opening a corpus: its indexes and label sets, and at which frames examples may stand."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from data_pipelines import storage
from data_pipelines.index import CorpusIndex, load_or_build
from data_pipelines.index.labels import ACTIONS, IMAGE_TOKENS, LATENT_ACTIONS, Kind, LabelSet
from data_pipelines.loader import order
from data_pipelines.loader.actions import Actions, open_actions
from data_pipelines.loader.chains import Chains
from data_pipelines.loader.columns import LATENT_ACTIONS as WITH_LABELS
from data_pipelines.loader.columns import STATES
from data_pipelines.loader.corpus import Corpus, Frames
from data_pipelines.loader.flow import FLOW
from data_pipelines.loader.motion import MOTION, STEPS_PER_LEVEL, check_window, set_name
from data_pipelines.loader.settings import CorpusSettings, DataSettings
from data_pipelines.loader.steps import fps_of, steps_between, window_steps
from data_pipelines.loader.unusable import judge


class Filter(NamedTuple):
    """At which rows an example may stand, bool (n,) of int64 (n,), and what is said of the rest."""

    keep: Callable[[np.ndarray], np.ndarray]
    why: str


def open_corpus(
    number: int, settings: CorpusSettings, data: DataSettings, fields: Sequence[str]
) -> Corpus:
    """The corpus of this number in its mixture."""
    return _Opening(settings, data, fields).corpus(number)


class _Opening:
    """Opens what belongs to a corpus: a method for each part, which refuses what does not fit."""

    def __init__(self, settings: CorpusSettings, data: DataSettings, fields: Sequence[str]):
        self.settings, self.data, self.fields = settings, data, fields
        self.name = settings.name
        self.cameras = self._cameras()
        self.index = self.cameras[0]
        self.unusable = self._of_other_size()

    def corpus(self, number: int) -> Corpus:
        frames, actions, labels = self._frames(), self._actions(), self._labels()
        tokens, motion = self._tokens(), self._motion()
        flow = self._of_pairs(FLOW) if "flow" in self.fields else None
        chains = self._chains(frames, actions)
        of_pairs = "latent_action_of_pairs" in self.fields
        filters = _filters(self.data, frames, labels, of_pairs, tokens, motion, flow)
        counts, kept = _select(self.name, self.index, chains, filters)
        if not counts.any():
            raise ValueError(
                f"corpus {self.name!r} ({self.index.directory}, {self.index.num_episodes} "
                f"episodes, the longest of {self.index.episode_length.max()} steps) has no "
                f"eligible frame for fields {list(self.fields)}; see data.corpora.{self.name} "
                f"(fraction={self.settings.fraction:g}), data.tail, data.action_padding, "
                "data.min_pair_difference and data.chain_pairs"
            )
        eligible = (chains, counts, kept, self.data.sampling == "per_video", self.unusable)
        owned = (actions, labels, tokens, motion, frames)
        return Corpus(self.settings, number, self.cameras, *owned, *eligible, flow)

    def _cameras(self) -> tuple[CorpusIndex, ...]:
        """The indexes of `image_key` and of each of `extra_image_keys`, which must agree."""
        settings, data = self.settings, self.data
        cameras = tuple(
            load_or_build(
                settings.path,
                split=settings.split,
                sidecar_dir=settings.sidecar_dir or None,
                image_key=image_key,
                action_key=settings.action_key,
                instruction_key=settings.instruction_key,
                state_key=settings.state_key if STATES & set(self.fields) else "",
            )
            for image_key in (settings.image_key, *settings.extra_image_keys)
        )
        for other in cameras:
            for what in ("shard_of_episode", "record_of_episode", "episode_length"):
                if not np.array_equal(getattr(other, what), getattr(cameras[0], what)):
                    raise ValueError(
                        f"corpus {self.name!r}: the indexes of image_key "
                        f"{cameras[0].image_key!r} and {other.image_key!r} differ in {what}: index "
                        f"both with the same exclusions ({settings.key('extra_image_keys')})"
                    )
            if "frames" in self.fields and other.image_size not in (None, data.image_size):
                raise wrong_size(self.name, other.image_size, data.image_size)
        names = [camera.image_key for camera in cameras]
        if data.is_clip and len(set(names)) < len(names):
            raise ValueError(
                f"{settings.key('extra_image_keys')} is {list(settings.extra_image_keys)}: of a "
                f"clip each camera is to be another one beside {names[0]!r}"
            )
        return cameras

    def _of_other_size(self) -> np.ndarray:
        """Which episodes have images of another size than the corpus, bool (episodes,)."""
        if "frames" not in self.fields:
            return np.zeros(self.index.num_episodes, bool)
        unusable = np.any([camera.of_other_size for camera in self.cameras], axis=0)
        sizes = sorted({"{}x{}".format(*s) for c in self.cameras for s in c.other_sizes.values()})
        why = f"have images of another size than data.image_size {self.data.image_size}: "
        remedy = "Rewrite the corpus with `lapa data convert`"
        choice = self.data.unusable_episodes
        judge(choice, self.name, self.index, unusable, why + ", ".join(sizes[:3]), remedy)
        return unusable

    def _frames(self) -> Frames:
        """Where the frames of an example lie, from data.num_frames and the time between them."""
        settings, data, index = self.settings, self.data, self.index
        offsets = np.arange(data.num_frames)
        if data.num_frames == 1:
            return Frames(index, offsets, np.zeros(index.num_episodes, np.int64))
        if data.is_clip:
            what, key, seconds = "window", settings.key("window_seconds"), settings.window_seconds
        else:
            what, key, seconds = "history", "data.history_seconds", data.history_seconds
            offsets -= offsets[-1]
        steps = steps_between(what, key, seconds, settings, index)
        if (steps * (data.num_frames - 1) >= index.episode_length).all():
            longest = int(index.episode_length.argmax())
            times = f", {data.num_frames - 1} times" if data.num_frames > 2 else ""
            raise ValueError(
                f"corpus {self.name!r}: the {what} ({key} {seconds} at "
                f"{fps_of(settings, index)[longest]:g} fps = {steps[longest]} steps{times}) is "
                f"longer than every episode; the longest has {index.episode_length[longest]} steps"
            )
        return Frames(index, offsets, steps)

    def _actions(self) -> Actions:
        index, horizon = self.index, self.data.action_horizon
        wanted, name = "action" in self.fields, self.settings.action_set
        said = _open_set(name, index, ACTIONS) if wanted and name else None
        without = index.actions is None and said is None
        if wanted and "action_known" not in self.fields and without:
            raise ValueError(
                f"corpus {self.name!r} has no actions under steps/{index.action_key} "
                f"({self.settings.key('action_key')}); float features: "
                f"{[key for key, kind in index.keys.items() if kind == 'float']}"
            )
        longest = int(index.episode_length.max()) - 1
        if wanted and horizon > max(longest, 1):
            raise ValueError(
                f"data.action_horizon is {horizon}, which is longer than every episode of corpus "
                f"{self.name!r}: the longest has {longest} actions"
            )
        return open_actions(self.settings, self.data, index, said, self.unusable)

    def _labels(self) -> LabelSet | None:
        settings, needed = self.settings, bool(WITH_LABELS & set(self.fields))
        if not settings.label_set and needed:
            raise ValueError(
                f"corpus {self.name!r} needs latent actions, but {settings.key('label_set')} is "
                "empty; make a label set with `lapa label`"
            )
        if not settings.label_set or self.data.is_clip and not needed:
            return None
        labels = _open_set(settings.label_set, self.index, LATENT_ACTIONS)
        made_with = labels.provenance["window_seconds"]
        if self.data.is_clip and made_with != settings.window_seconds:
            raise ValueError(
                f"{settings.key('window_seconds')} is {settings.window_seconds}, but label set "
                f"{settings.label_set!r} was made with {made_with}; make them equal"
            )
        return labels

    def _tokens(self) -> tuple[LabelSet, ...]:
        """The image tokens of each camera."""
        name = self.settings.image_token_set
        if "image_tokens" not in self.fields:
            return ()
        if not name:
            raise ValueError(
                f"corpus {self.name!r} needs image tokens, but "
                f"{self.settings.key('image_token_set')} is empty; make a set with "
                f"{IMAGE_TOKENS.command}"
            )
        return tuple(_open_set(name, index, IMAGE_TOKENS) for index in self.cameras)

    def _motion(self) -> LabelSet | None:
        """How much pairs differ."""
        return self._of_pairs(MOTION) if self.data.min_pair_difference else None

    def _of_pairs(self, kind: Kind) -> LabelSet:
        """A set named by the window, checked to be of the same pairs."""
        found = _open_set(set_name(self.settings.window_seconds), self.index, kind)
        check_window(self.settings, found, window_steps(self.settings, self.index), kind)
        return found

    def _chains(self, frames: Frames, actions: Actions) -> Chains:
        """Where examples may stand in each episode, but for filters."""
        settings, data, fields, index = self.settings, self.data, self.fields, self.index
        length = index.episode_length
        skip, stop = np.zeros_like(length), length
        if data.tail == "drop":
            skip = -frames.offsets[0] * frames.steps
            stop = length - frames.offsets[-1] * frames.steps
        if "action" in fields:
            whole = data.action_padding == "drop"
            last = actions.steps - (data.action_horizon - 1 if whole else 0)
            if "action_known" in fields:  # what has no action is drawn, too
                last = np.where((actions.known | actions.by_model) & whole, last, length)
            stop = np.minimum(stop, last)
        drawn = length >= settings.min_episode_steps
        drawn &= self._of_fraction()
        if "instruction" in fields or settings.require_instruction:
            drawn &= ~self._without_instruction()
        drawn &= ~self.unusable
        counts = np.where(drawn, np.maximum(stop - skip, 0), 0)
        chains = Chains(data.chain_pairs, frames.steps, skip, counts)
        short = drawn & (counts == 0)
        if short.any() and counts.any():
            logging.warning(
                "Corpus %r: %d of %d episodes are too short for an example and are not drawn.",
                self.name,
                short.sum(),
                len(short),
            )
        if chains.num_in_none:
            logging.warning(
                "Corpus %r: %d of %d pairs are in no chain of data.chain_pairs=%d and are never "
                "drawn: their episodes are too short.",
                self.name,
                chains.num_in_none,
                counts.sum(),
                data.chain_pairs,
            )
        return chains

    def _of_fraction(self) -> np.ndarray:
        """Which episodes data.corpora.<name>.fraction lets draw from, bool (episodes,)."""
        drawn = order.drawn_from(self.settings.fraction, self.index.num_episodes)
        if not drawn.all():  # of few episodes quite another part than was asked for
            told = (self.name, drawn.sum(), len(drawn), self.settings.key("fraction"))
            logging.info("Corpus %r: %d of %d episodes are drawn from (%s).", *told)
        return drawn

    def _without_instruction(self) -> np.ndarray:
        """Which episodes have none, bool (episodes,)."""
        without = self.index.instruction_of_episode < 0
        if without.all():
            raise ValueError(
                f"corpus {self.name!r} has no instructions under steps/"
                f"{self.index.instruction_key} ({self.settings.key('instruction_key')}); features "
                f"of its first episode: {list(self.index.keys)}"
            )
        if without.any():
            logging.warning(
                "Corpus %r: %d of %d episodes have no instruction and are not drawn.",
                self.name,
                without.sum(),
                len(without),
            )
        return without


def wrong_size(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> ValueError:
    return ValueError(
        f"corpus {name!r} has images of {found[0]}x{found[1]} (height x width), but "
        f"data.image_size is {wanted}; images are never resized while training: set "
        "data.image_size or rewrite the corpus with `lapa data convert`"
    )


def _open_set(name: str, index: CorpusIndex, kind: Kind) -> LabelSet:
    """A set of this name and kind, fetched first where the sidecars lie behind a URL."""
    folder = kind.folder(".", name, index.image_key)
    return LabelSet.open(storage.fetch(index.sidecar_dir, str(folder)), name, index, kind)


def _filters(
    data: DataSettings,
    frames: Frames,
    labels: LabelSet | None,
    of_pairs: bool,
    tokens: Sequence[LabelSet],
    motion: LabelSet | None,
    flow: LabelSet | None,
) -> list[Filter]:
    def at_all(one: LabelSet, but: int = 0) -> Callable[[np.ndarray], np.ndarray]:
        """Where every frame of an example, `but` so many at its end, has one."""
        episode, count = frames.index.episode_of_rows, len(frames.offsets) - but
        return lambda rows: one.valid[frames.rows(rows, episode(rows))[:, :count]].all(axis=1)

    found = []
    if labels and not labels.valid.all():
        labelled = at_all(labels, but=1) if of_pairs else lambda rows: labels.valid[rows]
        found.append(Filter(labelled, "have no label and are not drawn"))
    if flow and not flow.valid.all():
        found.append(Filter(lambda rows: flow.valid[rows], "have no flow and are not drawn"))
    why = "lack image tokens and are not drawn"
    found += [Filter(at_all(one), why) for one in tokens if not one.valid.all()]
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
