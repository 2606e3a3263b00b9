"""A measure is a function and a line: what it gives is in reports and in rows."""

import dataclasses
import json

import numpy as np
import pytest

from lapa_jax.diagnostics.sample import Sample
from lapa_jax.evidence import measures
from lapa_jax.studies import sweep


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(8), 6)
    first, last = rng.integers(0, 256, (2, 48, 16, 16, 3), dtype=np.uint8)
    z = rng.integers(0, 4, (48, 1))
    actions = np.eye(4)[z[:, 0], :2] + 0.01 * rng.normal(size=(48, 2))
    latents = rng.normal(size=(48, 1, 3))
    return Sample(first, last, z, latents, actions, episode, 4, recon=last / 255.0)


def test_what_is_quick_is_measured_of_what_there_is(sample):
    report = measures.measure(sample, deep=False)
    assert list(report) == ["codes", "reconstruction", "probe"]
    assert "ssim" not in report["reconstruction"]
    rows = {row["measure"]: row for row in measures.rows(report)}
    assert rows["perplexity"]["value"] == report["codes"]["mean_perplexity"]
    assert [rows["skill"]["low"], rows["skill"]["high"]] == report["reconstruction"][
        "skill_interval"
    ]
    assert rows["probe_r2"]["value"] > 0.9 and rows["ssim"]["value"] is None
    bare = Sample(
        sample.first, sample.last, None, sample.latents, None, sample.episode, 4, sample.recon
    )
    assert list(measures.measure(bare, deep=False)) == ["reconstruction"]
    json.dumps(report, allow_nan=False)


def test_the_pose_is_measured_where_the_camera_moves(sample):
    (pose,) = (one for one in measures.MEASURES if one.key == "pose")
    assert pose.deep and not pose.applies(sample)
    moving = dataclasses.replace(sample, camera_motion=sample.actions - sample.actions.mean(0))
    assert pose.applies(moving)
    rows = {row["measure"]: row for row in measures.rows({"pose": pose.of(moving)})}
    assert rows["pose_r2"]["value"] > 0.9 and rows["pose_degrees"]["value"] < 10
    assert 45 < rows["pose_degrees"]["chance"] and rows["pose_degrees"]["low"] is not None
    other = dataclasses.replace(moving, z=sample.z * 0)  # one code: it says nothing
    assert pose.of(other)["r2_mean"] < 0.1 and pose.of(other)["direction"]["degrees"] > 45
    json.dumps(pose.of(moving), allow_nan=False)


def test_a_new_measure_is_a_line(sample, monkeypatch):
    def spread(sample):
        return {"spread": float(sample.latents.std()), "spread_interval": [0.5, 1.5], "chance": 1.0}

    new = measures.Measure("latents", spread, {"latent_spread": "spread"})
    monkeypatch.setattr(measures, "MEASURES", (*measures.MEASURES, new))
    report = measures.measure(sample, deep=False)
    row = measures.rows(report)[-1]
    value = report["latents"]["spread"]
    assert row == {
        "measure": "latent_spread",
        "value": value,
        "low": 0.5,
        "high": 1.5,
        "chance": 1.0,
    }
    assert sweep.measured(report)["latent_spread_high"] == 1.5
