"""What is said of arms: rates, differences on the same start states, and labels that are saved."""

import math

import numpy as np
import pytest

from lapa_jax.diagnostics.statistics import hierarchical
from lapa_jax.studies import contrasts

STARTS = 8


def row(arm, successes, *, seed=0, labels=10, family="reach", setting="in_domain"):
    outcomes = [i < successes for i in range(STARTS)]
    values = {"arm": arm, "setting": setting, "seed": seed, "labels": labels, "family": family}
    return values | {"outcomes": outcomes}


@pytest.fixture(scope="module")
def rows():
    """Two seeds, two families: scratch doubles its successes with four times the labels."""
    found = [
        row(arm, successes + (family == "push"), seed=seed, labels=labels, family=family)
        for arm, of_labels in (("scratch", {10: 2, 40: 4}), ("lapa", {10: 3, 40: 7}))
        for labels, successes in of_labels.items()
        for seed in (0, 1)
        for family in ("reach", "push")
    ]
    return found + [row("vpt", 1, labels=40)]


def test_arms_are_compared_start_by_start_on_what_both_have(rows):
    lapa, scratch = ({"arm": arm, "labels": 40} for arm in ("lapa", "scratch"))
    one, other = contrasts.outcomes(rows, lapa, scratch)
    assert one.seeds == (0, 1) and one.families == ("push", "reach")
    assert one.values_STN.shape == (2, 2, STARTS)
    gap = contrasts.paired(rows, lapa, scratch)
    assert gap == hierarchical(one.values_STN - other.values_STN, seed=0)
    assert gap.difference.estimate == 3 / STARTS
    late = row("lapa", 0, seed=2, labels=40)  # the other family of this seed is not there yet
    assert contrasts.paired([*rows, late], lapa, scratch) == gap
    assert contrasts.seeds_of([*rows, late], lapa) == [0, 1]
    (both,) = contrasts.outcomes([*rows, late], lapa | {"family": "reach"})
    assert both.seeds == (0, 1, 2)
    found = contrasts.primary(rows, (("lapa", "scratch"), ("scratch", "lapa")), {"labels": 40})
    assert found["lapa", "scratch"][1] == min(1.0, 2 * gap.p)


def test_rows_that_do_not_compare_are_named(rows):
    short = row("lapa", 1, labels=40) | {"outcomes": [True]}
    for more, each, message in (
        ([], [{"arm": "unipi"}], "no seed has all families of arm unipi"),
        ([], [{"arm": "vpt"}, {"arm": "lapa", "labels": 40}], "of arm vpt and of arm lapa"),
        ([row("lapa", 1)], [{"arm": "lapa", "labels": 10}], "labels 10: a seed has two rows"),
        ([short], [{"arm": "vpt"}, {"arm": "lapa", "family": "reach"}], "two rows of one family"),
        ([short | {"arm": "b"}], [{"arm": "b"}, {"arm": "vpt"}], r"outcomes of \[1, 8\] start"),
    ):
        with pytest.raises(ValueError, match=message):
            contrasts.outcomes([*rows, *more], *each)


def test_labels_are_interpolated_over_their_logarithm(rows):
    def needed(successes, seeds=(0, 1)):
        target = [
            row("new", successes[seed] + (family == "push"), seed=seed, family=family)
            for seed in seeds
            for family in ("reach", "push")
        ]
        found = contrasts.labels_to_reach([*rows, *target], "new", "scratch", 10, {})
        return found.estimate, found.low, found.high

    assert needed((3, 3)) == pytest.approx((20.0, 20.0, 20.0))  # between 10 and 40
    assert needed((4, 4)) == (40.0, 40.0, 40.0) and needed((1, 1)) == (10.0, 10.0, 10.0)
    assert needed((5, 5)) == (math.inf,) * 3
    found, low, high = needed((2, 5))  # by seeds: 10, and more than there is
    assert 10 < found < 40 and low == 10 and high == math.inf


def test_tables_say_what_is_there_and_what_is_not(rows):
    table = contrasts.rates_table(rows, {"setting": "in_domain"})
    assert table[0] == ["arm", "10 labels", "40 labels"]
    assert [line[0] for line in table[1:]] == ["`scratch`", "`lapa`", "`vpt`"]
    assert table[1][1].startswith("31.2 % (") and table[3][1] == "–"
    assert [line[2].endswith(", 1 of 2 seeds") for line in table[1:]] == [False, False, True]
    _, scratch, lapa, vpt = contrasts.arms_table(rows, "scratch", {"labels": 40})
    assert scratch[1] == "2" and scratch[4:] == ["", "", ""]
    assert lapa[3] == "93.8 %" and lapa[4].startswith("37.5 points (") and lapa[6] == "1.00"
    assert vpt[1] == "1" and vpt[4:] == ["–"] * 3  # another family is not there
    pairs = (("lapa", "scratch"), ("lapa", "vpt"))
    _, one, other = contrasts.primary_table(rows, pairs, {"labels": 40})
    assert one[1] == "2" and one[4] == "–" and other[1:] == ["0", "–", "–", "–"]
    (_, full) = contrasts.primary_table(rows, pairs[:1], {"labels": 40})
    assert (
        full[3]
        == full[4]
        == f"{contrasts.primary(rows, pairs[:1], {'labels': 40})[pairs[0]][1]:.2g}"
    )
    _, saved, absent = contrasts.labels_table(rows, ("lapa", "vpt"), "scratch", 10, {})
    assert saved[2] == "20 (20 to 20)" and absent[1:] == ["–", "–"]
    assert list(contrasts.curves(rows, {})) == ["scratch", "lapa"]
    points = contrasts.curves(rows, {})["lapa"]
    assert [n for n, _ in points] == [10, 40]
    assert np.isclose(points[1][1].estimate, 7.5 / STARTS)
    bare = [{key: x for key, x in row.items() if key != "labels"} for row in rows]
    assert contrasts.curves(bare, {}) == {}
