"""`lapa data ...` end to end on tiny data."""

import json

import numpy as np
import pytest
import video_files as files
from test_rlds_writer import make_episode, write

from lapa_jax import cli
from lapa_jax.policy.codecs import Bins, from_json
from lapa_jax.verbs import data


def run(capsys, *argv):
    code = data.main([str(part) for part in argv])
    return code, capsys.readouterr().out


def test_the_bare_verb_lists_all(capsys):
    code, out = run(capsys)
    assert code == 0 and all(f"  {verb} " in out for verb in data.VERBS)
    assert data.main(["explode"]) == 2


@pytest.mark.parametrize("verb", list(data.VERBS))
def test_every_verb_has_help_with_an_example(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        data.main([verb, "--help"])
    assert stop.value.code == 0
    assert f"example:\n  lapa data {verb}" in capsys.readouterr().out


@pytest.mark.slow
def test_collect_index_inspect_batch(tmp_path, capsys):
    out = tmp_path / "tabletop"
    code, text = run(
        capsys,
        "collect",
        "--out",
        out,
        "--episodes",
        4,
        "--families",
        "reach",
        "--views",
        "robot",
        "--blocks",
        2,
        "--size",
        64,
        "--horizon",
        7,
        "--noise",
        0.1,
    )
    assert code == 0 and "episodes      4" in text
    code, text = run(capsys, "index", out / "robot")
    assert code == 0 and "train: 4 episodes" in text and "actions 2 dimensions" in text
    page = tmp_path / "page.html"
    code, text = run(capsys, "inspect", out / "robot", "--json", "--html", page)
    report = json.loads(text)
    assert report["name"] == "tabletop_robot" and page.read_text().count("data:image/jpeg") > 8
    html, actions = page.read_text(), report["splits"]["train"]["actions"]
    assert html.count("<polyline points=") == 4 * 2 and html.count("histogram of action") == 2
    for action in actions:
        counts, edges = action["histogram"]["counts"], action["histogram"]["edges"]
        assert sum(counts) == report["splits"]["train"]["frames"] - 4
        assert edges[0] == action["q01"] and edges[-1] == action["q99"]
    sheet = tmp_path / "sheet.png"
    config = f"experiments/quantizer/tabletop.py:quick=True,data={out},views=robot"
    batch = [
        "batch",
        "--config",
        config,
        "--config.global_batch=8",
        "--step",
        3,
        "--json",
        "--config.data.corpora.robot.window_seconds=0.1",
    ]
    code, text = run(capsys, *batch, "--png", sheet)
    whole = json.loads(text)
    assert code == 0 and sheet.read_bytes()[:4] == b"\x89PNG"
    assert [record["position"] for record in whole["examples"]] == list(range(24, 32))
    assert all(b - a == 1 for a, b in (record["steps"] for record in whole["examples"]))
    halves = []
    for host in range(2):
        code, text = run(capsys, *batch, "--hosts", 2, "--host", host)
        halves += json.loads(text)["examples"]
        assert {record["host"] for record in halves[-4:]} == {host}
    for record in whole["examples"] + halves:
        del record["host"]
    assert halves == whole["examples"]
    code, text = run(capsys, *batch[:-2], batch[-1])
    assert code == 0 and len(text.splitlines()) == 8
    config = f"experiments/action_vla/tabletop.py:quick=True,data={out / 'robot'}"
    chunks = ("--config.data.action_horizon=3", "--config.global_batch=4", "--step", 1)
    code, text = run(capsys, "batch", "--config", config, *chunks)
    assert code == 0 and all(line.count("[") == 4 for line in text.splitlines())


def test_convert(tmp_path, capsys):
    files.write_video(tmp_path / "v" / "a.mp4", files.grey_frames(8))
    code, text = run(
        capsys,
        "convert",
        "video",
        tmp_path / "v",
        "--out",
        tmp_path / "my-set",
        "--fps",
        5,
        "--size",
        "16x24",
        "--json",
    )
    report = json.loads(text)
    assert code == 0 and (report["episodes"], report["frames"]) == (1, 2)
    code, text = run(capsys, "inspect", tmp_path / "my-set")
    assert "my_set 1.0.0" in text and "16x24 jpeg" in text


@pytest.mark.parametrize("size", ["0", "16x", "a", "1x2x3", "-4"])
def test_wrong_sizes(tmp_path, size):
    with pytest.raises(SystemExit) as stop:
        data.main(["convert", "video", str(tmp_path), "--out", "x", f"--size={size}"])
    assert stop.value.code == 2


def test_user_errors_are_one_line(tmp_path, capsys):
    assert cli.main(["data", "convert", "video", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "no video below" in error and "Traceback" not in error
    assert cli.main(["data", "inspect", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_index_of_all_splits_and_exclusions(tmp_path, capsys):
    write(tmp_path, [make_episode(i) for i in range(3)])
    write(tmp_path, [make_episode(9)], split="val")
    shard = "toys-train.tfrecord-00000-of-00001"
    code, text = run(capsys, "index", tmp_path, "--exclude", f"{shard}:1")
    lines = text.splitlines()
    assert lines[0].startswith("train: 2 episodes") and lines[1].startswith("val: 1 episodes")
    with pytest.raises(ValueError, match="nowhere"):
        data.main(["index", str(tmp_path), "--exclude", "nowhere:1"])
    with pytest.raises(ValueError, match="RECORD_NUMBER"):
        data.main(["index", str(tmp_path), "--exclude", "x"])


def test_stats_are_exact_and_survive_the_csv(tmp_path, capsys):
    write(tmp_path, [make_episode(i, steps=9) for i in range(4)])
    run(capsys, "index", tmp_path)
    made, edges = tmp_path / "stats.json", tmp_path / "edges.csv"
    code, text = run(capsys, "stats", tmp_path, "--bins", 8, "--json", made, "--csv", edges)
    assert code == 0 and text.startswith("32 actions\n") and "8 bins" in text
    actions = np.concatenate([make_episode(i, steps=9).actions[:-1] for i in range(4)])
    found = json.loads(made.read_text())
    expected = np.quantile(actions.astype(np.float64), np.linspace(0, 1, 9), axis=0).T
    np.testing.assert_allclose(found["edges"], expected, rtol=1e-12)
    np.testing.assert_allclose(found["std"], actions.astype(np.float64).std(0), rtol=1e-12)
    assert found["num_actions"] == 32 and not found["approximate"]
    sketched = tmp_path / "sketched.json"
    code, text = run(capsys, "stats", tmp_path, "--approximate", "--json", sketched)
    assert code == 0 and text.startswith("32 actions; quantiles are approximate")
    near = json.loads(sketched.read_text())
    np.testing.assert_allclose(near["q99"], found["q99"], rtol=5e-3)
    assert near["approximate"] and near["max"] == found["max"]
    tokenizers = Bins.from_csv(edges.read_text()), from_json(made.read_bytes())
    for tokenizer in tokenizers:
        assert [e.tolist() for e in tokenizer.edges] == found["edges"]
        np.testing.assert_array_equal(tokenizer.encode(actions), tokenizers[0].encode(actions))
