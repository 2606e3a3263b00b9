"""Action statistics and the bins of action tokens, from the actions of an index.

Only valid actions count: the last step of an RLDS episode has none. Exact where a column fits in
memory; else by a `Sketch`, which takes them in parts that can be merged in any order (by Beam, too:
`combine_fn`). Never called by training; the results travel in configs and checkpoints.
"""

import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from data_pipelines.checks.binning import Binned, Column, bins_of
from data_pipelines.index import CorpusIndex
from data_pipelines.progress import Progress


def valid_action_rows(index: CorpusIndex) -> np.ndarray:
    """Rows whose action was executed: all but the last step of each episode, int64."""
    if index.actions is None:
        names = [key for key, kind in index.keys.items() if kind == "float"]
        raise ValueError(
            f"{index.directory} has no actions under steps/{index.action_key}; float "
            f"features: {names or 'none'} (clips have none; `lapa data index --action_key` says "
            "which of these they are)"
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


def columns_of(actions: np.ndarray) -> Iterator[Column]:
    """Each dimension of actions (N, A), one in memory at a time."""
    if actions.ndim != 2 or not len(actions):
        raise ValueError(f"actions have shape {actions.shape}, expected (N, action_dim), N > 0")
    _check_finite(actions)
    return (Column.of(actions[:, dimension]) for dimension in range(actions.shape[1]))


def action_statistics(index: CorpusIndex) -> dict[str, Any]:
    """`statistics_of` the valid actions of a corpus."""
    rows = valid_action_rows(index)
    return statistics_of(index.actions[rows, dimension] for dimension in range(index.action_dim))


def statistics_of(dimensions: Iterable[np.ndarray]) -> dict[str, Any]:
    """Per dimension, of which these are the actions (N,): mean, std, min, max, the quantiles q01,
    q10, q50, q90, q99, constant, distinct (how many values), mode (the most frequent one) and
    mode_share; and num_actions. JSON-ready."""
    found: dict[str, Any] = {}
    for numbers in dimensions:  # one in memory at a time
        numbers = numbers.astype(np.float64)
        facts = {"mean": float(numbers.mean()), "std": float(numbers.std())}
        for name, value in (facts | _facts(Column.of(numbers))).items():
            found.setdefault(name, []).append(value)
        found["num_actions"] = len(numbers)
    return found


def _facts(column: Column) -> dict[str, Any]:
    names = ("q01", "q10", "q50", "q90", "q99")
    quantiles = column.quantiles(np.array([0.01, 0.1, 0.5, 0.9, 0.99])).tolist()
    most = int(column.counts.argmax())
    return {
        "min": float(column.values[0]),
        "max": float(column.values[-1]),
        **dict(zip(names, quantiles, strict=True)),
        "constant": len(column.values) == 1,
        "distinct": len(column.values),
        "mode": float(column.values[most]),
        "mode_share": float(column.counts[most] / column.size),
    }


_FEW = 64  # values, each of which comes four times or more on average, are discrete
_HEAVY = 0.02  # of the actions that have one value
_FAR = 100  # times the range of most values


def peculiarities(found: dict[str, Any], errors: Sequence[float], tokens: str) -> list[str]:
    """What of actions is easily lost in tokens: a line for each dimension that is constant,
    discrete or heavy at one value, by `statistics_of`; and how exactly `tokens` say them. errors:
    of each dimension the largest one between an action and what its tokens say."""
    lines, actions = [], found["num_actions"]
    for dimension, distinct in enumerate(found["distinct"]):
        mode, share = found["mode"][dimension], found["mode_share"][dimension]
        heavy = f"{mode:g} in {share:.1%} of the actions"
        few = distinct is not None and 4 * distinct <= actions and distinct <= _FEW
        if distinct == 1:
            lines.append(f"action dimension {dimension} is constant: {mode:g}")
        elif few and 2 * (distinct - 1) <= (1 - share) * actions:
            lines.append(f"action dimension {dimension} is discrete: {distinct} values, {heavy}")
        elif share >= max(_HEAVY, 3 / actions):
            lines.append(f"action dimension {dimension} is heavy at one value: {heavy}")
        low, high = (found[name][dimension] for name in ("q01", "q99"))
        reach = _FAR * (high - low)
        for value in {found["min"][dimension], found["max"][dimension]}:
            if high > low and not low - reach <= value <= high + reach:
                lines.append(
                    f"action dimension {dimension} has values far from the others: {value:g}, 98% "
                    f"lie between {low:g} and {high:g}"
                )
    worst = int(np.argmax(errors))
    span = found["max"][worst] - found["min"][worst]
    lines.append(
        f"the largest error of an action said by {tokens} is {errors[worst]:.3g}, in dimension "
        f"{worst}, whose values reach over {span:.3g}"
    )
    return lines


def action_bins(actions: np.ndarray, bins: int) -> list[Binned]:
    """At most `bins` bins of each dimension of `actions` (N, A): see binning.py."""
    return [bins_of(column, bins) for column in columns_of(actions)]


def describe(
    index: CorpusIndex, approximate: bool = False
) -> tuple[dict[str, Any], Iterator[Column]]:
    """(`action_statistics`, with `approximate`; each dimension): of a sketch where exact ones are
    not wanted, or would need too much memory."""
    approximate = approximate or too_large(index)
    if approximate:
        of = sketch_actions(index)
        found, columns = of.statistics(), of.columns()
    else:
        found = action_statistics(index)
        columns = columns_of(index.actions[valid_action_rows(index)])
    return found | {"approximate": approximate}, columns


def survey(
    index: CorpusIndex, bins: int, approximate: bool = False
) -> tuple[dict[str, Any], list[Binned]]:
    """(statistics of `describe`, with the `largest_error` of each dimension in its units; at most
    `bins` bins of each)."""
    found, columns = describe(index, approximate)
    made = [(bins_of(column, bins), column) for column in columns]
    found["largest_error"] = [binned.error(column.values) for binned, column in made]
    return found, [binned for binned, _ in made]


def check_gripper(actions: np.ndarray, gripper: int) -> None:
    """Raises ValueError unless dimension `gripper` of actions (N, A) holds 0 and 1 alone."""
    if not 0 <= gripper < actions.shape[1]:
        last = actions.shape[1] - 1
        raise ValueError(f"--gripper {gripper}: actions have dimensions 0 to {last}")
    other = set(np.unique(actions[:, gripper])) - {0.0, 1.0}
    if other:
        raise ValueError(
            f"--gripper {gripper}: that dimension holds {float(min(other)):g}, not 0 and 1 only"
        )


def _check_finite(actions: np.ndarray, first: int = 0) -> None:
    if not np.isfinite(actions).all():
        row, dimension = np.argwhere(~np.isfinite(actions))[0]
        value = actions[row, dimension]
        raise ValueError(f"action {first + row}, dimension {dimension} is {value}")


def action_clusters(actions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(centres (count, A), scale (A,)) of `count` clusters of whole actions (N, A): k-means with
    each dimension in units of its standard deviation, the same for the same actions. In dimensions
    where most actions of a cluster have one value, its centre has that value. Where there are no
    more different actions than clusters, each is one."""
    if actions.ndim != 2 or len(actions) < count or count < 1:
        raise ValueError(
            f"{count} clusters of actions of shape {actions.shape}: need at least as "
            "many actions as clusters (model.targets.action.vocab)"
        )
    _check_finite(actions)
    with np.errstate(over="ignore"):
        scale = actions.std(axis=0)
    if not np.isfinite(scale).all():  # its squares are beyond float32
        scale = actions.std(axis=0, dtype=np.float64)
    constant = (actions == actions[0]).all(axis=0)  # also one whose mean is rounded
    scale = np.where(constant | (scale == 0), 1.0, scale)
    different = np.unique(actions, axis=0)
    if len(different) <= count:
        return different, scale
    with warnings.catch_warnings():  # of clusters that have become empty
        warnings.simplefilter("ignore", UserWarning)
        scaled = (actions / scale).astype(np.float64)
        centres, labels = kmeans2(scaled, count, minit="++", seed=0)
    full, labels = np.unique(labels, return_inverse=True)
    centres = centres[full] * scale
    for dimension, numbers in enumerate(actions.T):
        values, which = np.unique(numbers, return_inverse=True)
        pairs, counts = np.unique(labels * len(values) + which, return_counts=True)
        cluster, value = np.divmod(pairs, len(values))
        most = (counts > 1) & (2 * counts > np.bincount(labels)[cluster])
        centres[cluster[most], dimension] = values[value[most]]
    return centres, scale


# ---------------------------------------------------------------- what does not fit in memory

_BINS = 8192
_UNIT, _REACH = 1e-6, 1e6  # bins are as wide as x · 0.7 % from the unit to the reach, then one
_CHUNK = 2**18  # actions
_OFTEN = 2048  # values that are counted
_POINTS = 2**16  # that stand for all the others


@dataclass
class Sketch:
    """What is known of the actions of a part of a corpus. Parts merge in any order.

    Mean and squares are kept as (n, mean, sum of squared deviations), which lose nothing where the
    mean is large. A histogram with asinh-spaced bins gives quantiles: of each bin the count and its
    least and greatest value, so that values which are few (a gripper's) stay exact. So do the most
    frequent values, which are counted (Misra and Gries 1982; merged as Agarwal et al. 2012 do: a
    count misses at most one in _OFTEN). A quantile is wrong by at most the width of a bin, 0.7 % of
    the value: much where all values are close to one that is far from zero.
    """

    count: int
    mean: np.ndarray  # float64 (A,)
    squares: np.ndarray  # float64 (A,) of deviations from the mean
    counts: np.ndarray  # int64 (A, bins)
    low: np.ndarray  # float64 (A, bins); inf where a bin is empty
    high: np.ndarray  # float64 (A, bins); -inf where a bin is empty
    often: list[Column]  # (A) of up to _OFTEN values, which come at least so often

    @classmethod
    def empty(cls, action_dim: int) -> "Sketch":
        shape = (action_dim, _BINS)
        histogram = np.zeros(shape, np.int64), np.full(shape, np.inf), np.full(shape, -np.inf)
        none = Column(np.zeros(0), np.zeros(0, np.int64))
        return cls(0, *np.zeros((2, action_dim)), *histogram, [none] * action_dim)

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
        place = _place(values)
        for dimension in range(values.shape[1]):
            bins, column = place[:, dimension], values[:, dimension]
            sketch.counts[dimension] = np.bincount(bins, minlength=_BINS)
            np.minimum.at(sketch.low[dimension], bins, column)
            np.maximum.at(sketch.high[dimension], bins, column)
            sketch.often[dimension] = _most_often(Column.of(column))
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
            [_most_often(_joined(*pair)) for pair in zip(self.often, other.often, strict=True)],
        )

    def quantiles(self, probabilities: np.ndarray) -> np.ndarray:
        """float64 (A, probabilities): by linear interpolation between neighbours."""
        return np.stack([column.quantiles(probabilities) for column in self.columns()])

    def columns(self) -> Iterator[Column]:
        """Each dimension: the frequent values, and what else lies in each bin evenly spread between
        its least and greatest value."""
        if not self.count:
            raise ValueError("there is no action")
        for counts, low, high, often in zip(
            self.counts, self.low, self.high, self.often, strict=True
        ):
            known = np.bincount(_place(often.values), often.counts, _BINS).astype(np.int64)
            one = low == high  # value alone is in the bin: its count is known
            known[one] = 0
            often = often.among(~one[_place(often.values)])
            rest = counts - known
            full = np.flatnonzero(rest > 0)
            rest, low, high = rest[full], low[full], high[full]
            points = np.where(one[full], 1, np.minimum(rest, 2 + rest * _POINTS // self.count))
            which = np.repeat(np.arange(len(full)), points)
            number = np.arange(len(which)) - np.repeat(np.cumsum(points) - points, points)
            spread = number / np.maximum(points - 1, 1)[which]
            values = low[which] + (high - low)[which] * spread
            share, more = np.divmod(rest, points)
            spare = Column.of(values, share[which] + (number < more[which]))
            yield _joined(often, spare)

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
        facts = [_facts(column) for column in self.columns()]
        for one in facts:  # of more values than are counted it is not known how many
            one["distinct"] = one["distinct"] if one["distinct"] <= _OFTEN else None
        return {
            "mean": self.mean.tolist(),
            "std": np.sqrt(self.squares / self.count).tolist(),
            **{name: [of[name] for of in facts] for name in facts[0]},
            "num_actions": self.count,
        }


def _place(values: np.ndarray) -> np.ndarray:
    """In which bins of a sketch these values are."""
    place = (np.arcsinh(values / _UNIT) / np.arcsinh(_REACH / _UNIT) + 1) * (_BINS / 2)
    return np.clip(place.astype(np.int64), 0, _BINS - 1)


def _joined(one: Column, other: Column) -> Column:
    return Column.of(*(np.concatenate(parts) for parts in zip(one, other, strict=True)))


def _most_often(column: Column) -> Column:
    """At most _OFTEN of its values; each count is lower by that of the first value left out."""
    if len(column.values) <= _OFTEN:
        return column
    counts = column.counts - np.partition(column.counts, -_OFTEN - 1)[-_OFTEN - 1]
    return Column(column.values, counts).among(counts > 0)


def sketch_actions(index: CorpusIndex) -> Sketch:
    """Of the valid actions of a corpus."""
    return sketch(index.actions, valid_action_rows(index))


def sketch(vectors: np.ndarray, rows: np.ndarray) -> Sketch:
    """Of these rows of vectors (N, A), a part in memory at a time."""
    found = Sketch.empty(vectors.shape[1])
    with Progress("statistics", len(rows), unit="vector") as bar:
        for start in range(0, len(rows), _CHUNK):
            part = vectors[rows[start : start + _CHUNK]]
            found = found.merge(Sketch.of(part, start))
            bar.update(len(part))
    return found


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
