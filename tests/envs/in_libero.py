"""LIBERO in its own Python (test_libero.py runs this there)."""

import json
from pathlib import Path

import numpy as np
import pytest
from libero.libero import get_libero_path
from libero.libero.envs.bddl_utils import get_problem_info
from test_contract import digest

from lapa_jax import envs
from lapa_jax.envs.env import load_state, save_state
from lapa_jax.envs.libero import suites
from lapa_jax.machine.memory import peak_resident_bytes

SOLUTION = json.loads(Path(__file__).with_name("libero_bowl_on_plate.json").read_text())
TOUCHES = 70  # steps; in the ten after these the recorded bowl touches the plate
CLOSE = 0.002  # metres and radians that a recorded state may be off, on another machine


def made(suite: str) -> envs.Environment:
    return envs.make({"name": "libero", "suite": suite, "drawing": "fast"})


@pytest.mark.parametrize("suite", suites.PLAIN)
def test_a_task_of_each_suite_boots(suite):
    """All in one process, which keeps two of them."""
    env = made(suite)
    task = env.spec.tasks[-1]
    (start,) = env.evaluation_states(0, task, 1)
    simulator = env.simulator(start)
    assert len(simulator.official) == 50
    np.testing.assert_allclose(start.physics[1:8], simulator.official[0][1:8], atol=0.1)  # the arm
    state = env.step(start, np.array([0, 0, 0.5, 0, 0, 0, -1]))
    assert not env.success(start) and not env.success(state)
    assert env.proprioception(state)[2] > env.proprioception(start)[2] + 0.001
    for view in env.spec.cameras:
        assert len(np.unique(env.render(state, 64, view))) > 50
    assert peak_resident_bytes() < 5e9


def test_suites_are_the_benchmarks():
    from libero.libero.benchmark import task_maps

    for suite in suites.SUITES:
        theirs = task_maps[f"libero_{suite}"]
        assert suites.tasks(suite) == tuple(theirs)
        folder = Path(get_libero_path("bddl_files")) / f"libero_{suite}"
        for task, entry in theirs.items():
            said = entry.language
            if suite.endswith(("_lan", "_task")):
                said = get_problem_info(str(folder / f"{task}.bddl"))["language_instruction"]
            assert suites.instructions(suite, task)[0] == said


def test_a_recorded_solution_gives_the_recorded_states(tmp_path):
    """Until the bowl touches the plate: when it slips from the fingers is another step, and another
    centimetre, on another CPU."""
    env = made(SOLUTION["suite"])
    (state,) = env.evaluation_states(SOLUTION["seed"], SOLUTION["task"], 1, SOLUTION["number"])
    simulator = env.simulator(state)
    actions, recorded = SOLUTION["actions"], iter(SOLUTION["states"])
    played = []
    for number, action in enumerate([*actions, *actions[-1:] * 20], 1):
        if env.success(state):
            break
        if number == 60:  # the bowl is in the gripper
            save_state(tmp_path / "state.npz", state)
        state = env.step(state, action)
        played.append(action)
        if number % 10 == 0 and number <= TOUCHES:
            assert not env.success(state)
            simulator.stand_at(state)
            bowl = simulator.data.body("akita_black_bowl_1_main").xpos
            seen = np.concatenate([env.proprioception(state), bowl])
            np.testing.assert_allclose(seen, next(recorded), atol=CLOSE)
    assert env.success(state)
    again = load_state(tmp_path / "state.npz", type(state))
    for action in played[59:]:
        again = env.step(again, action)
    assert digest(again) == digest(state)


def test_what_is_wrong_is_said(tmp_path, monkeypatch):
    env = made("goal")
    with pytest.raises(ValueError, match="'fly' is not one of .*turn_on_the_stove"):
        env.evaluation_states(0, "fly", 1)
    with pytest.raises(ValueError, match="suite='moon' must be one of"):
        made("moon")
    with pytest.raises(ValueError, match="view 'top' is not one of .*agentview"):
        env.render(None, 64, "top")
    (tmp_path / "config.yaml").write_text("assets: /nowhere")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="turn_on_the_stove: .*/nowhere.*make -B .venv/.libero"):
        env.evaluation_states(0, "turn_on_the_stove", 1)
