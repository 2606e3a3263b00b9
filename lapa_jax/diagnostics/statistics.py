"""Intervals for success rates and for means over episodes.

Wilson (1927) for one proportion; Newcombe (1998) hybrid-score intervals, method 10, for the
difference of two proportions, independent or paired; a seeded percentile bootstrap that resamples
episodes, because frames of one episode are not independent; for studies of several seeds and tasks
one that resamples all levels, with Holm's correction and the summaries of Agarwal et al. (2021).
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A point estimate with a two-sided interval."""

    estimate: float
    low: float
    high: float
    confidence: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def _quantile(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    return float(ndtri(0.5 + confidence / 2))


def _check_count(successes: int, trials: int) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f"need 0 <= successes <= trials and trials >= 1, got {successes} of {trials}"
        )


def wilson_interval(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a proportion; stays inside [0, 1] and is sound for small counts."""
    _check_count(successes, trials)
    quantile = _quantile(confidence)
    rate = successes / trials
    square = quantile**2 / trials
    centre = (rate + square / 2) / (1 + square)
    margin = math.sqrt(square * rate * (1 - rate) + square**2 / 4) / (1 + square)
    # The ends are exact at 0 and 1; rounding would leave them an ulp away.
    low = 0.0 if successes == 0 else centre - margin
    high = 1.0 if successes == trials else centre + margin
    return Interval(rate, low, high, confidence)


def difference_of_proportions(
    successes_a: int,
    trials_a: int,
    successes_b: int,
    trials_b: int,
    *,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Rate a - rate b of two independent sets of trials."""
    a = wilson_interval(successes_a, trials_a, confidence=confidence)
    b = wilson_interval(successes_b, trials_b, confidence=confidence)
    return _newcombe(a, b, 0.0, confidence)


def paired_difference_of_proportions(
    outcomes_a: np.ndarray, outcomes_b: np.ndarray, *, confidence: float = CONFIDENCE
) -> Interval:
    """Rate a - rate b where trial i of both starts from the same initial state."""
    a, b = np.asarray(outcomes_a), np.asarray(outcomes_b)
    if a.dtype != bool or b.dtype != bool or a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            "paired outcomes must be two bool arrays of one length, got "
            f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
    trials = len(a)
    both, only_a = int((a & b).sum()), int((a & ~b).sum())
    only_b, neither = int((~a & b).sum()), int((~a & ~b).sum())
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    if product > 0:
        product = max(product - trials / 2, 0.0)  # Newcombe's continuity correction
    correlation = product / math.sqrt(margins) if margins else 0.0
    return _newcombe(
        wilson_interval(both + only_a, trials, confidence=confidence),
        wilson_interval(both + only_b, trials, confidence=confidence),
        correlation,
        confidence,
    )


def _newcombe(a: Interval, b: Interval, correlation: float, confidence: float) -> Interval:
    def margin(of_a: float, of_b: float) -> float:
        return math.sqrt(max(0.0, of_a**2 - 2 * correlation * of_a * of_b + of_b**2))

    estimate = a.estimate - b.estimate
    low = estimate - margin(a.estimate - a.low, b.high - b.estimate)
    high = estimate + margin(a.high - a.estimate, b.estimate - b.low)
    return Interval(estimate, low, high, confidence)


def bootstrap_ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    episode: np.ndarray,
    *,
    seed: int,
    resamples: int = 2000,
) -> Interval:
    """sum(numerator) / sum(denominator) with episodes resampled, 95 %; ones below give a mean."""
    numerator = np.asarray(numerator, np.float64)
    denominator = np.asarray(denominator, np.float64)
    if numerator.ndim != 1 or numerator.shape != denominator.shape:
        raise ValueError(
            "numerator and denominator must be two arrays of one length, got "
            f"{numerator.shape} and {denominator.shape}"
        )
    episode = np.asarray(episode)
    if episode.shape != numerator.shape or not len(numerator):
        raise ValueError(
            f"episode must name the episode of each of {len(numerator)} rows (at least 1), "
            f"got shape {episode.shape}"
        )
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    names, index = np.unique(episode, return_inverse=True)
    count = len(names)
    above = np.bincount(index, numerator, count)
    below = np.bincount(index, denominator, count)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    divisors = draws @ below
    if below.sum() == 0 or (divisors == 0).any():
        raise ValueError(
            f"the denominator sums to zero over some resamples of {count} episodes: "
            "drop episodes that carry none of it, or use more episodes"
        )
    ends = np.quantile(draws @ above / divisors, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Interval(float(above.sum() / below.sum()), *ends.tolist(), CONFIDENCE)


def relative(
    above: np.ndarray, below: np.ndarray, episode: np.ndarray, *, seed: int = 0
) -> tuple[float | None, list[float] | None]:
    """(sum(above) / sum(below), its 95 % interval with episodes resampled) of values (N,), below
    not negative. The ratio is None where there is nothing below; so is the interval where a
    resample might have nothing."""
    if not np.any(below):
        return None, None
    if len(np.unique(episode[below > 0])) < len(np.unique(episode)):
        return float(np.sum(above) / np.sum(below)), None
    found = bootstrap_ratio(above, below, episode, seed=seed)
    return found.estimate, [found.low, found.high]


def rank_correlation(
    x: np.ndarray, y: np.ndarray, episode: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> tuple[float | None, list[float] | None]:
    """(Spearman's ρ of values (N,), its 95 % interval with episodes resampled); None where one of
    them never changes. Ranks are those in the whole sample."""
    x, y = (rankdata(values) for values in (x, y))
    x, y = x - x.mean(), y - y.mean()
    names, index = np.unique(episode, return_inverse=True)
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(index, column, len(names)) for column in columns], 1)

    def correlation(sums: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        spread = np.sqrt((xx - x * x / n).clip(0) * (yy - y * y / n).clip(0))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(spread > 1e-9 * n**3, (xy - x * y / n) / spread, np.nan)

    found = float(correlation(sums.sum(0)))
    if np.isnan(found):
        return None, None
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )
    ends = correlation(draws @ sums)
    if np.isnan(ends).any():
        return found, None
    return found, np.quantile(ends, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]).tolist()


def means(
    values: Mapping[str, np.ndarray], episode: np.ndarray, *, seed: int
) -> dict[str, float | list[float]]:
    """{NAME: mean, NAME_interval: [low, high]} of values (N,), with episodes resampled."""
    found: dict[str, float | list[float]] = {}
    for name, rows in values.items():
        mean = bootstrap_ratio(rows, np.ones(len(rows)), episode, seed=seed)
        found |= {name: mean.estimate, f"{name}_interval": [mean.low, mean.high]}
    return found


@dataclass(frozen=True)
class Contrast:
    """A difference with its interval, and how often resamples lie on the other side of 0, twice."""

    difference: Interval
    p: float


def hierarchical(
    values_STN: np.ndarray, *, seed: int, resamples: int = 4000, confidence: float = CONFIDENCE
) -> Contrast:
    """The mean of float (seeds, tasks, start states), and a percentile interval of it by resampling
    seeds, tasks, and in each task drawn its start states, which all seeds share. Of two arms that
    start alike the values are differences, so that the resamples are paired. p is two-sided, at
    least 1 / (resamples + 1)."""
    values = np.asarray(values_STN, np.float64)
    if values.ndim != 3 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"values of shape {values.shape} must be finite, of (seeds, tasks, start states)"
        )
    of_seed_RS, of_start_RTN = _resampled(values.shape, seed, resamples)
    of_start = of_start_RTN.reshape(resamples, -1)
    by_seed = of_start @ values.reshape(len(values), -1).T
    means = (by_seed * of_seed_RS).sum(1) / values.size
    ends = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    found = Interval(float(values.mean()), *ends.tolist(), confidence)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Contrast(found, min(1.0, 2 * (int(beyond) + 1) / (resamples + 1)))


@functools.lru_cache(maxsize=2)  # the arms of a study are of one shape
def _resampled(
    shape: tuple[int, int, int], seed: int, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed (resamples, S) and each start state of a task (resamples, T, N) is in a
    resample; of a task that is drawn twice the start states are drawn twice."""
    S, T, N = shape
    rng = np.random.default_rng(seed)
    of_seed = rng.multinomial(S, np.full(S, 1 / S), size=resamples)
    of_task = rng.multinomial(T, np.full(T, 1 / T), size=resamples)
    return of_seed, rng.multinomial(N * of_task, np.full(N, 1 / N))


def mean_over_seeds(values: np.ndarray, *, confidence: float = CONFIDENCE) -> Interval:
    """The mean of one number a seed (S,), with the interval of Student's t; without one seed more
    than one the interval is everything."""
    from scipy.stats import t  # half a second

    values = np.asarray(values, np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, confidence)
    margin = float(t.ppf(0.5 + confidence / 2, count - 1) * values.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - margin, mean + margin, confidence)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p of several primary contrasts, each raised so that all may be read together (Holm 1979)."""
    found, most = {}, 0.0
    for i, name in enumerate(sorted(p, key=p.__getitem__)):
        most = max(most, min(1.0, (len(p) - i) * p[name]))
        found[name] = most
    return {name: found[name] for name in p}


def interquartile_mean(scores: np.ndarray) -> float | None:
    """The mean of the middle half of scores of runs and tasks (Agarwal et al. 2021), as rliable
    takes it: a quarter of them, rounded down, is left out on each side. None of fewer than four,
    of which none would be, so that it is their mean."""
    from scipy.stats import trim_mean  # half a second

    return float(trim_mean(np.ravel(scores), 0.25)) if np.size(scores) >= 4 else None


def probability_of_improvement(scores_a_ST: np.ndarray, scores_b_ST: np.ndarray) -> float:
    """How often a run of a is above one of b, a tie as half, mean over tasks (same source)."""
    from scipy.stats import mannwhitneyu

    found = []
    for a, b in zip(np.transpose(scores_a_ST), np.transpose(scores_b_ST), strict=True):
        found.append(mannwhitneyu(a, b).statistic / (len(a) * len(b)))
    return float(np.mean(found))
