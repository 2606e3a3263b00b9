"""Bins of one column of numbers, from its distinct values and how often each comes.

A value that would fill a bin by itself gets one, whose centre it is; so do all values where there
are no more than bins. The rest is divided into bins that are equally full, by quantiles with the
semantics of pandas.qcut (linear interpolation), which do not reach over such a value, nor over an
empty stretch between groups of values. Where there is neither, the bins are those of qcut.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_WIDE = 1 / 8  # of the range of values: an empty stretch that no bin reaches over
_FEW = 16  # values among which a stretch as wide as that share of the range may be chance


class Column(NamedTuple):
    """Distinct values float64 (n,), ascending, and their counts int64 (n,)."""

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray, counts: np.ndarray | None = None) -> "Column":
        """Of numbers (N,), each of which comes once or `counts` times."""
        numbers = numbers.astype(np.float64) + 0.0  # -0.0 is 0.0
        if counts is None:
            return cls(*np.unique(numbers, return_counts=True))
        values, which = np.unique(numbers, return_inverse=True)
        summed = np.zeros(len(values), np.int64)
        np.add.at(summed, which, counts)
        return cls(values, summed)

    def among(self, which: slice | np.ndarray) -> "Column":
        return Column(self.values[which], self.counts[which])

    @property
    def size(self) -> int:
        return int(self.counts.sum())

    def quantiles(self, probabilities: np.ndarray) -> np.ndarray:
        """As np.quantile gives them of the numbers, bit by bit."""
        ends, last = np.cumsum(self.counts), self.size - 1
        place = np.asarray(probabilities, np.float64) * last
        below = np.clip(np.floor(place), 0, last)
        part, above = place - below, np.minimum(below + 1, last)
        a, b = (self.values[np.searchsorted(ends, rank, side="right")] for rank in (below, above))
        return np.where(part >= 0.5, b - (b - a) * (1 - part), a + (b - a) * part)


class Binned(NamedTuple):
    """Bins of a column: edges float64 (n + 1,), ascending; centres float64 (n,). Bin i is
    [edges[i], edges[i + 1]), and the outer ones hold what lies beyond them."""

    edges: np.ndarray
    centres: np.ndarray

    def error(self, values: np.ndarray) -> float:
        """The largest distance of one of these values from the centre of its bin."""
        ids = np.searchsorted(self.edges[1:-1], values, side="right")
        return float(np.abs(values - self.centres[ids]).max())


def bins_of(column: Column, size: int) -> Binned:
    """At most `size` bins."""
    return _binned(*_extents(column, size))


def middle_edges(column: Column, size: int) -> np.ndarray:
    """Edges float64 (n + 1,) of at most `size` bins that all stand for their middle. What bins of
    `bins_of` have besides what lies evenly around their centre becomes bins of its own."""
    room = size
    while True:
        low, high = _extents(column, room)
        edges, centres = _binned(low, high)
        below, above = centres - edges[:-1], edges[1:] - centres
        even = np.isclose(below, above, rtol=1e-9, atol=0.0)
        # The greatest value of a bin must lie below its upper edge.
        past = np.nextafter(high.astype(np.float32), np.float32(np.inf)).astype(np.float64)
        half = np.minimum(below, above)
        first = np.where(low < high, low, np.where(even, edges[:-1], centres - half))
        last = np.where(low < high, past, np.where(even, edges[1:], centres + half))
        found = np.unique(np.concatenate([first, np.minimum(last, edges[1:])]))
        over = len(found) - 1 - size
        if over <= 0 or room == 1:
            return found
        room = max(1, room - over)


def _extents(column: Column, size: int) -> np.ndarray:
    """The least and the greatest value of each bin, float64 (2, n)."""
    if size < 1:
        raise ValueError(f"bins is {size}; it must be at least 1")
    return np.array(list(_cells(column, size))).T


def _binned(low: np.ndarray, high: np.ndarray) -> Binned:
    centres = np.where(low == high, low, 0.5 * (low + high))
    # Between two cells that do not touch, values belong to the nearer one.
    middle = high[:-1] + (low[1:] - high[:-1]) / 2
    inner = np.where(middle > high[:-1], middle, low[1:])
    if len(low) == 1 and low[0] == high[0]:
        half = 1e-3 * max(1.0, abs(low[0]))
        return Binned(np.array([low[0] - half, low[0] + half]), centres)
    # A single value has its bin around it.
    first = low[0] if low[0] < high[0] else 2 * low[0] - inner[0]
    last = high[-1] if low[-1] < high[-1] else 2 * high[-1] - inner[-1]
    return Binned(np.array([first, *inner, last]), centres)


def _cells(column: Column, size: int) -> Iterator[tuple[float, float]]:
    """(least, greatest value) of each bin, ascending; equal where a bin is of one value."""
    alone = _frequent(column.counts, size)
    if alone.any():
        # Runs of the rest, and the frequent values between them.
        cuts = np.flatnonzero(alone)
        runs = [slice(a, b) for a, b in zip([0, *cuts + 1], [*cuts, len(alone)], strict=True)]
        parts = [column.among(run) for run in runs]
        rooms = _rooms([part.size for part in parts], size - len(cuts))
        for number, (part, room) in enumerate(zip(parts, rooms, strict=True)):
            yield from _cells(part, room) if room else ()
            if number < len(cuts):
                yield column.values[cuts[number]], column.values[cuts[number]]
        return
    gaps = _stretches(column, size)
    if len(gaps):
        runs = [slice(a, b) for a, b in zip([0, *gaps], [*gaps, len(alone)], strict=True)]
        parts = [column.among(run) for run in runs]
        rooms = _rooms([part.size for part in parts], size)
        for part, room in zip(parts, rooms, strict=True):
            yield from _cells(part, room) if room else ()
        return
    edges = np.unique(column.quantiles(_probabilities(size)))
    yield from zip(edges[:-1], edges[1:], strict=True)


def _frequent(counts: np.ndarray, size: int) -> np.ndarray:
    """Which values fill one of `size` bins by themselves, and then one of those that are left."""
    alone = np.zeros(len(counts), bool)
    while True:
        rest, left = counts[~alone].sum(), size - alone.sum()
        more = ~alone & (counts * left >= rest)
        if not more.any():
            return alone
        alone |= more


def _stretches(column: Column, size: int) -> np.ndarray:
    """Before which values an empty stretch lies that is wide beside the range of all, with a bin's
    worth of values on both sides, or is wider than all that lies on its fuller side; int (k,)."""
    values, below, total = column.values, np.cumsum(column.counts)[:-1], column.size
    if size < 2 or not len(below):
        return np.zeros(0, int)
    low, high = column.quantiles(np.array([0.01, 0.99]))
    wide = (high - low) * max(_WIDE, _FEW / len(values))
    enough = (below * size >= total) & ((total - below) * size >= total)
    fuller = np.where(2 * below >= total, values[:-1] - values[0], values[-1] - values[1:])
    gaps = np.diff(values)
    return np.flatnonzero((gaps > wide) & enough | (gaps > fuller) & (fuller > 0)) + 1


def _rooms(sizes: list[int], bins: int) -> np.ndarray:
    """How many bins runs of these sizes get: one each, as far as they go, and in proportion."""
    weights = np.array(sizes, np.float64)
    rooms = np.zeros(len(sizes), int)
    rooms[[i for i in np.argsort(-weights, kind="stable")[:bins] if weights[i]]] = 1
    spare = bins - rooms.sum()
    if spare and weights.any():
        exact = spare * weights / weights.sum()
        rooms += np.floor(exact).astype(int)
        rooms[np.argsort(np.floor(exact) - exact, kind="stable")[: bins - rooms.sum()]] += 1
    return rooms


def _probabilities(bins: int) -> np.ndarray:
    """As pandas does: a probability that is not representable is rounded up, so that a sample which
    lies exactly on an edge falls into the bin below it."""
    probabilities = np.linspace(0, 1, bins + 1)
    off = bins * probabilities != np.arange(bins + 1)
    probabilities[off] = np.nextafter(probabilities[off], 1)
    return probabilities
