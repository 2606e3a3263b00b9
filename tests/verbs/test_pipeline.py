"""The whole method through the command line, from collecting data to evaluating policies."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import simplejpeg
import tiny
from ml_collections import ConfigDict
from tiny import lapa, succeed

from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSet, LabelSetWriter
from data_pipelines.loader import DataSettings, open_mixture
from experiments import base
from lapa_jax import train
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.runs import examples, loaded
from lapa_jax.runs.examples import Pairs
from lapa_jax.studies import control_labels

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]

VIEWS = "human+robot"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Collected and indexed."""
    folder = tmp_path_factory.mktemp("tabletop")
    out = succeed(
        *("data", "collect", "--out", folder, "--episodes", 16, "--families", "reach"),
        *("--views", "human,robot", "--size", tiny.SIZE, "--blocks", 2, "--horizon", 40),
    )
    assert "16" in out
    for view in ("human", "robot"):
        assert "16 episodes" in succeed("data", "index", folder / view, "--workers", 1)
    return folder


@pytest.fixture(scope="module")
def quantizer(quick_compile, data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quantizer")
    out = succeed("train", *tiny.arguments("quantizer", data, views=VIEWS), "--workdir", workdir)
    assert out.startswith(f"run: {workdir}\nnext: lapa evaluate --workdir {workdir} --report")
    return workdir


@pytest.fixture(scope="module")
def labelled(quantizer, data):
    """`data` with a label set in both views."""
    for view in ("human", "robot"):
        succeed("label", "--workdir", quantizer, "--corpus", data / view, "--name", tiny.LABEL_SET)
    return data


@pytest.fixture(scope="module")
def latent_vla(labelled, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("latent_vla")
    arguments = tiny.arguments("latent_pretraining", labelled, views=VIEWS)
    succeed("train", *arguments, "--workdir", workdir)
    return workdir


@pytest.fixture(scope="module")
def action_vla(latent_vla, data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("action_vla")
    arguments = tiny.arguments("action_finetuning", data, init_from=latent_vla)
    succeed("train", *arguments, "--workdir", workdir)
    return workdir


def test_labels_are_what_the_quantizer_says(quantizer, labelled):
    index = load_index(labelled / "robot", split="train")
    labels = LabelSet.open(index.sidecar_dir, tiny.LABEL_SET, index)
    run = loaded.load(quantizer)
    assert labels.provenance["quantizer_hash"] == run.params_hash
    window = run.config.data.corpora.robot.window_seconds
    assert labels.provenance["window_seconds"] == window
    steps = round(window * float(index.fps[0]))
    expected = np.concatenate([np.arange(n) < n - steps for n in index.episode_length])
    np.testing.assert_array_equal(labels.valid, expected)

    rows = np.flatnonzero(expected)[::7]
    first, last = (np.stack([_frame(index, r + d) for r in rows]) for d in (0, steps))
    z = run.stage.quantize(run.params, run.variables, jnp.asarray(first), jnp.asarray(last))
    np.testing.assert_array_equal(labels.labels(rows), z)


def test_controls_label_the_same_frames_and_carry_nothing_learnt(quantizer, labelled):
    run = loaded.load(quantizer)
    corpora = {view: {"path": str(labelled / view)} for view in ("human", "robot")}
    found = {}
    for kind in control_labels.KINDS:
        control_labels.write_controls(kind, run, tiny.LABEL_SET, kind, corpora, seed=0)
        for view, corpus in corpora.items():
            index = load_index(corpus["path"], split="train")
            true, made = (
                LabelSet.open(index.sidecar_dir, name, index) for name in (tiny.LABEL_SET, kind)
            )
            np.testing.assert_array_equal(made.valid, true.valid)
            assert made.provenance["control"] == kind
            rows = np.flatnonzero(made.valid)
            found[kind, view] = made.labels(rows)
            if kind == "shuffled":
                assert not np.array_equal(made.labels(rows), true.labels(rows))
                counts = (np.bincount(x.labels(rows).ravel(), minlength=8) for x in (made, true))
                np.testing.assert_array_equal(*counts)
            if kind == "oracle":  # frames of one code move alike
                pairs = Pairs(run.config, corpus)
                motions, codes = pairs.actions(pairs.rows), made.labels(pairs.rows[:, 0])[:, 0]
                means = np.stack([motions[codes == code].mean(axis=0) for code in codes])
                assert np.square(motions - means).sum() < 0.3 * np.square(motions).sum()
    np.testing.assert_array_equal(found["oracle", "human"], found["oracle", "robot"])
    hashes = {made.provenance["quantizer_hash"], true.provenance["quantizer_hash"]}
    assert len(hashes) == 2
    assert all(len(np.unique(codes)) > 1 for codes in found.values())
    with pytest.raises(ValueError, match="'copied' must be one of"):
        control_labels.write_controls("copied", run, tiny.LABEL_SET, "x", corpora, seed=0)


def _frame(index, row):
    episode = int(index.episode_of_rows(np.array([row]))[0])
    with open(index.shards[int(index.shard_of_episode[episode])], "rb") as file:
        file.seek(int(index.frame_offset[row]))
        return simplejpeg.decode_jpeg(file.read(int(index.frame_length[row])))


def test_everything_that_is_measured_of_a_quantizer(quantizer, data, tmp_path):
    views = [data / "human", data / "robot"]
    corpora = [argument for view in views for argument in ("--corpus", view)]
    path, page = tmp_path / "result.json", tmp_path / "report.html"
    succeed(
        *("evaluate", "--workdir", quantizer, *corpora, "--paired", "--json", path),
        *("--simulate", 6, "--blocks", 2, "--report", page),
    )
    result = json.loads(path.read_text())
    human, robot = (result[str(view)] for view in views)
    paired = result["paired_views"]
    assert paired["windows"] == human["pairs"] == robot["pairs"]
    assert 0.0 <= paired["cka"] <= 1.0 and {"agreement", "null"} <= set(paired["motion_kmeans"])
    assert len(paired["probe"]["other_view"]["r2"]) == 2
    low, high = robot["reconstruction"]["skill_interval"]
    assert low <= robot["reconstruction"]["skill"] <= high
    assert 0.0 < robot["reconstruction"]["ssim"] <= 1.0
    assert set(robot["probe"]) >= {"latent_action", "continuous_latent", "first_frame"}
    assert set(robot["content"]["controls"]) >= {"latent_action", "random_codes", "motion_kmeans"}
    # the decoder can do more with a latent that is fitted to what it should draw
    assert robot["true_action"]["skill"] > robot["reconstruction"]["skill"]
    assert robot["algebra"]["cumulative"]["2"]["chained"] < 1.0
    assert robot["algebra"]["additivity"]["chance"] > 0.0
    assert list(robot["window_curve"])[:2] == ["0.5", "1"]
    assert {"again", "cuts", "displacement"} <= set(robot) and robot["information"]["codes"]
    transfer, distractors = result["transfer"], result["distractors"]
    assert transfer["episodes"] == 6 and 0.0 <= transfer["same_code_as_own"] <= 1.0
    assert {"z", "own", "shuffled"} <= set(transfer)
    for name in ("changed_still", "changed_moving"):
        assert 0.0 <= distractors[name]["estimate"] <= 1.0
    text = page.read_text()
    figure = "data:image/svg"
    for words in ("Corpus robot", "k-means of the change", "two views", "simulator", figure):
        assert words in text
    assert human["seen_in_training"] == 1.0 and "trained on" in human["verdict"]["notes"][0]
    assert {check["name"] for check in human["verdict"]["checks"]} >= {"collapse", "leakage"}
    assert f"Verdict: {human['verdict']['word']}." in text and "would look worse" in text
    for flags, message in (
        (["--paired"], "--paired compares two corpora"),
        (["--holdout"], "no episode of .* was held out of the training"),
    ):
        code, _, error = lapa("evaluate", "--workdir", quantizer, *corpora[:2], *flags)
        assert code == 2 and re.search(message, error)


def test_what_training_leaves_out_is_held_out_wherever_it_lies(quantizer, data, tmp_path):
    run = loaded.load(quantizer)
    config = ConfigDict(run.config.to_dict())
    config.data.corpora.robot.fraction = 0.5
    moved = shutil.copytree(data / "robot", tmp_path / "moved")
    corpora = (
        {"path": str(data / "robot")},
        {"path": str(moved)},
        config.data.corpora.robot.to_dict(),
    )
    for corpus in corpora:
        every, out = (examples.Pairs(config, corpus, held_out=held) for held in (False, True))
        drawn = examples.drawn_in_training(config, every.index)
        assert 0 < drawn.sum() < len(drawn)
        episodes = every.index.episode_of_rows(every.rows[:, 0])
        assert np.array_equal(every.rows[~drawn[episodes]], out.rows)
    # What training draws is the rest.
    settings = DataSettings.of(config.data).on({"robot": config.data.corpora.robot.to_dict()})
    corpus = open_mixture(settings, ["frames"]).corpora[0]
    numbers = np.arange(corpus.num_samples)
    rows = corpus.frame_rows(numbers, np.zeros_like(numbers), seed=0)[:, 0]
    assert drawn[every.index.episode_of_rows(rows)].all()
    other = load_index(data / "human")
    del config.data.corpora.human
    assert not examples.drawn_in_training(config, other).any()


def test_what_is_measured_of_a_continuous_latent(data, tmp_path):
    config = tiny.config("quantizer", data, views=VIEWS)
    with config.unlocked():
        config.model.bottleneck = base.bottleneck("gaussian")
    assert train.train(config, tmp_path / "run")
    path, page = tmp_path / "result.json", tmp_path / "report.html"
    succeed(
        *("evaluate", "--workdir", tmp_path / "run", "--max_examples", 60, "--json", path),
        *("--paired", "--simulate", 4, "--blocks", 2, "--window_seconds", 0.3, "--report", page),
    )
    result = json.loads(path.read_text())
    assert {"workdir", "step", "human", "robot"} < result.keys()
    found = result["robot"]
    assert found["window_seconds"] == 0.3 and "codes" not in found
    assert "shuffled_latent_action" in found["probe"] and "continuous_latent" not in found["probe"]
    assert "code_given_scene" not in found["content"] and found["content"]["scene_probe"]
    assert found["true_action"]["skill"] > found["reconstruction"]["skill"]
    assert "codes" not in result["paired_views"] and 0.0 <= result["paired_views"]["cka"] <= 1.0
    assert result["transfer"]["same_code_as_own"] is None
    assert result["distractors"]["changed_moving"]["chance"] == 1.0
    assert "stays continuous" in page.read_text()
    _labels_are_what_the_decoder_receives(data, tmp_path)


def _labels_are_what_the_decoder_receives(data, tmp_path):
    run, corpus = loaded.load(tmp_path / "run"), {"path": str(data / "robot")}
    index = load_index(corpus["path"])
    succeed("label", "--workdir", tmp_path / "run", "--corpus", index.directory, "--name", "mean")
    labels = LabelSet.open(index.sidecar_dir, "mean", index)
    pairs = examples.Pairs(run.config, corpus)
    batch = next(pairs.batches(pairs.rows[:20]))
    read = run.stage.read(run.params, run.variables, batch.first[:20], batch.last[:20])
    found = labels.labels(pairs.rows[:20, 0])
    assert found.dtype == np.float32 and found.shape[1:] == read.received_BLQ.shape[1:]
    np.testing.assert_allclose(found, read.received_BLQ, atol=1e-5)
    assert labels.valid.sum() == len(pairs.rows) and "codebook_size" not in labels.provenance
    config = tiny.config("latent_pretraining", data, data__corpora__robot__label_set="mean")
    with pytest.raises(ValueError, match="data.corpora.*label_set: labels are vectors"):
        train.train(config, tmp_path / "policy")


def test_labelling_again_reads_no_frame(quantizer, labelled, monkeypatch):
    corpus = labelled / "robot"

    def files():
        folder = load_index(corpus, split="train").sidecar_dir
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*.npy")}

    before = files()
    monkeypatch.setattr(examples.Pairs, "_read", None)  # raises where it is called
    code, _, told = lapa(
        "label", "--workdir", quantizer, "--corpus", corpus, "--name", tiny.LABEL_SET
    )
    index = load_index(corpus)
    count = int(LabelSet.open(index.sidecar_dir, tiny.LABEL_SET, index).valid.sum())
    assert code == 0 and before and files() == before and count > 50
    assert f" 0 of {index.num_frames} rows labelled now, 0 could not be decoded; " in told
    assert f"it is finished, and {count} rows have labels" in told


def test_labelling_continues_with_the_shard_that_is_missing(
    quantizer, tiny_data, tmp_path, monkeypatch
):
    corpus = tmp_path / "robot"
    shutil.copytree(tiny_data / "robot", corpus)
    arguments = ("label", "--workdir", quantizer, "--corpus", corpus, "--name")
    succeed(*arguments, "whole")

    class Killed(Exception):
        pass

    written, write = [], LabelSetWriter.write_shard

    def write_shard(self, shard, labels):
        if written:
            raise Killed
        written.append(shard)
        write(self, shard, labels)

    with monkeypatch.context() as patch:
        patch.setattr(LabelSetWriter, "write_shard", write_shard)
        with pytest.raises(Killed):
            succeed(*arguments, "stopped")
    index = load_index(corpus, split="train")
    assert len(index.shards) == 2 and written == [0]
    with pytest.raises(ValueError, match=r"not finished: shards \[1\] of 2"):
        LabelSet.open(index.sidecar_dir, "stopped", index)

    again = []
    with monkeypatch.context() as patch:
        patch.setattr(
            LabelSetWriter,
            "write_shard",
            lambda self, shard, labels: (again.append(shard), write(self, shard, labels)),
        )
        succeed(*arguments, "stopped")
    assert again == [1]
    rows = np.arange(index.num_frames)
    whole, stopped = (
        LabelSet.open(index.sidecar_dir, name, index) for name in ("whole", "stopped")
    )
    np.testing.assert_array_equal(whole.valid, stopped.valid)
    np.testing.assert_array_equal(
        whole.labels(rows[whole.valid]), stopped.labels(rows[whole.valid])
    )


def test_hosts_that_share_a_corpus_write_what_one_writes(quantizer, tmp_path):
    """With a window that leaves a shard without any pair."""
    corpus = tiny.write_corpus(tmp_path / "robot", shards=5)
    arguments = ("label", "--workdir", quantizer, "--corpus", corpus, "--window_seconds", 1.0)
    succeed(*arguments, "--name", "one")
    index = load_index(corpus, split="train")
    share = ("--name", "two", "--count", 2, "--index")
    succeed(*arguments, *share, 1)
    with pytest.raises(ValueError, match=r"not finished: shards \[0, 2\] of 4"):
        LabelSet.open(index.sidecar_dir, "two", index)
    succeed(*arguments, *share, 0)
    labelled = LabelSet.open(index.sidecar_dir, "two", index).valid
    some = {bool(labelled[index.rows_of_shard(shard)].any()) for shard in range(4)}
    assert some == {True, False}
    one, two = (corpus / "labels" / name for name in ("one", "two"))
    assert sorted(p.name for p in two.iterdir()) == ["train.manifest.json", "train.npy"]
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    code, _, error = lapa(*arguments, *share, 2)
    assert code == 2 and "--index 2 must be from 0 to --count 2 - 1" in error


def test_where_a_policy_comes_from_is_written(quantizer, latent_vla, action_vla):
    latent, action = loaded.load(latent_vla), loaded.load(action_vla)
    assert latent.provenance["label_sets"].keys() == {"human", "robot"}
    for made_by in latent.provenance["label_sets"].values():
        assert made_by["quantizer_hash"] == loaded.load(quantizer).params_hash
    assert action.provenance["init_from"] == latent.params_hash
    report = json.loads((action_vla / "init_from.json").read_text())
    assert set(report) == {"taken", "dropped", "initialised", "widened"} and not report["widened"]
    assert report["dropped"] and all("latent" in path for path in report["dropped"])
    assert report["initialised"] and all("action" in path for path in report["initialised"])
    assert len(report["taken"]) > 10


def test_a_quantizer_is_measured_the_same_again(quantizer, data, tmp_path):
    """Of the config's corpora or of one by its path, on the screen and in the file."""
    run, corpus = loaded.load(quantizer), data / "robot"
    file = tmp_path / "result.json"
    arguments = ("evaluate", "--workdir", quantizer, "--max_examples", 40)
    out = succeed(*arguments, "--corpus", corpus, "--json", file)
    result = json.loads(out[out.index("{") :])
    assert json.loads(file.read_text()) == result
    assert result.keys() == {"workdir", "step", str(corpus)} and result["step"] == 4
    found = result[str(corpus)]
    assert {"pairs", "window_seconds", "codes", "reconstruction", "probe"} <= found.keys()
    assert 0 < found["pairs"] <= 40
    again = evaluate_quantizer(
        run, run.config.data.corpora.robot.to_dict(), max_pairs=40, deep=True
    ).report
    again = json.loads(json.dumps(again))
    of_verdicts = [one["verdict"].pop("notes") for one in (again, found)]
    assert again == found and of_verdicts[0] == of_verdicts[1][: len(of_verdicts[0])]  # it adds one


def test_evaluation_of_policies(latent_vla, action_vla, quick_compile, tmp_path):
    page = tmp_path / "page.html"
    latent = ("evaluate", "--workdir", latent_vla, "--max_examples", 16, "--report", page)
    result = json.loads(succeed(*latent))
    assert "success" not in result and "actions" not in result
    assert "token_accuracy" in page.read_text() and "Closed loop" not in page.read_text()
    assert {"loss", "token_accuracy", "sequence_accuracy", "examples"} <= result["tokens"].keys()
    assert {"majority_accuracy", "first_frame_accuracy"} <= result["tokens"].keys()
    assert "Without a policy" in page.read_text()
    assert result["tokens"]["examples"] == 16

    arguments = ("evaluate", "--workdir", action_vla, "--max_examples", 16, "--families", "reach")
    arguments += ("--blocks", 2, "--episodes", 4, "--steps", 5)
    result = json.loads(succeed(*arguments, "--report", page))
    (actions,) = result["actions"].values()
    assert actions["examples"] == 16 and len(actions["policy"]["l1"]) == 2
    # tokens lose less than any policy that is said in them
    assert (np.array(actions["tokens"]["l1"]) <= actions["policy"]["l1"]).all()
    for words in ("in the units of the data", "action before", "Closed loop", "reach"):
        assert words in page.read_text()
    success = result["success"]["reach"]
    assert success["episodes"] == 4 and success["steps"] == 5
    assert 0 <= success["successes"] <= 4
    assert 0 <= success["low"] <= success["estimate"] <= success["high"] <= 1
    assert json.loads(succeed(*arguments))["success"] == result["success"], "fixed start states"
    drawn = [json.loads(succeed(*arguments, "--temperature", 9, "--top_k", 4)) for _ in range(2)]
    assert drawn[0] == drawn[1] and drawn[0]["success"]["reach"]["top_k"] == 4, "seeded"
