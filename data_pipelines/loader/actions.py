"""The actions of a corpus: of which steps they are known, and chunks of several in a row."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipelines.index import CorpusIndex
from data_pipelines.index.labels import LabelSet
from data_pipelines.loader import order
from data_pipelines.loader.settings import CorpusSettings, DataSettings
from data_pipelines.sidecar import take

_KNOWN_SALT = 0x6B6E6F776E


@dataclass(frozen=True, eq=False)
class Actions:
    """Those of `horizon` steps from each one on. Past the end of an episode a chunk is padded."""

    index: CorpusIndex
    known: np.ndarray  # bool (E,): of which episodes
    horizon: int
    padding: str
    absolute: tuple[int, ...]  # dimensions that "no_motion" repeats
    dim: int  # of the corpora that have actions
    said: LabelSet | None  # actions of other episodes, by a model
    by_model: np.ndarray  # bool (E,): of which episodes; all False without

    @cached_property
    def steps(self) -> np.ndarray:
        """So many steps of each episode have a known action, int64 (E,): all but the last one,
        whose action means nothing in RLDS; where a model says them, those to the first without."""
        found = np.where(self.known, self.index.episode_length - 1, 0)
        if self.said is not None:
            ends = np.append(np.flatnonzero(~self.said.valid), self.index.num_frames)
            first = ends[np.searchsorted(ends, self.index.episode_start)]
            labelled = np.minimum(first - self.index.episode_start, self.index.episode_length - 1)
            found = np.where(self.by_model, labelled, found)
        return found

    def at(self, rows: np.ndarray) -> np.ndarray:
        """float32 (..., dim) of frame rows int64 (...) whose actions are known."""
        if self.said is None:
            return take(self.index.actions, rows)
        by_model = self.by_model[self.index.episode_of_rows(rows.reshape(-1))].reshape(rows.shape)
        found = np.empty((*rows.shape, self.dim), np.float32)
        found[by_model] = self.said.labels(rows[by_model])[..., 0, :]
        if not by_model.all():
            found[~by_model] = take(self.index.actions, rows[~by_model])
        return found

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """Which actions of the chunks from these rows on are known, bool (n, horizon)."""
        episode = self.index.episode_of_rows(rows)
        left = self.steps[episode] - (rows - self.index.episode_start[episode])
        return np.arange(self.horizon) < left[:, None]

    def chunks(self, rows: np.ndarray) -> np.ndarray:
        """float32 (n, horizon, dim); zeros where the action of the row itself is not known."""
        mask = self.mask(rows)
        found = np.zeros((*mask.shape, self.dim), np.float32)
        some = mask[:, 0]
        if some.any():
            # The last action of a chunk that is known stands for those after it.
            ahead = np.minimum(np.arange(self.horizon), mask[some].sum(axis=1)[:, None] - 1)
            found[some] = self.at(rows[some][:, None] + ahead)
        if self.padding == "no_motion":
            moving = np.ones(self.dim, bool)
            moving[list(self.absolute)] = False
            found[~mask[:, :, None] & moving] = 0.0
        return found


def open_actions(
    settings: CorpusSettings,
    data: DataSettings,
    index: CorpusIndex,
    said: LabelSet | None,
    unusable: np.ndarray,
) -> Actions:
    """`unusable`: episodes whose actions nobody asks for, bool (E,)."""
    known = order.part_of(settings.action_fraction, index.num_episodes, _KNOWN_SALT)
    if index.actions is None:
        known = np.zeros_like(known)
    dim = index.action_dim
    if said is not None:
        width = said.provenance["width"]
        if dim not in (0, width):
            raise ValueError(
                f"{settings.key('action_set')}={settings.action_set!r} is of {width} dimensions; "
                f"the actions of {index.directory} have {dim}"
            )
        dim = width
    by_model = ~known & ~unusable & (said is not None)
    chunks = (data.action_horizon, data.action_padding, tuple(data.action_absolute))
    return Actions(index, known & ~unusable, *chunks, dim, said, by_model)
