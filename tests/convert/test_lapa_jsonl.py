"""The original's jsonl files, both ways."""

import json

import numpy as np
import pytest
import simplejpeg
from corpora import read
from test_rlds_writer import make_episode, write

from data_pipelines import index
from data_pipelines.convert import conversion, lapa_jsonl, to_lapa_jsonl
from data_pipelines.index import labels
from data_pipelines.loader import Loader
from data_pipelines.rlds import writer
from experiments import base
from lapa_jax.policy.codecs import Bins
from lapa_jax.verbs import data

PROMPT = "You are a helpful assistant. USER: What action should the robot take to `{}` ASSISTANT:"
OPTIONS = dict(progress=False, fps=5.0, name="rows")
TEMPLATE = PROMPT.replace("{}", "{instruction}")


def rows(kind="delta", episodes=4, steps=3):
    """Rows in the original's form; every number can be told from its neighbours."""
    found = []
    for episode in range(episodes):
        for step in range(steps + episode % 2):
            number = 10 * episode + step
            row = {
                "id": f"bridge/e_{episode}_{step}",
                "image": f"bridge/e_{episode}/img_{step:05d}.jpg",
                "instruction": f"<s> {PROMPT.format(f'move `it` {episode}')}",
                "vision": [str(number + i) for i in range(256)],
            }
            if kind == "delta":
                row["delta"] = [str((number + i) % 8) for i in range(4)]
            else:
                row["raw_actions"] = [number / 8, -1.5, float(step % 2)]
                row["action"] = [1, 2, 0]
            row["fields"] = f"[instruction],[vision],{kind}"
            found.append(row)
    return found


def write_rows(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def write_images(root, found):
    for row in found:
        path = root / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        level = int(row["vision"][0])
        path.write_bytes(simplejpeg.encode_jpeg(np.full((16, 24, 3), 5 * level, np.uint8)))
    return root


def convert(file, out, **changes):
    values = OPTIONS | dict(images=None, window_seconds=0.6, per_shard=2) | changes
    values["no_images"] = values["images"] is None
    options = lapa_jsonl.Options(file=file, out=out, **values)
    return lapa_jsonl.convert_lapa_jsonl(options, prompt=TEMPLATE)


def code_sets(out, name="lapa"):
    found = index.load_index(out)
    latent = labels.LabelSet.open(out, name, found)
    tokens = labels.LabelSet.open(out, name, found, labels.IMAGE_TOKENS)
    return found, latent, tokens


def test_pretraining_rows_become_placeholders_and_two_label_sets(tmp_path):
    found = rows()
    shuffled = [found[i] for i in np.random.default_rng(0).permutation(len(found))]
    report = convert(write_rows(tmp_path / "rows.jsonl", shuffled), tmp_path / "out")
    assert (report.found, report.episodes, report.frames, report.bad) == (4, 4, 14, [])
    episodes = read(tmp_path / "out")
    assert {name: item["language_instruction"] for name, item in episodes.items()} == {
        f"bridge/e_{i}": f"move `it` {i}" for i in range(4)
    }
    corpus, latent, tokens = code_sets(tmp_path / "out")
    by_id = {row["id"]: row for row in found}
    for number, name in enumerate(episodes):
        for step in range(corpus.episode_length[number]):
            at = np.array([corpus.episode_start[number] + step])
            row = by_id[f"{name}_{step}"]
            assert latent.labels(at)[0].tolist() == [int(code) for code in row["delta"]]
            assert tokens.labels(at)[0].tolist() == [int(code) for code in row["vision"]]
    assert latent.provenance["window_seconds"] == 0.6 and latent.valid.all()
    assert latent.provenance["quantizer_hash"].startswith("lapa_jsonl:")


@pytest.mark.slow
def test_finetuning_rows_keep_actions_and_images(tmp_path):
    found = rows("action")
    images = write_images(tmp_path / "images", found)
    file = write_rows(tmp_path / "rows.jsonl", found)
    convert(file, tmp_path / "same", images=images, size=(16, 24))
    convert(file, tmp_path / "small", images=images, size=(8, 8))
    episodes = read(tmp_path / "same")
    assert list(episodes) == [f"bridge/e_{i}" for i in range(4)]
    assert index.load_index(tmp_path / "same").num_frames == len(found)
    for row in found:
        name, step = row["id"].rsplit("_", 1)
        item = episodes[name]
        np.testing.assert_array_equal(item["action"][int(step)], np.float32(row["raw_actions"]))
        assert item["image"][int(step)] == (images / row["image"]).read_bytes()
    small = simplejpeg.decode_jpeg(read(tmp_path / "small")["bridge/e_3"]["image"][2])
    assert small.shape == (8, 8, 3) and abs(small.astype(int) - 160).max() <= 3


def test_both_ways_is_the_same_file(tmp_path, capsys):
    found = rows()
    write_images(tmp_path / "images", found)
    write_rows(tmp_path / "rows.jsonl", found)
    convert(tmp_path / "rows.jsonl", tmp_path / "out", images=tmp_path / "images", size=(16, 24))
    argv = ["convert", "to_lapa_jsonl", tmp_path / "out", "--label_set", "lapa", "--json"]
    argv += ["--image_token_set", "lapa", "--images", tmp_path / "copy", "--out", tmp_path / "b"]
    assert data.main([str(part) for part in argv]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["images"], report["kind"]) == (14, 14, "pre-training")
    back = [json.loads(line) for line in (tmp_path / "b").read_text().splitlines()]
    for new, old in zip(back, found, strict=True):
        assert (tmp_path / "copy" / new.pop("image")).read_bytes() == (
            tmp_path / "images" / old.pop("image")
        ).read_bytes()
    assert back == found


def test_actions_go_back_with_their_bins(tmp_path, capsys):
    found = rows("action")
    convert(write_rows(tmp_path / "rows.jsonl", found), tmp_path / "out")
    out = tmp_path / "back.jsonl"
    argv = ["convert", "to_lapa_jsonl", tmp_path / "out", "--image_token_set", "lapa"]
    argv += ["--gripper", 2, "--bins", 4, "--out", out]
    assert data.main([str(part) for part in argv]) == 0
    assert "fine-tuning" in capsys.readouterr().out
    back = [json.loads(line) for line in out.read_text().splitlines()]
    by_id = {row["id"]: row for row in found}
    assert len(back) == 14 - 4  # the last action of an episode means nothing
    tokenizer = Bins.from_csv(out.with_suffix(".csv").read_text())
    assert tokenizer.edges[2].tolist() == [-0.5, 0.5, 1.5]
    assert tokenizer.sizes.tolist() == [4, 1, 2]
    for row in back:
        old = by_id[row["id"]]
        assert row["raw_actions"] == old["raw_actions"] and row["vision"] == old["vision"]
        assert row["action"] == tokenizer.encode(np.array(old["raw_actions"])).tolist()
        assert row["action"][2] == int(old["raw_actions"][2])
    with pytest.raises(ValueError, match="--gripper 0: that dimension holds"):
        data.main([*map(str, argv[:5]), "--gripper", "0", "--out", str(tmp_path / "c.jsonl")])
    with pytest.raises(FileExistsError, match="exists already"):
        data.main([*map(str, argv[:5]), "--out", str(out)])


def test_episode_ids_that_repeat_are_told_apart(tmp_path):
    episodes = [make_episode(2, episode_id="same"), make_episode(4, episode_id="same")]
    write(tmp_path / "corpus", episodes)
    index.build_index(tmp_path / "corpus", progress=False, workers=1)
    options = to_lapa_jsonl.Options(
        corpus=tmp_path / "corpus",
        out=tmp_path / "rows.jsonl",
        images=tmp_path / "images",
        progress=False,
    )
    report = to_lapa_jsonl.export_lapa_jsonl(
        options, prompt=TEMPLATE, action_ids=lambda actions: np.zeros_like(actions, int)
    )
    assert report.episode_ids_repeated == 1
    convert(tmp_path / "rows.jsonl", tmp_path / "out", images=tmp_path / "images", size=(16, 24))
    found = read(tmp_path / "out")
    assert list(found) == ["same", "same#000001"]
    for item, episode in zip(found.values(), episodes, strict=True):
        assert item["image"] == episode.images[:-1]
        np.testing.assert_array_equal(item["action"], episode.actions[:-1])


def test_bad_rows_are_named_with_their_lines(tmp_path):
    found = rows(episodes=12)
    by_id = {row["id"].removeprefix("bridge/"): row for row in found}
    by_id["e_0_1"]["delta"] = ["1", "2", "3"]
    by_id["e_1_0"]["delta"][2] = "8"
    by_id["e_2_0"]["vision"][7] = 1.5
    by_id["e_3_2"]["instruction"] = "another"
    by_id["e_4_0"]["instruction"] = "USER: do something else. ASSISTANT:"
    found.remove(by_id["e_5_1"])
    found.append(by_id["e_6_1"])
    by_id["e_7_0"].update(id="no step", image="none")
    by_id["e_8_1"]["delta"] = "1234"
    text = "".join(json.dumps(row) + "\n" for row in found).splitlines()
    text[30] = text[30][:40]  # e_9_0, cut off
    (tmp_path / "rows.jsonl").write_text("\n".join(text))
    with pytest.raises(conversion.TooManyBadError, match="cannot be converted"):
        convert(tmp_path / "rows.jsonl", tmp_path / "out")
    report = convert(tmp_path / "rows.jsonl", tmp_path / "out", max_bad_fraction=0.9)
    bad = dict(report.bad)
    assert "line 2 has Form(vision=256, delta=3" in bad["bridge/e_0"]
    assert bad["bridge/e_1"] == "delta runs from 0 to 8, its codebook has 8 codes"
    assert "1.5 is no integer" in bad["bridge/e_2"]
    assert "several instructions" in bad["bridge/e_3"]
    assert "is not in the prompt" in bad["bridge/e_4"]
    assert "step 1 is missing (step 2 is on line 19)" in bad["bridge/e_5"]
    assert f"step 1 comes twice (lines 22 and {len(found)})" in bad["bridge/e_6"]
    assert "delta is '1234', not a list" in bad["bridge/e_8"]
    lines = [name for name in bad if name.startswith("rows.jsonl, line")]
    assert lines == ["rows.jsonl, line 24", "rows.jsonl, line 31"]
    assert "tells episode and step" in bad[lines[0]] and "line 31: " in bad[lines[1]]
    survivors = list(read(tmp_path / "out"))
    assert survivors == ["bridge/e_7", "bridge/e_9", "bridge/e_10", "bridge/e_11"]
    corpus, latent, _ = code_sets(tmp_path / "out")
    assert latent.labels(np.arange(corpus.num_frames))[0].tolist() == [7, 0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["rows", "labels"])
def test_a_stop_anywhere_is_continued(tmp_path, monkeypatch, stop):
    file, out = write_rows(tmp_path / "rows.jsonl", rows()), tmp_path / "out"
    convert(file, tmp_path / "whole")
    calls = []

    def stops(original):
        def run(*args):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return original(*args)

        return run

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if stop == "rows":
            patch.setattr(lapa_jsonl, "instruction_of", stops(lapa_jsonl.instruction_of))
        else:
            writing = labels.LabelSetWriter
            patch.setattr(writing, "write_shard", stops(writing.write_shard))
        convert(file, out)
    assert (out / writer.INFO_FILE).exists() == (stop == "labels")
    report = convert(file, out)
    assert report.episodes == 4 and report.frames == 14
    whole = [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert any("labels" in path.parts for path in whole)
    for path in whole:
        if "index" not in path.parts:
            assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError, match="already holds a finished split"):
        convert(file, out)


def test_what_is_missing_is_asked_for(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", rows())
    with pytest.raises(ValueError, match="--window_seconds"):
        convert(file, tmp_path / "out", window_seconds=0.0)
    bare = [{k: v for k, v in row.items() if k != "vision"} for row in rows()]
    with pytest.raises(ValueError, match="--images"):
        convert(write_rows(tmp_path / "bare.jsonl", bare), tmp_path / "out")
    with pytest.raises(ValueError, match="holds no row that can be read"):
        convert(write_rows(tmp_path / "none.jsonl", [{"a": 1}]), tmp_path / "out")
    with pytest.raises(conversion.TooManyBadError, match=r"image bridge/e_0/img_00000.jpg: "):
        convert(file, tmp_path / "out", images=tmp_path)


def test_placeholders_train_from_image_tokens(tmp_path):
    convert(write_rows(tmp_path / "rows.jsonl", rows()), tmp_path / "out")
    config = base.stage_defaults("latent_pretraining").data
    config.num_frames, config.image_size = 1, (256, 256)
    config.corpora.rows = base.corpus(
        str(tmp_path / "out"), label_set="lapa", image_token_set="lapa"
    )
    fields = ("image_tokens", "latent_action", "instruction")
    with Loader(config, fields=fields, global_batch=14, seed=0) as loader:
        batch = loader.batch(0)
    first = batch["image_tokens"][:, 0, 0]
    assert sorted(first) == [int(row["vision"][0]) for row in rows()]
    np.testing.assert_array_equal(batch["latent_action"][:, 1], (first + 1) % 8)
    assert batch["instruction"].tolist() == [f"move `it` {code // 10}" for code in first]


def test_the_verb(tmp_path, capsys):
    write_rows(tmp_path / "rows.jsonl", rows())
    argv = ["convert", "lapa_jsonl", tmp_path / "rows.jsonl", "--no_images", "--out"]
    argv += [tmp_path / "out", "--fps", 5, "--window_seconds", 0.6, "--quantizer", "laq_openx"]
    assert data.main([str(part) for part in argv]) == 0
    assert "train from image tokens" in capsys.readouterr().out
    _, latent, tokens = code_sets(tmp_path / "out")
    assert latent.provenance["quantizer_hash"] == "laq_openx"
    assert tokens.provenance["image_size"] == [256, 256]


@pytest.mark.parametrize("given", [{}, {"images": "folder", "no_images": True}])
def test_images_or_none_must_be_chosen(given):
    with pytest.raises(ValueError, match="either the folder.*--images.*or --no_images"):
        lapa_jsonl.Options(file="rows.jsonl", out="out", fps=5.0, **given)
