"""Success in what is imagined: of a world that is true it is the real one; what reads success off
frames, and what does not go together."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax import envs
from lapa_jax.envs import words
from lapa_jax.envs.rollout import render_states
from lapa_jax.evidence import imagined_success, judges
from lapa_jax.evidence.imagined_success import agreement, evaluate_imagined, of_window
from lapa_jax.evidence.judges import Judge, train_judge

ENV = envs.make({"name": "tabletop", "families": ("reach",), "horizon": 12})
SIZE, W, N, SEED = (32, 32), 3, 40, 5


class Actions:
    """z is the actions themselves."""

    steps, dim, shape = W, 2, (W, 2)

    def map(self, actions):
        return np.asarray(actions)


def actions_map(**changes):
    found = Actions()
    vars(found).update(changes)
    return found


def world(**changes):
    """What every imagination has, and draws nothing."""
    known = dict(image_size=SIZE, shape=(W, 2), window_seconds=0.3)
    return SimpleNamespace(model=SimpleNamespace(workdir="world"), **known | changes)


class TrueWorld:
    """Imagines by the simulator, from the start states of an evaluation."""

    model, image_size, shape, window_seconds = world().model, SIZE, (W, 2), 0.3

    def start(self, frames):
        states = ENV.evaluation_states(SEED, "reach", N)
        self.states = jax.tree.map(lambda x: x[np.resize(np.arange(N), len(frames))], states)
        return self.states

    def step(self, states, z):
        for w in range(W):
            states = jax.vmap(ENV.step)(states, z[:, w])
        self.states = states
        return states, render_states(ENV, states, SIZE, "robot") / 255.0


class Told:
    """A judge that is told."""

    env = ENV

    def __init__(self, world):
        self.world = world

    def judged(self, states, frames):
        return np.asarray(jax.vmap(ENV.success)(self.world.states))


class Stage:
    """Moves by what it sees, in chunks of `n`."""

    acts, num_images, state, draws = True, 1, None, False

    def __init__(self, n=1):
        self.n, self.head = n, SimpleNamespace(horizon=n)

    def prompts(self, instructions, own=None):
        return {"number": np.array([len(text) for text in instructions])}

    def act(self, params, variables, prompts, images):
        x = images[:, 0].astype(jnp.float32).reshape(len(images), -1)
        angle = x @ jnp.sin(jnp.arange(x.shape[1]) ** 2.0) + prompts["number"]
        said = params["speed"] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
        steps = 1.0 + 0.2 * jnp.arange(self.n)
        return said if self.n == 1 else said[:, None] * steps[:, None]


def policy(n=1, **changes):
    stage = Stage(n)
    for name, value in changes.items():
        setattr(stage, name, value)
    config = SimpleNamespace(stage="x", data=SimpleNamespace(image_size=SIZE))
    params = {"speed": jnp.float32(0.025)}
    return SimpleNamespace(
        config=config, stage=stage, params=params, variables={}, workdir="policy", control_hz=10.0
    )


def acted(n):
    """In which window it succeeds in truth, where it is asked once a window."""
    states, run = ENV.evaluation_states(SEED, "reach", N), policy(n)
    prompts = run.stage.prompts(words.of_all(ENV, "train", states, "reach", SEED))
    done = np.zeros(N, int)
    for k in range(12 // W):
        frames = render_states(ENV, states, SIZE, "robot")
        said = run.stage.act(run.params, {}, prompts, frames[:, None])
        for w in range(W):
            states = jax.vmap(ENV.step)(states, said if n == 1 else said[:, w])
        done[(done == 0) & np.asarray(jax.vmap(ENV.success)(states))] = k + 1
    return done


@pytest.mark.parametrize("n", [1, 4])
def test_in_a_true_world_success_is_the_real_one(n):
    true = TrueWorld()
    found = evaluate_imagined(
        policy(n), true, Actions(), Told(true), "reach", episodes=N, seed=SEED, view="robot"
    )
    expected = acted(n)
    assert 2 <= (expected > 0).sum() <= N - 2
    np.testing.assert_array_equal(found.windows, expected)
    report = found.report
    assert report["successes"] == (expected > 0).sum() == sum(report["by_window"])
    assert report["by_window"] == [(expected == k).sum() for k in range(1, 5)]
    assert report["low"] < report["estimate"] < report["high"] and report["windows"] == 4


def test_batches_do_not_change_what_is_found(monkeypatch):
    """Of more start states than a batch, the last batch filled up; told by a judge of frames."""

    class Red(Told):
        def judged(self, states, frames):
            return frames.reshape(len(frames), -1).sum(1) % 3 == 0

    still = world(start=lambda x: x, step=lambda x, z: (x + np.uint8(1), (x + np.uint8(1)) / 255))
    given = dict(episodes=13, seed=SEED, view="robot")
    whole = evaluate_imagined(policy(), still, Actions(), Red(None), "reach", **given)
    monkeypatch.setattr(imagined_success, "BATCH", 4)
    parts = evaluate_imagined(policy(), still, Actions(), Red(None), "reach", **given)
    np.testing.assert_array_equal(whole.windows, parts.windows)
    assert 0 < whole.outcomes.sum()


def test_actions_of_a_window():
    said = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    np.testing.assert_array_equal(of_window(said, 2), said)
    np.testing.assert_array_equal(of_window(said, 1), said[:, :1])
    one = of_window(said[:, 0], 3)
    np.testing.assert_array_equal(one, said[:, :1].repeat(3, axis=1))


def test_agreement_is_that_of_a_table():
    a = np.array([True, True, False, False, True, False])
    b = np.array([True, False, False, False, True, True])
    found = agreement(a, b)
    assert found["accuracy"] == pytest.approx(4 / 6) and found["chance"] == pytest.approx(0.5)
    assert found["phi"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert agreement(a, np.ones(6, bool))["phi"] is None
    with pytest.raises(ValueError, match="bool arrays"):
        agreement(a, b.astype(int))


def test_what_does_not_go_together_is_refused():
    def ask(run=None, imagination=None, actions=None, episodes=2):
        given = run or policy(), imagination or world(), actions or Actions(), Told(None)
        evaluate_imagined(*given, "reach", episodes=episodes, seed=0)

    seen = policy()
    seen.config.data.image_size = (64, 64)
    fast = policy()
    fast.control_hz = 5.0
    for run, told in (
        (policy(acts=False), "it has no actions"),
        (policy(num_images=2), "takes 2 images"),
        (policy(state=object()), "model.state"),
        (policy(2), r"2 actions at once \(data.action_horizon\), a window has 3"),
        (seen, "data.image_size"),
        (fast, "Hz|rate|actions a second"),
    ):
        with pytest.raises(ValueError, match=told):
            ask(run)
    with pytest.raises(ValueError, match="3 dimensions|takes 3"):
        ask(actions=actions_map(dim=3))
    with pytest.raises(ValueError, match="a window of world is 0.2 s"):
        ask(imagination=world(window_seconds=0.2))
    with pytest.raises(ValueError, match="z of shape"):
        ask(imagination=world(shape=(1,)))
    with pytest.raises(ValueError, match="evaluation.env.horizon"):
        ask(imagination=world(window_seconds=0.5), actions=actions_map(steps=5))
    with pytest.raises(ValueError, match="episodes=0 must be at least 1"):
        ask(episodes=0)


# --- Judges ---


def still_world():
    return world(start=lambda x: x / 255.0, step=lambda x, z: (x, x))


def test_success_is_the_simulators_where_the_effector_is_read():
    states = ENV.evaluation_states(SEED, "reach", 20)
    target = np.asarray(states.blocks)[np.arange(20), np.asarray(states.a)]
    places = np.where(np.arange(20)[:, None] % 2 == 0, target, np.asarray(states.effector))

    class Reads(Judge):
        def places(self, frames_BHWC):
            return places

    frames = np.zeros((20, *SIZE, 3), np.uint8)
    assert Reads(ENV, {}, {}).judged(states, frames).tolist() == [True, False] * 10


def test_a_judge_is_saved_and_tested_on_other_episodes(tmp_path):
    judge = train_judge(ENV, still_world(), Actions(), view="robot", episodes=4, steps=2)
    report = judge.report
    assert report["episodes"] == 2 and len(report["imagined"]["error"]) == 4
    assert 0 <= report["true"]["accuracy"] <= 1
    judge.save(tmp_path / "judge.npz")
    again = Judge.load(ENV, tmp_path / "judge.npz")
    frames = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    np.testing.assert_array_equal(judge.places(frames), again.places(frames))
    pushing = envs.make({"name": "tabletop", "families": ("block_to_block",)})
    with pytest.raises(ValueError, match="families"):
        Judge.load(pushing, tmp_path / "judge.npz")
    with pytest.raises(ValueError, match="families"):
        train_judge(pushing, still_world(), Actions())
    with pytest.raises(ValueError, match="episodes=1 must be at least 2"):
        train_judge(ENV, still_world(), Actions(), episodes=1)


@pytest.mark.slow
def test_a_judge_learns_to_read_true_frames_and_nothing_off_black_ones():
    black = world(start=lambda x: x, step=lambda x, z: (x, x * 0.0))
    judge = train_judge(ENV, black, Actions(), view="robot", episodes=100, steps=600)
    report = judge.report
    assert report["true"]["error"] < 0.02 and report["true"]["accuracy"] > 0.8
    assert min(report["imagined"]["error"]) > 0.08
    assert report["imagined"]["done"] < report["true"]["done"] <= report["done"] + 0.05
    assert judges.windows_of(ENV, black, Actions()) == 4
