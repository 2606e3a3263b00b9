import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from lapa_jax.diagnostics.statistics import (
    bootstrap_ratio,
    difference_of_proportions,
    hierarchical,
    holm,
    interquartile_mean,
    paired_difference_of_proportions,
    probability_of_improvement,
    wilson_interval,
)


def paired(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_wilson_agrees_with_scipy(counts, confidence):
    ours = wilson_interval(*counts, confidence=confidence)
    theirs = binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0.0 <= ours.low <= ours.estimate <= ours.high <= 1.0


def test_wilson_published_values():
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29
    for counts, low, high in (
        ((81, 263), 0.2553, 0.3662),
        ((15, 148), 0.0624, 0.1605),
        ((0, 20), 0.0, 0.1611),
        ((1, 29), 0.0061, 0.1718),
    ):
        interval = wilson_interval(*counts)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(0, 20).low == 0.0 and wilson_interval(20, 20).high == 1.0


def test_independent_difference_published_values():
    # Newcombe 1998, table II, method 10
    for counts, low, high in (
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((10, 10, 0, 10), 0.6075, 1.0),
        ((5, 56, 0, 29), -0.0381, 0.1926),
    ):
        interval = difference_of_proportions(*counts)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_paired_difference_published_values():
    # Newcombe 1998 (paired), method 10
    for counts, low, high in (((36, 12, 2, 0), 0.0569, 0.3404), ((36, 14, 0, 0), 0.1528, 0.4167)):
        interval = paired_difference_of_proportions(*paired(*counts))
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(0, 30)] * 4).filter(lambda t: sum(t) > 0))
def test_paired_difference_is_antisymmetric_and_bounded(table):
    a, b = paired(*table)
    there, back = paired_difference_of_proportions(a, b), paired_difference_of_proportions(b, a)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert -1 - 1e-12 <= there.low <= there.estimate <= there.high <= 1 + 1e-12


def test_pairing_narrows_the_interval_of_correlated_outcomes():
    a, b = paired(40, 10, 2, 48)
    of_pairs = paired_difference_of_proportions(a, b)
    apart = difference_of_proportions(int(a.sum()), len(a), int(b.sum()), len(b))
    assert of_pairs.estimate == apart.estimate
    assert of_pairs.low > apart.low and of_pairs.high < apart.high


def test_bad_counts_are_errors():
    for counts in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes"):
            wilson_interval(*counts)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=95)
    with pytest.raises(ValueError, match="bool"):
        paired_difference_of_proportions(np.array([0, 1]), np.array([1, 1]))


def test_bootstrap_is_seeded_and_independent_of_row_order():
    rng = np.random.default_rng(0)
    values, episode = rng.random(60), np.repeat(np.arange(12), 5)
    ones = np.ones(60)
    first = bootstrap_ratio(values, ones, episode, seed=3)
    assert first == bootstrap_ratio(values, ones, episode, seed=3)
    assert first != bootstrap_ratio(values, ones, episode, seed=4)
    mixed = rng.permutation(60)
    again = bootstrap_ratio(values[mixed], ones, episode[mixed], seed=3)
    assert (again.low, again.high) == pytest.approx((first.low, first.high))
    assert first.estimate == pytest.approx(values.mean())


def test_bootstrap_of_a_mean_is_near_the_normal_interval():
    values = np.random.default_rng(1).normal(size=400)
    interval = bootstrap_ratio(values, np.ones(400), np.arange(400), seed=0)
    error = values.std() / 20
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_frames_of_one_episode_do_not_count_as_independent():
    # Each value repeated 25 times within its episode: the interval must not shrink.
    values = np.random.default_rng(1).normal(size=40)
    once = bootstrap_ratio(values, np.ones(40), np.arange(40), seed=0)
    many = bootstrap_ratio(
        np.repeat(values, 25), np.ones(1000), np.repeat(np.arange(40), 25), seed=0
    )
    assert (many.low, many.high) == pytest.approx((once.low, once.high))


def test_zero_denominator_is_an_error():
    with pytest.raises(ValueError, match="denominator"):
        bootstrap_ratio(np.ones(4), np.array([1.0, 0, 0, 0]), np.arange(4), seed=0)


def test_all_levels_are_resampled():
    """Of normal effects of seeds, tasks and start states the interval has the width that their
    variances say; without an effect of seeds it is narrower."""
    rng = np.random.default_rng(0)
    S, T, N = 20, 12, 50
    of_seed, of_task = rng.normal(size=(S, 1, 1)), 0.5 * rng.normal(size=(1, T, 1))
    values = of_seed + of_task + rng.normal(size=(1, T, N))
    found = hierarchical(values, seed=0).difference
    wanted = 1.96 * np.sqrt(of_seed.var() / S + of_task.var() / T + 1 / (T * N))
    assert (found.high - found.low) / 2 == pytest.approx(wanted, rel=0.12)
    alone = hierarchical(of_task + values - values.mean(axis=0), seed=0).difference
    assert alone.high - alone.low < found.high - found.low


def test_p_is_small_where_all_resamples_agree_and_one_without_an_effect():
    values = np.random.default_rng(1).normal(size=(5, 4, 30))
    assert hierarchical(values + 3.0, seed=0).p == pytest.approx(2 / 4001)
    assert hierarchical(values - values.mean((0, 1, 2)), seed=0).p > 0.5
    with pytest.raises(ValueError, match="must be finite"):
        hierarchical(np.full((2, 2, 2), np.nan), seed=0)


def test_holm_and_the_summaries_of_runs():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx(
        {"a": 0.06, "b": 0.03, "c": 0.06}
    )
    assert interquartile_mean(np.array([[0.0, 1.0], [2.0, 99.0]])) == 1.5
    assert interquartile_mean(np.array([0.0, 1.0, 99.0])) is None  # nothing would be left out
    above, tied = np.array([[1.0], [2.0]]), np.array([[1.0], [0.0]])
    assert probability_of_improvement(above, tied) == 0.875
