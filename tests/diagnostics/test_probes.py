import json

import numpy as np
import pytest
import scipy.linalg

from lapa_jax.diagnostics.probes import (
    fit_ridge,
    linear_probe,
    one_hot_codes,
    pooled_frames,
    probe_latent_actions,
    split_episodes,
    split_in_time,
)


def test_one_hot_of_every_slot():
    np.testing.assert_array_equal(
        one_hot_codes(np.array([[0, 2], [1, 1]]), 3), [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]]
    )


def test_ridge_solves_the_normal_equations():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)) * [1, 5, 0.1, 2] + 3, rng.normal(size=(30, 2))
    (probe,) = fit_ridge(x, y, (0.5,))
    scaled = (x - x.mean(0)) / x.std(0)
    penalty = 0.5 * np.trace(scaled.T @ scaled) / 4
    weights = np.linalg.solve(scaled.T @ scaled + penalty * np.eye(4), scaled.T @ (y - y.mean(0)))
    np.testing.assert_allclose(probe(x), scaled @ weights + y.mean(0), rtol=1e-9)


def test_no_episode_is_on_both_sides():
    episode = np.random.default_rng(0).integers(0, 20, 300)
    test = split_episodes(episode, test_fraction=0.25, seed=1)
    assert not set(episode[test]) & set(episode[~test])
    assert len(set(episode[test])) == 5
    np.testing.assert_array_equal(test, split_episodes(episode, test_fraction=0.25, seed=1))
    with pytest.raises(ValueError, match="2 episodes"):
        split_episodes(np.zeros(5), test_fraction=0.5, seed=0)


def test_the_later_half_of_each_episode_in_the_order_of_its_rows():
    episode = np.array([7, 3, 7, 7, 3, 9, 7, 7])
    later = split_in_time(episode)
    assert later.tolist() == [False, False, False, False, True, False, True, True]
    with pytest.raises(ValueError, match="at least 2 rows"):
        split_in_time(np.arange(4))


def world(seed=0, rows=600):
    """Codes decide the action's first dimension, the scene decides nothing, noise the second."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 4, (rows, 2))
    actions = np.stack([z[:, 0] - 2.0 * z[:, 1], rng.normal(size=rows), np.ones(rows)], 1)
    frames = rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)
    return z, actions, np.repeat(np.arange(rows // 10), 10), frames


def test_probe_finds_what_the_code_holds_and_controls_find_nothing():
    z, actions, episode, frames = world()
    result = probe_latent_actions(
        one_hot_codes(z, 4), actions, episode, seed=0, first_frames=frames, resamples=100
    )
    code = result["latent_action"]
    assert code["r2"][0] == pytest.approx(1.0, abs=1e-3)
    assert code["r2"][1] < 0.1 and code["r2"][2] is None
    assert code["r2_interval"][2] is None
    low, high = code["r2_interval"][1]
    assert low <= code["r2"][1] <= high
    assert result["shuffled_latent_action"]["r2"][0] < 0.1
    assert result["first_frame"]["r2"][0] < 0.1
    assert result["first_frame_and_latent_action"]["r2"][0] > 0.8
    assert len({row["test_rows"] for row in result.values()}) == 1
    json.dumps(result, allow_nan=False)


def test_probe_is_deterministic_and_ignores_units_of_features():
    z, actions, episode, _ = world()
    x = one_hot_codes(z, 4)
    first = linear_probe(x, actions, episode, seed=2, resamples=50)
    assert first == linear_probe(x, actions, episode, seed=2, resamples=50)
    scaled = linear_probe(x * 1000, actions, episode, seed=2, resamples=50)
    np.testing.assert_allclose(scaled["r2"][:2], first["r2"][:2], rtol=1e-6)


def test_a_decomposition_that_does_not_converge_is_done_another_way(monkeypatch):
    z, actions, episode, _ = world(rows=200)
    expected = linear_probe(one_hot_codes(z, 4), actions, episode, seed=0, resamples=20)
    svd = scipy.linalg.svd

    def fail(x, *, lapack_driver="gesdd", **options):
        if lapack_driver == "gesdd":
            raise scipy.linalg.LinAlgError("SVD did not converge")
        return svd(x, lapack_driver=lapack_driver, **options)

    monkeypatch.setattr(scipy.linalg, "svd", fail)
    found = linear_probe(one_hot_codes(z, 4), actions, episode, seed=0, resamples=20)
    np.testing.assert_allclose(found["r2"][:2], expected["r2"][:2], rtol=1e-6)


def test_a_wide_control_is_regularised_rather_than_overfitted():
    z, actions, episode, _ = world(rows=200)
    wide = np.random.default_rng(0).normal(size=(200, 400))
    assert linear_probe(wide, actions, episode, seed=0, resamples=20)["r2_mean"] > -0.3


def test_bad_inputs_are_named():
    z, actions, episode, frames = world(rows=40)
    with pytest.raises(ValueError, match="non-finite"):
        linear_probe(one_hot_codes(z, 4), actions * np.nan, episode, seed=0)
    with pytest.raises(ValueError, match="3 episodes"):
        linear_probe(one_hot_codes(z, 4), actions, episode % 2, seed=0)
    with pytest.raises(ValueError, match="at least 99"):
        pooled_frames(frames, 99)
    with pytest.raises(ValueError, match="built-in"):
        probe_latent_actions(z, actions, episode, seed=0, extra={"latent_action": z})


def test_pooled_frames_average_blocks():
    frames = np.zeros((1, 4, 4, 1))
    frames[0, :2, 2:] = 8
    np.testing.assert_array_equal(pooled_frames(frames, 2), [[0, 8, 0, 0]])
    frames = np.arange(25.0).reshape(1, 5, 5, 1)  # blocks of 2 and of 3
    means = [frames[0, a, b].mean() for a in np.s_[:2, 2:] for b in np.s_[:2, 2:]]
    np.testing.assert_allclose(pooled_frames(frames, 2), [means])
