"""How well numbers that are cheap rank models whose worth is dear: said against real, over models.

Spearman's ρ, Kendall's τ-b, Pearson's r, the mean absolute error, and the mean maximum rank
violation of SIMPLER (arXiv 2405.05941). Intervals are percentiles over resampled models, or
resampled groups of them: models that differ in a seed alone are alike. Each measure is computed
anew in each resample, and all that is said of the same models is resampled together, so that
differences are paired.

Shape suffixes: P models, R resamples; weights_RP says how often a model is in a resample.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lapa_jax.diagnostics.statistics import CONFIDENCE, Interval

LEAST = 4  # models, for a rank to say anything
# (said (P,), real (P,), weights (R, P)) → (R,); NaN where it is not defined
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def spearman(said: np.ndarray, real: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    """ρ, of equal values by their mean rank; NaN where one of them never changes."""
    return _correlation(*(_ranks(x, weights_RP) for x in (said, real)), weights_RP)


def pearson(said: np.ndarray, real: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    """r; NaN where one of them never changes."""
    return _correlation(said[None], real[None], weights_RP)


def kendall(said: np.ndarray, real: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    """τ-b, which takes ties out of its denominator; NaN where one of them never changes."""
    a, b = (np.sign(x[:, None] - x) for x in (said, real))

    def pairs(x: np.ndarray) -> np.ndarray:
        return ((weights_RP @ x) * weights_RP).sum(1)

    return _over(pairs(a * b), np.sqrt(pairs(a * a) * pairs(b * b)))


def mean_maximum_rank_violation(
    said: np.ndarray, real: np.ndarray, weights_RP: np.ndarray
) -> np.ndarray:
    """Of each model the largest difference of `real` to one that it is ranked wrongly against, mean
    over models (SIMPLER, equation 2); 0 at best, in the units of `real`."""
    wrong = (said[:, None] < said) != (real[:, None] < real)
    apart = np.abs(real[:, None] - real) * wrong
    most_RP = (apart * (weights_RP > 0)[:, None]).max(2)
    return (most_RP * weights_RP).sum(1) / weights_RP.sum(1)


def mean_absolute_error(said: np.ndarray, real: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    return weights_RP @ np.abs(said - real) / weights_RP.sum(1)


MEASURES: Mapping[str, Measure] = {
    "spearman": spearman,
    "kendall": kendall,
    "pearson": pearson,
    "mmrv": mean_maximum_rank_violation,
}


def over_models(
    measure: Measure,
    said: np.ndarray | Sequence[np.ndarray],
    real: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """A measure of said (P,) and real (P,) with its 95 % interval by resampling models, or with
    `groups` (P,) whole groups; of two arrays said the difference of their measures, the first less
    the second. None of fewer than LEAST models, or where nothing is to be ranked. Resamples in
    which the measure is not defined are left out; where they are more than 5 %, the interval is
    everything. Raises ValueError for arrays of another length, and what is not finite."""
    real = np.asarray(real, np.float64)
    pair = [np.asarray(x, np.float64) for x in (said if isinstance(said, list | tuple) else [said])]
    if len(pair) not in (1, 2) or real.ndim != 1 or any(x.shape != real.shape for x in pair):
        raise ValueError(f"said {[x.shape for x in pair]} and real {real.shape} must be (P,)")
    if not all(np.isfinite(x).all() for x in (*pair, real)):
        raise ValueError("said or real holds values that are not finite: leave those models out")
    if len(real) < LEAST:
        return None

    def of(weights_RP: np.ndarray) -> np.ndarray:
        found = [measure(x, real, weights_RP) for x in pair]
        return found[0] if len(found) == 1 else found[0] - found[1]

    value = float(of(np.ones((1, len(real))))[0])
    if np.isnan(value):
        return None
    names, group = np.unique(
        np.arange(len(real)) if groups is None else groups, return_inverse=True
    )
    even = np.full(len(names), 1 / len(names))
    times = np.random.default_rng(seed).multinomial(len(names), even, size=resamples)
    drawn = of(times[:, group.reshape(-1)].astype(np.float64))
    known = drawn[~np.isnan(drawn)]
    if len(known) < 0.95 * resamples:
        return Interval(value, -np.inf, np.inf, CONFIDENCE)
    ends = np.quantile(known, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Interval(value, *ends.tolist(), CONFIDENCE)


def _ranks(x: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    """Of each model in each resample, (R, P); of equal ones the mean."""
    below = weights_RP @ (x[:, None] < x)
    return below + (weights_RP @ (x[:, None] == x) + 1) / 2


def _correlation(a: np.ndarray, b: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    """Of (R, P), or (1, P) the same in all resamples."""
    share = weights_RP / weights_RP.sum(1, keepdims=True)
    a, b = (x - (x * share).sum(1, keepdims=True) for x in (a, b))
    return _over((a * b * share).sum(1), np.sqrt((a**2 * share).sum(1) * (b**2 * share).sum(1)))


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where there is nothing below but rounding."""
    known = below > 1e-12
    return np.where(known, above / np.where(known, below, 1.0), np.nan)
