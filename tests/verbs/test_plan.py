"""`lapa plan`: what is counted from a config, and what follows from a bound."""

import json

import pytest
from tiny import lapa, succeed

from lapa_jax.verbs import plan

CONFIG = ("--config", "quantizer/tabletop:quick=True", "--config.data.num_threads=1")


def planned(*flags):
    return json.loads(succeed("plan", *CONFIG, *flags, "--json"))


def test_counts_follow_the_config():
    found = planned()
    assert found["examples"] == found["steps"] * found["global_batch"] == 60 * 64
    assert found["epochs"] is None  # no corpus is there
    # parameters and two moments, in float32, and few other numbers; gradients are not saved
    floats = found["parameters"] * 4 / 2**30
    assert found["held_gib"] == pytest.approx(4 * floats, rel=1e-4)
    assert 3 * floats < found["checkpoint_gib"] < 4 * floats
    assert found["disk_gib"] == pytest.approx(3 * found["checkpoint_gib"])
    assert [step for step, _ in found["look"]] == [10, 30, 60]
    twice = planned("--config.steps=120")
    assert twice["total_pflops"] == pytest.approx(2 * found["total_pflops"])
    text = succeed("plan", *CONFIG)
    assert "3,840 (60 steps of 64)" in text and "look at step 30" in text


def test_hours_and_money_are_the_bound_over_the_efficiency(monkeypatch):
    bound = {"roofline": {"step_ms": 30.0, "limit": "hbm"}, "mfu_bound": 0.4, "fits": True}
    bound |= {"topology": "v5e-8", "chips": 8, "peak_gib": 3.0, "hbm_gib": 16.0}
    monkeypatch.setattr(plan, "assess", lambda config, topology: bound)
    found = planned("--topology", "v5e-8", "--efficiency", "0.25", "--price", "2")
    assert found["hours"] == pytest.approx(60 * 0.03 / 0.25 / 3600)
    assert found["price"] == pytest.approx(found["hours"] * 16)
    monkeypatch.setattr(plan, "assess", lambda config, topology: bound | {"fits": False})
    code, _, error = lapa("plan", *CONFIG, "--topology", "v5e-8")
    assert code == 2 and "does not fit v5e-8" in error
    assert "give --topology" in lapa("plan", *CONFIG, "--price", "2")[2]
    assert lapa("plan", *CONFIG, "--efficiency", "0")[0] == 2
