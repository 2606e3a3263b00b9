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
    done = []
    own = plan.counted
    monkeypatch.setattr(plan, "assess", lambda config, topology: done.append("there") or bound)
    monkeypatch.setattr(plan, "counted", lambda config: done.append("here") or own(config))
    found = planned("--topology", "v5e-8", "--efficiency", "0.25", "--price", "2")
    assert done == ["there", "here"]  # JAX that has devices looks for no other machine's compiler
    assert found["hours"] == pytest.approx(60 * 0.03 / 0.25 / 3600)
    assert found["price"] == pytest.approx(found["hours"] * 16)
    monkeypatch.setattr(plan, "assess", lambda config, topology: bound | {"fits": False})
    code, _, error = lapa("plan", *CONFIG, "--topology", "v5e-8")
    assert code == 2 and "does not fit v5e-8" in error
    assert "give --topology" in lapa("plan", *CONFIG, "--price", "2")[2]
    assert lapa("plan", *CONFIG, "--efficiency", "0")[0] == 2


def test_a_study_costs_what_parts_of_its_kind_took(tmp_path):
    """Those that are done, or those of the result of record of the same size."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from lapa_jax.studies.study import Cell, Part, Study\n"
        "def get_study(arg, workdir):\n"
        "    data = Part('collect', lambda: None)\n"
        "    def cell(x, seed):\n"
        "        last = Part(f'success_{x}_s{seed}_n50', lambda: [{}])\n"
        "        return Cell({'arm': x, 'seed': seed}, (data, last))\n"
        "    return Study(workdir, [cell(x, seed) for seed in range(3) for x in 'ab'])\n"
    )
    (tmp_path / "results").mkdir()
    record = {"rows": [], "size": "gpu", "date": "2026-11-30"}
    record |= {"minutes": {"success_a": [4, 80.0], "collect": [1, 6.0]}}
    (tmp_path / "results" / "mine.json").write_text(json.dumps(record))
    argv = ("--study", path, "--size", "gpu", "--price", "2")
    found = json.loads(succeed("plan", *argv, "--json"))
    assert found["cells"] == 6 and found["parts"] == 7 and found["parts_shared"] == 5
    assert found["kinds"]["success_a"] == {"parts": 3, "done": 0, "minutes": 20.0}
    assert found["parts_not_measured"] == 3 and found["price"] == 2 * found["hours_left"]
    assert found["hours_left"] == pytest.approx(1.1)
    workdir = tmp_path / "begun"
    succeed("study", path, "--workdir", workdir, "--size", "gpu", "--count", 6)
    taken = workdir / "parts" / "success_a_s0_n50.json"
    taken.write_text(json.dumps(json.loads(taken.read_text()) | {"seconds": 1800.0}))
    text = succeed("plan", *argv, "--workdir", workdir)
    assert "6, 5 of them left" in text and "3, 1 done; 30 min each" in text
    assert "at least 1\n" in text and "not measured yet" in text
    assert "collect" in text and "price" in text and "at least 2.00" in text
    assert f"as measured in {workdir}, else by mine.json of 2026-11-30" in text
    assert json.loads(succeed("plan", "--study", path, "--json"))["hours_left"] == 0  # of size cpu
    for flags, message in (
        (("--topology", "v5e-8"), "--topology is of a --config"),
        (("--workdir", tmp_path / "none"), "no study in"),
        (("--config", "quantizer/tabletop"), "--study is in the place of --config"),
    ):
        code, _, error = lapa("plan", "--study", path, *flags)
        assert code == 2 and message in error
    code, _, error = lapa("plan", "--price", "2")
    assert code == 2 and "give --config FILE, or --study FILE" in error
    assert "of a --study" in lapa("plan", *CONFIG, "--size", "cpu")[2]
