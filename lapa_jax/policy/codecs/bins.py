"""Real actions as tokens, one a dimension: bins of values that are frequent, and of the rest."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from lapa_jax.policy.codecs.codec import ActionCodec, check_actions


class Bins(ActionCodec):
    """Bins of each action dimension: edges ascending, bin i is [edges[i], edges[i+1]) and stands
    for centres[i], the middle of it where there are none.

    Dimensions may have different numbers of bins.
    """

    kind, token = "bins", "dimension"

    def __init__(self, edges: Sequence[np.ndarray], centres: Sequence[np.ndarray] | None = None):
        self.edges = [np.asarray(e, np.float64) for e in edges]
        if not self.edges:
            raise ValueError("bins need at least one dimension of actions")
        for dimension, e in enumerate(self.edges):
            if e.ndim != 1 or len(e) < 2 or not np.isfinite(e).all() or (np.diff(e) <= 0).any():
                raise ValueError(
                    f"edges of action dimension {dimension} must be two or more finite ascending "
                    f"numbers, got {e}"
                )
        given = map(_middles, self.edges) if centres is None else centres
        self._centres = [np.asarray(c, np.float64) for c in given]
        if len(self._centres) != len(self.edges):
            raise ValueError(f"{len(self._centres)} lines of centres, {len(self.edges)} of edges")
        for dimension, (c, e) in enumerate(zip(self._centres, self.edges, strict=True)):
            if c.shape != (len(e) - 1,) or not ((e[:-1] <= c) & (c <= e[1:])).all():
                raise ValueError(
                    f"centres of action dimension {dimension} must be one in each bin, got {c}"
                )
        self.action_dim = len(self.edges)
        self.sizes = np.array([len(e) - 1 for e in self.edges], np.int32)

    @classmethod
    def fit(cls, actions: np.ndarray, size: int) -> "Bins":
        """At most `size` bins of each dimension of actions (N, action_dim)."""
        from data_pipelines.checks.statistics import action_bins

        return cls(*zip(*action_bins(actions, size), strict=True))

    @property
    def centres(self) -> np.ndarray:
        """Bin centres, float32 (action_dim, max bins); rows are padded with NaN."""
        table = np.full((self.action_dim, self.sizes.max()), np.nan, np.float32)
        for dimension, c in enumerate(self._centres):
            table[dimension, : len(c)] = c
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
        found = {"edges": [e.tolist() for e in self.edges]}
        if any(map(np.any, map(_beside, self.edges, self._centres))):
            found["centres"] = [c.tolist() for c in self._centres]
        return found

    def to_csv(self) -> str:
        """The original's bin edges, as `from_csv` reads them; which stand for their middle."""
        if "centres" in self.settings():
            raise ValueError("the csv of bin edges cannot say centres beside the middle of bins")
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


def _middles(edges: np.ndarray) -> np.ndarray:
    return 0.5 * (edges[:-1] + edges[1:])


def _beside(edges: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Which centres are not in the middle of their bins, as values are float32."""
    return _middles(edges).astype(np.float32) != centres.astype(np.float32)
