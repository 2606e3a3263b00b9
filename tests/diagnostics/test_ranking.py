"""Measures of a ranking: those of SciPy, one worked by hand, and their intervals over models."""

import numpy as np
import pytest
from scipy import stats

from lapa_jax.diagnostics import ranking

REAL = np.array([0.1, 0.12, 0.3, 0.31, 0.08, 0.25, 0.25, 0.4])
SAID = np.array([0.3, 0.25, 0.5, 0.4, 0.3, 0.35, 0.2, 0.6])


def once(measure, said, real):
    return measure(said, real, np.ones((1, len(real))))[0]


def test_correlations_are_those_of_scipy_with_ties_too():
    for ours, theirs in (
        (ranking.spearman, stats.spearmanr),
        (ranking.kendall, stats.kendalltau),
        (ranking.pearson, stats.pearsonr),
    ):
        assert once(ours, SAID, REAL) == pytest.approx(theirs(SAID, REAL)[0])
        assert np.isnan(once(ours, np.ones(8), REAL))


def test_a_model_that_is_drawn_twice_counts_twice():
    weights = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=20)
    for ours, theirs in (
        (ranking.spearman, stats.spearmanr),
        (ranking.kendall, stats.kendalltau),
        (ranking.pearson, stats.pearsonr),
        (ranking.mean_maximum_rank_violation, None),
        (ranking.mean_absolute_error, None),
    ):
        found = ours(SAID, REAL, weights.astype(float))
        for value, times in zip(found, weights, strict=True):
            rows = np.repeat(np.arange(8), times)
            pair = SAID[rows], REAL[rows]
            assert value == pytest.approx(theirs(*pair)[0] if theirs else once(ours, *pair))


def test_mean_maximum_rank_violation_by_hand():
    real, said = np.array([0.1, 0.2, 0.6]), np.array([0.5, 0.3, 0.4])
    # The first is put above both others: 0.5 off the third, and these two 0.1 and 0.5 off it.
    found = once(ranking.mean_maximum_rank_violation, said, real)
    assert found == pytest.approx((0.5 + 0.1 + 0.5) / 3)
    assert once(ranking.mean_maximum_rank_violation, real**3, real) == 0.0
    # Said to be alike, as they are not: a violation of the worse one alone.
    tied = once(ranking.mean_maximum_rank_violation, np.zeros(2), np.array([0.0, 1.0]))
    assert tied == pytest.approx(0.5)


def test_a_perfect_ranking_has_no_spread_and_a_good_one_some():
    for measure, best in ((ranking.spearman, 1.0), (ranking.mean_maximum_rank_violation, 0.0)):
        found = ranking.over_models(measure, REAL * 2, REAL)
        assert (found.estimate, found.low, found.high) == pytest.approx((best,) * 3)
    found = ranking.over_models(ranking.spearman, SAID, REAL)
    assert found.low < found.estimate < found.high
    assert found == ranking.over_models(ranking.spearman, SAID, REAL)  # seeded


def test_groups_are_resampled_whole():
    """Copies of a model add nothing where they are one group, and feign certainty where not."""
    groups = np.repeat(np.arange(8), 10)
    said, real = SAID[groups], REAL[groups]
    alone = ranking.over_models(ranking.pearson, SAID, REAL)
    whole = ranking.over_models(ranking.pearson, said, real, groups.tolist())
    feigned = ranking.over_models(ranking.pearson, said, real)
    assert (whole.low, whole.high) == pytest.approx((alone.low, alone.high))
    assert feigned.high - feigned.low < 0.6 * (whole.high - whole.low)


def test_differences_are_paired():
    same = ranking.over_models(ranking.spearman, [SAID, 2 * SAID], REAL)
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    better = ranking.over_models(ranking.spearman, [REAL, SAID], REAL)
    assert better.estimate == pytest.approx(1 - once(ranking.spearman, SAID, REAL))
    assert better.low >= 0


def test_what_cannot_be_ranked_has_no_number():
    assert ranking.over_models(ranking.spearman, SAID[:3], REAL[:3]) is None
    assert ranking.over_models(ranking.spearman, np.ones(8), REAL) is None
    lone = np.array([1.0, 0, 0, 0, 0, 0, 0, 0])  # often not drawn, and then nothing differs
    assert ranking.over_models(ranking.spearman, lone, REAL).low == -np.inf
    with pytest.raises(ValueError, match=r"must be \(P,\)"):
        ranking.over_models(ranking.spearman, SAID[:5], REAL)
    with pytest.raises(ValueError, match="not finite"):
        ranking.over_models(ranking.spearman, np.where(SAID > 0.5, np.nan, SAID), REAL)
