"""Random damage to shards: found by name, or harmless; never a wrong frame taken silently."""

import shutil

import numpy as np
import pytest
from shards import data_config, write_corpus

from data_pipelines.backends import BadImage, ShardFiles, places, read_jpeg
from data_pipelines.blocks import BlockCache
from data_pipelines.index import StaleIndexError, build_index, load_index
from data_pipelines.loader import Loader
from data_pipelines.tfrecord import RecordError
from data_pipelines.verify import verify_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    write_corpus(directory, lengths=(9, 8, 7), shards=1, size=16)
    return directory


def damaged_copies(corpus, target, count, seed):
    """Yields (directory, kind): one fault each in a copy that keeps its index."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        directory = target / str(number)
        shutil.copytree(corpus, directory)
        shard = next(directory.glob("*.tfrecord*"))
        kind = ("flip", "truncate", "zero")[number % 3]
        shard.write_bytes(damaged(shard.read_bytes(), kind, rng))
        yield directory, kind


def damaged(data, kind, rng):
    """The bytes of a shard after a fault at a random place."""
    data = bytearray(data)
    place = int(rng.integers(len(data)))
    if kind == "flip":
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == "truncate":
        data = data[:place]
    elif kind == "zero":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    else:
        data.clear()
    return data


def test_damage_before_indexing_is_found_by_name(corpus, tmp_path):
    for directory, kind in damaged_copies(corpus, tmp_path, 60, seed=0):
        shutil.rmtree(directory / "index")
        with pytest.raises(
            RecordError,
            match=r"toy-train.tfrecord-00000-of-00001, record \d, byte "
            r"offset \d+",
        ) as info:
            build_index(directory, progress=False)
        assert info.value.record in (0, 1, 2), kind
        assert not list(directory.rglob("manifest.json"))


def test_verify_names_every_damage(corpus, tmp_path):
    assert not verify_corpus(corpus, progress=False).faults
    for directory, kind in damaged_copies(corpus, tmp_path, 60, seed=0):
        shutil.rmtree(directory / "index")
        faults = verify_corpus(directory, progress=False, workers=1).faults
        assert {fault.kind for fault in faults} & {"shard", "checksum"}, kind
        assert {fault.shard for fault in faults} == {"toy-train.tfrecord-00000-of-00001"}


def test_damage_after_indexing_makes_the_index_stale(corpus, tmp_path):
    """These shards are smaller than what the fingerprint hashes, so that it sees everything."""
    for directory, _ in damaged_copies(corpus, tmp_path, 20, seed=1):
        with pytest.raises(StaleIndexError, match="00000-of-00001 changed since.*lapa data index"):
            load_index(directory)


def test_damage_while_running_never_gives_a_wrong_frame(corpus, tmp_path):
    """At 600 places, read by frame and by block."""
    index = load_index(corpus)
    loader = Loader(
        data_config({"a": corpus}, access="windowed", num_frames=1, lanes=1, block_mib=0.01),
        fields=("frames",),
        global_batch=1,
        seed=0,
    )
    blocks = loader._files._blocks
    original, rng = index.shards[0].read_bytes(), np.random.default_rng(2)
    here = places(index, np.arange(index.num_frames))
    good = [original[place.offset : place.offset + place.length] for place in here]
    refused = dict.fromkeys(("flip", "truncate", "zero", "empty", "delete"), 0)
    for number in range(600):
        kind, shard = list(refused)[number % 5], tmp_path / f"{number}.tfrecord"
        if kind != "delete":
            shard.write_bytes(damaged(original, kind, rng))
        files = ShardFiles()
        if number % 2:
            files = BlockCache(files, blocks, [[shard]])
            files.hold({(0, 0): [((0, 0), list(range(len(blocks[0].shard))))]})
        for place, jpeg in zip(here, good, strict=True):
            try:
                assert read_jpeg(files, place._replace(path=shard)) == jpeg
            except BadImage:
                refused[kind] += 1
            except FileNotFoundError as error:
                assert kind == "delete" and error.filename == str(shard)
                refused[kind] += 1
        files.close()
    assert refused["delete"] == refused["empty"] == 120 * len(here)
    assert min(refused.values()) > 100 and refused["truncate"] > 1000


def test_a_shard_that_shrinks_under_a_running_loader_is_reported(tmp_path):
    write_corpus(tmp_path, lengths=(30, 30), shards=2)
    loader = Loader(
        data_config({"a": tmp_path}, num_frames=1, max_bad_fraction=0.2),
        fields=("frames",),
        global_batch=10,
        seed=0,
    )
    loader.batch(0)
    shard = loader.mixture.corpora[0].index.shards[1]
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"max_bad_fraction.*{shard.name}.*truncated shard"):
        for step in range(1, 1000):
            loader.batch(step)
