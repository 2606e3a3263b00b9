"""Language Table without its simulator: what is known of it, what its planner remembers, and that
states are functions of their actions. Where it is installed test_contract.py tries it."""

import collections
import importlib.metadata
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lapa_jax import envs
from lapa_jax.envs import language_table
from lapa_jax.envs.env import load_state, save_state
from lapa_jax.envs.language_table import memory, simulator


def test_its_tasks_are_known_without_it():
    env = envs.make({"name": "language_table"})
    assert len(env.spec.tasks) == 5 and env.spec.horizon == 200 and env.spec.control_hz == 10
    assert env.expert is None and not env.phrasings("held_out")
    assert envs.make({"name": "language_table", "oracle": True}).expert is not None
    with pytest.raises(ValueError, match="'fly' is not one of .*separate_blocks"):
        env.reset(0, "fly")
    with pytest.raises(ValueError, match="view 'top' is not one of .*front"):
        env.render(None, 64, "top")


def test_what_is_missing_is_said_with_what_mends_it(monkeypatch):
    versions = {"pybullet": "3.2.6"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    there = {"gym", "cv2", "scipy", "absl", "six", "language_table"}
    monkeypatch.setattr(
        language_table.importlib.util, "find_spec", lambda name: name in there or None
    )
    available = language_table.LanguageTable.available
    assert "pybullet is 3.2.6, not 3.2.7: pip install pybullet==3.2.7" in available()
    versions["pybullet"] = "3.2.7"
    assert available() == ""
    there.remove("cv2")
    assert "opencv-python-headless is not installed in this Python: pip install" in available()
    there |= {"cv2"}
    there.remove("language_table")
    assert "git+https://github.com/google-research/language-table" in available()


def test_what_the_planner_remembers_comes_back_as_it_was():
    plan = collections.deque([np.float32([0.1, 0.2]), [1.5, np.float64(0.1)]])
    had = SimpleNamespace(
        phase="push", _plan=plan, _goal=None, _again=True, _count=3, _env=object()
    )
    found = SimpleNamespace()
    memory.bring_back(found, memory.kept(had))
    assert vars(found).keys() == vars(had).keys() - {"_env"}
    assert (found.phase, found._goal, found._again, found._count) == ("push", None, True, 3)
    assert isinstance(found._plan, collections.deque) and found._plan[1] == [1.5, 0.1]
    np.testing.assert_array_equal(found._plan[0], plan[0])
    assert found._plan[0].dtype == np.float32 and type(found._plan[1][1]) is np.float64
    with pytest.raises(TypeError, match="nothing that a state of language_table can hold"):
        memory.kept(SimpleNamespace(thing={1, 2}))


class Table:
    """What the benchmark's environment is to the adapter. `_past` is what Bullet's world keeps."""

    def __init__(self, block_mode, reward_factory, seed):
        self.rng, self._past = np.random.RandomState(seed), 0.0
        self._reward_calculator = reward_factory()
        self.pybullet_client = self._robot = self
        self.xarm, self.end_effector, self._block_ids = 0, 1, []
        self._control_frequency, self._instruction_str = 10.0, ""

    def reset(self):
        self.place = np.append(self.rng.uniform(size=2), self._past)
        self._instruction_str = str(np.random.choice(["push", "pull"]))  # of all, as theirs

    def _step_robot_and_sim(self, action):
        self._past = 0.5 * self._past + action[0]
        self.place = self.place + self._past

    def compute_state(self):
        return {"place": self.place, "effector_translation": self.place[:2], "instruction": 0}

    def getBasePositionAndOrientation(self, body):
        return self.place, (body,)

    def getBaseVelocity(self, body):
        return (0.0,), (0.0,)

    def getNumJoints(self, body):
        return 1

    def getJointState(self, body, joint):
        return 0.0, 0.0, 0.0

    def disconnect(self):
        pass


class Planner:
    def __init__(self, env, use_ee_planner):
        self.seen, self._env = 0, env

    def get_plan(self, found):
        return found["place"][0] > 0.5

    def _get_action_for_block_target(self, found):
        self.seen += 1
        return np.array([0.01 * self.seen, np.random.uniform(-0.01, 0.01)])


@pytest.fixture
def env(monkeypatch):
    class Reward:
        def reward(self, found):
            return 100.0 * (found["place"][1] > 0.9), False

    parts = {
        "table": SimpleNamespace(LanguageTable=Table),
        "blocks": SimpleNamespace(LanguageTableBlockVariants=SimpleNamespace(BLOCK_8=8)),
        "planner": SimpleNamespace(ObstacleOrientedPushOracleBoard2dRRT=Planner),
        "reward": SimpleNamespace(BlockToBlockReward=Reward),
    }
    monkeypatch.setattr(simulator, "_parts", lambda task: parts)
    language_table._simulator.cache_clear()
    yield envs.make({"name": "language_table", "oracle": True})
    language_table._simulator.cache_clear()


def test_a_state_is_a_function_of_its_seed_and_actions(env, tmp_path):
    task, before = "block_to_block", np.random.get_state()[1].copy()
    starts = env.evaluation_states(0, task, 6)
    assert all(s.tip[0] > 0.5 and s.tip[1] <= 0.9 for s in starts)  # solvable, not solved
    assert {*env.instructions(starts)} <= {"push", "pull"}
    again = env.evaluation_states(0, task, 1, first=5)[0]
    np.testing.assert_array_equal(again.bodies, starts[5].bodies)
    assert again.instruction == starts[5].instruction
    states = [starts[0]]
    for _ in range(6):
        action = env.expert(states[-1])
        np.testing.assert_array_equal(action, env.expert(states[-1]))
        states.append(env.step(states[-1], action))
    save_state(tmp_path / "state.npz", states[2])
    env.step(starts[1], action)
    read = load_state(tmp_path / "state.npz", language_table.State)
    for wanted in states[3:]:
        read = env.step(read, env.expert(read))
        np.testing.assert_array_equal(read.bodies, wanted.bodies)
        assert read.planner == wanted.planner
    assert '"seen": 6' in read.planner
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_what_stands_in_while_it_is_imported_goes_again(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", SimpleNamespace(own=True))
    with simulator._stand_ins():
        assert sys.modules["tf_agents"].policies.py_policy.PyPolicy(1, 2)
        assert sys.modules["matplotlib"].own
    assert "tf_agents" not in sys.modules and sys.modules["matplotlib"].own
