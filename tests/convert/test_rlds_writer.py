"""RldsWriter: what TFDS and rlds read back, atomic splits, locks, full disks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from data_pipelines import storage
from data_pipelines.rlds import schema, shards, tfrecord, writer

FLAGS = ("is_first", "is_last", "is_terminal")


def make_spec(**changes):
    values = dict(image_shape=(16, 24, 3), action_dim=3, language=True, source="test", fps=5.0)
    return schema.EpisodeSpec(**(values | changes))


def make_episode(number, steps=4, actions=True, **changes):
    rng = np.random.default_rng(number)
    images = [
        simplejpeg.encode_jpeg(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8), quality=90)
        for _ in range(steps)
    ]
    values = dict(
        images=images,
        actions=rng.normal(size=(steps, 3)).astype(np.float32) if actions else None,
        instruction=f"do task {number}, größer" if number % 2 == 0 else "",
        episode_id=f"e{number}",
        file_path=f"f/{number}",
        camera="front",
        terminal=number != 1,
    )
    return schema.Episode(**(values | changes))


def write(directory, episodes, **changes):
    values = dict(name="toys", spec=make_spec())
    with writer.RldsWriter(directory, **(values | changes)) as out:
        for episode in episodes:
            out.write(episode)


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def tfds():
    return pytest.importorskip("tensorflow_datasets", reason="pip install tensorflow-datasets")


def read_with_tfds(tfds, directory, split):
    builder = tfds.builder_from_directory(str(directory))
    decoders = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    config = tfds.ReadConfig(interleave_cycle_length=1)
    return builder, builder.as_dataset(split=split, decoders=decoders, read_config=config)


@pytest.mark.slow
def test_tfds_reads_the_same_episodes(tmp_path, tfds):
    episodes = [make_episode(i, steps=2 + i) for i in range(6)]
    # Small shards, so that there are several.
    write(tmp_path, episodes, shard_bytes=9000)
    assert len(shards.find_shards(tmp_path, "train")) > 2
    builder, dataset = read_with_tfds(tfds, tmp_path, "train")
    assert (builder.name, str(builder.version)) == ("toys", "1.0.0")
    assert builder.info.splits["train"].num_examples == 6
    found = list(dataset)
    assert len(found) == 6
    for episode, item in zip(episodes, found, strict=True):
        steps = list(item["steps"].as_numpy_iterator())
        assert [step["observation"]["image"] for step in steps] == episode.images
        np.testing.assert_array_equal([step["action"] for step in steps], episode.actions)
        texts = {step["language_instruction"].decode() for step in steps}
        assert texts == {episode.instruction}
        flags = np.array([[step[key] for key in FLAGS] for step in steps])
        wanted = np.zeros_like(flags)
        wanted[0, 0], wanted[-1, 1], wanted[-1, 2] = True, True, episode.terminal
        np.testing.assert_array_equal(flags, wanted)
        assert all(step["reward"] == 0 and step["discount"] == 1 for step in steps)
        metadata = {key: value.numpy() for key, value in item["episode_metadata"].items()}
        assert metadata == {
            "episode_id": episode.episode_id.encode(),
            "source": b"test",
            "file_path": episode.file_path.encode(),
            "camera": b"front",
            "fps": 5.0,
            "has_action": True,
            "has_language": bool(episode.instruction),
        }
    # Without SkipDecoding TFDS gives pixels of the declared shape.
    pixels = next(iter(next(iter(builder.as_dataset(split="train")))["steps"]))
    assert pixels["observation"]["image"].shape == (16, 24, 3)


def test_features_json_is_what_tfds_itself_writes(tmp_path, tfds):
    f = tfds.features
    scalar = {key: f.Scalar(np.bool_) for key in FLAGS}
    wanted = f.FeaturesDict(
        {
            "steps": f.Dataset(
                {
                    "observation": {"image": f.Image(shape=(16, 24, 3), encoding_format="jpeg")},
                    "action": f.Tensor(shape=(3,), dtype=np.float32),
                    "language_instruction": f.Text(),
                    "reward": f.Scalar(np.float32),
                    "discount": f.Scalar(np.float32),
                    **scalar,
                }
            ),
            "episode_metadata": {
                "episode_id": f.Text(),
                "source": f.Text(),
                "file_path": f.Text(),
                "camera": f.Text(),
                "fps": f.Scalar(np.float32),
                "has_action": f.Scalar(np.bool_),
                "has_language": f.Scalar(np.bool_),
                "place": f.Text(),
                "height": f.Scalar(np.int64),
            },
        }
    )
    wanted.save_config(str(tmp_path))
    theirs = json.loads((tmp_path / "features.json").read_text())
    assert writer.features_json(make_spec(extras={"place": "string", "height": "int64"})) == theirs


def test_corpora_without_actions_and_with_extras(tmp_path, tfds):
    spec = make_spec(action_dim=0, language=False, extras={"place": "string", "height": "int64"})
    episode = make_episode(1, actions=False, extras={"place": "table", "height": 480})
    write(tmp_path, [episode], spec=spec)
    _, dataset = read_with_tfds(tfds, tmp_path, "train")
    (item,) = dataset
    assert "action" not in next(iter(item["steps"]))
    assert item["episode_metadata"]["place"].numpy() == b"table"
    assert item["episode_metadata"]["height"].numpy() == 480
    assert not item["episode_metadata"]["has_action"].numpy()


@pytest.mark.slow
def test_rlds_transformations_work(tmp_path, tfds):
    rlds = pytest.importorskip("rlds", reason="pip install rlds==0.1.6")
    episodes = [make_episode(i, steps=3 + i) for i in range(3)]
    write(tmp_path, episodes)
    dataset = tfds.builder_from_directory(str(tmp_path)).as_dataset(split="train")
    lengths = [int(rlds.transformations.episode_length(item["steps"])) for item in dataset]
    assert lengths == [3, 4, 5]
    ends = [rlds.transformations.final_step(item["steps"])["is_last"] for item in dataset]
    assert all(bool(end) for end in ends)
    pairs = rlds.transformations.map_nested_steps(
        dataset, lambda step: {"a": step["action"], "last": step["is_last"]}
    )
    windows = [
        window
        for item in pairs
        for window in rlds.transformations.batch(
            item["steps"], size=2, shift=1, drop_remainder=True
        )
    ]
    assert len(windows) == 2 + 3 + 4
    np.testing.assert_array_equal(windows[0]["a"], episodes[0].actions[:2])
    cut = rlds.transformations.truncate_after_condition(
        next(iter(dataset))["steps"], lambda step: step["is_last"]
    )
    assert len(list(cut)) == 3


@pytest.mark.slow
def test_two_splits_share_a_directory(tmp_path, tfds):
    write(tmp_path, [make_episode(0), make_episode(1)])
    before = files_of(tmp_path)
    write(tmp_path, [make_episode(2)], split="val")
    after = files_of(tmp_path)
    assert {name for name in before if after[name] != before[name]} == {"dataset_info.json"}
    for split, names in (("train", ["e0", "e1"]), ("val", ["e2"])):
        _, dataset = read_with_tfds(tfds, tmp_path, split)
        ids = [item["episode_metadata"]["episode_id"].numpy().decode() for item in dataset]
        assert ids == names


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, FileExistsError, "already holds a finished split 'train' of 2 episodes"),
        ({"split": "val", "name": "other"}, ValueError, "is of dataset 'toys' 1.0.0"),
        ({"split": "val", "version": "2.0.0"}, ValueError, "is of dataset 'toys' 1.0.0"),
        ({"split": "val", "spec": make_spec(action_dim=2)}, ValueError, "same features"),
        ({"split": "a-b"}, ValueError, "split='a-b'"),
        ({"name": "1x"}, ValueError, "name='1x'"),
        ({"version": "1"}, ValueError, "version='1'"),
        ({"shard_bytes": 0}, ValueError, "shard_bytes=0"),
    ],
)
def test_a_finished_corpus_is_not_touched_by_a_wrong_writer(tmp_path, changes, error, message):
    write(tmp_path, [make_episode(0), make_episode(1)])
    before = files_of(tmp_path)
    with pytest.raises(error, match=message):
        write(tmp_path, [make_episode(3)], **changes)
    assert files_of(tmp_path) == before


def test_an_exception_publishes_nothing(tmp_path):
    write(tmp_path, [make_episode(0)])
    before = files_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        with writer.RldsWriter(
            tmp_path, name="toys", spec=make_spec(), split="val", shard_bytes=1
        ) as out:
            out.write(make_episode(1))
            out.write(make_episode(2))
            assert not (tmp_path / "toys-val.tfrecord-00000-of-00001").exists()
            raise KeyboardInterrupt
    assert files_of(tmp_path) == before
    with pytest.raises(ValueError, match="closed"):
        out.write(make_episode(3))


def test_a_bad_episode_or_an_empty_split_publishes_nothing(tmp_path):
    with pytest.raises(schema.SchemaError, match="e1.*image_shape"):
        write(tmp_path / "a", [make_episode(0), make_episode(1, images=make_images(8, 8))])
    with pytest.raises(ValueError, match="has no episode"):
        write(tmp_path / "b", [])
    assert not list((tmp_path / "a").iterdir()) and not list((tmp_path / "b").iterdir())


def make_images(height, width):
    return [simplejpeg.encode_jpeg(np.zeros((height, width, 3), np.uint8))] * 4


KILLED = """
import sys, time
sys.path[:0] = [{root!r}, {here!r}]
import test_rlds_writer as t
from data_pipelines.rlds import writer
out = writer.RldsWriter(sys.argv[1], name="toys", spec=t.make_spec(), split="val", shard_bytes=1)
out.write(t.make_episode(5))
out.write(t.make_episode(6))
print("written", flush=True)
time.sleep(60)
"""


@pytest.fixture
def running_writer(tmp_path):
    """A process that has written two episodes and does not close."""
    here = Path(__file__).parent
    code = KILLED.format(root=str(here.parents[1]), here=str(here))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"written\n"
    yield process
    process.kill()
    process.wait()


def test_one_writer_per_directory_and_leftovers_of_a_killed_one(tmp_path, running_writer):
    with pytest.raises(storage.LockedError, match="being written by another process"):
        write(tmp_path, [make_episode(0)])
    running_writer.kill()
    running_writer.wait()
    leftovers = {path.name for path in tmp_path.glob("*.incomplete")}
    assert leftovers == {f"toys-val.tfrecord-0000{i}.incomplete" for i in range(2)}
    # Another split leaves them, the same split removes them.
    write(tmp_path, [make_episode(0)])
    assert {path.name for path in tmp_path.glob("*.incomplete")} == leftovers
    write(tmp_path, [make_episode(1)], split="val")
    assert not list(tmp_path.glob("*.incomplete"))
    (record,) = tfrecord.read_payloads(shards.find_shards(tmp_path, "val")[0])
    features = tfrecord.parse_example(record)
    assert features[schema.EPISODE_ID].byte_items(record) == [b"e1"]


def test_shards_that_no_info_lists_are_named(tmp_path):
    write(tmp_path, [make_episode(0)])
    (tmp_path / writer.INFO_FILE).unlink()
    with pytest.raises(FileExistsError, match=r"toys-train.tfrecord-00000-of-00001.*Delete"):
        write(tmp_path, [make_episode(0)])


def test_full_disk(tmp_path):
    write(tmp_path, [make_episode(0)])
    before = files_of(tmp_path)
    # /dev/full takes writes and fails like a full disk when they reach it.
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    shard = writer.ShardFile(full)
    with pytest.raises(writer.NoSpaceError, match="no space left while writing .*full.*intact"):
        shard.append(b"x" * (1 << 20))
        shard.close()
    shard.discard()
    assert files_of(tmp_path) == before and Path("/dev/full").exists()


def test_full_disk_aborts_the_split(tmp_path, monkeypatch):
    write(tmp_path, [make_episode(0)])
    before = files_of(tmp_path)
    original, calls = tfrecord.write_record, []

    def full(file, payload):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return original(file, payload)

    monkeypatch.setattr(tfrecord, "write_record", full)
    with pytest.raises(writer.NoSpaceError):
        write(tmp_path, [make_episode(i) for i in range(4)], split="val", shard_bytes=1)
    assert files_of(tmp_path) == before


def test_rollback_takes_records_back(tmp_path):
    shard = writer.ShardFile(tmp_path / "s")
    shard.append(b"one")
    mark = shard.mark()
    shard.append(b"two" * 1000)
    shard.rollback(mark)
    shard.append(b"three")
    done = shard.close()
    assert list(tfrecord.read_payloads(done.path)) == [b"one", b"three"]
    assert (done.num_episodes, done.payload_bytes) == (2, 8)
    assert shard.size == done.path.stat().st_size


@pytest.mark.slow
def test_writing_and_converting_load_no_tensorflow():
    code = (
        "import sys, data_pipelines.rlds.writer, data_pipelines.convert.video\n"
        "import data_pipelines.checks.inspection, lapa_jax.report.corpus\n"
        "import lapa_jax.verbs.data\n"
        "assert not {'tensorflow', 'torch', 'jax', 'matplotlib'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
