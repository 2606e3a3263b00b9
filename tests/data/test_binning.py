"""Bins say what the data say: frequent values exactly, the rest by quantiles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.checks.binning import Column, bins_of, middle_edges
from data_pipelines.checks.statistics import (
    Sketch,
    action_bins,
    action_clusters,
    peculiarities,
    statistics_of,
)
from lapa_jax.policy.codecs import Bins, Clusters, from_json

N = 3900
RNG = np.random.default_rng(0)


def of(*values, shares=None):
    return RNG.choice(values, N, p=shares)


def some(share, value, otherwise):
    return np.where(RNG.random(N) < share, value, otherwise)


normal, noise = RNG.normal(size=N), 1e-3 * RNG.normal(size=N)
# name → (a dimension of actions, the largest error of 256 bins)
SHAPES = {
    "gripper": (of(0, 1), 0),
    "three": (of(-1, 0, 1, shares=[0.025, 0.95, 0.025]), 0),
    "keys": (of(-0.05, 0, 0.05), 0),
    "uneven": (of(0, 1, 10, 11, 20), 0),
    "once": (np.arange(N) == 7, 0),
    "integers": (RNG.integers(0, 200, N), 0),
    "many integers": (RNG.integers(0, 1000, N), 5),
    "minus zero": (of(-0.0, 0.0), 0),
    "constant": (np.full(N, -37.5), 0),
    "still and moving": (some(0.7, 0, 0.02 * normal), 0.02),
    "three and others": (some(0.6, of(-1, 0, 1), normal), 1),
    "clipped": (np.clip(normal, -1, 1), 0.02),
    "noisy gripper": ((RNG.random(N) < 0.45) + noise, 1.5e-3),
    "rare and noisy": ((np.arange(N) % 900 == 7) + noise, 1.5e-3),
    "noisy three": (of(-1, 0, 1) + noise, 1.5e-3),
    "spikes": (np.where(np.arange(N) % 900 == 7, -1e30, normal), 1),
    "huge": (of(3e38, -3e38), 0),
    "few": (normal[:5], 0),
    "one": (normal[:1], 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_values_that_fill_a_bin_come_back_as_they_are(name):
    values, largest = SHAPES[name]
    actions = values.astype(np.float32)[:, None]
    exact = np.unique(actions, return_counts=True)
    sketch = Sketch.empty(1)
    for part in np.array_split(actions, min(7, len(actions))):
        sketch = sketch.merge(Sketch.of(part))
    for size in (1, 2, 3, 16, 245, 256):
        found = Bins.fit(actions, size)
        (column,) = sketch.columns()
        sketched = Bins(*zip(bins_of(column, size), strict=True))
        csv = Bins([middle_edges(Column.of(actions[:, 0]), size)])
        frequent = exact[0][exact[1] * size >= len(actions)][:, None]
        for bins in (found, sketched):
            assert bins.sizes[0] <= size and bins.centres.dtype == np.float32
            np.testing.assert_array_equal(bins.decode(bins.encode(frequent)), frequent)
        assert len(np.unique(found.encode(actions))) == found.sizes[0]  # none stands for nothing
        again = from_json(found.to_json())
        np.testing.assert_array_equal(again.centres, found.centres)
        assert Bins.from_csv(csv.to_csv()).sizes.max() <= size
        if size == 256:
            for bins in (found, csv):
                assert np.abs(bins.decode(bins.encode(actions)) - actions).max() <= largest
            np.testing.assert_array_equal(csv.decode(csv.encode(frequent)), frequent)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=40),
    st.integers(1, 12),
    st.lists(st.floats(-2, 2, width=32), max_size=40),
)
def test_bins_of_any_column(few, size, others):
    actions = np.array(few + others, np.float32)[:, None]
    bins = Bins.fit(actions, size)
    assert 1 <= bins.sizes[0] <= size
    values, counts = np.unique(actions, return_counts=True)
    exact = np.ones(len(values), bool) if len(values) <= size else counts * size >= len(actions)
    back = bins.decode(bins.encode(values[:, None]))[:, 0]
    np.testing.assert_array_equal(back[exact], values[exact])
    column = Column.of(actions[:, 0])
    probabilities = np.linspace(0, 1, size + 1)
    expected = np.quantile(actions[:, 0].astype(np.float64), probabilities)
    np.testing.assert_array_equal(column.quantiles(probabilities), expected)


def test_centres_are_kept_where_they_are_not_the_middle():
    gripper, uneven = np.array([0, 1, 1], np.float32), np.array([0, 1, 10], np.float32)
    edges, centres = zip(*action_bins(np.stack([gripper, uneven], axis=1), 256), strict=True)
    np.testing.assert_array_equal(edges[0], [-0.5, 0.5, 1.5])
    np.testing.assert_array_equal(edges[1], [-0.5, 0.5, 5.5, 14.5])
    assert "centres" not in Bins(edges[:1], centres[:1]).settings()
    bins = from_json(Bins(edges, centres).to_json())
    assert bins.decode(np.array([1, 2])).tolist() == [1.0, 10.0]
    with pytest.raises(ValueError, match="csv of bin edges cannot say"):
        bins.to_csv()
    with pytest.raises(ValueError, match="centres of action dimension 1 must be one in each bin"):
        Bins(edges, [centres[0], centres[1] + 5])
    # What was saved before there were centres.
    old = from_json(b'{"edges": [[-1.0, 0.0, 0.5, 2.0]]}')
    assert old.centres.tolist() == [[-0.5, 0.25, 1.25]] and "centres" not in old.settings()


def test_clusters_keep_the_values_that_most_of_their_actions_have():
    gripper = of(0, 1, shares=[0.8, 0.2])
    actions = np.stack([gripper, RNG.normal(size=N)], axis=1).astype(np.float32)
    centres, _ = action_clusters(actions, 4)
    assert set(np.unique(centres[:, 0])) <= {0.0, 1.0}
    few = np.array([[0, 1], [1, 0], [1, 1]], np.float32)
    np.testing.assert_array_equal(Clusters.fit(few[[0, 1, 2, 2, 1]], 4).centres, few)
    told = Clusters.fit(actions, 4).peculiarities(actions)
    assert "dimension 0 is discrete: 2 values, 0 in" in told[0] and "4 clusters" in told[-1]


def test_dimensions_are_named_by_what_tokens_may_lose():
    names = ["constant", "three", "clipped", "spikes"]
    actions = np.stack([SHAPES[name][0] for name in names], axis=1).astype(np.float32)
    found = statistics_of(actions.T)
    constant, discrete, heavy, far, error = peculiarities(found, [0, 0, 0.25, 0.01], "9 bins")
    assert constant == "action dimension 0 is constant: -37.5"
    assert discrete.startswith("action dimension 1 is discrete: 3 values, 0 in 9")
    assert heavy.startswith("action dimension 2 is heavy at one value: ")
    zeros = np.append(np.zeros(150), RNG.normal(size=50))  # the others are not few
    (heavy, _) = peculiarities(statistics_of([zeros]), [0], "256 bins")
    assert heavy.startswith("action dimension 0 is heavy at one value: 0 in 75.0%")
    assert far.startswith("action dimension 3 has values far from the others: -1e+30, 98% lie ")
    assert error.startswith("the largest error of an action said by 9 bins is 0.25, in dimension 2")
