"""A verdict follows from its thresholds, check by check, and says what it does not know."""

import json

import numpy as np
import pytest

from lapa_jax.evidence import verdict


def leaking(bits):
    told = {"explained_bits": bits, "marginal_bits": 3.0}
    return {"code_given_scene": {"other_episodes": told}}


SOUND = {
    "pairs": 1000,
    "episodes": 50,
    "seen_in_training": 0.0,
    "codes": {"codebook_size": 8, "samples": 1000, "mean_perplexity": 7.0},
    "reconstruction": {"skill": 0.5, "skill_exchanged": 0.2},
    "content": {
        "code_given_scene": {"other_episodes": {"explained_bits": 0.1, "marginal_bits": 3}}
    },
    "probe": {"latent_action": {"r2_mean": 0.8}, "first_frame": {"r2_mean": -0.1}},
}


def changed(**changes):
    return {key: value for key, value in {**SOUND, **changes}.items() if value is not None}


def codes(perplexity, size=8, samples=1000):
    return {"codebook_size": size, "samples": samples, "mean_perplexity": perplexity}


BLIND = {"latent_action": {"r2_mean": 0.5}, "first_frame": {"r2_mean": 0.4}}


@pytest.mark.parametrize(
    ("changes", "word", "failed"),
    [
        ({}, "usable", []),
        ({"codes": codes(1.2)}, "collapsed", ["collapse", "codes_used"]),
        ({"codes": codes(3.9)}, "weak", ["codes_used"]),
        ({"codes": codes(70.0, 256, 175)}, "usable", []),  # even use would show 116
        ({"codes": codes(70.0, 256, 10**5)}, "weak", ["codes_used"]),
        ({"codes": codes(1.0, samples=1), "pairs": 1}, "unclear", []),  # one draw is one code
        ({"codes": codes(1.0, samples=3), "pairs": 3}, "collapsed", ["collapse", "codes_used"]),
        ({"codes": None}, "usable", []),  # a continuous latent
        ({"reconstruction": {"skill": -0.1, "skill_exchanged": -0.4}}, "weak", ["skill"]),
        ({"reconstruction": {"skill": 0.4, "skill_exchanged": 0.39}}, "weak", ["z_tells"]),
        ({"reconstruction": {"skill": None, "skill_exchanged": None}}, "unclear", []),
        ({"content": leaking(1.0)}, "weak", ["leakage"]),
        ({"content": None}, "usable", []),
        ({"probe": BLIND}, "weak", ["motion"]),
        ({"probe": None}, "usable", []),
        ({"pairs": 99}, "unclear", []),
        ({"episodes": 1}, "unclear", []),
    ],
)
def test_each_threshold_decides(changes, word, failed):
    found = verdict.verdict(changed(**changes))
    assert found["word"] == word
    assert [check["name"] for check in found["checks"] if check["passed"] is False] == failed
    json.dumps(found, allow_nan=False)
    assert verdict.lines("corpus", found)[0] == f"corpus: {word}"


def test_what_was_seen_in_training_is_said():
    (note,) = verdict.verdict(changed(seen_in_training=0.9))["notes"]
    assert note.startswith("90% of the pairs are of episodes that the quantizer was trained on")
    assert "--holdout" in note and not verdict.verdict(SOUND)["notes"]


@pytest.mark.parametrize(("size", "pairs"), [(8, 20), (256, 175), (2, 1)])
def test_even_use_is_what_drawing_shows(size, pairs):
    drawn = np.random.default_rng(0).integers(size, size=(400, pairs))
    shares = np.array([np.bincount(row, minlength=size) for row in drawn]) / pairs
    bits = -np.sum(shares * np.log2(np.where(shares, shares, 1)), axis=1).mean()
    assert verdict.even_perplexity(size, pairs) == pytest.approx(2**bits, rel=0.02)
