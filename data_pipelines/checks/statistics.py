"""Action statistics and the bin edges of action tokens, from the actions of an index.

Only valid actions count: the last step of an RLDS episode has none. Exact where a column fits in
memory; else by a `Sketch`, which takes them in parts that can be merged in any order (by Beam, too:
`combine_fn`). Never called by training; the results travel in configs and checkpoints.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging
from scipy.cluster.vq import kmeans2

from data_pipelines.index import CorpusIndex
from data_pipelines.progress import Progress


def valid_action_rows(index: CorpusIndex) -> np.ndarray:
    """Rows whose action was executed: all but the last step of each episode, int64."""
    if index.actions is None:
        names = [key for key, kind in index.keys.items() if kind == "float"]
        raise ValueError(
            f"{index.directory} has no actions under steps/{index.action_key}; float "
            f"features: {names or 'none'} (data.corpora.<name>.action_key)"
        )
    last = index.episode_start + index.episode_length - 1
    valid = np.ones(index.num_frames, bool)
    valid[last] = False
    rows = np.flatnonzero(valid)
    if not len(rows):
        raise ValueError(
            f"{index.directory}: every episode has a single step, so there is no "
            "valid action (the last one of an episode never counts)"
        )
    return rows


EXACT_BYTES = 2 << 30  # of actions, float32: more are sketched unless told otherwise


def too_large(index: CorpusIndex) -> bool:
    """Whether exact statistics would need too much memory."""
    return index.actions is not None and index.actions.nbytes > EXACT_BYTES


def action_statistics(index: CorpusIndex) -> dict[str, Any]:
    """Per dimension: mean, std, min, max, q01, q99, constant; and num_actions. JSON-ready."""
    rows = valid_action_rows(index)
    found: dict[str, Any] = {
        name: [] for name in ("mean", "std", "min", "max", "q01", "q99", "constant")
    }
    for dimension in range(index.action_dim):  # one column in memory at a time
        column = index.actions[rows, dimension].astype(np.float64)
        q01, q99 = np.quantile(column, [0.01, 0.99])
        low, high = float(column.min()), float(column.max())
        values = dict(mean=column.mean(), std=column.std(), min=low, max=high, q01=q01, q99=q99)
        for name, value in values.items():
            found[name].append(float(value))
        found["constant"].append(low == high)
    _warn_of_constant(index, found)
    return {**found, "num_actions": len(rows)}


def _warn_of_constant(index: CorpusIndex, found: dict[str, Any]) -> None:
    if any(found["constant"]):
        logging.warning(
            "%s: action dimensions %s are constant.",
            index.directory,
            np.flatnonzero(found["constant"]).tolist(),
        )


def quantile_edges(actions: np.ndarray, bins: int) -> list[np.ndarray]:
    """Bin edges of each dimension of `actions` (N, A) so that bins are equally full.

    The semantics of pandas.qcut(column, bins, duplicates="drop"): quantiles by linear
    interpolation, equal ones merged, so a dimension may have fewer than `bins` bins and the edges
    are ragged. A constant dimension v gets the one bin [v - e, v + e], e = 1e-3 * max(1, |v|),
    whose centre is v again.
    """
    if actions.ndim != 2 or not len(actions):
        raise ValueError(f"actions have shape {actions.shape}, expected (N, action_dim), N > 0")
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    _check_finite(actions)
    probabilities = _edge_probabilities(bins)
    return [
        _merge_equal(
            np.quantile(actions[:, dimension].astype(np.float64), probabilities), dimension
        )
        for dimension in range(actions.shape[1])
    ]


def gripper_edges(index: CorpusIndex, bins: int, gripper: int) -> list[np.ndarray]:
    """Bin edges of a corpus as the original has them: `quantile_edges`, but [-0.5, 0.5, 1.5] of the
    dimension `gripper`, which must hold 0 and 1 alone (-1: there is none)."""
    actions = index.actions[valid_action_rows(index)]
    edges = quantile_edges(actions, bins)
    if gripper != -1:
        if not 0 <= gripper < len(edges):
            raise ValueError(f"--gripper {gripper}: actions have dimensions 0 to {len(edges) - 1}")
        other = set(np.unique(actions[:, gripper])) - {0.0, 1.0}
        if other:
            raise ValueError(
                f"--gripper {gripper}: that dimension holds {float(min(other)):g}, not 0 and 1 only"
            )
        edges[gripper] = np.array([-0.5, 0.5, 1.5])
    return edges


def _edge_probabilities(bins: int) -> np.ndarray:
    """As pandas does: a probability that is not representable is rounded up, so that a sample which
    lies exactly on an edge falls into the bin below it."""
    probabilities = np.linspace(0, 1, bins + 1)
    off = bins * probabilities != np.arange(bins + 1)
    probabilities[off] = np.nextafter(probabilities[off], 1)
    return probabilities


def _merge_equal(quantiles: np.ndarray, dimension: int) -> np.ndarray:
    unique = np.unique(quantiles)
    if len(unique) > 1:
        return unique
    half = 1e-3 * max(1.0, abs(unique[0]))
    logging.warning(
        "Action dimension %d is constant (%g): it gets a single bin.", dimension, unique[0]
    )
    return np.array([unique[0] - half, unique[0] + half])


def _check_finite(actions: np.ndarray, first: int = 0) -> None:
    if not np.isfinite(actions).all():
        row, dimension = np.argwhere(~np.isfinite(actions))[0]
        value = actions[row, dimension]
        raise ValueError(f"action {first + row}, dimension {dimension} is {value}")


def action_clusters(actions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(centres (count, A), scale (A,)) of `count` clusters of whole actions (N, A): k-means with
    each dimension in units of its standard deviation, the same for the same actions."""
    if actions.ndim != 2 or len(actions) < count or count < 1:
        raise ValueError(
            f"{count} clusters of actions of shape {actions.shape}: need at least as "
            "many actions as clusters (model.targets.action.vocab)"
        )
    _check_finite(actions)
    scale = actions.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    centres, _ = kmeans2(
        (actions / scale).astype(np.float64), count, minit="++", seed=0, missing="raise"
    )
    return centres * scale, scale


# ---------------------------------------------------------------- what does not fit in memory

_BINS = 8192
_UNIT, _REACH = 1e-6, 1e6  # bins are as wide as x · 0.7 % from the unit to the reach, then one
_CHUNK = 2**18  # actions


@dataclass
class Sketch:
    """What is known of the actions of a part of a corpus. Parts merge in any order.

    Mean and squares are kept as (n, mean, sum of squared deviations), which lose nothing where the
    mean is large. A histogram with asinh-spaced bins gives quantiles: of each bin the count and its
    least and greatest value, so that values which are few (a gripper's) stay exact. A quantile is
    wrong by at most the width of a bin, 0.7 % of the value: much where all values are close to one
    that is far from zero.
    """

    count: int
    mean: np.ndarray  # float64 (A,)
    squares: np.ndarray  # float64 (A,) of deviations from the mean
    counts: np.ndarray  # int64 (A, bins)
    low: np.ndarray  # float64 (A, bins); inf where a bin is empty
    high: np.ndarray  # float64 (A, bins); -inf where a bin is empty

    @classmethod
    def empty(cls, action_dim: int) -> "Sketch":
        shape = (action_dim, _BINS)
        moments = np.zeros((2, action_dim))
        return cls(
            0, *moments, np.zeros(shape, np.int64), np.full(shape, np.inf), np.full(shape, -np.inf)
        )

    @classmethod
    def of(cls, actions: np.ndarray, first: int = 0) -> "Sketch":
        """Of actions (N, A); `first`: the number of the first, for errors."""
        _check_finite(actions, first)
        sketch = cls.empty(actions.shape[1])
        if not len(actions):
            return sketch
        values = actions.astype(np.float64)
        sketch.count, sketch.mean = len(values), values.mean(axis=0)
        sketch.squares = np.square(values - sketch.mean).sum(axis=0)
        reach = np.arcsinh(_REACH / _UNIT)
        place = (np.arcsinh(values / _UNIT) / reach + 1) * (_BINS / 2)
        place = np.clip(place.astype(np.int64), 0, _BINS - 1)
        for dimension in range(values.shape[1]):
            bins, column = place[:, dimension], values[:, dimension]
            sketch.counts[dimension] = np.bincount(bins, minlength=_BINS)
            np.minimum.at(sketch.low[dimension], bins, column)
            np.maximum.at(sketch.high[dimension], bins, column)
        return sketch

    def merge(self, other: "Sketch") -> "Sketch":
        """Of both parts (Chan et al. 1979); neither is changed."""
        count = self.count + other.count
        share = other.count / count if count else 0.0
        apart = other.mean - self.mean
        return Sketch(
            count,
            self.mean + apart * share,
            self.squares + other.squares + np.square(apart) * share * self.count,
            self.counts + other.counts,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def quantiles(self, probabilities: np.ndarray) -> np.ndarray:
        """float64 (A, probabilities): by linear interpolation between neighbours, which lie evenly
        spread between the least and the greatest value of their bin."""
        if not self.count:
            raise ValueError("there is no action")
        place = np.clip(np.asarray(probabilities) * (self.count - 1), 0, self.count - 1)
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, self.count - 1)
        part = place - below
        return np.stack(
            [
                (1 - part) * self._sorted(dimension, below) + part * self._sorted(dimension, above)
                for dimension in range(len(self.mean))
            ]
        )

    def _sorted(self, dimension: int, ranks: np.ndarray) -> np.ndarray:
        """The values of these ranks, from 0."""
        ends = np.cumsum(self.counts[dimension])
        bins = np.searchsorted(ends, ranks, side="right")
        counts, low = self.counts[dimension][bins], self.low[dimension][bins]
        inside = (ranks - (ends[bins] - counts)) / np.maximum(counts - 1, 1)
        return low + (self.high[dimension][bins] - low) * inside

    def histogram(self, dimension: int, bins: int) -> dict[str, list]:
        """{edges, counts}: even bins between the 1 % and 99 % quantiles (least and greatest value
        where these are one); what lies outside counts in the outermost."""
        low, high = self.quantiles(np.array([0.01, 0.99]))[dimension]
        if low == high:
            low, high = self.low[dimension].min(), self.high[dimension].max()
        edges = np.linspace(low, high, bins + 1)
        full = np.flatnonzero(self.counts[dimension])
        middle = (self.low[dimension][full] + self.high[dimension][full]) / 2
        place = np.clip(np.searchsorted(edges, middle, side="right") - 1, 0, bins - 1)
        counts = np.bincount(place, self.counts[dimension][full], bins).astype(np.int64)
        return {"edges": edges.tolist(), "counts": counts.tolist()}

    def statistics(self) -> dict[str, Any]:
        """As `action_statistics` gives them, the quantiles approximate."""
        q01, q99 = self.quantiles(np.array([0.01, 0.99])).T
        low, high = self.low.min(axis=1), self.high.max(axis=1)
        return {
            "mean": self.mean.tolist(),
            "std": np.sqrt(self.squares / self.count).tolist(),
            "min": low.tolist(),
            "max": high.tolist(),
            "q01": q01.tolist(),
            "q99": q99.tolist(),
            "constant": (low == high).tolist(),
            "num_actions": self.count,
        }

    def edges(self, bins: int) -> list[np.ndarray]:
        """As `quantile_edges` gives them, approximate."""
        quantiles = self.quantiles(_edge_probabilities(bins))
        return [_merge_equal(row, dimension) for dimension, row in enumerate(quantiles)]


def sketch_actions(index: CorpusIndex) -> Sketch:
    """Of the valid actions of a corpus, a part in memory at a time."""
    rows, sketch = valid_action_rows(index), Sketch.empty(index.action_dim)
    with Progress("statistics", len(rows), unit="action") as bar:
        for start in range(0, len(rows), _CHUNK):
            part = index.actions[rows[start : start + _CHUNK]]
            sketch = sketch.merge(Sketch.of(part, start))
            bar.update(len(part))
    _warn_of_constant(index, sketch.statistics())
    return sketch


def combine_fn(action_dim: int) -> Any:
    """An apache_beam.CombineFn: of elements (N, A), arrays of actions, the Sketch of all."""
    import apache_beam as beam

    class CombineActions(beam.CombineFn):
        def create_accumulator(self) -> Sketch:
            return Sketch.empty(action_dim)

        def add_input(self, accumulator: Sketch, actions: np.ndarray) -> Sketch:
            return accumulator.merge(Sketch.of(actions))

        def merge_accumulators(self, accumulators: Iterable[Sketch]) -> Sketch:
            return functools.reduce(Sketch.merge, accumulators, self.create_accumulator())

        def extract_output(self, accumulator: Sketch) -> Sketch:
            return accumulator

    return CombineActions()
