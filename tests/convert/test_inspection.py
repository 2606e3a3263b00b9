"""Inspection reports: facts about corpora of ours and of others, as data, text and HTML."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from test_rlds_writer import make_episode, make_spec, write

from data_pipelines.checks import inspection
from data_pipelines.checks.verify import verify_corpus
from data_pipelines.rlds import tfrecord, writer
from lapa_jax.report.corpus import contact_sheet, corpus_page
from lapa_jax.verbs.data.inspect import to_text


def inspect(directory, **changes):
    return inspection.inspect_corpus(directory, progress=False, **changes)


def test_facts(tmp_path):
    episodes = [make_episode(i, steps=3 + 10 * i) for i in range(4)]
    episodes[2].actions[:, 1] = 0.5
    episodes[3] = make_episode(3, steps=33, instruction=episodes[0].instruction)
    write(tmp_path, episodes, shard_bytes=1)
    write(tmp_path, [make_episode(9)], split="val")
    report = inspect(tmp_path)
    assert list(report["splits"]) == ["train", "val"]
    split = report["splits"]["train"]
    lengths = [3, 13, 23, 33]
    assert (split["episodes"], split["frames"], split["shards"]) == (4, sum(lengths), 4)
    assert split["hours"] == pytest.approx(sum(lengths) / 5 / 3600)
    assert split["fps"] == {"5.0": 4}
    histogram = split["lengths"]
    assert sum(histogram["histogram"]) == 4 and len(histogram["histogram"]) <= 20
    for length in lengths:
        (i,) = [
            i
            for i, count in enumerate(histogram["histogram"])
            if histogram["edges"][i] <= length < histogram["edges"][i + 1]
        ]
        assert histogram["histogram"][i] >= 1
    texts = split["instructions"]
    assert texts["coverage"] == 0.75 and texts["distinct"] == 2
    assert texts["most_common"][0] == (episodes[0].instruction, 2)
    # The last step's action is no action.
    valid = np.concatenate([episode.actions[:-1] for episode in episodes]).astype(np.float64)
    for i, facts in enumerate(split["actions"]):
        wanted = [valid[:, i].min(), valid[:, i].max(), valid[:, i].mean(), valid[:, i].std()]
        assert [facts[key] for key in ("min", "max", "mean", "std")] == pytest.approx(wanted)
    assert split["images"]["image"]["sizes"] == {"16x24 jpeg": 4}
    assert split["cameras"] == {"front": 4}
    assert report["features"]["steps/action"] == "Tensor float32[3]"
    json.dumps(report, allow_nan=False)


def test_only_some_episodes_and_one_split(tmp_path):
    write(tmp_path, [make_episode(i) for i in range(5)])
    write(tmp_path, [make_episode(9)], split="val")
    report = inspect(tmp_path, splits=["train"], max_episodes=2)
    assert list(report["splits"]) == ["train"]
    split = report["splits"]["train"]
    assert split["episodes"] == 2 and split["episodes_announced"] == 5
    assert not split["complete_scan"]
    assert "first episodes only" in to_text(report)


def test_an_action_of_a_single_step_is_none(tmp_path):
    """It is that of the last step, and may be anything."""
    episodes = [make_episode(0), make_episode(1, steps=1)]
    episodes[1].actions[:] = np.inf
    write(tmp_path, episodes)
    report = inspect(tmp_path, strips=True)
    split = report["splits"]["train"]
    assert split["actions_not_finite"] == 0
    assert split["actions"][0]["max"] == episodes[0].actions[:-1, 0].max()
    assert [len(strip["actions"]) for strip in split["strips"]] == [3, 0]
    corpus_page(report).html()


def test_constant_actions_and_corpora_without_actions(tmp_path):
    constant = np.full((4, 3), 0.25, np.float32)
    write(tmp_path / "a", [make_episode(0, actions=False)], spec=make_spec(action_dim=0))
    assert inspect(tmp_path / "a")["splits"]["train"]["actions"] == []
    assert "actions: none" in to_text(inspect(tmp_path / "a"))
    write(tmp_path / "b", [dataclasses.replace(make_episode(0), actions=constant)])
    assert all(a["constant"] for a in inspect(tmp_path / "b")["splits"]["train"]["actions"])


def test_the_page_escapes_text_and_shows_frames(tmp_path):
    episode = make_episode(0, steps=9, instruction="<script>alert('x')</script> & more")
    write(tmp_path, [episode])
    page = corpus_page(inspect(tmp_path, strips=True)).html()
    assert "<script>" not in page and "&lt;script&gt;" in page
    found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    steps = np.linspace(0, 8, inspection.STRIP_FRAMES).astype(int)
    assert [base64.b64decode(text) for text in found] == [episode.images[i] for i in steps]
    assert not re.search(r'(src|href)="(?!data:)', page)
    # What is not there is said, or has no heading of a table without rows.
    for words in ("None: <code>lapa label</code>", "None: <code>lapa data index</code>", "All 1 "):
        assert words in page


def test_label_sets_and_indexes_are_listed(tmp_path):
    from data_pipelines.index import load_index
    from data_pipelines.index.build import build_index
    from data_pipelines.index.labels import LabelSetWriter

    write(tmp_path, [make_episode(i) for i in range(2)])
    assert "index: none (lapa data index" in to_text(inspect(tmp_path))
    build_index(tmp_path, progress=False)
    index = load_index(tmp_path)
    provenance = dict(
        quantizer_hash="q1", window_seconds=0.4, codebook_size=8, code_length=4, code_version="1"
    )
    labels = LabelSetWriter(tmp_path, "laq", index, provenance=provenance)
    labels.write_shard(0, np.zeros((8, 4), np.int16))
    labels.finish()
    report = inspect(tmp_path, strips=True)
    (entry,) = report["label_sets"]
    assert entry["name"] == "laq" and entry["split"] == "train" and entry["complete"]
    assert (entry["quantizer_hash"], entry["num_labelled"]) == ("q1", 8)
    assert report["indexes"][0]["hash"] == index.hash
    assert "label set laq, split train" in to_text(report)
    assert "q1" in corpus_page(report).html()


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        inspect(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="features.json"):
        inspect(tmp_path)
    write(tmp_path, [make_episode(0)])
    for key in ("action_key", "instruction_key"):
        for look in (inspection.inspect_corpus, verify_corpus):
            with pytest.raises(ValueError, match="record 0: there is no field nope; images: "):
                look(tmp_path, progress=False, **{key: "nope"})
    (shard,) = tmp_path.glob("*.tfrecord-*")
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(tfrecord.RecordError, match=f"{shard.name}, record 0"):
        inspect(tmp_path)
    (tmp_path / writer.FEATURES_FILE).write_text("{}x")
    with pytest.raises(ValueError, match="features.json is not"):
        inspect(tmp_path)


@pytest.mark.slow
def test_contact_sheet(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 2, 16, 16, 3), dtype=np.uint8)
    path = tmp_path / "sheet.png"
    contact_sheet(path, frames, [f"example {i}\n$z_{i}$" for i in range(5)])
    with Image.open(path) as image:
        width, height = image.size
    assert width > 500 and height > 100
    with pytest.raises(ValueError, match="5 examples but 1 captions"):
        contact_sheet(path, frames, ["x"])


@pytest.mark.real_data
def test_foreign_corpus(real_data):
    report = inspect(real_data / "bridge_dataset" / "1.0.0", strips=True)
    split = report["splits"]["train"]
    assert (split["episodes"], split["frames"], split["hours_known"]) == (25, 250, False)
    assert split["images"]["image_0"]["sizes"] == {"64x64 jpeg": 25}
    assert len(split["actions"]) == 7 and split["instructions"]["coverage"] == 1
    assert set(split["strips"][0]["views"]) == {f"image_{i}" for i in range(4)}
    pixels = simplejpeg.decode_jpeg(_first_image(split))
    assert pixels.shape == (64, 64, 3)
    assert "unknown (no fps)" in to_text(report)
    corpus_page(report).html()


def _first_image(split):
    return base64.b64decode(split["strips"][0]["views"]["image_0"]["images"][0])
