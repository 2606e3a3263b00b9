"""LeRobot v2.1 and v3.0: shared videos, actions, states, tasks, what disagrees."""

import json
import shlex
from pathlib import Path

import lerobot_files as lerobot
import numpy as np
import pyarrow.parquet as pq
import pytest
import rlds_files
import tensorflow_datasets as tfds
import video_files as files
from corpora import read

from data_pipelines.convert import conversion, decode
from data_pipelines.convert.lerobot import Options, convert_lerobot
from lapa_jax.verbs import data

GOLDEN = Path(__file__).parents[1] / "golden"
LENGTHS = [5, 3, 6, 4, 7]
WRITERS = {"v2.1": lerobot.write_v2, "v3.0": lerobot.write_v3}


def parts():
    return [lerobot.columns(i, length) for i, length in enumerate(LENGTHS)]


def convert(root, out, **changes):
    values = dict(size=(16, 16), camera=lerobot.CAMERA, progress=False, name="robot")
    return convert_lerobot(Options(root=root, out=out, **(values | changes)))


def check_episode(item, number, length):
    assert files.frame_numbers(item["image"]) == list(range(length))
    wanted = lerobot.actions(number, length)
    np.testing.assert_array_equal(item["action"], wanted)
    np.testing.assert_array_equal(item["state"], wanted[:, :2] + 1)
    assert item["fps"][0] == lerobot.FPS and item["camera"] == [lerobot.CAMERA.encode()]


@pytest.mark.slow
@pytest.mark.parametrize("version", WRITERS)
def test_episodes_come_with_frames_actions_states_and_tasks(tmp_path, version):
    root = WRITERS[version](tmp_path / "set", parts())
    report = convert(root, tmp_path / "out", per_shard=2)
    found = read(tmp_path / "out")
    assert list(found) == [f"episode_{i:06d}" for i in range(5)]
    for number, item in enumerate(found.values()):
        check_episode(item, number, LENGTHS[number])
        assert item["language_instruction"] == lerobot.TASKS[number % 3].strip()
    assert (report.found, report.episodes, report.frames, report.bad) == (5, 5, 25, [])
    builder = tfds.builder_from_directory(str(tmp_path / "out"))
    step = next(iter(next(iter(builder.as_dataset(split="train")))["steps"]))
    assert step["observation"]["state"].shape == (2,) and step["action"].shape == (3,)


@pytest.mark.parametrize("folder", ["lerobot_v2", "lerobot_v3"])
def test_what_the_package_itself_wrote(tmp_path, folder):
    """Written by LeRobotDataset.create, add_frame and save_episode of lerobot 0.3.3 (v2.1) and
    0.4.4 (v3.0, all in one file): three episodes as AV1, frame i of level 10 + 8 i."""
    options = Options(root=GOLDEN / folder, out=tmp_path / "out", size=(16, 16), progress=False)
    report = convert_lerobot(options)
    found = read(tmp_path / "out")
    assert (report.found, report.frames, report.bad) == (3, 24, [])
    texts = ["push the block", "open the drawer", "push the block"]
    for number, (item, length) in enumerate(zip(found.values(), [5, 12, 7], strict=True)):
        check_episode(item, number, length)
        assert item["language_instruction"] == texts[number]


def test_a_shared_video_is_read_once_from_start_to_end(tmp_path, monkeypatch):
    root, opened = lerobot.write_v3(tmp_path / "set", parts(), per_video=5), []
    original = decode.read_frames

    def reads(path, settings):
        opened.append(path.name)
        yield from original(path, settings)

    monkeypatch.setattr(decode, "read_frames", reads)
    assert convert(root, tmp_path / "out").episodes == 5
    assert opened == ["file-000.mp4"]


def test_each_camera_is_a_corpus_of_the_same_episodes(tmp_path):
    root = lerobot.write_v3(tmp_path / "set", parts())
    with pytest.raises(ValueError, match=r"--camera '': .* the cameras .*top.*wrist"):
        convert(root, tmp_path / "out", camera="")
    report = convert(root, tmp_path / "out", camera="observation.images.wrist")
    found = read(tmp_path / "out")
    assert [len(item["image"]) for item in found.values()] == LENGTHS
    assert list(found) == [f"episode_{i:06d}" for i in range(5)]
    assert report.notes["other cameras"] == lerobot.CAMERA


def test_a_task_that_changes_cuts_the_episode(tmp_path):
    found = parts()
    found[2] = lerobot.columns(2, 6, tasks=[1, 1, 1, 0, 0, 2])
    report = convert(lerobot.write_v2(tmp_path / "set", found), tmp_path / "out")
    episodes = read(tmp_path / "out")
    first, second = episodes["episode_000002#0000"], episodes["episode_000002#0001"]
    assert first["language_instruction"] == "open the drawer"
    assert second["language_instruction"] == "push the block"
    assert files.frame_numbers(second["image"]) == [3, 4]
    assert second["action"][:, 0].tolist() == [203, 204]
    assert [name for name, _ in report.short] == ["episode_000002#0002"]


@pytest.mark.parametrize("version", WRITERS)
def test_what_disagrees_is_named_and_left_out(tmp_path, version):
    found = parts()
    found[1]["action"][2] = np.array([1.0, np.nan, 0], np.float32)
    found[3] = lerobot.columns(3, 4, tasks=[9] * 4)
    found[4]["timestamp"] = found[4]["timestamp"] * 2
    frames = [5, 3, 7, 4, 7]  # one more in episode 2 than it has rows
    root = WRITERS[version](tmp_path / "set", found, frames=frames)
    with pytest.raises(conversion.TooManyBadError, match="of 5 episodes of .*set cannot"):
        convert(root, tmp_path / "out")
    report = convert(root, tmp_path / "out", max_bad_fraction=0.9)
    assert [name for name, _ in report.bad] == [f"episode_{i:06d}" for i in (1, 2, 3, 4)]
    action, count, task, time = (reason for _, reason in report.bad)
    assert "the action of step 2, dimension 1 is nan" in action
    assert "6 steps by the metadata, 6 rows in data/" in count and "7 frames in videos/" in count
    assert task == "task 9 is not in the list of tasks"
    assert "step 1 is at " in time and "by its timestamp, its frame at" in time
    survivors = read(tmp_path / "out")
    assert list(survivors) == ["episode_000000"]
    check_episode(survivors["episode_000000"], 0, 5)


def test_missing_rows_and_files_are_named(tmp_path):
    root = lerobot.write_v3(tmp_path / "set", parts())
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    pq.write_table(table.slice(0, table.num_rows - 1), root / "data/chunk-000/file-000.parquet")
    (root / f"videos/{lerobot.CAMERA}/chunk-000/file-002.mp4").unlink()
    (root / "data/chunk-000/file-001.parquet").write_bytes(b"no parquet")
    report = convert(root, tmp_path / "out", max_bad_fraction=0.9)
    bad = dict(report.bad)
    assert "6 steps by the metadata, 5 rows in data/chunk-000/file-000" in bad["episode_000002"]
    assert "file-001.parquet: " in bad["episode_000003"]
    assert bad["episode_000004"].endswith("/chunk-000/file-002.mp4 is missing")
    assert list(read(tmp_path / "out")) == ["episode_000000", "episode_000001"]


@pytest.mark.parametrize("broken", [8, 10])  # the first frame of episode 2, one within
def test_a_video_that_breaks_spoils_only_what_comes_after(tmp_path, monkeypatch, broken):
    root = lerobot.write_v3(tmp_path / "set", parts(), per_video=5)
    original = decode.read_frames

    def breaks(path, settings):
        for number, frame in enumerate(original(path, settings)):
            if number == broken:
                raise decode.VideoError(f"frame {number} is corrupt")
            yield frame

    monkeypatch.setattr(decode, "read_frames", breaks)
    report = convert(root, tmp_path / "out", max_bad_fraction=0.9)
    assert report.bad == [(f"episode_{i:06d}", f"frame {broken} is corrupt") for i in (2, 3, 4)]
    assert list(read(tmp_path / "out")) == ["episode_000000", "episode_000001"]


def test_a_stopped_conversion_continues_to_the_same_files(tmp_path, monkeypatch):
    root, out = lerobot.write_v3(tmp_path / "set", parts()), tmp_path / "out"
    convert(root, tmp_path / "whole", per_shard=1)
    original = decode.read_frames

    def stops(path, settings):
        if path.name == "file-001.mp4":
            raise KeyboardInterrupt
        return original(path, settings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decode, "read_frames", stops)
        convert(root, out, per_shard=1)
    report = convert(root, out, per_shard=1)
    assert (report.resumed_parts, report.shards, report.episodes) == (1, 3, 5)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_foreign_versions_and_keys_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a LeRobot data set"):
        convert(tmp_path, tmp_path / "out")
    root = lerobot.write_v2(tmp_path / "set", parts()[:1])
    with pytest.raises(ValueError, match="--action_key 'act': act is not there .*; the features"):
        convert(root, tmp_path / "out", action_key="act")
    with pytest.raises(ValueError, match="does not hold numbers"):
        convert(root, tmp_path / "out", state_key=lerobot.CAMERA)
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": "v1.6"}))
    with pytest.raises(ValueError, match="codebase_version is 'v1.6'"):
        convert(root, tmp_path / "out")


ROWS = 8  # two episodes of four
PICTURES = [rlds_files.jpeg(step, 16, 16) for step in range(ROWS)]
OF_COLUMNS = {
    "image": (("image", 16, 16, 3), [{"bytes": one, "path": "a.png"} for one in PICTURES]),
    "wrist": (("image", 16, 16, 3), PICTURES[::-1]),
    "depth": (("image", 16, 16, 1), [b"\x89PNG\r\n\x1a\n" + bytes(16) + b"\x10\0"] * ROWS),
    "elsewhere": (("image", 16, 16, 3), [{"bytes": None, "path": "a.png"}] * ROWS),
    "action.arm": (("float64", 2), [[step / 2, 0.1] for step in range(ROWS)]),
    "action.grip": (("int64", 1), [step % 2 for step in range(ROWS)]),
    "action.flags": (("bool", 2), [[True, False]] * ROWS),
    "action.grid": (("float32", 2, 2), [[[1.0, 2.0], [3.0, 4.0]]] * ROWS),
    "action.large": (("int64", 2), [[2**24, -(2**25)]] * ROWS),
    "action.huge": (("int64", 1), [[2**40 + 1]] * ROWS),
    "action.far": (("float64", 1), [[1e300]] * ROWS),
    "action.ragged": (("float32", 3), [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]] * 4),
    "said": (("string", 1), ["", "wave ", "wave", "wave", None, "stop", "stop", "stop"]),
    "ways": (("string", 2), [["", "a"], ["b", "a"]] * 4),
}


def from_columns(root, out, *, without=(), tasks=True, **changes):
    kept = {name: one for name, one in OF_COLUMNS.items() if name not in without}
    features, columns = ({name: one[i] for name, one in kept.items()} for i in (0, 1))
    lerobot.write_columns(root, features, columns, tasks)
    values = dict(camera="image", action_key="", max_bad_fraction=1.0) | changes
    return convert(root, out, **values)


@pytest.mark.parametrize(
    ("selected", "wanted"),
    [
        ("", None),
        ("action.arm", [[step / 2, 0.1] for step in range(4)]),
        ("action/arm[:1],action.grip", [[step / 2, step % 2] for step in range(4)]),
        ("action.flags", [[1, 0]] * 4),
        ("action.grid", [[1, 2, 3, 4]] * 4),
        ("action.large", [[2**24, -(2**25)]] * 4),
        ("action.huge", "action.huge holds 1099511627777, which float32 cannot hold"),
        ("action.far", "action.far holds 1e.300, which float32 cannot hold"),
        ("action.ragged", "action.ragged has 2 to 4 values a row, not as many"),
        ("action", r"action is a group: name what is wanted of \['action.arm', "),
        ("image", "image does not hold numbers"),
        ("nothing", r"nothing is not there .*action.grid \(float32\[2,2\]\).*task \(text\)"),
    ],
)
def test_numbers_of_columns(tmp_path, selected, wanted):
    """Pictures lie in the parquet files, and there need be no actions."""
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted):
            from_columns(tmp_path / "set", tmp_path / "out", action_key=selected)
        return
    report = from_columns(tmp_path / "set", tmp_path / "out", action_key=selected)
    first, second = read(tmp_path / "out").values()
    assert first["image"] == PICTURES[:4] and second["image"] == PICTURES[4:]
    assert ("action" in first) == (wanted is not None) and "state" not in first
    if wanted is not None:
        np.testing.assert_array_equal(first["action"], np.float32(wanted))
    assert first["language_instruction"] == "push the block" and not report.bad
    assert "said" in report.passed_over["fields"]


def test_texts_and_cameras_of_columns(tmp_path):
    report = from_columns(
        tmp_path / "set",
        tmp_path / "out",
        camera="wrist,image",
        instruction_key="said,task",
        without=["elsewhere"],
    )
    assert report.cameras == ["image", "image_2"]
    episodes = list(read(tmp_path / "out").values())
    texts = [one["language_instruction"] for one in episodes]
    assert texts == ["wave", "stop"]
    none = from_columns(tmp_path / "b", tmp_path / "o", tasks=False, instruction_key="")
    assert none.episodes == 2 and none.episodes_with_language == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(camera="elsewhere"), "elsewhere of step 0 is only a path, 'a.png'"),
        (dict(camera="depth"), "depth of step 0: grey of 16 bits, as distances have"),
        (dict(tasks=False), "set/meta/tasks.parquet is missing"),
    ],
)
def test_columns_that_cannot_be_used_are_named(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        from_columns(tmp_path / "set", tmp_path / "out", **changes)


def test_rows_that_are_not_in_order_are_left_out(tmp_path, monkeypatch):
    """Pictures have no times that would tell."""
    order = (("int64", 1), [0, 2, 1, 3, 0, 1, 2, 3])
    monkeypatch.setitem(OF_COLUMNS, "frame_index", order)
    report = from_columns(tmp_path / "set", tmp_path / "out")
    assert list(read(tmp_path / "out")) == ["episode_000001"]
    assert "not in the order of frame_index" in report.bad[0][1]


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("info.json", '"fps": 10', '"fps": null', "info.json: fps is None, not a number"),
        ("info.json", '"fps": 10', '"fps": NaN', "info.json: fps is nan, not a number above 0"),
        ("info.json", '"chunks_size": 2', '"chunks_size": 0', "chunks_size is 0, not a whole"),
        ("info.json", '"features": {', '"features": 1, "_": {', "features is 1, not an object"),
        ("info.json", '"shape": [3]', '"shape": "3"', "action does not hold numbers"),
        ("info.json", "{episode_index:06d}.parquet", "{part}.parquet", "data_path .* no template"),
        ("tasks.jsonl", '"wave"', "null", "tasks.jsonl: task 2 is None, not a number and a text"),
        ("tasks.jsonl", '"task_index": 2', '"task_index": 0', "task 0 is '.*' and 'wave'"),
        ("tasks.jsonl", '"wave"', '"dr\udcfcck"', "tasks.jsonl, line 3: 'utf-8' codec"),
        ("episodes.jsonl", '"episode_index": 1', '"episode_index": 0', "has episode 0 twice"),
        ("episodes.jsonl", '"episode_index": 1', '"episode_index": "1"', "an episode is '1'"),
    ],
)
def test_descriptions_that_are_wrong_are_named(tmp_path, file, old, new, told):
    root = lerobot.write_v2(tmp_path / "set", parts()[:2])
    path = root / "meta" / file
    path.write_bytes(path.read_text().replace(old, new).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=told):
        convert(root, tmp_path / "out")


def test_several_cameras_make_one_corpus(tmp_path):
    root = lerobot.write_v3(tmp_path / "set", parts())
    both = f"{lerobot.CAMERA},observation/images/wrist"
    report = convert(root, tmp_path / "out", camera=both)
    assert report.cameras == ["image", "wrist"] and report.episodes == 5
    alone = convert(root, tmp_path / "alone", camera="observation.images.wrist")
    assert alone.episodes == 5
    for number, (item, wrist) in enumerate(
        zip(read(tmp_path / "out").values(), read(tmp_path / "alone").values(), strict=True)
    ):
        assert files.frame_numbers(item["image"]) == list(range(LENGTHS[number]))
        assert item["wrist"] == wrist["image"]


def test_the_verb(tmp_path, capsys):
    """The line that it ends with trains on what was written."""
    root, out = lerobot.write_v3(tmp_path / "set", parts()), tmp_path / "out"
    argv = ["convert", "lerobot", root, "--out", out, "--size", 16, "--split", "val"]
    argv += [
        "--camera",
        f"{lerobot.CAMERA},observation.images.wrist",
        "--sidecar_dir",
        out / "side",
    ]
    assert data.main([str(part) for part in argv]) == 0
    told = capsys.readouterr().out
    assert "v3.0" in told
    words = shlex.split(told.splitlines()[-1].removeprefix("next: lapa train "))
    words = [word for word in words if word not in ("--workdir", "RUN")]
    argv = ["batch", *words, "--config.data.corpora.videos.window_seconds=0.1", "--step", "0"]
    assert data.main(argv) == 0
    assert "episode_000004  steps" in capsys.readouterr().out
    assert data.main(["index", str(out), "--image_key", "wrist"]) == 0
    assert "5 episodes, 25 frames" in capsys.readouterr().out
