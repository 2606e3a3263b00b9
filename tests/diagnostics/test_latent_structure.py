"""Worlds whose answers are known: grey frames whose brightness moves, and models of them."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from lapa_jax.diagnostics import (
    again,
    algebra,
    cuts,
    displacement,
    embodiment,
    information,
    reconstruction,
    statistics,
    token_controls,
    window_curve,
)
from lapa_jax.diagnostics.sample import Chains, Sample, in_batches

EPISODES, LENGTH = 12, 8


def grey(brightness):
    return np.broadcast_to(brightness[..., None, None, None], (*brightness.shape, 8, 8, 3))


def world(read, decode, seed=0):
    """A sample of episodes of LENGTH frames, a window between neighbours, that a model reads."""
    rng = np.random.default_rng(seed)
    moves = rng.uniform(-0.04, 0.04, (EPISODES, LENGTH - 1))
    place = np.concatenate([rng.uniform(0.3, 0.7, (EPISODES, 1)), moves], 1).cumsum(1)
    frames = grey(place)

    def ask(first, last):
        z = read(first[:, 0, 0, 0], last[:, 0, 0, 0])[:, None, None]
        return None, z, z

    def draw(first, z):
        return grey(decode(first[:, 0, 0, 0], z[:, 0, 0]))

    first, last = (x.reshape(-1, 8, 8, 3) for x in (frames[:, :-1], frames[:, 1:]))
    _, z, received = ask(first, last)
    chains = Chains(
        frames[:, :5], np.arange(5.0), np.arange(EPISODES), (place[:, :5] - place[:, :1])[..., None]
    )
    return Sample(
        first,
        last,
        None,
        z,
        moves.reshape(-1, 1),
        np.repeat(np.arange(EPISODES), LENGTH - 1),
        8,
        recon=draw(first, z),
        received=received,
        decode=draw,
        read=ask,
        compose=lambda one, then, still: one + then - still.mean(0),
        chains=chains,
    )


@pytest.fixture(scope="module")
def motion():
    """z is the motion, and a constant: the anchor."""
    return world(lambda first, last: last - first + 0.5, lambda first, z: first + z - 0.5)


@pytest.fixture(scope="module")
def look():
    """z is the later frame."""
    return world(lambda first, last: last, lambda first, z: z)


def test_motions_add_up_and_looks_do_not(motion, look):
    found = algebra.of_sample(motion)
    for name in ("additivity", "reversal", "identity"):
        assert found[name]["value"] == pytest.approx(0.0, abs=1e-12)
        assert found[name]["value_interval"] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert found["additivity"]["chance"] > 0.5 and found["reversal"]["chance"] > 1.0
    assert found["anchor"] == pytest.approx(1.0, abs=0.1)
    assert found["composed_skill"] == pytest.approx(1.0)
    for k in ("1", "4"):
        of_k = found["cumulative"][k]
        assert of_k["error"] == pytest.approx(0.0, abs=1e-12)
        assert of_k["direct"] == pytest.approx(1.0) and of_k["chained"] == pytest.approx(1.0)
    found = algebra.of_sample(look)
    assert found["composed_skill"] < 0.5
    assert min(found[name]["value"] for name in ("additivity", "reversal", "identity")) > 0.5
    assert found["cumulative"]["4"]["error"] > found["cumulative"]["2"]["error"] > 0.5


def test_what_never_changes_has_no_algebra():
    found = algebra.of_sample(world(lambda first, last: 0.0 * last, lambda first, z: first))
    assert found["additivity"] == {"value": None, "value_interval": None, "chance": None}
    assert found["anchor"] is None and found["cumulative"]["2"]["direct"] == 0.0


def test_a_motion_applied_again_goes_on(motion, look):
    found = again.of_sample(motion)
    assert found["relative"] == pytest.approx(1.0) and found["mse"] == pytest.approx(0.0)
    assert found["relative_interval"] == pytest.approx([1.0, 1.0])
    assert again.of_sample(look)["relative"] == pytest.approx(0.0)
    copying = dataclasses.replace(look, decode=lambda first, z: first)
    assert again.of_sample(copying)["relative"] == pytest.approx(-1.0)


def test_a_decoder_of_features_is_compared_where_it_answers(motion):
    """Features are the brightness, ten times as large."""
    features = dataclasses.replace(
        motion,
        recon=None,
        errors=np.array([[0.5, 2.0]] * len(motion.first)),
        decode=lambda first, z: 10.0 * motion.decode(first, z)[:, :1, :1, 0],
        target=lambda frames: 10.0 * frames[:, :1, :1, 0],
    )
    found = again.of_sample(features)
    assert found["relative"] == pytest.approx(1.0)
    assert found["mse_again"] == pytest.approx(100.0 * again.of_sample(motion)["mse_again"])
    of_two = algebra.of_sample(features)["cumulative"]["2"]
    assert of_two["direct"] == pytest.approx(1.0) and "chained" not in of_two
    report = reconstruction.of_sample(features)
    assert report["skill"] == 0.75 and report["psnr"] is report["psnr_copy"] is None


def test_a_cut_shows_what_is_carried_as_a_picture(motion, look):
    carrying = cuts.of_sample(look)
    assert carrying["skill"] == pytest.approx(1.0)
    assert carrying["carried"] == pytest.approx(1.0 - carrying["skill_exchanged"])
    blind = world(lambda first, last: np.sign(last - first), lambda first, z: first + 0.02 * z)
    assert abs(cuts.of_sample(blind)["carried"]) < 0.3 < carrying["carried"]
    other = cuts.across(motion.episode, seed=0)
    assert (motion.episode[other] != motion.episode).all() and len(set(other)) > 30
    mixed = np.array([3, 0, 3, 0, 0, 1])
    assert (mixed[cuts.across(mixed, seed=1)] != mixed).all()
    with pytest.raises(ValueError, match="there is 1 episode"):
        cuts.across(np.zeros(4, int), seed=0)


def test_larger_motions_have_larger_latents(motion, look):
    found = displacement.of_sample(motion)
    for name in ("motion", "frame_change"):
        assert found[name]["correlation"] == pytest.approx(1.0)
    assert abs(displacement.of_sample(look)["motion"]["correlation"]) < 0.4


def test_the_probe_is_measured_at_every_window(motion, look):
    found = window_curve.of_sample(motion)
    assert list(found) == ["1", "2", "3", "4"]
    assert all(row["r2_mean"] > 0.99 for row in found.values())
    assert all(row["r2_mean"] < 0.9 for row in window_curve.of_sample(look).values())


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_information_of_gaussians(correlation):
    x, noise = np.random.default_rng(0).normal(size=(2, 1500, 2))
    y = correlation * x + np.sqrt(1 - correlation**2) * noise
    expected = -np.log2(1 - correlation**2)  # of two dimensions
    assert information.ksg(x, y).mean() == pytest.approx(expected, abs=0.1)


def test_information_of_codes():
    rng = np.random.default_rng(0)
    code = rng.integers(0, 8, 1200)
    apart = code[:, None] + rng.uniform(-0.4, 0.4, (1200, 1))
    assert information.ross(code, apart).mean() == pytest.approx(3.0, abs=0.05)
    assert information.ross(code, code[:, None]).mean() == pytest.approx(3.0, abs=0.05)  # ties
    assert information.ross(code // 2, apart).mean() == pytest.approx(2.0, abs=0.05)
    assert information.ross(rng.permutation(code), apart).mean() == pytest.approx(0.0, abs=0.1)
    # Codes that are seen once say nothing of what they mean.
    assert information.ross(np.arange(1200), apart).mean() == pytest.approx(0.0, abs=0.1)


def test_information_beside_that_of_the_episode(motion):
    found = information.of_sample(motion)
    assert found["latent"]["bits"] > 2.0 > 0.7 > found["latent"]["chance"]
    assert "codes" not in found and found["latent"]["dimensions"] == 1
    still = world(lambda first, last: 0.0 * last, lambda first, z: first)
    assert information.of_sample(still)["latent"]["bits"] == pytest.approx(0.0, abs=0.1)
    assert sorted(embodiment.shuffle_within(motion.episode, 0)) == list(range(len(motion.episode)))


def test_rank_correlation_is_that_of_ranks():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    episode = np.repeat(np.arange(20), 10)
    found, interval = statistics.rank_correlation(x, -np.exp(x), episode)
    assert found == pytest.approx(-1.0) and interval == pytest.approx([-1.0, -1.0])
    y = x + 2.0 * rng.normal(size=200)
    found, (low, high) = statistics.rank_correlation(x, y, episode)
    assert found == pytest.approx(spearmanr(x, y).statistic) and 0.0 < low < found < high < 1.0
    assert statistics.rank_correlation(x, np.ones(200), episode) == (None, None)


def test_batches_have_one_shape_and_give_every_row():
    shapes = set()

    def twice(x, y):
        shapes.add(len(x))
        return 2 * x + y, None

    x = np.arange(600.0)
    found, nothing = in_batches(twice, x, x)
    np.testing.assert_array_equal(found, 3 * x)
    assert shapes == {256} and nothing is None


def test_tokens_without_a_policy():
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(20), 12)
    seen = rng.integers(0, 3, 240)  # what the frame shows
    frames = np.zeros((240, 8, 8, 3), np.uint8)
    frames[np.arange(240), seen] = 255
    tokens = np.stack([seen, np.where(rng.random(240) < 0.8, 5, seen)], 1)
    found = token_controls.token_controls(tokens, episode, frames, 8)
    assert found["majority_accuracy"] == pytest.approx((0.33 + 0.8) / 2, abs=0.1)
    assert found["first_frame_accuracy"] == pytest.approx((1.0 + 0.8) / 2, abs=0.1)
    low, high = found["first_frame_sequence_accuracy_interval"]
    assert low <= found["first_frame_sequence_accuracy"] <= high
    alone = token_controls.token_controls(tokens, episode, None, 8)
    assert alone["majority_accuracy"] == found["majority_accuracy"]
    assert not any("first_frame" in name for name in alone)
    assert token_controls.token_controls(tokens, episode % 3, frames, 8) == {}
