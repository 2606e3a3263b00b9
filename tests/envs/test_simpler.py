"""SIMPLER without ManiSkill: what is known of it, and that states are functions of their actions.
Where ManiSkill is installed test_contract.py tries it."""

import importlib.metadata
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from lapa_jax import envs
from lapa_jax.envs import simpler, vulkan
from lapa_jax.envs.env import load_state, save_state


def test_its_tasks_are_known_without_it():
    table, sink = (envs.make({"name": "simpler", "suite": suite}) for suite in ("table", "sink"))
    assert (table.spec.horizon, sink.spec.horizon) == (60, 120)
    assert len(table.spec.tasks) == 3 and sink.spec.tasks == ("widowx_put_eggplant_in_basket",)
    assert table.spec.action_dim == 7 and table.spec.control_hz == 5
    assert "put carrot on plate" in table.all_instructions() and not table.phrasings("held_out")
    with pytest.raises(ValueError, match="'fly' is not one of .*widowx_stack_cube"):
        table.evaluation_states(0, "fly", 1)
    with pytest.raises(ValueError, match="view 'top' is not one of .*3rd_view_camera"):
        table.render(None, 64, "top")


def test_what_is_missing_is_said_with_what_mends_it(tmp_path, monkeypatch):
    found = {"mani_skill": "3.0.0", "sapien": "3.0.3", "torch": "2"}
    monkeypatch.setattr(importlib.metadata, "version", found.__getitem__)
    monkeypatch.setitem(sys.modules, "sapien", ModuleType("sapien"))
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    assert "mani_skill is 3.0.0, not 3.0.1: pip install" in simpler.Simpler.available()
    found["mani_skill"] = "3.0.1"
    for file, asset in simpler._ASSETS.items():
        why = simpler.Simpler.available()
        assert f"{file} is missing" in why and f"download_asset {asset} -y" in why
        (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / file).touch()
    for devices, why in (
        (None, "no Vulkan to draw with: apt-get install .*"),
        ((), "no device that Vulkan can draw with: apt-get install .*"),
        ([("llvmpipe", True, "Mesa 22.3.6")], r"Vulkan .* by Mesa 22.3.6 \(llvmpipe\) is too .*"),
        ([("llvmpipe", True, "Mesa 25.0.7-2 (LLVM 15)")], ""),
        ([("NVIDIA H200", False, "580.1")], ""),
    ):
        monkeypatch.setattr(vulkan, "devices", lambda devices=devices: devices)
        assert re.fullmatch(why, simpler.Simpler.available())


class Tensor(np.ndarray):
    def numpy(self):
        return np.array(self)


def tensor(values):
    return np.array(values).view(Tensor)


class Scene:
    """What ManiSkill's task is to the adapter. `_contact` is in none of its states; the places move
    it in a used scene, and so do actions."""

    _contact = 0.0

    def __init__(self, **_):
        self.xyz_configs = tensor(np.arange(12.0).reshape(2, 2, 3))
        self.quat_configs = tensor(np.tile([1.0, 0, 0, 0], (2, 2, 1)))
        self.scene, self._place = self, np.zeros(4)
        arm = SimpleNamespace(ee_pose_at_base=SimpleNamespace(raw_pose=tensor(np.zeros((1, 7)))))
        controller = SimpleNamespace(controllers={"arm": arm})
        robot = SimpleNamespace(get_qpos=lambda: tensor(np.full((1, 8), 0.026)))
        self.agent = SimpleNamespace(controller=controller, robot=robot)

    def reset(self, seed, options):
        assert options["episode_id"] == 0
        self._contact *= not options["reconfigure"]
        self._place = np.append(self.xyz_configs[0, 0], self._contact)

    def _step_action(self, action):
        self._contact = 0.5 * self._contact + action.sum()
        self._place = self._place + self._contact

    def evaluate(self):
        return {"success": tensor([self._place[0] > 100])}

    def get_sim_state(self):
        return {"actors": {"cube": tensor(self._place[None])}, "articulations": {}}

    def set_sim_state(self, found):
        self._place = np.array(found["actors"]["cube"][0])

    def get_obs(self, info, unflattened):
        image = np.full((1, 480, 640, 3), int(self._place[0]) % 256)
        return {"sensor_data": {"3rd_view_camera": {"rgb": tensor(image)}}}


@pytest.fixture
def env(monkeypatch):
    package = "mani_skill.envs.tasks.digital_twins.bridge_dataset_eval"
    for end in range(1, package.count(".") + 2):
        name = ".".join(package.split(".")[:end])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    tasks = SimpleNamespace(**{kind: Scene for kind, _ in simpler._ALL.values()})
    monkeypatch.setattr(sys.modules[package], "put_on_in_scene", tasks, raising=False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(tensor=tensor))
    simpler._simulator.cache_clear()
    yield envs.make({"name": "simpler"})
    simpler._simulator.cache_clear()


def test_a_state_is_a_function_of_its_places_and_actions(env, tmp_path):
    task = env.spec.tasks[0]
    first, second, third = env.evaluation_states(0, task, 3)
    np.testing.assert_array_equal(first.places[:, :3], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(second.places, first.places)  # turned otherwise, if not here
    assert (third.places != first.places).any() and not env.success(first)
    (again,) = env.evaluation_states(9, task, 1, first=24)
    np.testing.assert_array_equal(again.places, first.places)  # after the 24 published ones
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 7)).astype(np.float32)
    states = [first]
    for action in actions:
        states.append(env.step(states[-1], action))
    save_state(tmp_path / "state.npz", states[3])
    env.step(third, actions[0])
    env.render(third, 8)
    read = load_state(tmp_path / "state.npz", simpler.State)
    assert env.render(read, (6, 8)).shape == (6, 8, 3)
    for wanted, action in zip(states[4:], actions[3:], strict=True):
        read = env.step(read, action)
        np.testing.assert_array_equal(read.physics, wanted.physics)
    assert env.success(env.step(env.step(first, np.ones(7)), np.ones(7))) is False
    assert env.proprioception(read).shape == (len(env.spec.state),) and read.hand[-1] == 0.5
    moved = load_state(tmp_path / "state.npz", simpler.State)
    moved.physics[0] += 1
    with pytest.raises(RuntimeError, match="the 3 actions of a state lead elsewhere"):
        env.step(moved, actions[3])


def test_training_starts_are_drawn_by_their_keys(env):
    task = env.spec.tasks[0]
    keys = env.training_keys(0, 3)
    starts = [env.reset(key, task).places for key in keys]
    np.testing.assert_array_equal(env.reset(keys[1], task).places, starts[1])
    assert len({start.tobytes() for start in starts}) == 3
    low, high = np.arange(3.0), np.arange(3.0) + 6
    assert all((start[0, :3] >= low).all() and (start[0, :3] <= high).all() for start in starts)
    np.testing.assert_allclose([np.linalg.norm(s[:, 3:], axis=1) for s in starts], 1, rtol=1e-6)
