"""Random damage to shards: found by name, or harmless; never a wrong frame taken silently."""

import shutil

import numpy as np
import pytest
from absl import logging
from shards import data_config, write_corpus

from data_pipelines.checks.verify import verify_corpus
from data_pipelines.index import StaleIndexError, build_index, load_index
from data_pipelines.index.labels import LabelSetWriter
from data_pipelines.loader import Loader
from data_pipelines.loader.blocks import BlockCache
from data_pipelines.loader.frames import BadImage, ShardFiles, places, read_jpeg
from data_pipelines.rlds.tfrecord import RecordError


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


@pytest.mark.slow
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


@pytest.mark.slow
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


# ---------------------------------------------------------------- anywhere, by the loader

FIELDS = ("frames", "instruction", "action", "latent_action")
PLACES = 640


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Two shards, larger than what a fingerprint hashes of them, with index and labels."""
    directory = tmp_path_factory.mktemp("labelled")
    write_corpus(directory, lengths=(120, 119, 121, 120), shards=2, size=64)
    index = load_index(directory)
    assert min(path.stat().st_size for path in index.shards) > 2**17 + 2**14
    provenance = {
        "quantizer_hash": "q",
        "window_seconds": 0.4,
        "codebook_size": 8,
        "code_length": 2,
        "code_version": "1",
    }
    writer = LabelSetWriter(directory, "z", index, provenance=provenance)
    rng = np.random.default_rng(0)
    for shard in range(2):
        rows = index.rows_of_shard(shard)
        writer.write_shard(shard, rng.integers(0, 8, (rows.stop - rows.start, 2)))
    writer.finish()
    return directory


def open_loader(directory):
    data = data_config({"a": directory}, 64, num_frames=1, max_bad_fraction=1.0, a__label_set="z")
    return Loader(data, fields=FIELDS, global_batch=119, seed=0)


def examples(loader, steps):
    """{frame row: what the loader gives for it} of all examples of these steps."""
    found = {}
    for step in steps:
        plan = loader.plan(step)
        plan.fill(0, plan.size)
        batch = plan.finish()
        for i, row in enumerate(plan.rows[:, 0].tolist()):
            found[row] = [np.array(batch[name][i]) for name in FIELDS]
    return found


def damage(path, kind, rng):
    """Damages a file in place; returns its former content."""
    before = path.read_bytes()
    place, length = int(rng.integers(len(before))), int(rng.integers(1, 200))
    after = bytearray(before)
    if kind == "flip":
        after[place] ^= 1 << int(rng.integers(8))
    elif kind == "truncate":
        del after[place:]
    elif kind == "zero":
        after[place : place + length] = bytes(len(after[place : place + length]))
    elif kind == "cut out":
        del after[place : place + length]
    elif kind == "empty":
        after.clear()
    if kind == "delete":
        path.unlink()
    else:
        path.write_bytes(after)
    return before


def check(loader, good, steps):
    """Every example is that of its row; returns the reports of those that were replaced."""
    for row, values in examples(loader, steps).items():
        for name, value, expected in zip(FIELDS, values, good[row], strict=True):
            assert np.array_equal(value, expected), f"{name} of row {row}"
    return [bad.file for bad in loader.bad_examples]


@pytest.fixture
def quiet():
    """Tens of thousands of warnings are most of the time."""
    logger = logging.get_absl_logger()
    before = logger.level  # of verbosity absl has no "unset", and later tests would see no INFO
    logger.setLevel("ERROR")
    yield
    logger.setLevel(before)


@pytest.mark.slow
def test_damage_anywhere_is_harmless_or_named_and_never_a_wrong_example(labelled, quiet):
    """640 faults in shards, index and labels, half of the shards' under an open loader: what is
    given is what was written, and what is not given is reported with the name of the file."""
    with open_loader(labelled) as loader:
        index, steps = loader.mixture.corpora[0].index, range(2)
        good = examples(loader, range(4))  # an epoch
        assert len(good) == 476 and not loader.bad_examples
    sidecars = [*labelled.glob("index/*/*/*"), *labelled.glob("labels/z/*")]
    assert len(sidecars) == 15
    rng = np.random.default_rng(7)
    often, rarely = ("flip", "zero", "truncate", "cut out"), ("empty", "delete")
    missing = ("shards are announced", "has no index", "no label set 'z'")
    outcomes = {"harmless": 0, "replaced": 0, "refused": 0}
    for number in range(PLACES):
        kind = str(rng.choice(often if rng.random() < 0.9 else rarely))
        in_shard = number % 2 == 0
        path = index.shards[number // 2 % 2] if in_shard else sidecars[number % len(sidecars)]
        running = open_loader(labelled) if in_shard and number % 4 == 0 else None
        before = damage(path, kind, rng)
        try:
            with running or open_loader(labelled) as loader:
                bad = check(loader, good, steps)
        except (ValueError, OSError) as error:
            gone = kind == "delete" and any(text in str(error) for text in missing)
            assert path.name in str(error) or gone, (path, kind, error)
            outcomes["refused"] += 1
        else:
            assert set(bad) <= {str(path)}, (path, kind)
            outcomes["replaced" if bad else "harmless"] += 1
        finally:
            path.write_bytes(before)
    with open_loader(labelled) as loader:
        assert not check(loader, good, steps)
    assert outcomes["refused"] > 350 and outcomes["replaced"] > 50, outcomes
