"""Imagined videos: what is measured of them, where z comes from, and what is refused."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image
from scipy.linalg import sqrtm
from test_imagination import quantizer
from tiny import lapa, succeed
from tiny_policy import make_policy, quantizer_config, write

from experiments.teacher import tabletop
from lapa_jax.diagnostics import rollouts as measures
from lapa_jax.evidence import rollout_page, rollouts
from lapa_jax.evidence.rollout_sources import Clips, z_of_file
from lapa_jax.verbs import rollout
from lapa_jax.world.imagination import Imagination

N, K, SIDE = 6, 3, 8


class Imagines:
    """An imagination of what a function of (frame, z) says, in [0, 1]."""

    def __init__(self, draw):
        self.draw = draw

    def start(self, frames):
        return frames / np.float32(255.0)

    def step(self, state, z):
        frame = self.draw(state, z)
        return frame, frame


def true_clips(seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (N, K + 1, SIDE, SIDE, 3), np.uint8)
    none = {"too_short": [], "undecodable": []}
    return Clips(np.arange(N), frames, 0.5, none, np.zeros(N, bool))


def later(frames):
    """As z: the frame that follows."""
    return frames[:, 1:] / np.float32(255.0)


def extract(frames):
    return frames[:, 1:].mean((3, 4)) / 255.0


extract.what = "mean of rows"


def measured(draw):
    made = rollouts.of_videos(Imagines(draw), true_clips(), later, extract)
    return made, made.report["by_step"]


def test_a_perfect_imaginer_has_no_error_and_skill_1():
    made, rows = measured(lambda frame, z: z)
    np.testing.assert_array_equal(made.imagined_NKHWC, true_clips().frames[:, 1:])
    for row in rows:
        assert row["mse"] == pytest.approx(0.0, abs=1e-12) and row["skill"] == pytest.approx(1.0)
    assert [row["seconds"] for row in rows] == [0.5, 1.0, 1.5]
    assert made.report["steps_above_copying"] == K
    found = made.report["frechet"]["distances"]
    assert found["imagined"] == found["true"] and found["first_frame"]["above_true"] > 0.0


def test_a_copying_imaginer_has_skill_0():
    made, rows = measured(lambda frame, z: frame)
    for row in rows:
        assert row["mse"] == pytest.approx(row["mse_copy"], rel=1e-6)
        assert row["skill"] == pytest.approx(0.0, abs=1e-6)
    assert made.report["steps_above_copying"] == 0


def test_what_adds_up_is_seen_beside_teacher_forcing():
    """A drawing that keeps half of what it misses."""
    made, rows = measured(lambda frame, z: 0.5 * frame + 0.5 * z)
    free, forced = (np.array([row[key] for row in rows]) for key in ("mse", "forced_mse"))
    assert free[0] == forced[0] and rows[0]["times_forced"] == 1.0
    assert (np.abs(free[1:] / forced[1:] - 1.0) > 0.1).all()
    true = true_clips().frames / 255.0
    by_hand = np.square(0.5 * (true[:, 1] + true[:, 2]) - true[:, 2]).mean()
    assert forced[1] == pytest.approx(by_hand, rel=1e-4)
    assert made.error_NK[:, 1].mean() == pytest.approx(free[1])


def test_two_models_are_compared_on_the_same_steps():
    """A perfect one beside one that copies, and the other way round."""
    config = SimpleNamespace(stage="quantizer")
    model = SimpleNamespace(workdir="runs/copies", config=config, params_hash="abc")
    draws = {"perfect": lambda frame, z: z, "copies": lambda frame, z: frame}
    for one, another, sign in (("perfect", "copies", 1), ("copies", "perfect", -1)):
        other = Imagines(draws[another])
        other.model = model
        made = rollouts.of_videos(Imagines(draws[one]), true_clips(), later, extract, other)
        alone = measured(draws[another])[0]
        np.testing.assert_array_equal(made.beside_NKHWC, alone.imagined_NKHWC)
        for row, own in zip(made.report["beside"]["by_step"], alone.report["by_step"], strict=True):
            assert row["skill"] == pytest.approx(own["skill"], abs=1e-6)
            assert row["above"] == pytest.approx(sign, abs=1e-6)
            assert sign * row["above_interval"][0] > 0
        assert list(rollout_page.rows_of(made, 0)) == ["true", "imagined", "by copies"]


def test_one_episode_has_no_interval_and_nothing_below_no_ratio():
    one = np.full((1, 2), 0.1)
    row = measures.by_step(one, one, np.zeros((1, 2)))[0]
    assert row["skill"] is None and row["mse_interval"] is None and row["mse"] == 0.1
    assert measures.steps_above_copying([row]) is None
    with pytest.raises(ValueError, match="errors must be of one shape"):
        measures.by_step(one, one[:, :1], one)


def test_the_distance_is_that_of_the_formula():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 5)), 0.3 + rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    of_x, of_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    wanted = np.square(x.mean(0) - y.mean(0)).sum()
    wanted += np.trace(of_x + of_y - 2.0 * sqrtm(of_x @ of_y).real)
    assert measures.frechet_distance(x, y) == pytest.approx(wanted, rel=1e-6)
    assert measures.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="5 samples of 5 features"):
        measures.frechet_distance(x[:5], y)
    few = {"true": rng.normal(size=(4, 2, 9))}
    assert measures.frechet_report(few)["distances"] is None


def test_transfer_uses_the_z_of_the_other_video():
    first, other = true_clips().frames[:1, 0], true_clips(seed=5)
    other = Clips(other.episodes[:1], other.frames[:1], 0.5, {}, other.seen_in_training[:1])
    imagination = Imagines(lambda frame, z: z)
    made = rollouts.transferred(imagination, first, other, later)
    np.testing.assert_array_equal(made.imagined_NKHWC, other.frames[:, 1:])
    np.testing.assert_array_equal(made.first_NHWC, first)
    assert made.error_NK is None and not made.report  # what truly follows is not known


def test_features_of_a_teacher_are_of_the_later_frame():
    stage = SimpleNamespace(
        model_config=SimpleNamespace(image_size=(SIDE, SIDE)),
        features=lambda params, variables, images: images / 255.0,
    )
    config = SimpleNamespace(stage="teacher")
    teacher = SimpleNamespace(config=config, stage=stage, params={}, variables={}, workdir="t")
    frames = true_clips().frames
    found = rollouts.extractor(teacher, (SIDE, SIDE))(frames)
    np.testing.assert_allclose(found, frames[:, 1:].mean((2, 3)) / 255.0, rtol=1e-4)
    with pytest.raises(ValueError, match=r"--features t: it sees images of \(8, 8\)"):
        rollouts.extractor(teacher, (SIDE, 16))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"z": [[1], [2', "is no JSON with a list of steps"),
        ('{"z": ' + 10**5 * "[" + 10**5 * "]" + "}", "is no JSON with a list of steps"),
        ('{"z": [[1], [1, 2]]}', "is no JSON with a list of steps"),
        ("[[1]]", "is no JSON with a list of steps"),
        ('{"z": []}', r"holds float64\[0\], not integers of shape \(K, 1\)"),
        ('{"z": [[NaN]]}', r"holds float64\[1, 1\], not integers"),
        ('{"z": [[true]]}', r"holds bool\[1, 1\], not integers"),
        ('{"z": [[9]]}', "codes from 9 to 9, the codebook has 8"),
        ('{"z": [[1]], "quantizers": "mine"}', '"quantizers" must be a list of hashes'),
        ('{"z": [[1]], "quantizers": ["other"]}', r"of the quantizer \['other'\], that of"),
    ],
)
def test_z_of_a_file_is_of_this_quantizer_or_refused(text, reason, tmp_path, caplog):
    model = dataclasses.replace(quantizer(), params_hash="own")
    path = tmp_path / "z.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"--z .*z.json.*{reason}"):
        z_of_file(Imagination(model), str(path))
    path.write_text('{"z": [[1], [2]], "quantizers": ["other", "own"]}')
    assert z_of_file(Imagination(model), str(path)).tolist() == [[[1], [2]]]
    assert "is not known" not in caplog.text
    path.write_text('{"z": [[1], [2]]}')
    z_of_file(Imagination(model), str(path))
    assert "z.json does not tell whose z it has" in caplog.text


def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    no_run = ["--workdir", str(tmp_path / "none"), "--codes", "1", "--frame", "none.png", "--out"]
    for out, kind, reason in (
        ("", ValueError, "--out is empty"),
        (tmp_path / "file", FileExistsError, "is there, and is no folder"),
        (tmp_path / "gone", FileExistsError, "is there, and is no folder"),
        (tmp_path / "a" / "b", FileNotFoundError, "there is no folder"),
    ):
        with pytest.raises(kind, match=reason):
            rollout.main([*no_run, str(out)])
    monkeypatch.setattr(rollout.os, "access", lambda *given: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="nothing can be written into the folder"):
        rollout.main([*no_run, str(tmp_path / "new")])
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def runs(quick_compile, tmp_path_factory):
    """A quantizer, a policy of its z, a corpus, and a picture."""
    folder = tmp_path_factory.mktemp("runs")
    config = quantizer_config().unlock()
    config.data.image_size = (48, 48)
    write(folder / "quantizer", config.lock(), {})
    make_policy(folder / "policy", "latent", image_size=(48, 48))
    make_policy(folder / "acts", "action", image_size=(48, 48), depth=1)
    tiny.write_corpus(folder / "robot", episodes=6, size=48)
    tiny.write_corpus(folder / "wide", episodes=1, size=32)
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    Image.fromarray(image).save(folder / "frame.png")
    Image.fromarray(image[:16]).save(folder / "small.png")
    return folder


def given(runs, *flags, out="out"):
    return ("rollout", "--workdir", runs / "quantizer", "--out", runs / out, *flags)


def result(runs, *flags):
    succeed(*given(runs, *flags))
    names = {path.name for path in (runs / "out").iterdir()}
    assert names == {"strip.png", "rollout.mp4", "rollout.gif", "rollout.json", "report.html"}
    return json.loads((runs / "out" / "rollout.json").read_text())


@pytest.mark.slow
def test_held_out_videos_are_measured_and_short_ones_named(runs):
    found = result(runs, "--corpus", runs / "robot", "--steps", 4)
    assert len(found["by_step"]) == 4 and found["seen_in_training"] == 0.0
    short = found["left_out"]["too_short"]
    assert short and sorted(found["episodes"] + short) == list(range(6))
    assert found["by_step"][1]["mse"] != found["by_step"][1]["forced_mse"]
    with Image.open(runs / "out" / "rollout.gif") as moving:
        assert moving.n_frames == 5 and moving.info["duration"] == 200
    assert [one["of"] for one in found["rollouts"]] == [f"episode {e}" for e in found["episodes"]]
    page = (runs / "out" / "report.html").read_text()
    assert "teacher-forced" in page and f"Left out as too short: {len(short)}" in page
    twice = result(runs, "--corpus", runs / "robot", "--steps", 4, "--beside", runs / "quantizer")
    for row, beside in zip(twice["by_step"], twice["beside"]["by_step"], strict=True):
        assert beside["skill"] == row["skill"] and beside["above_interval"] == [0.0, 0.0]
    assert "skill of this run less that" in (runs / "out" / "report.html").read_text()
    one = result(runs, "--corpus", runs / "robot", "--episode", found["episodes"][0], "--steps", 4)
    assert one["rollouts"] == found["rollouts"][:1]


@pytest.mark.slow
def test_given_codes_and_a_policy_have_no_truth(runs):
    start = ("--frame", runs / "frame.png")
    found = result(runs, *start, "--codes", "0:1:2,7:7:7")
    assert found["rollouts"][0]["z"] == [[0, 1, 2], [7, 7, 7]] and found["errors"] is None
    (runs / "z.json").write_text(json.dumps({"z": found["rollouts"][0]["z"]}))
    strip = (runs / "out" / "strip.png").read_bytes()
    result(runs, *start, "--z", runs / "z.json")
    assert (runs / "out" / "strip.png").read_bytes() == strip
    asks = ("--policy", runs / "policy", "--instruction", "push the red block")
    said = result(runs, *start, *asks, "--steps", 2)
    assert said["errors"] is None and np.shape(said["rollouts"][0]["z"]) == (2, 3)
    assert "not known" in said["why"]


@pytest.mark.slow
def test_features_of_a_teacher_run(runs):
    config = tabletop.get_config("quick=True")
    config.data.image_size = (48, 48)
    config.model.update(dim=4, mlp_dim=8, heads=1, head_dim=4, depth=1)
    write(runs / "teacher", config.lock(), {})
    flags = ("--corpus", runs / "robot", "--steps", 4, "--features", runs / "teacher")
    found = result(runs, *flags)["frechet"]
    told = f"teacher {runs / 'teacher'}: features of a frame, mean over patches"
    assert found["extractor"] == told and found["features"] == 4
    assert found["distances"]["imagined"]["distance"] > 0.0


@pytest.mark.slow
def test_an_index_may_lie_elsewhere(runs):
    bare = runs / "bare"
    shutil.copytree(runs / "robot", bare, ignore=shutil.ignore_patterns("index"))
    succeed("data", "index", bare, "--sidecar_dir", runs / "sidecars")
    start = ("--codes", "0:1:2", "--episode", 2)
    result(runs, *start, "--corpus", runs / "robot")
    strip = (runs / "out" / "strip.png").read_bytes()
    result(runs, *start, "--corpus", bare, "--sidecar_dir", runs / "sidecars")
    assert (runs / "out" / "strip.png").read_bytes() == strip
    code, _, error = lapa(*given(runs, *start, "--corpus", bare, out="none"))
    assert code == 2 and "has indexes of image_key none" in error
    other = ("--transfer_from", bare, "--transfer_episode", 1, "--steps", 2)
    frame = ("--frame", runs / "frame.png", "--sidecar_dir", runs / "sidecars")
    assert result(runs, *other, *frame)["rollouts"][0]["of"] == "z of episode 1"


REFUSED = {
    "--codes 0:1:2,0:1:8 --frame frame.png": "'8' is not in the codebook of 0 to 7",
    "--codes 0,1 --frame frame.png": "step '0' has 1 codes, a z of this run has 3",
    "--codes 0:1:2 --frame small.png": "an image of 16x48 (rows x columns), and the",
    "--codes 0:1:2 --frame robot/index.txt": "No such file",
    "--codes 0:1:2": "--frame, or --corpus with --episode",
    "--codes 0:1:2 --policy policy": "--codes and --policy each say where z comes from",
    "--policy policy --frame frame.png": "--instruction is missing",
    "--corpus robot --instruction push": "--instruction does not go with z of --corpus",
    "--corpus robot --steps 40": "--steps 40: the longest of 6 of",
    "--corpus robot --episode 6": "--episode 6: ",
    "--corpus wide --episode 0 --codes 0:1:2": "an image of 32x32 (rows x columns), and the",
    "--corpus robot --quantizer quantizer": "is one, and reads z itself",
    "--transfer_from robot --frame frame.png": "--transfer_episode is missing",
    "--transfer_from robot --transfer_episode 0 --frame frame.png --steps 40": "episode 0 of",
    "--corpus robot --beside policy": "is a run of stage 'latent_pretraining'",
    "--codes 0:1:2 --beside quantizer --frame frame.png": "--beside does not go with z of --codes",
    "--corpus robot --features policy": "features are of a teacher or a quantizer",
    "--z frame.png --frame frame.png": "is no JSON with a list of steps",
    "--policy quantizer --instruction push --frame frame.png": "not a policy",
    "--policy acts --instruction push --frame frame.png": "acts: this policy predicts the action",
    "--codes 0:1:2 --frame frame.png --sidecar_dir x": "--sidecar_dir x holds the index of one",
    "--codes " + ",".join(1001 * ["0:1:2"]) + " --frame frame.png": "1001 steps: at most 1000",
}


@pytest.mark.slow
@pytest.mark.parametrize("flags", REFUSED)
def test_bad_input_is_one_line(runs, flags):
    named = {"robot", "wide", "policy", "acts", "quantizer", "frame.png", "small.png"}
    words = [runs / w if w in named or "/" in w else w for w in flags.split()]
    code, _, error = lapa(*given(runs, *words, out="none"))
    last = error[error.rindex("lapa: ") :]
    assert code == 2 and REFUSED[flags] in last and last.count("\n") == 1, error
    assert not (runs / "none").exists()


@pytest.mark.slow
def test_a_policy_of_other_z_is_refused(runs):
    policy = make_policy(runs / "other", "latent")
    code, _, error = lapa(
        *given(runs, "--frame", runs / "frame.png", "--policy", policy, "--instruction", "push")
    )
    assert code == 2 and "its image size is (32, 48), that of the imagining run (48, 48)" in error
