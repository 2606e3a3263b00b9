"""Real actions as tokens, one a dimension: bins that are equally full."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from lapa_jax.policy.codecs.codec import ActionCodec, check_actions


class Bins(ActionCodec):
    """Bins of each action dimension: edges ascending, bin i is [edges[i], edges[i+1]).

    Dimensions may have different numbers of bins (equal quantiles are merged).
    """

    kind, token = "bins", "dimension"

    def __init__(self, edges: Sequence[np.ndarray]):
        self.edges = [np.asarray(e, np.float64) for e in edges]
        if not self.edges:
            raise ValueError("bins need at least one dimension of actions")
        for dimension, e in enumerate(self.edges):
            if e.ndim != 1 or len(e) < 2 or not np.isfinite(e).all() or (np.diff(e) <= 0).any():
                raise ValueError(
                    f"edges of action dimension {dimension} must be two or more finite ascending "
                    f"numbers, got {e}"
                )
        self.action_dim = len(self.edges)
        self.sizes = np.array([len(e) - 1 for e in self.edges], np.int32)

    @classmethod
    def fit(cls, actions: np.ndarray, size: int) -> "Bins":
        """At most `size` bins of each dimension of actions (N, action_dim)."""
        from data_pipelines.checks.statistics import quantile_edges

        return cls(quantile_edges(actions, size))

    @property
    def centres(self) -> np.ndarray:
        """Bin centres, float32 (action_dim, max bins); rows are padded with NaN."""
        table = np.full((self.action_dim, self.sizes.max()), np.nan, np.float32)
        for dimension, e in enumerate(self.edges):
            table[dimension, : len(e) - 1] = 0.5 * (e[:-1] + e[1:])
        return table

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Actions float (..., action_dim) → ids int32 (..., action_dim).

        Values beyond the outer edges belong to the outer bins: the scheme's quantiles are those of
        the training data. NaN and infinities raise ValueError.
        """
        values = check_actions(values, self.action_dim)
        ids = np.empty(values.shape, np.int32)
        for dimension, e in enumerate(self.edges):
            # The inner edges only: everything outside falls into the first or the last bin.
            ids[..., dimension] = np.searchsorted(e[1:-1], values[..., dimension], side="right")
        return ids

    def values(self, ids: Any, xp: Any = np) -> Any:
        return xp.asarray(self.centres)[xp.arange(self.action_dim), ids]

    def describe(self) -> dict[str, Any]:
        return self._described([row[np.isfinite(row)] for row in self.centres])

    def settings(self) -> dict[str, Any]:
        return {"edges": [e.tolist() for e in self.edges]}

    def to_csv(self) -> str:
        """The original's bin edges, as `from_csv` reads them."""
        text, width = io.StringIO(), max(len(e) for e in self.edges)
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(range(width))
        lines.writerows([*e.tolist(), *[""] * (width - len(e))] for e in self.edges)
        return text.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> "Bins":
        """The original's bin edges: a header line, then a line of edges per dimension, short lines
        filled up with empty cells."""
        lines = list(csv.reader(io.StringIO(text)))
        if len(lines) < 2:
            raise ValueError("the csv of bin edges holds no line of edges after its header")
        edges = []
        for number, cells in enumerate(lines[1:], 2):
            kept = [cell for cell in cells if cell.strip()]
            if kept != cells[: len(kept)]:
                raise ValueError(
                    f"line {number} of the csv of bin edges has gaps between its edges"
                )
            edges.append(np.array([float(cell) for cell in kept]))
        return cls(edges)
