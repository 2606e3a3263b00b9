import numpy as np
import pytest

from lapa_jax.diagnostics.codebook import codebook_intervals, codebook_report
from lapa_jax.diagnostics.embodiment import (
    code_agreement,
    cross_view_probe,
    linear_cka,
    retrieval,
    shuffle_within,
)
from lapa_jax.diagnostics.probes import one_hot_codes

EPISODE = np.repeat(np.arange(40), 10)


def world(seed=0):
    """Codes that tell the motion, codes that tell the episode, and the motion."""
    rng = np.random.default_rng(seed)
    motion = rng.integers(0, 8, (len(EPISODE), 1))
    scene = (EPISODE % 8)[:, None]
    directions = np.stack([np.cos(np.arange(8)), np.sin(np.arange(8))], 1)
    return motion, scene, directions[motion[:, 0]] + 0.01 * rng.normal(size=(len(EPISODE), 2))


def test_windows_are_exchanged_within_their_episode_only():
    order = shuffle_within(EPISODE, 3)
    assert sorted(order) == list(range(len(EPISODE)))
    np.testing.assert_array_equal(EPISODE[order], EPISODE)
    assert (order != np.arange(len(order))).mean() > 0.8
    scattered = np.random.default_rng(0).permutation(EPISODE)  # episodes need not lie together
    np.testing.assert_array_equal(scattered[shuffle_within(scattered, 3)], scattered)


def test_agreement_counts_only_above_its_null():
    motion, scene, _ = world()
    same = code_agreement(motion, motion, EPISODE, 8, seed=0)
    assert same["agreement"]["estimate"] == 1.0
    assert same["null"]["high"] < 0.3
    # Codes of the scene agree as often when the windows are exchanged: they say nothing of motion.
    told = code_agreement(scene, scene, EPISODE, 8, seed=0)
    assert told["agreement"]["estimate"] == told["null"]["estimate"] == 1.0
    other = code_agreement(motion, (motion + 1) % 8, EPISODE, 8, seed=0)
    assert other["agreement"]["estimate"] == 0.0


def test_retrieval_and_alignment_ignore_offset_and_scale():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(len(EPISODE), 6))
    assert retrieval(latents, 3.0 * latents + 7.0, EPISODE, seed=0)["estimate"] == 1.0
    strange = rng.normal(size=(len(EPISODE), 6))
    found = retrieval(latents, strange, EPISODE, seed=0)
    assert found["estimate"] < 0.05 and found["chance"] == pytest.approx(1 / len(EPISODE))
    turned = latents @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(latents, 2.0 * turned - 1.0) == pytest.approx(1.0)
    assert linear_cka(latents, strange) < 0.2
    with pytest.raises(ValueError, match="never change"):
        linear_cka(latents, np.ones_like(latents))


def test_a_probe_crosses_views_only_with_a_common_code():
    motion, _, actions = world()
    codes, others = one_hot_codes(motion, 8), one_hot_codes((motion + 4) % 8, 8)
    same = cross_view_probe(codes, codes, actions, EPISODE, seed=0)
    assert same["other_view"]["r2_mean"] == pytest.approx(same["same_view"]["r2_mean"])
    assert same["same_view"]["r2_mean"] > 0.95
    low, high = same["same_view"]["r2_mean_interval"]
    assert low <= same["same_view"]["r2_mean"] <= high
    other = cross_view_probe(codes, others, actions, EPISODE, seed=0)
    assert other["same_view"]["r2_mean"] > 0.95 and other["other_view"]["r2_mean"] < 0


def test_codes_of_other_lengths_are_refused():
    motion, _, _ = world()
    with pytest.raises(ValueError, match="shapes"):
        code_agreement(motion, motion[:-1], EPISODE, 8, seed=0)


def test_codebook_intervals_hold_their_estimates():
    z = np.random.default_rng(0).integers(0, 6, (len(EPISODE), 2))
    report = codebook_report(z, 8)
    intervals = codebook_intervals(z, 8, EPISODE, seed=0)
    low, high = intervals["mean_perplexity_interval"]
    assert low <= report["mean_perplexity"] and high - low < 0.5
    assert high > report["mean_perplexity"] - 0.2  # resamples are biased low
    # An only episode leaves nothing to resample.
    one = codebook_intervals(z, 8, np.zeros(len(z)), seed=0)
    assert one["mean_perplexity_interval"] == pytest.approx([report["mean_perplexity"]] * 2)
    assert one["joint_entropy_bits_interval"] == pytest.approx([report["joint_entropy_bits"]] * 2)
