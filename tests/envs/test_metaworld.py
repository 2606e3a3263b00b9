"""What is Meta-World's own beside the contract (tests/envs/test_contract.py)."""

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lapa_jax import envs
from lapa_jax.arena import worker
from lapa_jax.envs import graphics, words
from lapa_jax.envs.env import NotWholeError
from lapa_jax.envs.metaworld import language
from lapa_jax.envs.metaworld.simulator import Simulator

pytestmark = pytest.mark.simulator


@pytest.fixture(scope="module")
def env():
    found = envs.make({"name": "metaworld", "suite": "mt50"})
    assert not found.available(), found.available()
    return found


def starts(env, task, n=1):
    return env.evaluation_states(0, task, n)


def test_suites_and_sentences():
    sentences = [text for texts in language.SENTENCES.values() for text in texts]
    assert len(language.TASKS) == 50 and len(sentences) == 250 == len(set(sentences))
    assert {len(language.SUITES[name]) for name in ("mw10", "mt10")} == {10}
    assert {*language.SUITES["mw5"]} < {*language.SUITES["mw10"]}
    assert {*language.SUITES["mw10"], *language.SUITES["mt10"]} < {*language.TASKS}


def test_start_states_are_those_of_the_benchmark_for_their_vector(env):
    """Whatever came before, and without a draw from NumPy's generator."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    task = "disassemble"  # moves what it places, where it draws twice
    before = np.random.get_state()[1].copy()
    state, other = starts(env, task, 2)
    theirs = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    theirs._set_task_called, theirs._partially_observable = True, False
    del theirs.sawyer_observation_space
    for wanted in (other, state):
        theirs._last_rand_vec = wanted.scene
        observation, _ = theirs.reset()
        np.testing.assert_array_equal(wanted.observation, observation)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_episodes_do_not_mix(env):
    """Two that are stepped by turns are as by themselves."""
    task = "door-lock"
    ends = []
    for turns in (False, True):
        states = starts(env, task, 2)
        order = [0, 1] * 4 if turns else [0] * 4 + [1] * 4
        for i in order:
            states[i] = env.step(states[i], env.expert(states[i]))
        ends.append([state.observation for state in states])
    np.testing.assert_array_equal(*ends)


def test_pictures_of_two_tasks_do_not_mix(env):
    """Drawn by turns, each with buffers of its own, and of two sizes."""
    states = {task: starts(env, task, 3) for task in ("reach", "push")}
    sizes = {"reach": 64, "push": 32}
    of = [(task, i) for task in states for i in range(3)]
    by_turns = {
        (t, i): env.render(states[t][i], sizes[t]) for t, i in sorted(of, key=lambda x: x[1])
    }
    for task, i in of:
        picture = env.render(states[task][i], sizes[task])
        np.testing.assert_array_equal(by_turns[task, i], picture)
    assert len({picture.tobytes() for picture in by_turns.values()}) == len(of)


def test_the_goal_is_seen_in_every_view_that_does_not_turn(env):
    for state in starts(env, "push", 3):
        for view in ("robot", "human", "gripper", "recolour", "distractors"):
            red, green, blue = np.moveaxis(env.render(state, 64, view).astype(int), -1, 0)
            seen = (green > red + 60) & (green > blue + 60)
            assert seen.any(), view


def test_words_are_the_task_s_none_or_of_another_one(env):
    def start(seed, task, number):
        return env.evaluation_states(seed, task, 1, number)[0]

    does, job, told = SimpleNamespace(start=start), worker.Job("reach", 1), {}
    state = start(0, job.task, job.number)
    for split in ("train", "held_out", "none", "shuffled"):
        how = SimpleNamespace(seed=0, phrasings=split)
        told[split] = worker.told(env, does, how, job, state)
        starts = env.evaluation_states(0, "reach", 2)
        assert words.of_all(env, split, starts, "reach", 0)[1] == told[split]
    reach = language.SENTENCES["reach"]
    assert (told["train"], told["held_out"], told["none"]) == (reach[1], reach[4], "")
    assert told["shuffled"] not in reach and told["shuffled"] in env.all_instructions()


def test_a_missing_mesh_is_one_line(monkeypatch):
    from metaworld import env_dict

    def fails():
        raise ValueError("Error: Error opening file 'drawer.stl':\nNo such file")

    monkeypatch.setitem(env_dict.ALL_V3_ENVIRONMENTS, "reach-v3", fails)
    with pytest.raises(NotWholeError, match="reach: .*'drawer.stl': No such file .pip install"):
        Simulator("reach")


def test_distractors_move_with_the_clock_alone(env):
    (state,) = starts(env, "reach")
    later = dataclasses.replace(state, time=state.time + 5)
    still, moved = (
        [env.render(one, 64, view) for one in (state, later)] for view in ("robot", "distractors")
    )
    np.testing.assert_array_equal(*still)
    assert (moved[0] != moved[1]).any() and (moved[0] != still[0]).any()


def test_unknown_names_are_refused(env):
    with pytest.raises(ValueError, match="'fly' is not one of .*'reach'"):
        env.reset(0, "fly")
    with pytest.raises(ValueError, match="evaluation.env.suite='mt5' must be one of"):
        envs.make({"name": "metaworld", "suite": "mt5"})


@pytest.mark.parametrize(
    ("gl", "why"), [("glfw", "draws on a display: unset it"), ("egl", ""), ("osmesa", "")]
)
def test_what_draws_is_found_or_named(gl, why):
    command = [sys.executable, "-I", graphics.__file__]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"MUJOCO_GL": gl}
    )
    assert done.stderr.count("\n") == done.returncode
    assert why in done.stderr if why else not done.stderr or "apt-get install" in done.stderr
