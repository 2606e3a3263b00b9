"""A policy's actions beside those of episodes."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from data_pipelines.index import load_index
from data_pipelines.normalise import Normaliser
from lapa_jax.evidence import action_errors, policy_page
from lapa_jax.policy.heads import Decoded
from lapa_jax.runs.examples import drawn_in_training
from lapa_jax.verbs import evaluate

ALWAYS = np.float32([0.5, -0.25])


def constant(
    horizon: int = 1, nearest=lambda actions: None, statistics: Normaliser | None = None
) -> SimpleNamespace:
    """A stage that always says the same."""
    shape = (2,) if horizon == 1 else (horizon, 2)
    return SimpleNamespace(
        from_pixels=True,
        fields_of=lambda config: ("frames", "instruction", "action"),
        prompts=lambda texts, ids, own: {"text": np.zeros(len(texts))},
        predict=lambda params, variables, prompts, images: Decoded(
            jnp.zeros((len(images), *shape)) + ALWAYS
        ),
        head=SimpleNamespace(nearest=nearest, describe=lambda: {"dim": 2}, statistics=statistics),
        num_images=1,
        inverse_dynamics=False,
    )


@pytest.mark.parametrize("horizon", [1, 3])
def test_errors_are_those_of_all_examples(tiny_data, horizon):
    """Against a loop over the episodes: every step but the last, chunks up to it."""
    config = tiny.config("action_finetuning", tiny_data)
    with config.unlocked():
        config.data.action_horizon = horizon
    run = SimpleNamespace(config=config, stage=constant(horizon, np.rint), params={}, variables={})
    corpus = config.data.corpora.robot.to_dict()
    found = action_errors.evaluate_actions(run, {"here": corpus}, max_examples=10_000)["here"]
    index = load_index(corpus["path"])
    chunks, previous, at = [], [], []
    for start, length in zip(index.episode_start, index.episode_length, strict=True):
        actions = index.actions[start : start + length - 1].astype(np.float64)
        for t in range(length - 1):
            for h in range(min(horizon, length - 1 - t)):
                chunks.append(actions[t + h])
                previous.append(actions[t - 1] if t else [np.nan] * 2)
                at.append(h)
    true, previous, at = np.array(chunks), np.array(previous), np.array(at)
    mean = true.mean(axis=0)
    previous = np.where(np.isnan(previous), mean, previous)
    assert found["examples"] == (at == 0).sum() and found["steps"] == horizon
    for name, guess in {
        "policy": ALWAYS,
        "mean_action": mean,
        "action_before": previous,
        "tokens": np.rint(true),
    }.items():
        np.testing.assert_allclose(found[name]["l1"], np.abs(guess - true).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(found[name]["mse"], ((guess - true) ** 2).mean(0), rtol=1e-5)
    for l1, (low, high) in zip(found["policy"]["l1"], found["policy"]["l1_interval"], strict=True):
        assert low <= l1 <= high
    ratio = ((ALWAYS - true) ** 2).mean(0) / true.var(axis=0)
    np.testing.assert_allclose(found["policy"]["r2"], 1 - ratio, rtol=1e-4)
    if horizon > 1:
        by_step = [np.abs(ALWAYS - true[at == h]).mean(axis=0) for h in range(horizon)]
        np.testing.assert_allclose(found["policy"]["l1_by_step"], by_step, rtol=1e-5)
        assert len(action_errors.steps_table(found)) == 1 + horizon
    assert len(action_errors.table(found)) == 3
    few = action_errors.evaluate_actions(run, {"here": corpus}, max_examples=5)["here"]
    assert few["examples"] == 5 and few["seen_in_training"] == found["seen_in_training"] == 1.0


def test_held_out_episodes(tiny_data):
    """Every example of an episode that the training leaves out, and no other."""
    config = tiny.config("action_finetuning", tiny_data)
    run = SimpleNamespace(config=config, stage=constant(), params={}, variables={})
    corpus = config.data.corpora.robot.to_dict()

    def ask(**options):
        here = {"here": corpus}
        return action_errors.evaluate_actions(run, here, max_examples=10_000, **options)["here"]

    with pytest.raises(ValueError, match="was held out of the training: train with"):
        ask(held_out=True)
    say, run.stage.predict = (
        run.stage.predict,
        lambda *given: Decoded(jnp.zeros((len(given[3]), 7))),
    )
    with pytest.raises(ValueError, match=r"have 2 dimensions, .* what the policy says is \[7\]"):
        ask()
    run.stage.predict = say
    with config.unlocked():
        config.data.corpora.robot.fraction = 0.5
    index = load_index(corpus["path"])
    left = np.flatnonzero(~drawn_in_training(config, index))
    actions = [
        index.actions[start : start + length - 1]
        for start, length in zip(index.episode_start[left], index.episode_length[left], strict=True)
    ]
    found, every = ask(held_out=True), ask()
    assert 0 < found["episodes"] == len(left) < every["episodes"] == index.num_episodes
    assert found["seen_in_training"] == 0.0 < every["seen_in_training"] < 1.0
    expected = np.abs(ALWAYS - np.concatenate(actions)).mean(axis=0)
    np.testing.assert_allclose(found["policy"]["l1"], expected, rtol=1e-5)


def test_what_is_told_of_chunks(tmp_path):
    """Answers that say nothing are in no error and are counted; what is out of range, by the names
    of the dimensions; chunks to look at, whole ones, and a page that draws them."""
    rng = np.random.default_rng(0)
    statistics = Normaliser.fit(
        np.array([[-1.0, 0.0], [1.0, 2.0]]), "min_max", names=("x", "grip"), units=("m", "")
    )
    run = SimpleNamespace(stage=constant(3, statistics=statistics), workdir=tmp_path, step=7)
    true = rng.uniform([-1, 0], [1, 2], (20, 3, 2))
    true[0, 0, 0] = 1.5
    said = true + 0.01 * np.arange(20)[:, None, None]
    said[5, 2, 1] = np.nan
    mask = np.ones((20, 3), bool)
    mask[2, 2:] = False
    given = (mask, np.full((20, 2), np.nan), np.arange(20))
    found = action_errors.action_errors(run, said, true, *given)
    assert found["decoded"] == 0.95 and found["examples"] == 19
    weights = mask.sum(1) * (np.arange(20) != 5)
    expected = 0.01 * (np.arange(20) * weights).sum() / weights.sum()
    np.testing.assert_allclose(found["policy"]["l1"], expected)
    np.testing.assert_allclose(found["out_of_range"]["true"], [1 / 56, 0])
    head, *rows = action_errors.table(found)
    assert [row[0] for row in rows] == found["names"] == ["x (m)", "grip"]
    assert head[-2:] == ["true out of range", "policy's"] and rows[0][-2] == 1 / 56
    assert [one["episode"] for one in found["chunks"]] == [3, 10, 17]  # without 2 and 5
    assert np.shape(found["chunks"][0]["true"]) == (3, 2)
    run.config = ConfigDict({"seed": 0})
    result = {"actions": {"here": found | {"seen_in_training": 0.0}}, "corpora": ["here"]}
    policy_page.write(tmp_path / "page.html", run, result, "")
    page = (tmp_path / "page.html").read_text()
    assert "better than 50 % of the chunks: mean absolute error x (m) 0.1, grip 0.1." in page
    assert "5.0% of the answers say no actions" in page
    with pytest.raises(ValueError, match="of 20 answers of the policy none is finite"):
        action_errors.action_errors(run, said * np.nan, true, *given)


def test_dimensions_that_do_not_change(tiny_data):
    true = np.ones((4, 1, 2))
    true[:, 0, 1] = [0, 1, 0, 1]
    run = SimpleNamespace(stage=constant())
    mask, before = np.ones((4, 1), bool), np.full((4, 2), np.nan)
    found = action_errors.action_errors(run, true, true, mask, before, np.array([0, 0, 1, 1]))
    assert found["policy"]["r2"] == [None, 1.0] and "tokens" not in found


def test_no_closed_loop_where_the_policy_cannot_act(tiny_data):
    """By default it is left out, and why is told; asked for, it is an error."""
    stage = constant()
    stage.head.describe = lambda: {"dim": 7}
    run = SimpleNamespace(config=tiny.config("action_finetuning", tiny_data), stage=stage)
    flags = dict(families=None, blocks=None, steps=None)
    why = evaluate._no_closed_loop(run, SimpleNamespace(episodes=None, **flags))
    assert why == "the policy's actions have 7 dimensions, those of tabletop 2"
    with pytest.raises(ValueError, match="--episodes 5: the policy's actions have 7 dimensions"):
        evaluate._no_closed_loop(run, SimpleNamespace(episodes=5, **flags))
    stage.head.describe, stage.head.horizon = lambda: {"dim": 2}, 4
    for rate, execute, expected in (
        (10.0, 4, ""),
        (0.0, 0, ""),
        (5.0, 1, "the policy acts at 5 Hz, tabletop at 10 Hz: take a policy that was trained at"),
        (10.0, 5, "execute=5 must be from 1 to 4"),
    ):
        run.control_hz = rate
        given = SimpleNamespace(episodes=None, execute=execute, **flags)
        if execute > 4:
            with pytest.raises(ValueError, match=expected):
                evaluate._no_closed_loop(run, given)
        else:
            why = evaluate._no_closed_loop(run, given)
            assert why.startswith(expected) and bool(why) == bool(expected)
