"""What the assets of a new run are made of (policy/heads: `Sources`)."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from data_pipelines.checks import statistics
from data_pipelines.loader.mixture import Mixture

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
        for corpus in self.mixture.corpora:
            rows = statistics.valid_action_rows(corpus.index)
            rows = rows[~corpus.left_out[corpus.index.episode_of_rows(rows)]]
            found.append(corpus.index.actions[rows[corpus.actions.mask(rows)[:, 0]]])
        return np.concatenate(found)


class StandIn:
    """What gives assets the shapes of real ones, without data."""

    inherited: Mapping[str, bytes] = {}

    def instructions(self) -> list[str]:
        return [f"push block {i} to the wall" for i in range(20)]

    def actions(self) -> np.ndarray:
        return np.linspace(-1.0, 1.0, 8192, dtype=np.float32)[:, None].repeat(ACTION_DIM, axis=1)
