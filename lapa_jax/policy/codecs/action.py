"""Real actions as tokens: one a dimension (quantile bins), or one for a whole action (clusters)."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

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
        actions = check_actions(actions, self.action_dim)
        ids = np.empty(actions.shape, np.int32)
        for dimension, e in enumerate(self.edges):
            # The inner edges only: everything outside falls into the first or the last bin.
            ids[..., dimension] = np.searchsorted(e[1:-1], actions[..., dimension], side="right")
        return ids

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids int (..., action_dim) → bin centres float32. An id without a bin: ValueError."""
        ids = np.asarray(ids)
        check_last(ids, self.action_dim)
        bad = np.argwhere((ids < 0) | (ids >= self.num_bins))
        if len(bad):
            dimension = int(bad[0][-1])
            raise ValueError(
                f"action id {ids[tuple(bad[0])]} of dimension {dimension} is out of range: the "
                f"dimension has {self.num_bins[dimension]} bins"
            )
        return self.centre_of(ids)

    def centre_of(self, ids: Any, xp: Any = np) -> Any:
        """As `decode`, for ids in range; `xp` may be jax.numpy."""
        return xp.asarray(self.centres)[xp.arange(self.action_dim), ids]

    def to_json(self) -> bytes:
        return json.dumps({"edges": [e.tolist() for e in self.edges]}).encode()

    def to_csv(self) -> str:
        """The original's bin edges, as `from_csv` reads them."""
        text, width = io.StringIO(), max(len(e) for e in self.edges)
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(range(width))
        lines.writerows([*e.tolist(), *[""] * (width - len(e))] for e in self.edges)
        return text.getvalue()


class ActionClusters:
    """One token for a whole action: the nearest of `centres` (K, action_dim), each dimension in
    units of `scale` (action_dim,).

    For few dimensions and little data: nothing has to be learnt about slots beyond the first.
    """

    def __init__(self, centres: np.ndarray, scale: np.ndarray):
        self.centres = np.asarray(centres, np.float32)
        self.scale = np.asarray(scale, np.float32)
        if self.centres.ndim != 2 or self.scale.shape != self.centres.shape[1:]:
            raise ValueError(
                f"centres {self.centres.shape} and scale {self.scale.shape} are not (clusters, "
                "action_dim) and (action_dim,)"
            )
        if not np.isfinite(self.centres).all() or not (self.scale > 0).all():
            raise ValueError("centres must be finite and scales positive")

    @property
    def action_dim(self) -> int:
        return self.centres.shape[1]

    @property
    def num_bins(self) -> np.ndarray:
        """Ids of each token, int32 (1,)."""
        return np.array([len(self.centres)], np.int32)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Actions float (..., action_dim) → ids int32 (..., 1). NaN and infinities raise
        ValueError."""
        actions = check_actions(actions, self.action_dim)
        away = (actions[..., None, :] - self.centres) / self.scale
        return np.square(away).sum(-1).argmin(-1).astype(np.int32)[..., None]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids int (..., 1) → centres float32 (..., action_dim). An id without a cluster:
        ValueError."""
        ids = np.asarray(ids)
        bad = ids[(ids < 0) | (ids >= len(self.centres))]
        if bad.size or ids.shape[-1:] != (1,):
            raise ValueError(
                f"action ids {bad[:4].tolist()} of shape {ids.shape} are out of range: one of "
                f"{len(self.centres)} clusters each"
            )
        return self.centre_of(ids)

    def centre_of(self, ids: Any, xp: Any = np) -> Any:
        """As `decode`, for ids in range; `xp` may be jax.numpy."""
        return xp.asarray(self.centres)[ids[..., 0]]

    def to_json(self) -> bytes:
        values = {"centres": self.centres.tolist(), "scale": self.scale.tolist()}
        return json.dumps(values).encode()


def from_json(data: bytes) -> ActionTokenizer | ActionClusters:
    """The inverse of either `to_json`."""
    values = json.loads(data)
    if "edges" in values:
        return ActionTokenizer([np.array(e) for e in values["edges"]])
    return ActionClusters(np.array(values["centres"]), np.array(values["scale"]))


def from_csv(text: str) -> ActionTokenizer:
    """The original's bin edges: a header line, then a line of edges per dimension, short lines
    filled up with empty cells."""
    lines = list(csv.reader(io.StringIO(text)))
    if len(lines) < 2:
        raise ValueError("the csv of bin edges holds no line of edges after its header")
    edges = []
    for number, cells in enumerate(lines[1:], 2):
        kept = [cell for cell in cells if cell.strip()]
        if kept != cells[: len(kept)]:
            raise ValueError(f"line {number} of the csv of bin edges has gaps between its edges")
        edges.append(np.array([float(cell) for cell in kept]))
    return ActionTokenizer(edges)


def check_last(array: np.ndarray, action_dim: int) -> None:
    if array.ndim < 1 or array.shape[-1] != action_dim:
        raise ValueError(f"shape {array.shape} does not end in the action dimension {action_dim}")


def check_actions(actions: np.ndarray, action_dim: int) -> np.ndarray:
    """Actions as an array, finite and of this dimension."""
    actions = np.asarray(actions)
    check_last(actions, action_dim)
    bad = np.argwhere(~np.isfinite(actions))
    if len(bad):
        raise ValueError(
            f"action value {actions[tuple(bad[0])]} of dimension {int(bad[0][-1])} is not "
            f"finite ({len(bad)} such values): mend or drop those steps of the corpus"
        )
    return actions
