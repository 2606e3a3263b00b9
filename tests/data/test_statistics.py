"""Action statistics and bins against known values."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import LENGTHS, write_corpus

from data_pipelines.checks.binning import bins_of
from data_pipelines.checks.statistics import (
    Sketch,
    action_bins,
    action_clusters,
    action_statistics,
    combine_fn,
    sketch_actions,
    valid_action_rows,
)
from data_pipelines.index import load_index


def test_statistics_leave_out_the_last_step_of_each_episode(tmp_path):
    episodes = write_corpus(tmp_path, shards=3)
    index = load_index(tmp_path)
    valid = np.concatenate([episode.actions[:-1] for episode in episodes]).astype(np.float64)
    np.testing.assert_array_equal(index.actions[valid_action_rows(index)], valid)
    found = action_statistics(index)
    assert found["num_actions"] == sum(LENGTHS) - len(LENGTHS) == len(valid)
    for name, expected in {
        "mean": valid.mean(0),
        "std": valid.std(0),
        "min": valid.min(0),
        "max": valid.max(0),
        "q01": np.quantile(valid, 0.01, axis=0),
        "q99": np.quantile(valid, 0.99, axis=0),
    }.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, err_msg=name)
    assert found["constant"] == [False] * 3


def test_corpora_without_actions_are_named(tmp_path):
    write_corpus(tmp_path, actions=0)
    with pytest.raises(ValueError, match="no actions under steps/action.*action_key"):
        action_statistics(load_index(tmp_path))


@pytest.mark.parametrize(
    "values, bins, edges",
    [
        # pandas.qcut(values, bins, duplicates="drop", retbins=True)[1]
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 4, [0, 2.25, 4.5, 6.75, 9]),
        ([1, 2, 3, 4, 5], 2, [1, 3, 5]),
        ([3, 1, 2], 1, [1, 3]),
    ],
)
def test_edges_are_those_of_qcut_where_no_value_fills_a_bin(values, bins, edges):
    ((found, centres),) = action_bins(np.array(values, np.float32)[:, None], bins)
    np.testing.assert_allclose(found, edges, rtol=1e-12)
    np.testing.assert_array_equal(centres, 0.5 * (found[1:] + found[:-1]))


def test_bins_of_distinct_values_are_equally_full():
    values = np.random.default_rng(0).normal(size=(2560, 2)).astype(np.float32)
    for dimension, (edges, _) in enumerate(action_bins(values, 256)):
        assert len(edges) == 257 and np.all(np.diff(edges) > 0)
        bins = np.searchsorted(edges, values[:, dimension], side="left") - 1
        np.testing.assert_array_equal(np.bincount(np.maximum(bins, 0), minlength=256), 10)


@pytest.mark.parametrize("value", [0.0, 1.0, -37.5, 1e-4])
def test_a_constant_dimension_gets_one_bin_around_it(value):
    ((edges, centres),) = action_bins(np.full((5, 1), value, np.float32), 16)
    assert len(edges) == 2 and edges[0] < value < edges[1] and centres[0] == np.float32(value)
    assert edges.mean() == pytest.approx(np.float32(value), rel=1e-12)


def test_wrong_actions_are_named():
    with pytest.raises(ValueError, match="action 1, dimension 0 is nan"):
        action_bins(np.array([[0.0], [np.nan]]), 4)
    with pytest.raises(ValueError, match="bins is 0"):
        action_bins(np.zeros((3, 1)), 0)


@pytest.mark.real_data
def test_real_actions_with_constant_dimensions(tmp_path, real_data):
    from data_pipelines.index import build_index

    bridge = real_data / "bridge_dataset/1.0.0"
    build_index(bridge, sidecar_dir=tmp_path, image_key="image_0", progress=False)
    index = load_index(bridge, sidecar_dir=tmp_path, image_key="image_0")
    found = action_statistics(index)
    edges = [edges for edges, _ in action_bins(index.actions[valid_action_rows(index)], 256)]
    for dimension, constant in enumerate(found["constant"]):
        assert (len(edges[dimension]) == 2) >= constant
        assert edges[dimension][0] <= found["min"][dimension]
        assert edges[dimension][-1] >= found["max"][dimension]


def test_clusters_find_the_groups_of_any_scale():
    rng = np.random.default_rng(0)
    true = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 500.0], [1.0, 500.0]])
    actions = np.repeat(true, 30, 0) + rng.normal(size=(120, 2)) * [0.01, 5.0]
    centres, scale = action_clusters(actions, 4)
    order = np.lexsort((centres[:, 0], centres[:, 1] > 250))
    np.testing.assert_allclose(centres[order] / scale, true / scale, atol=0.1)
    again, _ = action_clusters(actions, 4)
    np.testing.assert_array_equal(again, centres)
    with pytest.raises(ValueError, match="9 clusters .* shape .3, 2.*targets.action.vocab"):
        action_clusters(np.zeros((3, 2)), 9)
    with pytest.raises(ValueError, match="action 1, dimension 0 is nan"):
        action_clusters(np.array([[0.0, 1.0], [np.nan, 1.0]]), 1)
    actions = actions.astype(np.float32)[:, [0, 0, 0]]
    actions[:, 1], actions[7, 2] = 0.1, 1e30  # whose mean is not 0.1; whose square is infinite
    centres, scale = action_clusters(actions, 4)
    assert np.isfinite(centres).all() and np.isfinite(scale).all() and scale[1] == 1.0
    assert (centres[:, 1] == np.float32(0.1)).all() and centres[:, 2].max() == np.float32(1e30)


def heavy_tailed(count, seed=0):
    """Actions with long tails, at a large offset, of few values, and constant: (count, 5)."""
    rng = np.random.default_rng(seed)
    columns = [
        rng.standard_t(2, count),
        rng.lognormal(-6, 3, count),
        1e4 + rng.normal(size=count),
        rng.integers(0, 2, count),
        np.full(count, 0.25),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def assert_same(one, two):
    assert one.count == two.count
    for name in ("counts", "low", "high"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), name)
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.squares, two.squares, rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=3, max_size=3), st.permutations(range(3)))
def test_parts_merge_in_any_order(sizes, order):
    actions = heavy_tailed(sum(sizes) or 1)[: sum(sizes)]
    a, b, c = (Sketch.of(part) for part in np.split(actions, np.cumsum(sizes)[:2]))
    whole = Sketch.of(actions)
    assert_same(a.merge(b).merge(c), whole)
    assert_same(a.merge(b.merge(c)), whole)
    parts = [a, b, c]
    assert_same(parts[order[0]].merge(parts[order[1]]).merge(parts[order[2]]), whole)


def test_a_sketch_is_close_to_exact_statistics():
    actions = heavy_tailed(100_000)
    sketch = Sketch.empty(5)
    for part in np.array_split(actions, 7):
        sketch = sketch.merge(Sketch.of(part))
    found, exact = sketch.statistics(), actions.astype(np.float64)
    np.testing.assert_allclose(found["mean"], exact.mean(0), rtol=1e-8)
    np.testing.assert_allclose(found["std"], exact.std(0), rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(found["min"], exact.min(0))
    np.testing.assert_array_equal(found["max"], exact.max(0))
    q01, q99 = np.quantile(exact, [0.01, 0.99], axis=0)
    np.testing.assert_allclose(found["q01"], q01, rtol=5e-3)
    np.testing.assert_allclose(found["q99"], q99, rtol=5e-3)
    assert found["constant"] == [False, False, False, False, True]
    edges = [bins_of(column, 64).edges for column in sketch.columns()]
    for dimension, (expected, _) in enumerate(action_bins(actions, 64)):
        assert len(edges[dimension]) == len(expected)
        # Near zero the distance between neighbours is what counts.
        np.testing.assert_allclose(edges[dimension], expected, rtol=5e-3, atol=2e-4)
    np.testing.assert_array_equal(edges[3], [-0.5, 0.5, 1.5])
    np.testing.assert_allclose(sketch.statistics()["q99"][4], 0.25)


def test_the_histogram_of_a_sketch_is_that_of_the_values():
    actions = heavy_tailed(20_000)
    sketch = Sketch.of(actions)
    for dimension in range(2):
        found = sketch.histogram(dimension, 20)
        edges = np.array(found["edges"])
        expected, _ = np.histogram(np.clip(actions[:, dimension], edges[0], edges[-1]), edges)
        assert sum(found["counts"]) == 20_000
        assert np.abs(np.array(found["counts"]) - expected).sum() < 0.1 * 20_000
    assert sketch.histogram(3, 2)["counts"] == [
        (actions[:, 3] == 0).sum(),
        (actions[:, 3] == 1).sum(),
    ]


def test_few_values_and_values_out_of_reach_are_exact():
    values = np.array([-3e9, -1.0, -1.0, 0.0, 1e-9, 2.0, 7e30])[:, None].astype(np.float32)
    sketch = Sketch.of(values)
    probabilities = np.linspace(0, 1, 13)
    expected = np.quantile(values[:, 0].astype(np.float64), probabilities)
    np.testing.assert_allclose(sketch.quantiles(probabilities)[0], expected, atol=1e-8)
    with pytest.raises(ValueError, match="action 11, dimension 0 is nan"):
        Sketch.of(np.array([[0.0], [np.nan]]), first=10)
    with pytest.raises(ValueError, match="there is no action"):
        Sketch.empty(2).statistics()


def test_the_sketch_of_an_index_is_that_of_its_valid_actions(tmp_path):
    write_corpus(tmp_path, shards=3)
    index = load_index(tmp_path)
    assert_same(sketch_actions(index), Sketch.of(index.actions[valid_action_rows(index)]))


def test_beam_combines_sketches():
    if importlib.util.find_spec("apache_beam") is None:
        pytest.skip("pip install apache-beam, in an environment of its own")
    import apache_beam as beam
    from apache_beam.testing.util import assert_that

    actions = heavy_tailed(1000)

    def check(found):
        (sketch,) = found
        assert_same(sketch, Sketch.of(actions))

    with beam.Pipeline() as pipeline:
        parts = pipeline | beam.Create(np.array_split(actions, 9))
        assert_that(parts | beam.CombineGlobally(combine_fn(5)), check)
