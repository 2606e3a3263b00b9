"""Imagined videos that are executed: rows on the same starts, their time, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import lapa, succeed
from tiny_policy import make_policy, policy_config, quantizer_config, write

from data_pipelines.normalise import Normaliser
from lapa_jax.diagnostics import rollouts as diagnostics
from lapa_jax.diagnostics.probes import fit_probe
from lapa_jax.diagnostics.statistics import paired_difference_of_proportions, wilson_interval
from lapa_jax.envs.env import EnvSpec
from lapa_jax.envs.side_by_side import starts_of
from lapa_jax.evidence import action_readers, executability_page
from lapa_jax.evidence import executability as executed
from lapa_jax.policy import heads
from lapa_jax.runs.examples import Pairs
from lapa_jax.runs.loaded import load, load_policy
from lapa_jax.world.imagination import open_imagination

N, WINDOWS, PER_WINDOW, PACE = 9, 4, 2, 0.9


@dataclasses.dataclass(frozen=True)
class State:
    task: str
    x: float
    goal: float
    lost: bool


class Line:
    """A point on a line that walks to a goal, whose place can be read off its pictures. Of some
    starts the expert turns back."""

    @property
    def spec(self):
        return EnvSpec(
            name="line",
            tasks=("near", "far"),
            actions=("x",),
            action_low=(-1.0,),
            action_high=(1.0,),
            action_units=("metres a step",),
            control_hz=10.0,
            horizon=9,
            views=("front",),
            cameras=("front",),
            image_size=(2, 2),
            state=("x",),
            traceable=False,
        )

    def evaluation_states(self, seed, task, n, first=0):
        goals = [
            np.random.default_rng((seed, k)).uniform(0.5, 3.0) for k in range(first, first + n)
        ]
        near = task == "near"
        return [State(task, 0.0, g + 2 * (not near), near and k == 1) for k, g in enumerate(goals)]

    def step(self, state, action):
        assert np.abs(action).max() <= 1.0  # the simulator takes no others
        return dataclasses.replace(state, x=state.x + float(action[0]))

    def success(self, state):
        return state.x >= state.goal - 1e-3

    def expert(self, state):
        return np.float32([-PACE if state.lost else PACE])

    def render(self, state, size, view):
        return picture(np.array([state.x]), size)[0]

    def tasks_of(self, states):
        return [state.task for state in states]

    def phrasings(self, split="train"):
        return range(1)

    def instructions(self, states, phrasing=0):
        return [f"walk {state.task}" for state in states]


def picture(x, size=(2, 2)):
    """uint8 (B, H, W, 3), which holds x to a ten thousandth."""
    number = np.round((np.asarray(x, np.float64) + 400) * 1e4).astype(np.int64)
    rgb = np.stack([number >> 16, number >> 8 & 255, number & 255], axis=-1).astype(np.uint8)
    return np.broadcast_to(rgb[:, None, None], (len(rgb), *size, 3)).copy()


def place(frames):
    """x (...) of pictures uint8 (..., H, W, 3)."""
    rgb = frames[..., 0, 0, :].astype(np.int64)
    return ((rgb[..., 0] << 16) + (rgb[..., 1] << 8) + rgb[..., 2]) / 1e4 - 400


def reads(before, after):
    """A reader that is never wrong."""
    return ((place(after) - place(before)) / PER_WINDOW)[:, None]


def z_of(frames):
    """As z: how far each window leads."""
    return np.diff(place(frames), axis=1)[..., None]


class Imagines:
    """An imagination whose frames lead to x + gain z."""

    def __init__(self, gain=1.0):
        self.gain = gain

    def start(self, frames):
        return place(np.asarray(frames))

    def step(self, state, z):
        state = state + self.gain * z[:, 0]
        return state, picture(state) / np.float32(255.0)


def measured(gain=1.0, says=None, reads=reads):
    return executed.measure(
        Imagines(gain),
        z_of,
        reads,
        starts_of(Line(), N, 0),
        says=says,
        windows=WINDOWS,
        per_window=PER_WINDOW,
        view="front",
        size=(2, 2),
    )


def test_what_a_perfect_world_imagines_is_executed_as_true_frames_are():
    made = measured()
    rows, told = made.rows, made.report["rows"]
    assert list(rows) == list(executed.BY_VIDEO)
    np.testing.assert_array_equal(rows["imagined"].actions_NKA, rows["true_frames"].actions_NKA)
    for name in ("true_frames", "imagined"):  # nor does this reader lose anything
        np.testing.assert_array_equal(rows[name].success_N, rows["expert"].success_N)
        assert told[name]["action_r2"] == pytest.approx(1.0, abs=1e-4)
    assert 0 < told["imagined"]["successes"] < N and not rows["expert"].success_N[1]
    for row in made.report["by_step"]["imagined"]:
        assert row["mse"] < 1e-9 < row["mse_copy"]
    assert told["first_frame"]["successes"] == 0 and told["first_frame"]["action_r2"] <= 0.0


def test_what_copies_is_the_first_frame_and_half_the_way_is_too_short():
    copies = measured(gain=0.0)
    still = copies.rows["first_frame"]
    np.testing.assert_array_equal(copies.rows["imagined"].success_N, still.success_N)
    assert not copies.rows["imagined"].actions_NKA.any()
    assert copies.report["by_step"]["imagined"][0]["mse_copy"] == 0.0  # nobody moved
    assert copies.report["by_step"]["imagined"][0]["skill"] is None
    half = measured(gain=0.5)
    true, imagined = (half.rows[name].actions_NKA for name in ("true_frames", "imagined"))
    np.testing.assert_allclose(imagined[:, 0], 0.5 * true[:, 0], atol=1e-4)
    assert half.report["rows"]["imagined"]["successes"] == 0
    r2 = half.report["rows"]["imagined"]["action_r2"]
    assert r2 < half.report["rows"]["true_frames"]["action_r2"]


def test_a_plan_ends_with_the_video_and_other_z_is_of_the_next_start():
    made = measured()
    true, until = place(made.true_NKHWC), made.windows_N
    assert until.min() < until.max() == WINDOWS
    for name in ("true_frames", "other_z", "first_frame"):
        assert not made.rows[name].whole_NK[np.arange(WINDOWS) >= until[:, None]].any()
    moves = np.diff(true, axis=1) / PER_WINDOW
    other = made.rows["other_z"]
    took = other.whole_NK
    np.testing.assert_allclose(
        other.actions_NKA[took][:, 0], np.roll(moves, -1, axis=0)[took], atol=1e-4
    )
    assert took.sum() > N


def test_a_blind_policy_believes_what_it_imagines_and_one_that_looks_does_not():
    """z says more than the world does in a window: actions are clipped, and told."""

    def says(frames, texts):
        assert isinstance(texts, list) and len(texts) == len(frames)
        assert set(texts) <= {"walk near", "walk far"}
        return np.clip(5.0 - place(frames), 0.0, 4.0)[:, None]

    made = measured(says=says)
    rows, told = made.rows, made.report["rows"]
    assert list(rows) == list(executed.ROWS)
    ends = place(made.rows["imagined_policy"].seen_NKHWC)[:, -1]
    goals = np.array([state.goal for state in made.starts.states])
    np.testing.assert_array_equal(rows["imagined_policy"].success_N, goals <= 3.0 + 1e-3)
    assert rows["closed_loop"].success_N.all()
    np.testing.assert_allclose(ends[goals > 3.1], 3.0, atol=1e-3)
    assert 0.0 < told["imagined_policy"]["beyond_bounds"] < 1.0
    assert told["true_frames"]["beyond_bounds"] == 0.0
    pairs = {(one["of"], one["minus"]): one for one in made.report["differences"]}
    assert set(pairs) == set(executed.DIFFERENCES)
    for (a, b), one in pairs.items():
        wanted = paired_difference_of_proportions(rows[a].success_N, rows[b].success_N)
        assert one["low"] == wanted.low and one["estimate"] == pytest.approx(
            rows[a].success_N.mean() - rows[b].success_N.mean()
        )
    wilson = wilson_interval(told["closed_loop"]["successes"], N)
    assert told["closed_loop"]["low"] == wilson.low and told["closed_loop"]["n"] == N
    for i, one in enumerate(made.report["outcomes"]):
        assert one["success"] == {name: bool(row.success_N[i]) for name, row in rows.items()}


def test_a_reader_that_says_nothing_finite_is_no_action():
    with pytest.raises(ValueError, match="window 1: the actions .* are not finite"):
        measured(reads=lambda before, after: np.full((len(before), 1), np.nan))


def test_reading_is_measured_in_units_of_each_dimension():
    rng = np.random.default_rng(0)
    true, known = rng.normal(size=(8, 3, 2)), np.ones((8, 3), bool)
    known[0, 2] = False
    found = diagnostics.action_r2(true, true, known)
    assert found["action_r2"] == 1.0
    mean = np.broadcast_to(true[known].mean(0), true.shape)
    assert diagnostics.action_r2(true, mean, known)["action_r2"] == pytest.approx(0.0)
    noisy = true + 0.3 * rng.normal(size=true.shape)
    scale = np.array([1000.0, 0.001])
    plain, scaled = (diagnostics.action_r2(true * s, noisy * s, known) for s in (1.0, scale))
    assert plain["action_r2"] == pytest.approx(scaled["action_r2"])
    noisy[0, 2] = 1e6  # not known: not counted
    assert diagnostics.action_r2(true, noisy, known) == plain
    assert diagnostics.action_r2(true, noisy, np.zeros((8, 3), bool))["action_r2"] is None
    assert diagnostics.action_r2(0 * true, noisy, known)["action_r2"] is None


# --- By the verb ---


@pytest.fixture(scope="module")
def runs(quick_compile, tmp_path_factory):
    """A quantizer, a policy of its z, and inverse dynamics models, of random weights."""
    folder = tmp_path_factory.mktemp("runs")
    config = quantizer_config().unlock()
    config.data.image_size = (48, 48)
    write(folder / "quantizer", config.lock(), {})
    config = config.copy_and_resolve_references().unlock()
    config.evaluation.env = {"name": "tabletop", "families": ("reach",), "horizon": 4}
    write(folder / "other", config.lock(), {})
    tiny.write_corpus(folder / "robot", episodes=8, size=48)
    tiny.write_corpus(folder / "slow", episodes=8, size=48, fps=5.0)
    tiny.write_labels(tiny.write_corpus(folder / "silent", size=48, actions=False))
    make_policy(folder / "policy", "latent", image_size=(48, 48), depth=1, text_length=48)
    make_policy(folder / "terse", "latent", image_size=(48, 48), depth=1)
    make_policy(folder / "small", "latent", depth=1)
    actions = Normaliser.fit(np.array([[-0.04, -0.02], [0.04, 0.02]]), "min_max", control_hz=10.0)
    for name, env, window, size in (
        ("inverse", {"horizon": 6}, 0.2, 48),
        ("step", {"horizon": 6}, 0.1, 48),
        ("tiny", {"horizon": 6}, 0.2, 32),
        ("gone", {"hight": 6}, 0.2, 48),
        ("arm", {"name": "metaworld"}, 0.2, 48),
    ):
        given = dict(target=heads.head_settings("chunk"), num_frames=2, inverse_dynamics=True)
        config, assets = policy_config(
            "action", corpus="robot", depth=1, image_size=(size, size), **given
        )
        config = config.unlock()
        config.data.corpora.robot.window_seconds = window
        settings = {"name": "tabletop", "families": ("reach", "separate_blocks")} | env
        config.evaluation.env = env if "name" in env else settings
        assets["action_statistics.json"] = actions.to_json()
        write(folder / name, config.lock(), assets)
    return folder


def given(runs, *flags, out="out"):
    return ("rollout", "--workdir", runs / "quantizer", "--out", runs / out, *flags)


@pytest.mark.slow
def test_page_and_json_agree_and_the_same_command_says_the_same(runs):
    asks = ("--execute", 5, "--inverse_dynamics", runs / "inverse", "--policy", runs / "policy")
    told = succeed(*given(runs, *asks))
    names = {path.name for path in (runs / "out").iterdir()}
    assert names == {"strip.png", "rollout.mp4", "rollout.gif", "rollout.json", "report.html"}
    text = (runs / "out" / "rollout.json").read_text()
    found, page = json.loads(text), (runs / "out" / "report.html").read_text()
    assert found["windows"] == 3 and found["steps_per_window"] == 2
    assert [one["task"] for one in found["outcomes"]] == ["reach"] * 3 + ["separate_blocks"] * 2
    assert list(found["rows"]) == list(executed.ROWS) and found["view"] == "robot"
    head, *rows = executability_page.table(found)
    for row in rows:
        name = row[0]
        wins = sum(one["success"][name] for one in found["outcomes"])
        assert found["rows"][name]["successes"] == wins and row[1] == f"{wins} of 5"
        assert all(cell in page for cell in row) and row[1] in told
    for one in found["differences"]:
        assert f"{100 * one['estimate']:.3g} (" in page
    for name, by_step in found["by_step"].items():
        assert name in ("imagined", "imagined_policy") and by_step[0]["n"] > 0
    with Image.open(runs / "out" / "strip.png") as strip:
        assert strip.width > 3 * 48
    succeed(*given(runs, *asks))
    assert (runs / "out" / "rollout.json").read_text() == text
    few = given(runs, *asks[:-2], "--steps", 1, "--seed", 7)
    succeed(*few)
    found = json.loads((runs / "out" / "rollout.json").read_text())
    assert list(found["rows"]) == list(executed.BY_VIDEO) and found["windows"] == 1


IDM = "--inverse_dynamics inverse"
REFUSED = {
    f"--execute 1 {IDM}": "1 must be",
    f"--execute 0 {IDM}": "0 must be",
    "--execute 4": "--inverse_dynamics is missing",
    "--execute 4 --inverse_dynamics policy": "model.inverse_dynamics=False and sees no later frame",
    "--execute 4 --inverse_dynamics step": "frames 0.1 s apart",
    "--execute 4 --inverse_dynamics tiny": "cameras of (32, 32); one frame of (48, 48) is drawn",
    "--execute 4 --inverse_dynamics gone": "its environment is not to be had",
    "--execute 4 --inverse_dynamics arm": "its actions have 2 dimensions, those of metaworld",
    f"--execute 4 {IDM} --steps 4": "--steps 4: an episode of tabletop is 6 control steps",
    f"--execute 4 {IDM} --view top": "--view top: tabletop has ",
    f"--execute 4 {IDM} --quantizer quantizer": "is one, and reads z itself",
    f"--execute 4 {IDM} --policy small": "its image size is (32, 48), that of the imagining run",
    f"--execute 4 {IDM} --policy inverse": "cannot act",
    f"--execute 4 {IDM} --policy terse": "more than model.text_length=24",
    f"--execute 4 {IDM} --codes 0:1:2": "--execute and --codes each say where z comes from",
    f"--execute 4 {IDM} --episode 1": "--episode does not go with z of --execute",
    f"--execute 4 {IDM} --corpus robot": "a corpus is for a quantizer in its place",
    "--execute 4 --inverse_dynamics other": "--corpus is missing",
    "--execute 4 --inverse_dynamics other --corpus slow": "at 5 Hz, tabletop at 10 Hz",
    "--execute 4 --inverse_dynamics other --corpus silent": "has no actions to read latents by",
    f"--execute 4 {IDM} --window_seconds 0.3": "but z leads [0.3] s ahead",
    f"--corpus robot {IDM}": "--inverse_dynamics does not go with z of --corpus",
}


@pytest.mark.slow
def test_a_quantizer_is_read_linearly_as_a_corpus_says(runs):
    asks = ("--execute", 3, "--inverse_dynamics", runs / "other", "--corpus", runs / "robot")
    succeed(*given(runs, *asks))
    found = json.loads((runs / "out" / "rollout.json").read_text())
    how, page = found["reader"], (runs / "out" / "report.html").read_text()
    assert how["kind"] == "linear" and how["episodes"] == 8 and how["windows"] > 8
    assert f"fitted on {how['windows']:,} windows of 8 episodes" in page
    assert found["inverse_dynamics"]["workdir"] == str(runs / "other") and found["windows"] == 2

    quantizer, corpus = load(runs / "other"), {"path": str(runs / "robot")}
    source = Pairs(quantizer.config, corpus)
    (batch,) = source.batches(source.rows)
    reads, again = action_readers.by_latents(quantizer, corpus, (48, 48), {0.2}).open()
    assert again == how
    said = reads(batch.first[:20], batch.last[:20])
    actions, read = source.actions(source.rows) / 2, jax.jit(quantizer.stage.read)
    x = np.asarray(read(quantizer.params, quantizer.variables, batch.first, batch.last).latent_BLQ)
    x = x[: batch.size].reshape(batch.size, -1)
    probe = fit_probe(x, actions, source.index.episode_of_rows(source.rows[:, 0]), seed=0)
    np.testing.assert_allclose(said, probe(x)[:20], atol=1e-3)
    assert np.corrcoef(said.ravel(), actions[:20].ravel())[0, 1] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("flags", REFUSED)
def test_what_does_not_fit_is_one_line(runs, flags):
    named = {path.name for path in runs.iterdir()}
    words = [runs / word if word in named else word for word in flags.split()]
    code, _, error = lapa(*given(runs, *words, out="none"))
    assert code == 2 and REFUSED[flags] in error.splitlines()[-1], error
    assert not (runs / "none").exists()


@pytest.mark.slow
def test_a_policy_of_other_labels_or_windows_is_refused(runs):
    imagination, inverse = open_imagination(runs / "quantizer"), load(runs / "inverse")
    own = imagination.model.params_hash
    for labels, message in (
        ({"quantizer_hash": "another", "window_seconds": 0.2}, "its z is of the quantizer"),
        ({"quantizer_hash": own, "window_seconds": 0.4}, r"but z leads \[0.2, 0.4\] s ahead"),
    ):
        told = {"label_sets": {"robot": labels}}
        policy = dataclasses.replace(load_policy(runs / "policy"), provenance=told)
        with pytest.raises(ValueError, match=message):
            executed.executability(imagination, inverse, policy=policy, starts=2)
    with pytest.raises(ValueError, match="--execute 1: must be at least 2 start states"):
        executed.executability(imagination, inverse, starts=1)
