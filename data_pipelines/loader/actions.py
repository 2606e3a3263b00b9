"""The actions of a corpus: of which steps they are known, and chunks of several in a row."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipelines.index import CorpusIndex
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

    @cached_property
    def steps(self) -> np.ndarray:
        """So many steps of each episode have a known action, int64 (E,): all but the last one,
        whose action means nothing in RLDS."""
        return np.where(self.known, self.index.episode_length - 1, 0)

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
            found[some] = take(self.index.actions, rows[some][:, None] + ahead)
        if self.padding == "no_motion":
            moving = np.ones(self.dim, bool)
            moving[list(self.absolute)] = False
            found[~mask[:, :, None] & moving] = 0.0
        return found


def open_actions(settings: CorpusSettings, data: DataSettings, index: CorpusIndex) -> Actions:
    known = order.part_of(settings.action_fraction, index.num_episodes, _KNOWN_SALT)
    if index.actions is None:
        known = np.zeros_like(known)
    return Actions(
        index,
        known,
        data.action_horizon,
        data.action_padding,
        tuple(data.action_absolute),
        index.action_dim,
    )
