"""The index against what was written, stale and damaged corpora, and real data."""

import numpy as np
import pytest
from shards import LENGTHS, write_corpus

from data_pipelines import storage
from data_pipelines.index import StaleIndexError, build, build_index, load_index
from data_pipelines.rlds import tfrecord
from data_pipelines.rlds.shards import find_shards
from data_pipelines.sidecar import SidecarError


def test_index_finds_every_frame_action_and_instruction(tmp_path):
    episodes = write_corpus(tmp_path, shards=3)
    index = load_index(tmp_path, split="train")
    assert index.num_frames == sum(LENGTHS) and index.num_episodes == len(LENGTHS)
    assert index.image_size == (16, 16)
    images = [jpeg for episode in episodes for jpeg in episode.images]
    for row, jpeg in enumerate(images):
        path = index.shards[index.shard_of_episode[index.episode_of_rows(row)]]
        start = int(index.frame_offset[row])
        assert path.read_bytes()[start : start + int(index.frame_length[row])] == jpeg
    np.testing.assert_array_equal(index.actions, np.concatenate([e.actions for e in episodes]))
    for number, episode in enumerate(episodes):
        assert index.instruction(number) == episode.instruction
        assert index.fps[number] == episode.fps
        assert index.episode_length[number] == len(episode.images)
        found = index.metadata(number)
        assert found["episode_id"] == episode.episode_id and found["camera"] == "front"
    rows = [index.rows_of_shard(shard) for shard in range(3)]
    assert [rows[0].start, rows[0].stop, rows[1].stop, rows[2].stop] == [0, 11, 21, 32]


@pytest.mark.slow
def test_workers_give_the_same_index(tmp_path):
    write_corpus(tmp_path, shards=3, index=False)
    one = load_index(tmp_path, sidecar_dir=_built(tmp_path, tmp_path / "one", workers=1))
    two = load_index(tmp_path, sidecar_dir=_built(tmp_path, tmp_path / "two", workers=2))
    assert one.hash == two.hash
    np.testing.assert_array_equal(one.frame_offset, two.frame_offset)


def _built(directory, sidecar_dir, **options):
    build_index(directory, sidecar_dir=sidecar_dir, progress=False, **options)
    return sidecar_dir


def test_a_stopped_build_continues_and_a_changed_shard_is_read_again(tmp_path, monkeypatch):
    write_corpus(tmp_path, shards=3, index=False)
    shards = sorted(tmp_path.glob("*.tfrecord*"))
    good = shards[2].read_bytes()
    shards[2].write_bytes(good[:-3])
    with pytest.raises(tfrecord.RecordError, match="00002-of-00003, record 1, .*truncated"):
        build_index(tmp_path, progress=False)
    shards[2].write_bytes(good)
    read = []
    original = build.read_shard
    monkeypatch.setattr(
        build,
        "read_shard",
        lambda path, wanted: read.append(path.name) or original(path, wanted),
    )
    build_index(tmp_path, progress=False)
    assert read == [shards[2].name]
    assert load_index(tmp_path).num_frames == sum(LENGTHS)
    assert not list((tmp_path / "index").rglob("*incomplete*"))


def test_stale_index_names_the_command(tmp_path):
    write_corpus(tmp_path)
    shard = sorted(tmp_path.glob("*.tfrecord*"))[1]
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StaleIndexError, match=f"{shard.name} changed .*head.*lapa data index"):
        load_index(tmp_path)


def test_damaged_sidecar_is_refused(tmp_path):
    write_corpus(tmp_path)
    path = tmp_path / "index/image/train/actions.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StaleIndexError, match=r"actions.npy is damaged.*lapa data index"):
        load_index(tmp_path)


def test_a_part_that_is_damaged_before_they_are_joined_is_read_again(tmp_path):
    """Each byte of its archive in turn: the part is as it was, or it is not taken."""
    write_corpus(tmp_path, shards=1)
    shards = find_shards(tmp_path, "train")
    keys = dict(image_key="image", action_key="action", instruction_key="language_instruction")
    settings = {"split": "train", **keys, "state_key": "", "fps": 0.0, "exclude": []}
    (job,) = build._jobs(tmp_path, shards, tmp_path / "parts", settings)
    build._write_part(job)
    whole, data = build._load_part(job), job.target.read_bytes()
    for place in [*range(0, len(data), 61), *range(len(data) - 700, len(data), 11)]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        job.target.write_bytes(damaged)
        found = build._load_part(job)
        assert found is None or all(np.array_equal(found[name], whole[name]) for name in whole)
    for length in (0, len(data) // 2, len(data) - 1):
        job.target.write_bytes(data[:length])
        assert build._load_part(job) is None


def test_an_index_file_that_is_gone_is_named(tmp_path):
    write_corpus(tmp_path / "corpus")
    files = sorted((tmp_path / "corpus/index/image/train").glob("*.npy"))
    assert len(files) > 10
    for path in files:
        path.rename(tmp_path / path.name)
        with pytest.raises(SidecarError, match=f"{path.name} is missing: delete .*image/train and"):
            load_index(tmp_path / "corpus")
        (tmp_path / path.name).rename(path)


def test_other_keys_than_the_index_was_built_with(tmp_path):
    write_corpus(tmp_path)
    with pytest.raises(StaleIndexError, match="built with action_key 'action'.*'delta'"):
        load_index(tmp_path, action_key="delta")
    with pytest.raises(FileNotFoundError, match="no index of image_key 'image_0'.*built:.*'image'"):
        load_index(tmp_path, image_key="image_0")


def test_missing_things_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        build_index(tmp_path / "nowhere", progress=False)
    with pytest.raises(FileNotFoundError, match="no TFRecord shards.*splits found: none"):
        build_index(tmp_path, progress=False)
    corpus = tmp_path / "inner"
    write_corpus(corpus, index=False)
    with pytest.raises(FileNotFoundError, match=r"'val'; splits found: \['train'\]"):
        build_index(corpus, split="val", progress=False)
    with pytest.raises(FileNotFoundError, match=f"shards of 'train' lie in {corpus}"):
        build_index(tmp_path, progress=False)
    with pytest.raises(tfrecord.RecordError, match=r"image_key is 'wrist'.*images: image \(jpeg\)"):
        build_index(corpus, image_key="wrist", progress=False)
    sorted(corpus.glob("*.tfrecord*"))[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: \[0\]"):
        build_index(corpus, progress=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps/action": np.zeros(7, np.float32)}, "2 images but 7 values of steps/action"),
        ({"steps/action": np.array([1, np.nan], np.float32)}, "step 1, dimension 0 is nan"),
        ({"steps/is_first": [1, 0, 0]}, "2 images but 3 values of steps/is_first"),
        ({"steps/language_instruction": ["a", "b"]}, "changes within the episode"),
        ({"steps/language_instruction": [b"\xff", b"\xff"]}, "not UTF-8"),
        ({"steps/language_instruction": [1, 2]}, "holds int64, not text"),
        ({"steps/observation/image": [b"\x89PNG..", b""]}, "is a PNG.*lapa data convert"),
    ],
)
def test_wrong_records_are_named(tmp_path, change, message):
    features = {"steps/observation/image": [b"\xff\xd8", b"\xff\xd8"], **change}
    with open(tmp_path / "toy-train.tfrecord-00000-of-00001", "wb") as file:
        tfrecord.write_record(file, tfrecord.encode_example(features))
    with pytest.raises(tfrecord.RecordError, match=f"record 0, byte offset 12: .*{message}"):
        build_index(tmp_path, progress=False)


def test_lost_records_are_noticed_by_dataset_info(tmp_path):
    write_corpus(tmp_path, shards=1, index=False)
    (tmp_path / "dataset_info.json").write_text(
        '{"splits": [{"name": "train", "shardLengths": ["6"]}]}'
    )
    build_index(tmp_path, progress=False)
    shard = next(tmp_path.glob("*.tfrecord*"))
    data = shard.read_bytes()
    last = list(tfrecord.iterate_records(data))[-1]
    shard.write_bytes(data[: last[1] - tfrecord.HEADER_BYTES])
    with pytest.raises(tfrecord.RecordError, match="has 5 records, dataset_info.json announces 6"):
        build_index(tmp_path, progress=False)


def test_excluded_episodes_are_left_out_and_change_the_hash(tmp_path):
    episodes = write_corpus(tmp_path, shards=1)
    whole = load_index(tmp_path)
    name = whole.shards[0].name
    build_index(tmp_path, progress=False, exclude=[(name, 1)])
    index = load_index(tmp_path)
    assert index.hash != whole.hash
    assert index.episode_length.tolist() == [7, 9, 1, 6, 5]
    np.testing.assert_array_equal(index.actions[7:16], episodes[2].actions)
    with pytest.raises(ValueError, match="no shards of"):
        build_index(tmp_path, progress=False, exclude=[("other", 0)])


def test_hash_does_not_depend_on_the_folder(tmp_path):
    write_corpus(tmp_path / "a")
    write_corpus(tmp_path / "b")
    write_corpus(tmp_path / "c", seed=1)
    hashes = [load_index(tmp_path / name).hash for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
@pytest.mark.real_data
def test_real_bridge_data(tmp_path, real_data):
    import tensorflow as tf

    directory = real_data / "bridge_dataset/1.0.0"
    build_index(directory, sidecar_dir=tmp_path, image_key="image_0", progress=False)
    index = load_index(directory, sidecar_dir=tmp_path, image_key="image_0")
    assert (index.num_episodes, index.num_frames, index.action_dim) == (25, 250, 7)
    assert np.isnan(index.fps).all()
    for number, raw in enumerate(tf.data.TFRecordDataset(str(index.shards[0])).take(3)):
        features = tf.train.Example.FromString(raw.numpy()).features.feature
        rows = slice(number * 10, number * 10 + 10)
        data = index.shards[0].read_bytes()
        jpegs = [
            data[int(start) : int(start) + int(size)]
            for start, size in zip(index.frame_offset[rows], index.frame_length[rows], strict=True)
        ]
        assert jpegs == list(features["steps/observation/image_0"].bytes_list.value)
        np.testing.assert_array_equal(
            index.actions[rows].ravel(), features["steps/action"].float_list.value
        )
        assert (
            index.instruction(number).encode()
            == features["steps/language_instruction"].bytes_list.value[0]
        )


def test_two_builds_of_one_index_refuse_each_other(tmp_path):
    write_corpus(tmp_path, index=False)
    with storage.Lock(tmp_path / "index" / "image" / ".train.lock", "it"):
        with pytest.raises(
            storage.LockedError, match="index .* is being written by another process"
        ):
            build_index(tmp_path, progress=False)
    assert build_index(tmp_path, progress=False).is_dir()
