"""Windowed access: an order that reads whole blocks, locally and behind a URL."""

import itertools
from collections import Counter

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import data_config, write_corpus
from test_loader import PROVENANCE, assert_same, damage, label

from data_pipelines import storage
from data_pipelines.index import build_index, load_index
from data_pipelines.index.labels import LabelSetWriter
from data_pipelines.loader import FingerprintError, Loader, check_fingerprint
from data_pipelines.loader.blocks import Blocks, find_blocks
from data_pipelines.loader.frames import ShardFiles
from data_pipelines.loader.windowed import WindowedOrder
from lapa_jax.verbs import data as data_verbs

SMALL = {"access": "windowed", "block_mib": 4000 / 2**20, "window_blocks": 3, "lanes": 4}


def order_of(counts, weights=None, *, seed=0, global_batch=8, lanes=4, window_blocks=3):
    """An order over corpora of blocks with so many samples."""
    blocks = [
        Blocks(
            np.zeros(len(c), np.int32),
            np.arange(len(c)),
            np.ones(len(c), np.int64),
            np.append(0, np.cumsum(c)),
        )
        for c in counts
    ]
    weights = weights or [1.0] * len(counts)
    return WindowedOrder(
        blocks, weights, seed, global_batch, lanes=lanes, window_blocks=window_blocks
    )


COUNTS = st.lists(st.lists(st.integers(1, 9), min_size=8, max_size=20), min_size=1, max_size=3)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(COUNTS, st.integers(0, 2**62), st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.data())
def test_every_epoch_holds_every_sample_once(counts, seed, lanes, window_blocks, data):
    weights = data.draw(st.lists(st.floats(0.3, 3), min_size=len(counts), max_size=len(counts)))
    order = order_of(counts, weights, seed=seed, lanes=lanes, window_blocks=window_blocks)
    positions = np.arange(8 * max(60, 4 * sum(map(sum, counts)) // 8))
    corpus, epoch, sample = order.samples_at(positions)
    lane = order.lanes(positions)
    for number, size in enumerate(order.sizes):
        mine = corpus == number
        assert len(set(zip(epoch[mine], sample[mine], strict=True))) == mine.sum(), "never twice"
        last = [epoch[mine & (lane == one)].max(initial=-1) for one in range(lanes)]
        for one in range(min(last)):  # epochs that every lane has left
            assert sorted(sample[mine & (epoch == one)]) == list(range(size))
        assert all((np.diff(epoch[mine & (lane == one)]) >= 0).all() for one in range(lanes))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 9), st.integers(0, 2**31))
def test_one_order_for_1_to_512_hosts_at_any_step(step, exponent, seed):
    counts = [[7] * 300, [3] * 200]
    order = order_of(counts, [3, 1], seed=seed, global_batch=512, lanes=64)
    whole, hosts = order.samples(step), 2**exponent
    fresh = order_of(counts, [3, 1], seed=seed, global_batch=512, lanes=64)
    parts = [fresh.samples_at(rows) for rows in np.split(fresh.positions(step), hosts)]
    for one, other in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(other))


@pytest.mark.slow
@pytest.mark.parametrize("global_batch, lanes", [(1024, 64), (96, 24), (64, 64), (10, 5)])
def test_lanes_count_what_they_drew_and_draw_alike(global_batch, lanes):
    weights = [5, 2, 1, 0.1, 1 / 3]
    order = order_of([[400] * 5] * 5, weights, global_batch=global_batch, lanes=lanes)
    steps = 3 * order._period * lanes // 2  # every lane takes every part, and some again
    positions = np.arange(min(steps * global_batch, 400_000))
    corpus, lane, rank = order._ranks(positions)
    drawn = np.zeros((lanes, 5), int)
    for one in range(lanes):
        for number in range(5):
            mine = rank[(lane == one) & (corpus == number)]
            np.testing.assert_array_equal(mine, np.arange(len(mine)))
            drawn[one, number] = len(mine)
    assert np.ptp(drawn, axis=0).max() <= 128
    shares = np.bincount(corpus[:1000], minlength=5) / 1000
    np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=0.003)
    far = order._ranks(positions[:1000] + 10**13 * global_batch)[2]
    assert far.min() > 10**12 / lanes and np.all(far < 10**13 * global_batch)


def test_lanes_read_their_own_blocks():
    counts = [[40] * 64, [25] * 32]
    order = order_of(counts, [3, 1], global_batch=32, lanes=8, window_blocks=2)
    held: dict[tuple, set] = {}
    for step in range(90):
        for owner, windows in order.windows(order.positions(step)).items():
            for (epoch, _), blocks in windows:
                assert len(blocks) <= 2
                for block in blocks if epoch == 0 else ():
                    held.setdefault((owner[0], block), set()).add(owner[1])
    owners = [len(lanes) for (number, _), lanes in held.items() if number == 0]
    assert len(owners) == 64 and sum(owners) <= 64 + 7, "only cut blocks belong to two lanes"


def test_the_order_of_windows_is_frozen():
    """Checkpoints rely on the order; a change here breaks every resume."""
    order = order_of([[40, 7, 19, 30] * 9, [25] * 12], [3, 1], seed=42, global_batch=12, lanes=4)
    found = [values.tolist() for values in order.samples(1000)]
    assert found == FROZEN


FROZEN = [
    [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
    [10, 10, 10, 10, 9, 10, 10, 10, 10, 10, 10, 10],
    [290, 337, 350, 790, 239, 372, 440, 574, 97, 505, 510, 487],
]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lanes": 3}, "data.lanes is 3; .* a divisor of the global batch .8 examples"),
        ({"lanes": 0}, "data.lanes is 0"),
        ({"window_blocks": 0}, "data.window_blocks is 0"),
        ({"lanes": 8, "counts": [[5], [50]]}, "data.lanes is 8, but the smallest corpus has 5"),
    ],
)
def test_mistakes_are_named(options, message):
    counts = options.pop("counts", [[50]])
    with pytest.raises(ValueError, match=message):
        order_of(counts, **options)


# ---------------------------------------------------------------- shards


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora on a disk, and copies of shards and sidecars behind a URL."""
    root = tmp_path_factory.mktemp("windowed")
    for name, lengths, shards in (("a", (9, 6, 12, 3, 7) * 4, 3), ("b", (14, 5, 8), 1)):
        write_corpus(root / name, lengths=lengths, shards=shards, seed=len(lengths))
        fsspec.filesystem("memory").put(str(root / name), f"memory://{root.name}/{name}", True)
    local = {name: root / name for name in "ab"}
    return local, {name: f"memory://{root.name}/{name}" for name in "ab"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(storage.CACHE_ENV, str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(corpora, *, fields=("frames", "action"), global_batch=8, host=0, num_hosts=1, **options):
    return Loader(
        data_config(corpora, **{**SMALL, **options}),
        fields=fields,
        global_batch=global_batch,
        seed=5,
        host=host,
        num_hosts=num_hosts,
    )


@pytest.fixture
def reads(monkeypatch):
    """(file, offset, length) of every read of a shard."""
    found, original = [], ShardFiles.pread

    def pread(self, path, length, offset):
        found.append((str(path), offset, length))
        return original(self, path, length, offset)

    monkeypatch.setattr(ShardFiles, "pread", pread)
    return found


def test_blocks_hold_every_sample_and_whole_episodes(corpora):
    corpus = make(corpora[0]).mixture.corpora[0]
    blocks, index = find_blocks(corpus, 4000), corpus.index
    assert blocks.counts.sum() == corpus.num_samples and len(blocks.shard) > 12
    for number, (first, last) in enumerate(itertools.pairwise(blocks.first_sample)):
        rows = corpus.frame_rows(np.arange(first, last), np.zeros(last - first, int), 0)
        episodes = np.unique(index.episode_of_rows(rows))
        assert set(index.shard_of_episode[episodes]) == {blocks.shard[number]}
        begin = index.record_offset[episodes].min()
        end = (index.record_offset + index.record_length)[episodes].max()
        assert (begin, end - begin) == (blocks.offset[number], blocks.length[number])
        assert blocks.length[number] < 4000 + index.record_length.max()


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["threads", "tf"])
def test_the_same_batches_by_any_backend_place_and_start(corpora, decode):
    local, remote = corpora
    one, two = make(local), make(remote, decode=decode, num_threads=3)
    check_fingerprint(one.fingerprint(0), two.fingerprint(0))
    for start in (0, 7, 10**8):
        batches = two.iterate(start)
        for step, batch in enumerate(itertools.islice(batches, 5), start):
            expected = one.batch(step)
            assert_same(batch, expected)
        batches.close()
    two.close()
    hosts = [make(remote, host=host, num_hosts=4).batch(7) for host in range(4)]
    whole = one.batch(7)
    assert_same(whole, {key: np.concatenate([h[key] for h in hosts]) for key in whole})


def test_blocks_are_read_once_an_epoch_within_the_bound(corpora, reads):
    """One host of two, which reads a corpus for an epoch, and again from the middle of it."""
    options = dict(host=1, num_hosts=2, prefetch_batches=1, num_threads=1)
    corpora = {"a": corpora[1]["a"]}
    loader = make(corpora, **options)
    blocks = loader._files._blocks[0]
    of_range = {
        (f"{corpora['a']}/{loader.mixture.corpora[0].index.shards[s].name}", o, n): number
        for number, (s, o, n) in enumerate(
            zip(*(x.tolist() for x in (blocks.shard, blocks.offset, blocks.length)), strict=True)
        )
    }
    steps = loader.mixture.corpora[0].num_samples // 8
    bound = 2 * SMALL["window_blocks"] * 2 * blocks.length.max()  # windows, blocks, lanes

    def read(loader, start, stop):
        batches = loader.iterate(start)
        for batch in itertools.islice(batches, stop - start):
            assert 0 < loader._files.resident_bytes <= bound
            assert len(batch["position"]) == 4
        batches.close()
        loader.close()
        counts = Counter(reads)
        reads.clear()
        assert counts.keys() <= of_range.keys(), "whole blocks, and nothing else"
        return counts

    whole = read(loader, 0, steps - 3)
    assert len(whole) >= len(of_range) / 2
    assert sum(whole.values()) <= len(whole) + 2, "a block comes again where lanes were cut in it"
    resumed = read(make(corpora, **options), steps // 2, steps - 5)
    assert resumed.keys() < whole.keys()
    again = make(corpora, **options)
    first = {(lane, key) for (_, lane), w in windows(again, 0, steps // 2).items() for key in w}
    rest = {(lane, key) for (_, lane), w in windows(again, steps // 2, steps).items() for key in w}
    assert len(first & rest) <= 2 * 2, "the open window of each lane, and the one read ahead"


def windows(loader, start, stop):
    found = {}
    for step in range(start, stop):
        positions = loader.order.positions(step)[loader._mine]
        for owner, held in loader.order.windows(positions).items():
            found.setdefault(owner, set()).update(key for key, _ in held)
    return found


def test_the_log_tells_what_is_held_and_shared(corpora, caplog):
    with caplog.at_level("INFO", logger="absl"):
        loader = make(corpora[0], host=0, num_hosts=2)
    longest = sum(blocks.length.max() for blocks in loader._files._blocks)
    held = f"hold up to {longest * 12 / 2**30:.2f} GiB"
    assert f"2 of 4 lanes on this host, which {held}" in caplog.text
    assert "share lanes" not in caplog.text
    make(corpora[0], host=0, num_hosts=8)
    assert "data.lanes is 4, not a multiple of the hosts: hosts share lanes" in caplog.text


def test_random_access_reads_frames_not_blocks(corpora, reads):
    loader = make(corpora[0])
    loader.batch(3)
    assert len(reads) == 16 and loader._files.resident_bytes == 0


@pytest.mark.slow
def test_a_bad_frame_is_replaced_by_the_next_sample_of_its_lane(tmp_path):
    write_corpus(tmp_path / "a", lengths=(40,) * 3, shards=1, size=64)
    options = dict(size=64, num_frames=1, max_bad_fraction=0.5, lanes=2, global_batch=4)
    loaders = [
        make({"a": tmp_path / "a"}, decode=decode, **options) for decode in ("tf", "threads")
    ]
    loader, index = loaders[0], load_index(tmp_path / "a")
    damage(tmp_path / "a", [13, 77])
    got = []
    for one in loaders:
        batches = one.iterate()
        got.append(np.concatenate([next(batches)["action"] for _ in range(30)]))
        batches.close()
    np.testing.assert_array_equal(*got)
    order = [int(w["steps"][0] + 40 * w["episode"]) for s in range(31) for w in loader.describe(s)]
    lane = [i % 4 // 2 for i in range(len(order))]
    for i, action in enumerate(got[0]):
        row = order[i]
        if row in (13, 77):
            row = order[next(j for j in range(i + 1, i + 9) if lane[j] == lane[i])]
        np.testing.assert_array_equal(action, index.actions[row])
    assert {13, 77} <= set(order[:120])


def test_a_truncated_shard_is_named(corpora, tmp_path):
    write_corpus(tmp_path / "a", lengths=(20,) * 4, shards=1)
    loader = make({"a": tmp_path / "a"}, max_bad_fraction=1.0, lanes=2)
    path = loader.mixture.corpora[0].index.shards[0]
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 4])
    batches = loader.iterate()
    for _ in range(8):
        next(batches)
    batches.close()
    assert loader.bad_examples
    assert all("truncated shard" in bad.reason for bad in loader.bad_examples)
    assert {bad.episode for bad in loader.bad_examples} <= {2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["threads", "tf"])
def test_a_store_that_fails_stops_the_run(corpora, decode, monkeypatch):
    """It is no bad data: nothing is replaced."""
    loader = make(corpora[1], decode=decode, max_bad_fraction=1.0)
    batches = loader.iterate()
    next(batches)

    def fail(*_):
        raise OSError("503 from the store")

    monkeypatch.setattr("data_pipelines.storage.read_range", fail)
    with pytest.raises(OSError, match="503 from the store"):
        for _ in range(100):
            next(batches)
    assert not loader.bad_examples
    loader.close()


def test_the_fingerprint_follows_what_the_order_does(corpora):
    saved = make(corpora[0]).fingerprint(3)
    for change in ({"lanes": 2}, {"window_blocks": 2}, {"block_mib": 1.0}, {"access": "random"}):
        with pytest.raises(FingerprintError, match="mixture_hash"):
            check_fingerprint(saved, make(corpora[0], **change).fingerprint(3))


# ---------------------------------------------------------------- sidecars and indexes


def test_sidecars_behind_a_url_are_kept_here_until_they_change(tmp_path, cache):
    memory = fsspec.filesystem("memory")
    url = f"memory://{tmp_path.name}-c"
    write_corpus(tmp_path / "c")
    label(tmp_path / "c")
    memory.put(str(tmp_path / "c"), url, True)
    config = dict(fields=("frames", "latent_action"), a__label_set="z", num_frames=1, lanes=2)
    expected = make({"a": tmp_path / "c"}, **config).batch(3)
    assert_same(make({"a": url}, **config).batch(3), expected)
    assert len(list(cache.rglob("*.npy"))) >= 12

    kept = next(cache.rglob("frame_crc.npy"))
    kept.write_bytes(kept.read_bytes()[:-4] + b"oops")
    with pytest.raises(ValueError, match="frame_crc.npy is damaged"):
        make({"a": url}, **config)
    kept.unlink()
    assert_same(make({"a": url}, **config).batch(3), expected)

    write_corpus(tmp_path / "d", seed=9)
    memory.rm(url, recursive=True)
    memory.put(str(tmp_path / "d"), url, True)
    local = make({"a": tmp_path / "d"}, num_frames=1, lanes=2)
    assert_same(make({"a": url}, num_frames=1, lanes=2).batch(3), local.batch(3))
    with pytest.raises(ValueError, match=f"{url} is no local path: what is written"):
        LabelSetWriter(load_index(url).sidecar_dir, "y", load_index(url), provenance=PROVENANCE)
    with pytest.raises(ValueError, match="is no local path.*local sidecar_dir"):
        build_index(url, progress=False)


def test_a_corpus_without_an_index_gets_one_in_the_cache(tmp_path, cache, monkeypatch, caplog):
    write_corpus(tmp_path / "c", index=False)
    url = f"memory://{tmp_path.name}-bare"
    fsspec.filesystem("memory").put(str(tmp_path / "c"), url, True)
    loaders = [make({"a": path}, lanes=2) for path in (tmp_path / "c", url)]
    assert "has no index of image_key 'image'" in caplog.text and str(cache) in caplog.text
    assert_same(loaders[0].batch(4), loaders[1].batch(4))
    assert not (tmp_path / "c" / "index").exists()
    with monkeypatch.context() as patch:
        patch.setattr("data_pipelines.index.build_index", None)  # it is kept
        make({"a": tmp_path / "c"}, lanes=2)
    write_corpus(tmp_path / "c", index=False, seed=8)  # and made anew for other shards
    assert (
        make({"a": tmp_path / "c"}, lanes=2).fingerprint(0)["index_hash"]
        != loaders[0].fingerprint(0)["index_hash"]
    )


def test_the_verb_indexes_what_lies_behind_a_url(corpora, tmp_path, capsys):
    command = [str(corpora[1]["a"]), "--sidecar_dir", str(tmp_path)]
    assert data_verbs.main(["index", *command, "--workers", "1"]) == 0
    assert "train: 20 episodes, 148 frames" in capsys.readouterr().out
    loader = make({"a": corpora[1]["a"]}, a__sidecar_dir=str(tmp_path))
    assert_same(loader.batch(2), make({"a": corpora[0]["a"]}).batch(2))
    with pytest.raises(ValueError, match="is no local path"):
        data_verbs.main(["verify", *command])


def test_urls_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="fsspec knows no nosuch://"):
        make({"a": "nosuch://bucket/c"})
    with pytest.raises(FileNotFoundError, match="memory://void/c does not exist"):
        make({"a": "memory://void/c"})
