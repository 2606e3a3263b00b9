import json

import numpy as np
import pytest

from lapa_jax.diagnostics.leakage import code_given_scene, scene_probe
from lapa_jax.diagnostics.probes import one_hot_codes, pooled_frames

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")

EPISODE = np.repeat(np.arange(60), 12)


def scenes(seed=0):
    """Frames whose background is that of the episode and whose upper left corner is lit at will."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (60, 8, 8, 3))[EPISODE].repeat(2, 1).repeat(2, 2)
    lit = rng.integers(0, 2, len(EPISODE))
    frames[:, :4, :4] = 200 * lit[:, None, None, None]
    return (frames + rng.integers(0, 8, frames.shape)).astype(np.uint8), lit


@pytest.mark.slow
def test_a_code_that_is_a_rule_of_the_scene_has_no_entropy_left():
    frames, lit = scenes()
    report = code_given_scene(lit[:, None], frames, EPISODE, 8, seed=0)
    for found in report.values():
        assert found["bits"] < 0.1 and found["marginal_bits"] > 0.9
    json.dumps(report, allow_nan=False)


@pytest.mark.slow
def test_a_code_of_the_episode_is_found_where_the_scene_is_known():
    frames, _ = scenes()
    z = np.random.default_rng(1).integers(0, 8, (60, 2))[EPISODE]
    report = code_given_scene(z, frames, EPISODE, 8, seed=0)
    assert report["later_in_episode"]["bits"] < 0.3
    assert report["other_episodes"]["explained_bits"] < 0.5
    assert report["later_in_episode"]["marginal_bits"] > 5.0  # two slots, near three bits each


@pytest.mark.slow
def test_independent_codes_keep_their_entropy():
    frames, _ = scenes()
    z = np.random.default_rng(1).integers(0, 8, (len(EPISODE), 2))
    for found in code_given_scene(z, frames, EPISODE, 8, seed=0).values():
        assert found["bits"] == pytest.approx(6.0, abs=0.15)
        low, high = found["bits_interval"]
        assert low <= found["bits"] <= high


@pytest.mark.slow
def test_what_the_rows_cannot_tell_is_left_open():
    frames, lit = scenes()
    sparse = np.arange(len(EPISODE))  # one row per episode
    report = code_given_scene(lit[:, None], frames, sparse, 8, seed=0)
    assert report["later_in_episode"] is None and report["other_episodes"]["bits"] < 0.1
    report = code_given_scene(lit[:, None], frames, EPISODE // 30, 8, seed=0)
    assert report["other_episodes"] is None and report["later_in_episode"]["bits"] < 0.1


def test_scenes_are_told_by_their_looks_and_not_by_free_codes():
    frames, _ = scenes()
    z = np.random.default_rng(1).integers(0, 8, (len(EPISODE), 1))
    sets = {"first_frame": pooled_frames(frames), "latent_action": one_hot_codes(z, 8)}
    report = scene_probe(sets, EPISODE, seed=0)
    looks, code = report["first_frame"], report["latent_action"]
    assert looks["accuracy"] > 0.95 and looks["episodes"] == 50 and looks["chance"] == 1 / 50
    assert looks["train_rows"] == looks["test_rows"] == 300
    assert abs(code["accuracy"] - code["chance"]) < 0.02
    low, high = code["accuracy_interval"]
    assert low <= code["accuracy"] <= high
    assert report == scene_probe(sets, EPISODE, seed=0)


def test_codes_of_the_episode_are_found_up_to_their_number():
    # Eight codes over ten episodes tell eight of them at best.
    episode = EPISODE[EPISODE < 10]
    report = scene_probe({"z": one_hot_codes(episode[:, None] % 8, 8)}, episode, seed=0)["z"]
    assert report["accuracy"] == pytest.approx(0.8)


def test_a_constant_guess_has_chance_whatever_the_lengths():
    episode = np.repeat(np.arange(5), [4, 40, 4, 6, 10])
    report = scene_probe({"nothing": np.zeros((len(episode), 1))}, episode, seed=0)["nothing"]
    assert report["accuracy"] == pytest.approx(report["chance"]) == 1 / 5


def test_bad_inputs_are_named():
    with pytest.raises(ValueError, match="more densely"):
        scene_probe({"z": np.zeros((4, 1))}, np.array([0, 1, 2, 2]), seed=0)
    with pytest.raises(ValueError, match="episode numbers"):
        scene_probe({"z": np.zeros((3, 1))}, np.array([0, 0, 2, 2]), seed=0)


def test_a_short_episode_is_not_passed_over():
    # Of two episodes a code tells seven rows in ten: guessing the long one would always pay.
    rng = np.random.default_rng(0)
    episode = np.repeat([0, 1], [400, 40])
    z = (rng.random(len(episode)) < np.where(episode, 0.7, 0.3)).astype(int)
    report = scene_probe({"z": one_hot_codes(z[:, None], 2)}, episode, seed=0)["z"]
    assert report["accuracy"] == pytest.approx(0.7, abs=0.12)
