import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from lapa_jax.diagnostics.codebook import (
    actions_per_code,
    codebook_intervals,
    codebook_report,
    entropy_bits,
    joint_counts,
    slot_histogram,
)


def test_hand_computed_report():
    z = np.array([[0, 0], [0, 1], [1, 0], [1, 0]])
    report = codebook_report(z, 4)
    assert report["histogram"] == [[2, 2, 0, 0], [3, 1, 0, 0]]
    assert report["slot_entropy_bits"][0] == 1.0
    three_to_one = 2 - 0.75 * math.log2(3)
    assert report["slot_entropy_bits"][1] == pytest.approx(three_to_one)
    assert report["mean_perplexity"] == pytest.approx((2 + 2**three_to_one) / 2)
    assert report["dead_codes"] == [2, 3]
    assert report["dead_codes_per_slot"] == [[2, 3], [2, 3]]
    assert report["joint_entropy_bits"] == pytest.approx(1.5)  # shares 1/2, 1/4, 1/4
    assert report["joint_entropy_capacity_bits"] == 4.0
    assert report["joint_entropy_bound_bits"] == 2.0
    assert report["joint_entropy_fraction"] == pytest.approx(1.5 / 4)
    assert report["joint_entropy_fraction_of_bound"] == pytest.approx(1.5 / 2)
    assert report["common_joint_codes"][0] == {"code": [1, 0], "count": 2, "share": 0.5}
    assert report["joint_codes_used"] == 3 and report["joint_codes_possible"] == 16


def test_collapsed_code_has_perplexity_one():
    report = codebook_report(np.full((50, 4), 3), 8)
    assert report["slot_perplexity"] == [1.0] * 4
    assert report["joint_entropy_bits"] == 0.0
    assert report["joint_modal_share"] == 1.0
    assert report["dead_code_fraction"] == 7 / 8


def test_every_code_equally_often_is_the_maximum():
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    report = codebook_report(grid, 3)
    assert report["joint_entropy_fraction"] == pytest.approx(1.0)
    assert report["mean_perplexity_fraction"] == pytest.approx(1.0)
    assert report["dead_codes"] == []


def test_a_code_dead_in_one_slot_only_is_not_dead():
    report = codebook_report(np.array([[0, 1], [0, 1]]), 2)
    assert report["dead_codes_per_slot"] == [[1], [0]]
    assert report["dead_codes"] == []


def test_report_is_json_of_plain_numbers():
    z = np.random.default_rng(0).integers(0, 8, (100, 4)).astype(np.int16)
    assert json.loads(json.dumps(codebook_report(z, 8), allow_nan=False))["samples"] == 100
    json.dumps(codebook_report(np.zeros((1, 1), int), 1), allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_joint_codes_give_back_z(samples, length, size, seed):
    z = np.random.default_rng(seed).integers(0, size, (samples, length))
    codes, counts, index = joint_counts(z, size)
    np.testing.assert_array_equal(codes[index], z)
    np.testing.assert_array_equal(np.bincount(index, minlength=len(codes)), counts)
    assert (np.diff(counts) <= 0).all()
    np.testing.assert_array_equal(slot_histogram(z, size).sum(1), samples)
    report = codebook_report(z, size)
    assert report["joint_entropy_bits"] <= report["joint_entropy_bound_bits"] + 1e-9
    # Rows in another order are the same distribution.
    assert codebook_report(z[::-1], size) == report


def test_long_codes_that_overflow_an_integer():
    z = np.random.default_rng(0).integers(0, 1024, (40, 12))
    z[5] = z[0]
    codes, counts, index = joint_counts(z, 1024)
    np.testing.assert_array_equal(codes[index], z)
    assert counts[0] == 2 and len(codes) == 39


def test_entropy_agrees_with_scipy():
    counts = np.array([5, 0, 1, 17, 2])
    assert entropy_bits(counts) == pytest.approx(entropy(counts, base=2))


@pytest.mark.parametrize(
    "bad, word",
    [
        (np.array([[0, -1]]), "unlabelled"),
        (np.array([[0, 8]]), "codebook_size"),
        (np.array([[0.0, 1.0]]), "dtype"),
        (np.zeros((0, 4), int), "shape"),
        (np.zeros(4, int), "shape"),
    ],
)
def test_bad_codes_are_named(bad, word):
    with pytest.raises(ValueError, match=word):
        codebook_report(bad, 8)


def test_actions_per_code():
    z = np.array([[1], [0], [1], [1], [2], [0]])
    actions = np.array([[1.0, 0], [5, 5], [3, 0], [5, 0], [9, 9], [7, 5]])
    rows = actions_per_code(z, actions, 4)
    assert [row["code"] for row in rows] == [[1], [0]]  # code 2 was seen once
    assert rows[0]["mean"] == [3.0, 0.0] and rows[0]["count"] == 3
    assert rows[0]["covariance"] == [[4.0, 0.0], [0.0, 0.0]]
    one_dim = actions_per_code(z, actions[:, :1], 4)
    assert one_dim[0]["covariance"] == [[4.0]]
    with pytest.raises(ValueError, match="non-finite"):
        actions_per_code(z, np.full((6, 2), np.nan), 4)


def test_intervals_hold_their_estimate_however_few_samples_a_code_has():
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(40), 10)
    for size, length in ((4, 1), (256, 1), (64, 2)):
        z = rng.integers(0, size, (400, length))
        report = codebook_report(z, size)
        found = codebook_intervals(z, size, episode, seed=0)
        for name in ("mean_perplexity", "joint_entropy_bits"):
            low, high = found[f"{name}_interval"]
            assert low < report[name] < high
    assert found == codebook_intervals(z, size, episode, seed=0)
