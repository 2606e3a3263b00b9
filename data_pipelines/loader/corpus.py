"""One corpus of a mixture: at which frames its examples stand, and which rows an example is.

An example stands at one frame, whose action and labels it has. Its `num_frames` frames lie equal
times apart: a clip begins at that frame, a history ends there. Of every frame there is an image by
each camera.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from data_pipelines.index import CorpusIndex
from data_pipelines.index.labels import LabelSet
from data_pipelines.loader import order
from data_pipelines.loader.actions import Actions
from data_pipelines.loader.chains import Chains
from data_pipelines.loader.settings import CorpusSettings
from data_pipelines.loader.steps import fps_of

_PER_VIDEO_SALT = 0x7669646  # keeps the draw of t apart from the permutation of episodes


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

    settings: CorpusSettings
    number: int
    cameras: tuple[CorpusIndex, ...]  # row for row the same frames; labels belong to the first
    actions: Actions
    labels: LabelSet | None
    tokens: tuple[LabelSet, ...]  # of the cameras, where they are asked for
    motion: LabelSet | None  # of the pairs, where data.min_pair_difference asks for it
    frames: Frames
    chains: Chains
    counts: np.ndarray
    kept: np.ndarray | None
    per_video: bool
    left_out: np.ndarray  # bool (E,): episodes that training cannot use
    flow: LabelSet | None = None  # of the pairs, where it is asked for
    state_dim: int = 0  # of the corpora whose state_key names one, where it is asked for

    def without(self, unusable: np.ndarray) -> "Corpus":
        """The corpus without the episodes bool (E,)."""
        kept = self.kept if self.kept is None else self.kept[np.repeat(~unusable, self.counts)]
        counts = np.where(unusable, 0, self.counts)
        return replace(self, counts=counts, kept=kept, left_out=self.left_out | unusable)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def index(self) -> CorpusIndex:
        return self.cameras[0]

    @cached_property
    def fps(self) -> np.ndarray:
        """Of each episode, float64 (E,)."""
        return fps_of(self.settings, self.index)

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
