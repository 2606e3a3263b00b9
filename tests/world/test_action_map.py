"""From actions to z: maps that are known are found again, on corpora too; what does not fit is
refused."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from tiny_policy import quantizer_config, write

from data_pipelines.index import load_index
from lapa_jax.diagnostics.code_probes import fit_classifier, logistic_candidates, probabilities
from lapa_jax.runs import loaded
from lapa_jax.world import action_map
from lapa_jax.world.imagination import Imagination

W, D, SIDE = 2, 3, 32


def windows(n=600, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, W, D)), np.arange(n) // 15


def codes_of(actions):
    """Two codes: one by the direction of a sum, one by which step is the larger."""
    moved = actions.sum(1)
    angle = np.arctan2(moved[:, 1], moved[:, 0]) % (2 * np.pi)
    later = actions[:, 1, 2] > actions[:, 0, 2]
    return np.stack([(angle // (np.pi / 2)).astype(int), 5 + later], 1)


def test_codes_that_actions_decide_are_found_again():
    actions, episode = windows()
    found = action_map.fit(actions, codes_of(actions), episode=episode, codes=8)
    new, _ = windows(seed=1)
    said = found.map(new)
    assert said.dtype == np.int32 and said.shape == (600, 2)
    # Of steps side by side: a sum over the window does not tell which step was the larger.
    assert ((said == codes_of(new)).mean(0) > 0.95).all()
    assert found.report["accuracy"] > 0.95 > 0.6 > found.report["modal_accuracy"]
    assert set(np.unique(said)) <= set(np.unique(codes_of(actions)))  # never one it has not seen
    assert (found.map(new[:1]) == said[:1]).all()


def test_codes_that_actions_do_not_tell_are_the_most_common_ones():
    actions, episode = windows()
    rng = np.random.default_rng(2)
    z = rng.choice(8, (600, 2), p=[0.05] * 6 + [0.6, 0.1])
    z[:, 1] = 3  # never another
    found = action_map.fit(actions, z, episode=episode, codes=8)
    assert (found.map(actions) == [6, 3]).mean() > 0.97
    assert found.report["accuracy"] - found.report["modal_accuracy"] < 0.02


@pytest.mark.parametrize("seen", [2, 4])
def test_a_classifier_scores_as_the_candidates_that_it_is_one_of(seen):
    actions, _ = windows()
    x = actions.reshape(len(actions), -1)
    code = codes_of(actions)[:, 0] % seen
    held = np.arange(600) % 4 == 0
    scores = fit_classifier(x, code, held, codebook_size=4)(x)
    expected = probabilities(partial(logistic_candidates, codebook_size=4), x, code, held, x)[1]
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, expected, atol=2e-3)  # these are smoothed


def test_vectors_that_are_linear_in_actions_are_found_again():
    actions, episode = windows()
    weights = np.random.default_rng(3).normal(size=(W * D, 10))
    z = (actions.reshape(len(actions), -1) @ weights + 0.5).reshape(-1, 2, 5).astype(np.float32)
    found = action_map.fit(actions, z, episode=episode)
    said = found.map(actions)
    assert said.dtype == np.float32
    np.testing.assert_allclose(said, z, atol=1e-3)
    assert found.report["r2_mean"] > 0.999


def test_what_does_not_fit_is_refused():
    actions, episode = windows()
    z = codes_of(actions)
    found = action_map.fit(actions, z, episode=episode, codes=8)
    for wrong in (actions[:, :1], actions[..., :2], np.zeros((0, W, D)), actions[0]):
        with pytest.raises(ValueError, match="must be"):
            found.map(wrong)
    bad = actions.copy()
    bad[3, 1, 2] = np.inf
    for ask in (found.map, lambda x: action_map.fit(x, z, episode=episode, codes=8)):
        with pytest.raises(ValueError, match="not finite"):
            ask(bad)
    with pytest.raises(ValueError, match="need actions"):
        action_map.fit(actions, z, episode=episode)  # codes, and not told how many
    with pytest.raises(ValueError, match="codebook_size"):
        action_map.fit(actions, z, episode=episode, codes=4)
    with pytest.raises(ValueError, match="3 episodes"):
        action_map.fit(actions, z, episode=episode % 3, codes=8)


# --- Of a corpus ---


def small(**bottleneck):
    config = quantizer_config().unlock()
    config.data.image_size, config.model.code_length = (SIDE, SIDE), 2
    if bottleneck:
        config.model.bottleneck = ConfigDict(bottleneck)
    return config.lock()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return loaded.load_quantizer(write(tmp_path_factory.mktemp("map") / "run", small(), {}))


def test_labels_of_a_corpus_are_taken_and_z_is_read_where_there_are_none(run, tmp_path):
    index = load_index(tiny.write_corpus(tmp_path / "robot", episodes=20, size=SIDE))
    imagination = Imagination(run)
    read = action_map.open_action_map(imagination, index)
    assert (read.steps, read.dim, read.shape) == (2, 2, (2,))
    window = dict(code_length=2, window_seconds=0.2)
    tiny.write_labels(index.directory, "other", **window)
    assert action_map.label_set_of(imagination, index) is None
    tiny.write_labels(index.directory, "own", quantizer_hash=run.params_hash, **window)
    taken = action_map.open_action_map(imagination, index)
    assert action_map.label_set_of(imagination, index).folder.name == "own"
    assert taken.report["accuracy"] != read.report["accuracy"]
    # Two steps fewer than an episode has begin a window: as many as Pairs has.
    rows = int((index.episode_length - 2).sum())
    for found in (read, taken):
        assert found.report["train_rows"] + found.report["test_rows"] == rows
    few = action_map.open_action_map(imagination, index, most=50)
    assert few.report["train_rows"] + few.report["test_rows"] <= 50


def test_vectors_of_a_corpus(tmp_path):
    model = loaded.load_quantizer(write(tmp_path / "run", small(name="none"), {}))
    index = load_index(tiny.write_corpus(tmp_path / "robot", episodes=20, size=SIDE))
    found = action_map.open_action_map(Imagination(model), index)
    z = found.map(np.zeros((4, found.steps, 2)))
    Imagination(model).checked(z)
    assert z.shape == (4, *Imagination(model).shape)


def test_corpora_without_what_a_map_takes_are_refused(run, tmp_path):
    index = load_index(tiny.write_corpus(tmp_path / "robot", size=SIDE))
    imagination = Imagination(run)
    with pytest.raises(ValueError, match="has no actions"):
        action_map.open_action_map(imagination, dataclasses.replace(index, actions=None))
    fps = np.where(np.arange(len(index.fps)) == 0, np.float32(5), index.fps)
    with pytest.raises(ValueError, match="steps a second"):
        action_map.open_action_map(imagination, dataclasses.replace(index, fps=fps))
    unknown = np.full_like(index.actions, np.nan)
    with pytest.raises(ValueError, match="no window"):
        action_map.open_action_map(imagination, dataclasses.replace(index, actions=unknown))
