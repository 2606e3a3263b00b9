"""What the rows of arms say: rates, what one arm has over another, and how many labels it saves.

A row is {"arm", "seed", "family", "outcomes", ...}: outcomes, of start states that all arms and
seeds share, of one family of tasks; often with "labels" (the label budget) and "setting". Seeds and
families are those that have everything which is compared. Intervals resample seeds, families and
start states together (diagnostics/statistics.py).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lapa_jax.diagnostics.statistics import (
    CONFIDENCE,
    Contrast,
    Interval,
    hierarchical,
    holm,
    interquartile_mean,
    probability_of_improvement,
)
from lapa_jax.studies.record import percent

Rows = Sequence[Mapping[str, Any]]
Which = Mapping[str, Any]  # the values of the rows that are meant, as {"arm": "lapa", "labels": 50}
RESAMPLES = 4000


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """values_STN: float (seeds, families, start states), 1.0 where it succeeded."""

    values_STN: np.ndarray
    seeds: tuple[int, ...]
    families: tuple[str, ...]


def chosen(rows: Rows, which: Which) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row.get(key) == value for key, value in which.items())]


def seeds_of(rows: Rows, *each: Which) -> list[int]:
    """Those that have, of the rows that each means, all families that any of them has."""
    found = [{(row["seed"], row["family"]) for row in chosen(rows, which)} for which in each]
    families = {family for one in found for _, family in one}
    seeds = {seed for one in found for seed, _ in one}
    return sorted(s for s in seeds if all((s, f) in one for one in found for f in families))


def outcomes(rows: Rows, *each: Which) -> list[Outcomes]:
    """Those of the rows that each means, of `seeds_of` them.

    Raises ValueError where there is no such seed, where a seed has a family twice, or where
    families differ in their number of start states.
    """
    seeds, found = seeds_of(rows, *each), []
    if not seeds:
        raise ValueError(f"no seed has all families of {' and of '.join(map(_named, each))}")
    for which in each:
        kept = [row for row in chosen(rows, which) if row["seed"] in seeds]
        values = {(r["seed"], r["family"]): np.array(r["outcomes"], np.float64) for r in kept}
        if len(values) < len(kept):
            raise ValueError(f"{_named(which)}: a seed has two rows of one family")
        families = sorted({family for _, family in values})
        found.append([[values[s, f] for f in families] for s in seeds])
    lengths = {len(x) for one in found for of_seed in one for x in of_seed}
    if len(lengths) > 1:
        raise ValueError(
            f"{' and '.join(map(_named, each))}: outcomes of {sorted(lengths)} start states, where "
            "all are of the same ones"
        )
    return [Outcomes(np.array(one), tuple(seeds), tuple(families)) for one in found]


def _named(which: Which) -> str:
    return ", ".join(f"{key} {value}" for key, value in which.items()) or "these rows"


def rate(rows: Rows, which: Which) -> Interval:
    """Of success."""
    (found,) = outcomes(rows, which)
    return hierarchical(found.values_STN, seed=0).difference


def paired(rows: Rows, one: Which, other: Which) -> Contrast:
    """The success of one less that of the other, start by start, on the seeds that both have."""
    a, b = outcomes(rows, one, other)
    return hierarchical(a.values_STN - b.values_STN, seed=0)


def primary(
    rows: Rows, pairs: Sequence[tuple[str, str]], which: Which
) -> dict[tuple[str, str], tuple[Contrast, float]]:
    """The contrasts that were named before the run, each with its p after Holm's correction."""
    found = {(a, b): paired(rows, {"arm": a, **which}, {"arm": b, **which}) for a, b in pairs}
    corrected = holm({pair: one.p for pair, one in found.items()})
    return {pair: (one, corrected[pair]) for pair, one in found.items()}


def labels_to_reach(
    rows: Rows, arm: str, base: str, at: int, which: Which, *, resamples: int = RESAMPLES
) -> Interval:
    """With how many labels `base` does what `arm` does with `at`: its curve interpolated over the
    logarithm of labels, where it first gets there. Infinite where it does not with the most labels
    that it was given, and their least where it does with these. The interval resamples the seeds,
    which are paired."""
    budgets = sorted({row["labels"] for row in chosen(rows, {"arm": base, **which})})
    if not budgets:
        raise ValueError(f"no rows of {_named({'arm': base, **which})}")
    each = [{"arm": base, "labels": n, **which} for n in budgets]
    *curve, target = outcomes(rows, *each, {"arm": arm, "labels": at, **which})
    curve_BS = np.array([one.values_STN.mean((1, 2)) for one in curve])
    target_S = target.values_STN.mean((1, 2))

    def needed(weights_RS: np.ndarray) -> np.ndarray:
        rates_BR, wanted_R = curve_BS @ weights_RS.T, weights_RS @ target_S
        found = np.where(rates_BR[0] >= wanted_R, float(budgets[0]), math.inf)
        for i in range(len(budgets) - 1):
            low, high = rates_BR[i], rates_BR[i + 1]
            crosses = np.isinf(found) & (low < wanted_R) & (wanted_R <= high)
            part = (wanted_R - low) / np.where(crosses, high - low, 1.0)
            there = budgets[i] * (budgets[i + 1] / budgets[i]) ** np.where(crosses, part, 0.0)
            found = np.where(crosses, there, found)
        return found

    count = len(target_S)
    even = np.full(count, 1 / count)
    draws = np.random.default_rng(0).multinomial(count, even, size=resamples) / count
    ends = [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]
    low, high = np.quantile(needed(draws), ends, method="inverted_cdf")
    return Interval(float(needed(even[None])[0]), float(low), float(high), CONFIDENCE)


def curves(rows: Rows, which: Which) -> dict[str, list[tuple[int, Interval]]]:
    """The success of every arm by its label budgets, of arms that have several."""
    rows, found = chosen(rows, which), {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm and "labels" in row]
        budgets = sorted({row["labels"] for row in own})
        each = [(n, {"arm": arm, "labels": n}) for n in budgets]
        points = [(n, rate(rows, one)) for n, one in each if seeds_of(rows, one)]
        if len(points) > 1:
            found[arm] = points
    return found


# --- As tables, whose cells without rows are "–" ---


def rates_table(rows: Rows, which: Which) -> list[list[str]]:
    """Every arm by its label budgets; where a budget has fewer seeds than another, how many."""
    arms, rows = _arms(rows, which), chosen(rows, which)
    budgets = sorted({row["labels"] for row in rows})
    seeds = {
        (arm, n): len(seeds_of(rows, {"arm": arm, "labels": n})) for arm in arms for n in budgets
    }
    most = max(seeds.values(), default=0)

    def told(arm: str, n: int) -> str:
        rate, count = _rate(rows, {"arm": arm, "labels": n}), seeds[arm, n]
        return rate if count in (0, most) else f"{rate}, {count} of {most} seeds"

    shown = [["arm", *(f"{n:,} labels" for n in budgets)]]
    return shown + [[f"`{arm}`", *(told(arm, n) for n in budgets)] for arm in arms]


def arms_table(rows: Rows, base: str, which: Which) -> list[list[str]]:
    """Every arm, and beside `base` on the same start states, at one label budget; without Holm's
    correction, which `primary_table` has. IQM is of four or more seeds and tasks together."""
    arms, rows = _arms(rows, which), chosen(rows, which)
    shown = [["arm", "seeds", "success", "IQM", f"less `{base}`", "p", f"P(above `{base}`)"]]
    for arm in arms:
        one, other = {"arm": arm}, {"arm": base}
        if not seeds_of(rows, one):
            shown.append([f"`{arm}`", "0", *["–"] * 5])
            continue
        (found,) = outcomes(rows, one)
        middle = interquartile_mean(found.values_STN.mean(2))
        told = "–" if middle is None else f"{100 * middle:.1f} %"
        cells = [f"`{arm}`", str(len(found.seeds)), _rate(rows, one), told]
        beside = ["", "", ""] if arm == base else _beside(rows, one, other)
        shown.append([*cells, *beside])
    return shown


def primary_table(rows: Rows, pairs: Sequence[tuple[str, str]], which: Which) -> list[list[str]]:
    """The contrasts that were named before the run; Holm's p where all have rows."""
    shown = [["contrast", "seeds", "difference", "p", "p, Holm"]]
    each = {(a, b): ({"arm": a, **which}, {"arm": b, **which}) for a, b in pairs}
    counts = {pair: len(seeds_of(rows, *two)) for pair, two in each.items()}
    corrected = primary(rows, pairs, which) if all(counts.values()) else {}
    for (a, b), two in each.items():
        cells = [f"`{a}` less `{b}`", str(counts[a, b])]
        if not counts[a, b]:
            shown.append([*cells, "–", "–", "–"])
            continue
        gap = paired(rows, *two)
        holms = f"{corrected[a, b][1]:.2g}" if corrected else "–"
        shown.append([*cells, percent(gap.difference, "points"), f"{gap.p:.2g}", holms])
    return shown


def labels_table(
    rows: Rows, arms: Sequence[str], base: str, at: int, which: Which
) -> list[list[str]]:
    """How many labels `base` needs for what each of the arms does with `at`."""
    rows = chosen(rows, which)
    most = max((row["labels"] for row in rows if row["arm"] == base), default=0)
    least = min((row["labels"] for row in rows if row["arm"] == base), default=0)

    def told(number: float) -> str:
        return f"> {most:,}" if math.isinf(number) else f"{number:.0f}"

    shown = [["arm", f"success with {at:,} labels", f"labels with which `{base}` does as well"]]
    for arm in arms:
        one = {"arm": arm, "labels": at}
        budgets = sorted({row["labels"] for row in rows if row["arm"] == base})
        each = [{"arm": base, "labels": n} for n in budgets]
        cells = [f"`{arm}`", _rate(rows, one)]
        if not budgets or not seeds_of(rows, one, *each):
            shown.append([*cells, "–"])
            continue
        found = labels_to_reach(rows, arm, base, at, {})
        value = f"at most {least:,}" if found.high <= least else told(found.estimate)
        shown.append([*cells, f"{value} ({told(found.low)} to {told(found.high)})"])
    return shown


def _arms(rows: Rows, which: Which) -> list[str]:
    """Those of the rows that are meant, in the order in which all rows have them."""
    meant = {row["arm"] for row in chosen(rows, which)}
    return [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm in meant]


def _rate(rows: Rows, which: Which) -> str:
    return percent(rate(rows, which)) if seeds_of(rows, which) else "–"


def _beside(rows: Rows, one: Which, other: Which) -> list[str]:
    if not seeds_of(rows, one, other):
        return ["–"] * 3
    a, b = outcomes(rows, one, other)
    gap = hierarchical(a.values_STN - b.values_STN, seed=0)
    above = probability_of_improvement(a.values_STN.mean(2), b.values_STN.mean(2))
    return [percent(gap.difference, "points"), f"{gap.p:.2g}", f"{above:.2f}"]
