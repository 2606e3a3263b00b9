"""RLDS data sets that TFDS wrote -> a corpus, and their index in place."""

import json
from pathlib import Path

import numpy as np
import pytest
import rlds_files as files
import simplejpeg
from corpora import read

from data_pipelines import index
from data_pipelines.checks import statistics
from data_pipelines.convert import action_forms, conversion, rlds
from data_pipelines.rlds import fields, open_x, shards
from lapa_jax.verbs import data


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    return files.write_bridge(tmp_path_factory.mktemp("tfds"))


def convert(source, out, **changes):
    values = dict(size=(24, 32), progress=False) | changes
    return rlds.convert_rlds(rlds.Options(source=source, out=out, **values))


def content(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def test_a_set_of_open_x_needs_no_keys(bridge, tmp_path):
    report = convert(bridge, tmp_path / "out")
    assert (report.episodes, report.frames, report.bad) == (3, 12, [])
    assert report.hours == pytest.approx(12 / 5 / 3600)
    assert report.notes["other cameras"] == "wrist" and report.notes["fps"] == 5
    found = read(tmp_path / "out")
    assert list(found) == [
        "bridge-train.tfrecord-00000:0",
        "bridge-train.tfrecord-00000:1",
        "bridge-train.tfrecord-00001:0",
    ]
    for number, (length, episode) in enumerate(zip((4, 3, 5), found.values(), strict=True)):
        steps = np.arange(length)
        assert episode["image"] == [files.jpeg(100 * number + step) for step in steps]  # untouched
        wanted = np.stack(
            [number + steps / 10] * 3 + [-steps] * 3 + [steps % 2 == 0], axis=1
        ).astype(np.float32)
        np.testing.assert_array_equal(episode["action"], wanted)
        assert episode["language_instruction"] == f"put the pot {number} down"
        assert episode["fps"][0] == 5 and episode["camera"] == [b"image"]
        np.testing.assert_array_equal(episode["is_terminal"], steps == length - 1)
        np.testing.assert_array_equal(episode["reward"], steps == length - 1)


@pytest.mark.parametrize("camera", ["image", "wrist"])
def test_pictures_of_another_size_or_form_are_written_anew(bridge, tmp_path, camera):
    """Blocks of 8 pixels become blocks of 4: area averages are the blocks' own values."""
    convert(bridge, tmp_path / "out", image_key=camera, size=(12, 12))
    episode = list(read(tmp_path / "out").values())[1]
    for step, jpeg in enumerate(episode["image"]):
        number = {"image": 100, "wrist": 7100}[camera] + step
        wanted = files.picture(number)[::2, ::2][:, 2:14].astype(int)  # the middle of 12 x 16
        shown = simplejpeg.decode_jpeg(jpeg).astype(int)
        assert shown.shape == (12, 12, 3)
        assert np.abs(shown.mean((0, 1)) - wanted.mean((0, 1))).max() < 6
        corners = (slice(None, None, 11), slice(None, None, 11))
        assert np.abs(shown[corners].mean(2) - wanted[corners].mean(2)).max() < 40


def test_language_table_keeps_its_text_in_codes(tmp_path):
    convert(files.write_language_table(tmp_path), tmp_path / "out")
    (episode,) = read(tmp_path / "out").values()
    assert episode["language_instruction"] == "push the blue hexagon to the “moon”"
    assert episode["fps"][0] == 10 and episode["action"].shape == (3, 2)
    assert simplejpeg.decode_jpeg(episode["image"][0]).shape == (24, 32, 3)  # was a PNG


def test_an_unknown_set_with_standard_keys_needs_its_rate_alone(tmp_path):
    source = files.write_standard(tmp_path)
    with pytest.raises(ValueError, match=r"not in the table of Open X-Embodiment \(--fps\)"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", fps=12.5)
    (episode,) = read(tmp_path / "out").values()
    np.testing.assert_array_equal(episode["action"], [[0, 0.5], [1, 0.5], [2, 0.5], [3, 0.5]])
    assert episode["fps"][0] == 12.5 and episode["language_instruction"] == "wave"


def test_the_metadata_tell_rate_and_file(tmp_path):
    convert(files.write_standard(tmp_path, fps=7.5), tmp_path / "out")
    (episode,) = read(tmp_path / "out").values()
    assert episode["fps"][0] == 7.5 and episode["file_path"] == [b"a.hdf5"]


def test_wrong_keys_are_told_what_there_is(bridge, tmp_path):
    there = (
        r"images: image \(uint8\[24,32,3\]\), wrist .*; numbers: action/open_gripper \(bool\), .*"
        r"observation/state \(float32\[7\]\), .*; texts: observation/natural_language_instruction"
    )
    for key, value in (
        ("image_key", "front"),
        ("action_key", "action"),
        ("action_key", "action/world_vector,action/nothing"),
        ("instruction_key", "language_instruction"),
        ("state_key", "observation/image"),
    ):
        with pytest.raises(ValueError, match=f"--{key} '.*in 'bridge', which has {there}"):
            convert(bridge, tmp_path / "out", **{key: value})
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return files.write_layouts(tmp_path_factory.mktemp("layouts"))


def of_layouts(source, out, **keys):
    """The one episode, by these keys and otherwise nothing but the image."""
    values = dict(image_key="observation", action_key="", instruction_key="", fps=5.0)
    report = convert(source, out, **(values | keys))
    (episode,) = read(out).values()
    return episode, report


@pytest.mark.parametrize("key", ["observation", "tensor", "raw", "zipped", "grey", "front/rgb"])
def test_images_in_every_form(layouts, tmp_path, key):
    episode, report = of_layouts(layouts, tmp_path / "out", image_key=key)
    assert len(episode["image"]) == files.LAYOUTS and episode["camera"] == [key.encode()]
    for step, image in enumerate(episode["image"]):
        wanted = files.picture(step + 50 * (key == "front/rgb")).astype(int)
        if key == "grey":
            wanted = np.repeat(wanted[..., :1], 3, axis=2)
        middles = (slice(4, None, 8), slice(4, None, 8))  # of the blocks
        difference = np.abs(simplejpeg.decode_jpeg(image)[middles].astype(int) - wanted[middles])
        assert difference.mean() < 12, difference
    other = set(report.notes["other cameras"].split(", "))
    assert other | {key} >= {"observation", "tensor", "raw", "zipped", "grey", "front/rgb"}


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("action/half", [[0], [1], [2]]),
        ("action/brain", [[0, -0.5], [1, -0.5], [2, -0.5]]),
        ("action/grip", [[0], [1], [0]]),
        ("action/mode", [[0], [1], [0]]),
        ("action/list", [[0, 7], [1, 7], [2, 7]]),
        ("action/list[:1], action/grip", [[0, 0], [1, 1], [2, 0]]),
        ("action/move", [[0, 0], [0.5, 0.5], [np.nan, np.nan]]),
        ("action/grip,episode_metadata/robot", [[0, 4], [1, 4], [0, 4]]),
        ("bytes", [[103, 114, 195, 188, 195, 159, 0, 0]] * 3),
        (
            "action/ends/int,action/ends/list,action/ends/far",
            [[0, 0, 0, 0], [1, 1, 1, 1], [np.nan] * 4],
        ),
        ("action/ends/pairs", [[0] * 4, [1] * 4, [np.nan] * 4]),
        ("action/ragged", "0 to 2 values a step"),
        ("action/huge", "holds 16777217, which float32 cannot hold"),
        (
            "action",
            r"no field action: it is a dictionary of \['action/brain', .*\('' for none\)",
        ),
        ("texts", "holds bytes, not numbers"),
    ],
)
def test_numbers_in_every_form(layouts, tmp_path, key, wanted):
    """What RLDS gives no meaning, the action of a step is_last, may be no number."""
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=f"--action_key '.*{wanted}"):
            of_layouts(layouts, tmp_path / "out", action_key=key)
        return
    episode, report = of_layouts(layouts, tmp_path / "out", action_key=key)
    np.testing.assert_array_equal(episode["action"], wanted)
    assert not report.bad
    path = index.build_index(tmp_path / "out", progress=False).parents[2]
    assert index.load_index(path).actions.shape == np.shape(wanted)


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("texts", "take it"),
        ("pair", "first"),
        ("bytes", "grüß"),
        ("blank", ""),
        ("blank,pair", "first"),
        ("task", "tidy up"),
        ("episode_metadata/task", "tidy up"),
        ("episode_metadata/tasks", "a"),
        ("codes", "hi"),
        ("action/list", ValueError("holds float, not text")),
        ("nothing", ValueError("no field nothing.*of the episode: episode_metadata/codes .int32")),
        ("texts[:1]", ValueError("is for numbers")),
    ],
)
def test_texts_in_every_form(layouts, tmp_path, key, wanted):
    if isinstance(wanted, ValueError):
        with pytest.raises(ValueError, match=str(wanted)):
            of_layouts(layouts, tmp_path / "out", instruction_key=key)
        return
    episode, report = of_layouts(layouts, tmp_path / "out", instruction_key=key)
    assert episode["language_instruction"] == wanted
    several = "of several texts" in report.notes["instruction"]
    assert several == (key in ("texts", "pair", "blank,pair", "episode_metadata/tasks"))


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("depth", r"steps/depth is uint16\[24,32,1\], no picture of 8 bits"),
        ("height", r"float32\[24,32,1\], no picture of 8 bits"),
        ("stack", "sequence of pictures in each step"),
        ("bytes", "no uint8 tensor"),
        ("blank", "neither JPEG nor PNG"),
    ],
)
def test_what_is_no_picture_is_named(layouts, tmp_path, key, told):
    with pytest.raises(ValueError, match=told):
        of_layouts(layouts, tmp_path / "out", image_key=key)


def test_several_cameras_make_one_corpus(layouts, tmp_path):
    episode, report = of_layouts(layouts, tmp_path / "out", image_key="raw,front/rgb,observation")
    assert report.cameras == ["image", "rgb", "observation"]
    assert episode["rgb"] == [files.jpeg(50 + step) for step in range(files.LAYOUTS)]
    assert episode["observation"] == [files.jpeg(step) for step in range(files.LAYOUTS)]
    for camera in report.cameras:
        index.build_index(tmp_path / "out", image_key=camera, progress=False)
        found = index.load_index(tmp_path / "out", image_key=camera)
        assert found.num_frames == files.LAYOUTS
    assert tfds_features(tmp_path / "out")["steps"]["observation"].keys() == set(report.cameras)


def tfds_features(directory):
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(directory)).info.features


def test_layouts_are_indexed_in_place(layouts, tmp_path):
    def build(**keys):
        values = dict(sidecar_dir=tmp_path, image_key="observation", progress=False)
        index.build_index(layouts, **(values | keys))
        key = (values | keys)["image_key"]
        return index.load_index(layouts, sidecar_dir=tmp_path, image_key=key)

    found = build(action_key="action/move,action/grip", instruction_key="texts")
    np.testing.assert_array_equal(found.actions, [[0, 0, 0], [0.5, 0.5, 1], [np.nan, np.nan, 0]])
    assert found.instruction(0) == "take it" and found.image_size == (24, 32)
    assert statistics.action_statistics(found)["max"] == [0.5, 0.5, 1]
    found = build(image_key="front/rgb", instruction_key="episode_metadata/task")
    assert found.actions is None and found.instruction(0) == "tidy up"
    for keys, told in (
        (dict(image_key="raw"), r"holds uint8\[24,32,3\]; the loader reads JPEG: rewrite"),
        (dict(image_key="tensor"), r"holds uint8\[24,32,3\]; the loader reads JPEG: rewrite"),
        (dict(action_key="action/other"), "no field action/other.*images: depth"),
        (dict(instruction_key="text"), "no field text.*texts: blank"),
    ):
        with pytest.raises(ValueError, match=told):
            build(**keys)


def test_parts_of_keys_states_and_none(bridge, tmp_path):
    convert(
        bridge,
        tmp_path / "out",
        action_key="action/rotation_delta[:1],action/terminate_episode",
        instruction_key="",
        state_key="observation/state",
    )
    episode = next(iter(read(tmp_path / "out").values()))
    np.testing.assert_array_equal(episode["action"], [[0, 0], [-1, 0], [-2, 0], [-3, 1]])
    np.testing.assert_array_equal(episode["state"], np.repeat(np.arange(4.0), 7).reshape(4, 7))
    assert episode["language_instruction"] == "" and episode["has_language"][0] == 0


def test_another_instruction_is_another_episode(tmp_path):
    source = files.write_standard(tmp_path, texts=["", "wave", "stop", "stop"])
    report = convert(source, tmp_path / "out", fps=5.0)
    assert [reason for _, reason in report.short] == ["1 frame at 5 fps, an episode needs 2"] * 2
    ((name, episode),) = read(tmp_path / "out").items()
    assert name.endswith(":0#0002") and episode["language_instruction"] == "stop"
    assert episode["is_terminal"][-1] == 1 and len(episode["image"]) == 2


GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "heads" / "normalise.npz")


def test_action_forms_are_those_of_openvla():
    """Of the steps before the last one, whose numbers mean nothing."""
    actions, states = GOLDEN["rlds/bridge/action"], GOLDEN["rlds/bridge/state"]
    found = action_forms.formed(["state_differences"], actions, states)
    np.testing.assert_array_equal(found[:-1], GOLDEN["rlds/bridge/relabelled"])
    np.testing.assert_array_equal(found[-1], actions[-1])
    for form, given, wanted in (
        ("binary_gripper", "in", "binarized"),
        ("event_gripper", "rel", "rel2abs"),
    ):
        for row, expected in zip(
            GOLDEN[f"rlds/gripper/{given}"], GOLDEN[f"rlds/gripper/{wanted}"], strict=True
        ):
            one = np.append(row, np.nan).astype(np.float32)[:, None]
            found = action_forms.formed([form], one, None)
            np.testing.assert_array_equal(found[:, 0], [*expected, np.nan])


def test_action_forms_of_a_corpus(bridge, tmp_path):
    forms = ("state_differences", "inverted_gripper", "signed_gripper")
    report = convert(bridge, tmp_path / "out", state_key="observation/state", action_forms=forms)
    assert report.notes["action forms"] == ", ".join(forms)
    episode = list(read(tmp_path / "out").values())[0]
    np.testing.assert_array_equal(episode["action"][:3], ([[1] * 6 + [-1], [1] * 6 + [1]] * 2)[:3])
    for changes, message in (
        (dict(action_forms=("open",)), "--action_forms open: known are state_differences, "),
        (dict(action_forms=forms), r"actions have 7, states 0 \(--state_key\)"),
        (dict(action_forms=forms[1:], action_key=""), "there are no actions"),
        (
            dict(action_forms=forms[1:], action_key="action/world_vector"),
            r"2 of 3 .*inverted_gripper: the gripper of step \d is .*, not in 0..1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            convert(bridge, tmp_path / "none", **changes)


def test_damage_is_named_and_left_out(bridge, tmp_path):
    source = tmp_path / "damaged"
    source.mkdir()
    first, second = sorted(bridge.glob("*.tfrecord-*"))
    damaged = bytearray(first.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    (source / first.name).write_bytes(damaged)
    (source / second.name).write_bytes(second.read_bytes()[:-9])
    with pytest.raises(conversion.TooManyBadError, match="2 of 3 episodes"):
        convert(source, tmp_path / "out")
    report = convert(source, tmp_path / "out", max_bad_fraction=0.7)
    (one, reason), (other, why) = report.bad
    assert one == f"{first.name}:0" and "checksum of the record" in reason
    assert other == f"{second.name}:0 and what follows" and "truncated" in why
    assert report.episodes == 1


@pytest.mark.slow
def test_workers_change_nothing(bridge, tmp_path):
    for workers in (1, 2):
        out = tmp_path / str(workers)
        convert(bridge, out, size=(16, 16), workers=workers, name="same", per_shard=1)
    assert content(tmp_path / "1") == content(tmp_path / "2")


@pytest.mark.slow
def test_a_set_by_name(bridge, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no directory.*--data_dir"):
        convert("bridge", tmp_path / "out")
    assert convert("bridge", tmp_path / "out", data_dir=bridge.parents[1]).episodes == 3
    with pytest.raises(FileNotFoundError, match="TFDS finds no 'bridge_of_sighs'"):
        convert("bridge_of_sighs", tmp_path / "none", data_dir=bridge.parents[1])


def test_a_set_of_open_x_is_indexed_in_place(bridge, tmp_path, capsys):
    assert data.main(["index", str(bridge), "--sidecar_dir", str(tmp_path)]) == 0
    assert (
        "images (24, 32), actions 7 dimensions, states 7 dimensions, 3 instructions"
        in capsys.readouterr().out
    )
    found = index.load_index(bridge, sidecar_dir=tmp_path, image_key="")  # the only one
    assert found.action_key == open_x.DATA_SETS["bridge"].action
    assert found.image_key == "image" and set(found.fps) == {5.0}
    assert found.instruction(0) == "put the pot 0 down"
    np.testing.assert_allclose(found.actions[5], [1.1] * 3 + [-1] * 3 + [0])
    assert data.main(["inspect", str(bridge)]) == data.main(["verify", str(bridge)]) == 0
    with pytest.raises(index.StaleIndexError, match="built with action_key"):
        index.load_index(bridge, sidecar_dir=tmp_path, action_key="action")
    before = found.hash
    data.main(["index", str(bridge), "--sidecar_dir", str(tmp_path), "--fps", "5"])
    assert index.load_index(bridge, sidecar_dir=tmp_path).hash == before
    data.main(["index", str(bridge), "--sidecar_dir", str(tmp_path), "--fps", "6"])
    assert index.load_index(bridge, sidecar_dir=tmp_path).hash != before


def test_a_set_of_open_x_trains_in_place(tmp_path, capsys):
    """Two commands and no key; the window of 0.5 s is 5 steps at the table's 10 fps."""
    source = files.write_standard(
        tmp_path, "fmb", steps=9, size=(64, 64), camera="image_side_1", fps=None
    )
    data.main(["index", str(source), "--sidecar_dir", str(tmp_path)])
    capsys.readouterr()
    config = f"experiments/quantizer/videos.py:quick=True,data={source}"
    sidecars = f"--config.data.corpora.videos.sidecar_dir={tmp_path}"
    arguments = ["--config", config, sidecars, "--config.global_batch=4", "--json", "--step=0"]
    assert data.main(["batch", *arguments]) == 0
    examples = json.loads(capsys.readouterr().out)["examples"]
    assert sorted(tuple(one["steps"]) for one in examples) == [(0, 5), (1, 6), (2, 7), (3, 8)]
    assert data.main(["stats", str(source), "--sidecar_dir", str(tmp_path)]) == 0


def test_the_verb_converts_and_indexes(bridge, tmp_path, capsys):
    """What is written has this project's form, though its name is in the table."""
    out, sidecars = tmp_path / "bridge", tmp_path / "sidecars"
    arguments = ["--out", out, "--size", "24x32", "--sidecar_dir", sidecars]
    code = data.main(["convert", "tfds", str(bridge), *map(str, arguments)])
    assert code == 0 and f"  {sidecars}/index/image/train" in capsys.readouterr().out
    assert index.load_index(out, sidecar_dir=sidecars).num_frames == 12
    assert not (out / "index").exists()
    where = [str(out), "--sidecar_dir", str(sidecars)]
    assert data.main(["inspect", *where]) == 0
    said = capsys.readouterr().out
    assert "instructions: 100.0% of the episodes" in said and "actions: 7 dimensions" in said
    assert data.main(["index", *where]) == 0
    assert "actions 7 dimensions, 3 instructions" in capsys.readouterr().out
    assert convert(out, tmp_path / "again").notes["action"] == "action (7 numbers)"


def test_the_table_is_well_formed():
    for name, keys in open_x.DATA_SETS.items():
        assert fields.parts(keys.action) and keys.image and keys.instruction, name
        assert keys.image not in keys.others and 0 <= keys.fps <= 30, name
        shards.index_folder("x", keys.image, "train")
