"""A policy's actions beside those of episodes."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from data_pipelines.index import load_index
from lapa_jax.evidence import action_errors
from lapa_jax.policy.heads import Decoded
from lapa_jax.runs.examples import drawn_in_training
from lapa_jax.verbs import evaluate

ALWAYS = np.float32([0.5, -0.25])


def constant(horizon: int = 1, nearest=lambda actions: None) -> SimpleNamespace:
    """A stage that always says the same."""
    shape = (2,) if horizon == 1 else (horizon, 2)
    return SimpleNamespace(
        from_pixels=True,
        fields_of=lambda config: ("frames", "instruction", "action"),
        prompts=lambda texts, ids, own: {"text": np.zeros(len(texts))},
        predict=lambda params, variables, prompts, images: Decoded(
            jnp.zeros((len(images), *shape)) + ALWAYS
        ),
        head=SimpleNamespace(nearest=nearest, describe=lambda: {"dim": 2}),
        num_images=1,
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
