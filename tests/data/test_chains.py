"""Chains of pairs: how they tile episodes, and how a batch holds them."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import data_config, write_corpus
from test_loader import assert_same, write_undecodable

from data_pipelines.loader import FingerprintError, Loader, check_fingerprint
from data_pipelines.loader import loader as loaders
from data_pipelines.loader.chains import Chains

LENGTHS = (23, 4, 17, 30)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 40)), min_size=1, max_size=5), st.data()
)
def test_chains_tile_the_pairs_of_an_episode(episodes, data):
    length = data.draw(st.integers(1, 5))
    window, examples = np.array(episodes).T
    skip = np.arange(len(episodes))
    chains = Chains(length, window, skip, examples)
    episode = np.repeat(np.arange(len(episodes)), chains.counts)
    place = np.arange(len(episode)) - chains.starts[episode]
    every = set()
    for key in (None, *np.arange(120, dtype=np.uint64)):
        first = chains.first_steps(episode, place, key)
        pairs = [
            (e, f + m * window[e])
            for e, f in zip(episode.tolist(), first.tolist(), strict=True)
            for m in range(length)
        ]
        assert len(set(pairs)) == len(pairs), "no pair comes twice an epoch"
        assert all(0 <= t - skip[e] < examples[e] for e, t in pairs)
        every |= set(pairs)
    rows = Counter((e, t % window[e]) for e, (_, n) in enumerate(episodes) for t in range(n))
    drawn = {row for row, n in rows.items() if n >= length}
    assert {(e, (t - skip[e]) % window[e]) for e, t in every} == drawn
    assert chains.num_in_none == sum(n for n in rows.values() if n < length)
    assert len(every) == sum(n for n in rows.values() if n >= length), "each once in 120 epochs"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    found = tmp_path_factory.mktemp("chains")
    write_corpus(found, lengths=LENGTHS, shards=2)
    return found


def make(directory, *, global_batch=24, host=0, num_hosts=1, chain_pairs=3, **options):
    return Loader(
        data_config({"a": directory}, chain_pairs=chain_pairs, **options),
        fields=("frames", "action"),
        global_batch=global_batch,
        seed=2,
        host=host,
        num_hosts=num_hosts,
    )


@pytest.mark.parametrize("decode", ["threads", "tf"])
def test_a_chain_lies_side_by_side_and_is_decoded_once(directory, decode, monkeypatch):
    read = []
    original = loaders.read_jpeg
    monkeypatch.setattr(loaders, "read_jpeg", lambda *args: read.append(1) or original(*args))
    loader = make(directory, decode=decode, prefetch_batches=1)
    loader.batch(7)
    assert len(read) == 8 * 4, "a chain of 3 pairs is 4 frames"
    plain = make(directory, chain_pairs=1)
    batches = loader.iterate(4)
    for step in (4, 5):
        batch, where = next(batches), loader.describe(step)
        assert batch["frames"].shape == (24, 2, 16, 16, 3)
        for one, two in itertools.pairwise(range(24)):
            if two % 3:
                assert where[one]["episode"] == where[two]["episode"]
                assert where[one]["steps"][1] == where[two]["steps"][0]
        index = plain.mixture.corpora[0].index
        for row, told in enumerate(where):
            first = index.episode_start[told["episode"]]
            np.testing.assert_array_equal(
                batch["action"][row], index.actions[first + told["steps"][0]]
            )
        assert_same(batch, loader.batch(step))
    batches.close()


def test_an_epoch_draws_no_pair_twice_on_any_number_of_hosts(directory):
    loader = make(directory)
    corpus = loader.mixture.corpora[0]
    steps = 3 * corpus.num_samples // 24
    for options in ({}, {"access": "windowed", "block_mib": 0.01, "lanes": 4}):
        where = [
            (told["episode"], *told["steps"])
            for step in range(steps)
            for told in make(directory, **options).describe(step)
        ]
        assert len(set(where)) == len(where)
        whole = make(directory, **options).batch(3)
        for hosts in (2, 8):
            parts = [
                make(directory, host=h, num_hosts=hosts, **options).batch(3) for h in range(hosts)
            ]
            assert_same(whole, {k: np.concatenate([part[k] for part in parts]) for k in whole})


@pytest.mark.slow
def test_pairs_with_a_bad_frame_are_replaced_the_same_by_any_backend(tmp_path):
    write_undecodable(tmp_path, {9}, lengths=(20, 20), shards=1)
    loaders = [make(tmp_path, decode=d, max_bad_fraction=1.0) for d in ("threads", "tf")]
    streams = [loader.iterate() for loader in loaders]
    for _ in range(6):
        one, two = (next(stream) for stream in streams)
        assert_same(one, two)
    for stream, loader in zip(streams, loaders, strict=True):
        stream.close()
        assert {(bad.episode, bad.step) for bad in loader.bad_examples} == {(0, 9)}


def test_chains_need_every_pair_to_be_eligible(tmp_path):
    from data_pipelines.loader.motion import write_motion

    write_undecodable(tmp_path, {9}, lengths=(20, 20), shards=1)
    write_motion(tmp_path, window_seconds=0.4, progress=False)
    loader = make(tmp_path, min_pair_difference=0.01)
    told = [tuple(w["steps"]) for s in range(9) for w in loader.describe(s) if w["episode"] == 0]
    assert told and not any(9 in steps for steps in told)
    every = make(tmp_path).mixture.corpora[0].num_samples
    assert loader.mixture.corpora[0].num_samples == every - 1


def test_mistakes_are_named_and_the_fingerprint_follows(directory, caplog):
    with pytest.raises(ValueError, match="4 hosts is 6 each, not a multiple of data.chain_pairs=4"):
        make(directory, num_hosts=4, chain_pairs=4)
    with pytest.raises(
        ValueError, match="data.chain_pairs=2 must be 1: .* data.num_frames 2 .is 3"
    ):
        make(directory, chain_pairs=2, num_frames=3)
    with pytest.raises(ValueError, match="no eligible frame.*data.chain_pairs"):
        make(directory, chain_pairs=24)
    caplog.clear()
    loader = make(directory)
    assert "'a': 2 of 66 pairs are in no chain of data.chain_pairs=3" in caplog.text
    with pytest.raises(FingerprintError, match="mixture_hash"):
        check_fingerprint(loader.fingerprint(0), make(directory, chain_pairs=2).fingerprint(0))
