"""Real actions as tokens: one token a dimension, quantile bins whose edges may be ragged."""

import json
from collections.abc import Sequence

import numpy as np


class ActionTokenizer:
    """Bins of each action dimension: edges ascending, bin i is [edges[i], edges[i+1]).

    Dimensions may have different numbers of bins (equal quantiles are merged).
    """

    def __init__(self, edges: Sequence[np.ndarray]):
        self.edges = [np.asarray(e, np.float64) for e in edges]
        if not self.edges:
            raise ValueError("an action tokenizer needs at least one dimension")
        for dimension, e in enumerate(self.edges):
            if e.ndim != 1 or len(e) < 2 or not np.isfinite(e).all() or (np.diff(e) <= 0).any():
                raise ValueError(
                    f"edges of action dimension {dimension} must be two or more finite ascending "
                    f"numbers, got {e}"
                )

    @property
    def action_dim(self) -> int:
        return len(self.edges)

    @property
    def num_bins(self) -> np.ndarray:
        """Bins of each dimension, int32 (action_dim,)."""
        return np.array([len(e) - 1 for e in self.edges], np.int32)

    @property
    def centres(self) -> np.ndarray:
        """Bin centres, float32 (action_dim, max bins); rows are padded with NaN."""
        table = np.full((self.action_dim, self.num_bins.max()), np.nan, np.float32)
        for dimension, e in enumerate(self.edges):
            table[dimension, : len(e) - 1] = 0.5 * (e[:-1] + e[1:])
        return table

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Actions float (..., action_dim) → ids int32 (..., action_dim).

        Values beyond the outer edges belong to the outer bins: the scheme's quantiles are those of
        the training data. NaN and infinities raise ValueError.
        """
        actions = np.asarray(actions)
        self._check_last(actions)
        if not np.isfinite(actions).all():
            raise ValueError(f"actions hold {np.sum(~np.isfinite(actions))} values not finite")
        ids = np.empty(actions.shape, np.int32)
        for dimension, e in enumerate(self.edges):
            # The inner edges only: everything outside falls into the first or the last bin.
            ids[..., dimension] = np.searchsorted(e[1:-1], actions[..., dimension], side="right")
        return ids

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids int (..., action_dim) → bin centres float32. An id without a bin: ValueError."""
        ids = np.asarray(ids)
        self._check_last(ids)
        bad = np.argwhere((ids < 0) | (ids >= self.num_bins))
        if len(bad):
            dimension = int(bad[0][-1])
            raise ValueError(
                f"action id {ids[tuple(bad[0])]} of dimension {dimension} is out of range: the "
                f"dimension has {self.num_bins[dimension]} bins"
            )
        return self.centres[np.arange(self.action_dim), ids]

    def _check_last(self, array: np.ndarray) -> None:
        if array.ndim < 1 or array.shape[-1] != self.action_dim:
            raise ValueError(
                f"shape {array.shape} does not end in the action dimension {self.action_dim}"
            )

    def to_json(self) -> bytes:
        return json.dumps({"edges": [e.tolist() for e in self.edges]}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ActionTokenizer":
        return cls([np.array(e) for e in json.loads(data)["edges"]])
