"""What the assets of a new run are made of (policy/heads: `Sources`)."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from absl import logging

from data_pipelines.checks import statistics
from data_pipelines.loader.mixture import Mixture
from data_pipelines.loader.steps import fps_of
from data_pipelines.normalise import Normaliser

ACTION_DIM = 7  # of the stand-in actions


@dataclasses.dataclass(frozen=True)
class OfCorpora:
    """Those of a run's own corpora; actions of the episodes that are not left out."""

    mixture: Mixture
    inherited: Mapping[str, bytes]  # assets of the run that it starts from

    def instructions(self) -> list[str]:
        return sorted({text for c in self.mixture.corpora for text in c.index.instructions})

    def actions(self) -> np.ndarray:
        found = []
        corpora = self.mixture.corpora
        for corpus in [c for c in corpora if c.index.actions is not None] or corpora:
            rows = statistics.valid_action_rows(corpus.index)
            rows = rows[~corpus.left_out[corpus.index.episode_of_rows(rows)]]
            found.append(corpus.index.actions[rows[corpus.actions.mask(rows)[:, 0]]])
        return np.concatenate(found)

    def states(self) -> np.ndarray:
        found = []
        for corpus in self.mixture.corpora:
            index = corpus.index
            kept = np.repeat(~corpus.left_out, index.episode_length)
            found.append(index.states[kept])
        return np.concatenate(found)

    def statistics(self, of: str, mode: str) -> Normaliser:
        corpora = self.mixture.corpora
        rates = np.unique(np.concatenate([fps_of(c.settings, c.index) for c in corpora]))
        rate = float(rates[0]) if len(rates) == 1 and np.isfinite(rates[0]) else 0.0
        said = {"control_hz": rate, "source": self.mixture.index_hash}
        return _told(Normaliser.fit(getattr(self, f"{of}s")(), mode, **said), of)


class StandIn:
    """What gives assets the shapes of real ones, without data."""

    inherited: Mapping[str, bytes] = {}

    def instructions(self) -> list[str]:
        return [f"push block {i} to the wall" for i in range(20)]

    def actions(self) -> np.ndarray:
        return np.linspace(-1.0, 1.0, 8192, dtype=np.float32)[:, None].repeat(ACTION_DIM, axis=1)

    def states(self) -> np.ndarray:
        return self.actions()

    def statistics(self, of: str, mode: str) -> Normaliser:
        return Normaliser.fit(getattr(self, f"{of}s")(), mode)


def _told(statistics: Normaliser, of: str) -> Normaliser:
    for line in statistics.peculiarities(of):
        logging.warning("%s", line)
    return statistics
