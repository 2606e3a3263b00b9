"""The page of a quantizer says what was measured, of any corpus, and nothing else."""

import re

import numpy as np
import pytest

from lapa_jax.diagnostics.sample import Sample
from lapa_jax.evidence import measures, page, verdict
from lapa_jax.evidence.quantizer import QuantizerEvaluation
from lapa_jax.report.html import Report


def evaluation(actions=0, episodes=6, seen=0.0, still=False, features=False):
    """Of 48 pairs of noise, with so many dimensions of actions."""
    rng = np.random.default_rng(0)
    first, last = rng.integers(0, 256, (2, 48, 16, 16, 3), dtype=np.uint8)
    last = first if still else last
    sample = Sample(
        first=first,
        last=last,
        z=rng.integers(0, 4, (48, 1)),
        latents=rng.normal(size=(48, 1, 3)),
        actions=rng.normal(size=(48, actions)) if actions else None,
        episode=np.arange(48) * episodes // 48,
        codebook_size=4,
        recon=None if features else last / 255.0,
        errors=np.full((48, 2), [1.0, 4.0]) if features else None,
        exchanged_mse=rng.random(48),
    )
    report = {"pairs": 48, "episodes": episodes, "seen_in_training": seen, "window_seconds": 0.5}
    report |= measures.measure(sample, deep=False)
    return QuantizerEvaluation(report | {"verdict": verdict.verdict(report)}, sample)


def text_of(found, **names):
    report = Report("page", page.what_was_measured(found.report))
    section = report.section("corpus")
    page.verdict_table(section, found.report["verdict"])
    page.quantizer_pictures(section, found, "clips", **names)
    html = report.html()
    assert re.search(r"\bNone\b|\bnan\b", html) is None
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


@pytest.mark.parametrize("actions", [0, 1, 7])
def test_any_number_of_actions_has_its_page(actions):
    text = text_of(evaluation(actions))
    assert ("the true motion under each latent action" in text) == (actions > 1)
    assert ("first two of 7 dimensions" in text) == (actions == 7)
    for i in range(actions):
        assert f"R² action {i}" in text
    assert "robot" not in text and "policy" not in text and "metres" not in text


def test_names_and_units_are_those_that_are_given():
    text = text_of(evaluation(2), actions=("x, metres a window", "y, metres a window"))
    assert "R² x R² y" in text


def test_a_decoder_of_features_has_no_pictures():
    text = text_of(evaluation(features=True))
    assert "predicts features of the later frame, no picture; skill 0.75" in text
    assert "PSNR" not in text


def test_a_still_clip_of_the_training_promises_nothing():
    text = text_of(evaluation(episodes=1, seen=1.0, still=True))
    assert "48 frame pairs of 1 episode, 0.5 s apart, all of them of the training" in text
    assert "One episode has no intervals" in text and "by resampling" not in text
    assert "Verdict: unclear" in text and "not measured: the frames never change" in text
    assert "Skill undefined, PSNR without bound" in text


def test_intervals_are_named_where_there_are_some():
    text = text_of(evaluation(seen=0.25))
    assert "25% of them of the training" in text and "95 %, by resampling episodes" in text
    assert "none of them of the training" in text_of(evaluation())
