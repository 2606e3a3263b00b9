"""Permutation, quotas and independence of the order from everything but (seed, position)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.loader.order import MAX_SIZE, Order, mix, permute, quotas

KEYS = st.integers(0, 2**64 - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), KEYS)
def test_permute_is_a_bijection(size, key):
    assert sorted(permute(np.arange(size), size, np.uint64(key)).tolist()) == list(range(size))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, MAX_SIZE), KEYS, st.data())
def test_permute_of_any_size_is_injective_and_elementwise(size, key, data):
    index = np.unique(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=40)))
    found = permute(index, size, np.uint64(key))
    assert found.min() >= 0 and found.max() < size and len(np.unique(found)) == len(index)
    assert [int(permute(item, size, np.uint64(key))) for item in index] == found.tolist()


def test_permute_is_uniform_over_keys():
    size, trials = 7, 7000
    for index in range(size):
        hits = np.bincount(
            permute(np.full(trials, index), size, mix(1, np.arange(trials))), minlength=size
        )
        assert ((hits - 1000) ** 2 / 1000).sum() < 30  # chi-square, 6 degrees: p < 1e-4


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="size is 0"):
        permute(np.array([0]), 0, 1)
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([5]), 5, 1)
    with pytest.raises(ValueError, match="weight"):
        Order([5, 5], [1.0, 0.0], 0, 4)
    with pytest.raises(ValueError, match="less than"):
        Order([5, 5], [1.0, 1e-9], 0, 4)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 2**62), st.data())
def test_every_epoch_visits_every_sample_once(sizes, seed, data):
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    order = Order(sizes, weights, seed, 8)
    corpus, epoch, sample = order.samples_at(np.arange(1500))
    for number, size in enumerate(sizes):
        mine = corpus == number
        for one in range(int(epoch[mine].max())):  # complete epochs
            assert sorted(sample[mine & (epoch == one)].tolist()) == list(range(size))
        assert np.all(np.diff(epoch[mine]) >= 0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_quotas_follow_the_weights(weights):
    assert quotas(weights).sum() == 4096
    order = Order([10] * len(weights), weights, 0, 8)
    for count in (1000, 5000):
        shares = np.bincount(order.samples_at(np.arange(count))[0], minlength=len(weights)) / count
        np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=0.015)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 2**31))
def test_a_step_needs_no_history(step, seed):
    order = Order([70, 11], [2, 1], seed, 12)
    whole = order.samples(step)
    parts = [order.samples_at(order.positions(step)[part : part + 3]) for part in range(0, 12, 3)]
    for number in range(3):
        np.testing.assert_array_equal(
            whole[number], np.concatenate([part[number] for part in parts])
        )


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 9), st.integers(0, 2**31))
def test_one_order_for_1_to_512_hosts(step, exponent, seed):
    order = Order([7000, 110], [2, 1], seed, 512)
    fresh = Order([7000, 110], [2, 1], seed, 512)
    parts = [fresh.samples_at(rows) for rows in np.split(fresh.positions(step), 2**exponent)]
    for whole, shares in zip(order.samples(step), zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(shares))


def test_replacements_are_the_next_samples_of_the_corpus():
    order = Order([9, 4], [1, 1], 5, 8)
    corpus, epoch, sample = order.samples_at(np.arange(40))
    replaced = order.samples_at(np.arange(20), 1)
    for position in range(20):
        later = position + 1 + np.flatnonzero(corpus[position + 1 :] == corpus[position])[0]
        assert tuple(item[position] for item in replaced) == (
            corpus[later],
            epoch[later],
            sample[later],
        )


def test_seeds_and_epochs_differ():
    def run(seed):
        return Order([500], [1], seed, 500).samples(0)[2].tolist()

    assert run(0) != run(1)
    order = Order([500], [1], 0, 500)
    assert order.samples(0)[2].tolist() != order.samples(1)[2].tolist()


def test_order_is_frozen():
    """Checkpoints rely on the order; a change here breaks every resume."""
    corpus, epoch, sample = Order([70, 11, 5000], [2, 1, 1], 42, 12).samples(1000)
    assert corpus.tolist() == FROZEN[0]
    assert epoch.tolist() == FROZEN[1]
    assert sample.tolist() == FROZEN[2]


FROZEN = (
    [0, 1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 0],
    [85, 272, 0, 85, 85, 272, 0, 85, 85, 272, 0, 85],
    [58, 6, 4135, 25, 31, 7, 2066, 4, 45, 5, 667, 54],
)
