"""Policies in LeRobot's and Gymnasium's loops."""

import gymnasium
import jax
import numpy as np
import pytest
from tiny import NO_TORCH
from tiny_policy import make_policy

import lapa_jax
from data_pipelines.convert.looks import fit_image
from lapa_jax import LeRobotPolicy, rollout
from lapa_jax.envs.tabletop import SceneConfig, Tabletop

pytestmark = pytest.mark.usefixtures("quick_compile")
TOP = "observation.images.top"
TEXT = "push the red block"


def frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.slow
def test_lerobot_observations(action_policy):
    """NumPy and torch, channels last and first, one and several: the same actions."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    images, expected = frames(2, 32, 48), []
    for image in images:
        expected.append(np.asarray(action_policy.predict_action(image, TEXT)))
    asked = LeRobotPolicy(action_policy)
    one = asked.select_action({TOP: images[0], "task": TEXT, "observation.state": np.zeros(7)})
    np.testing.assert_array_equal(one, expected[0])
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    asked.reset()
    both = asked.select_action({TOP: channels_first, "task": [TEXT, TEXT]})
    assert isinstance(both, torch.Tensor) and both.dtype == torch.float32
    np.testing.assert_array_equal(both.numpy(), expected)
    asked.reset()
    large = frames(120, 100)
    small = fit_image(large, (32, 48), "pad")
    found = LeRobotPolicy(action_policy, resizing="pad").select_action({TOP: large, "task": TEXT})
    np.testing.assert_array_equal(found, action_policy.predict_action(small, TEXT))


@pytest.mark.slow
def test_lerobot_histories(quick_compile, tmp_path):
    """Two frames a second apart, asked twice a second: the frame before the last one, and at the
    start of an episode the first."""
    policy = lapa_jax.load_policy(make_policy(tmp_path / "run", "action", num_frames=2))
    asked, images = LeRobotPolicy(policy, control_hz=2.0), frames(5, 32, 48)
    for _ in range(2):
        asked.reset()
        for now, before in enumerate((0, 0, 0, 1, 2)):
            found = asked.select_action({TOP: images[now], "task": TEXT})
            expected = policy.predict_action(images[[before, now]], TEXT)
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="control_hz=0.0: the policy sees 2 frames, 1.0 s apart"):
        LeRobotPolicy(policy)


def test_lerobot_mistakes(action_policy):
    def ask(asked=None, **observation):
        observation = {TOP: frames(32, 48), "task": TEXT} | observation
        return (asked or LeRobotPolicy(action_policy)).select_action(observation)

    with pytest.raises(ValueError, match="holds -1.0 to -1.0: floats are in"):
        ask(**{TOP: np.full((3, 32, 48), -1.0, np.float32)})
    with pytest.raises(ValueError, match="is float64\\[32, 48, 3\\]"):
        ask(**{TOP: np.zeros((32, 48, 3))})
    with pytest.raises(ValueError, match="name one in cameras"):
        ask(**{"observation.images.wrist": frames(32, 48)})
    with pytest.raises(ValueError, match="2 tasks for 1 images"):
        ask(task=[TEXT, TEXT])
    with pytest.raises(ValueError, match="the policy sees 1 of them"):
        LeRobotPolicy(action_policy, cameras=["a", "b"])
    asked = LeRobotPolicy(action_policy, cameras=[TOP])
    ask(asked)
    with pytest.raises(ValueError, match="call reset"):
        ask(asked, **{TOP: frames(3, 32, 48), "task": [TEXT] * 3})


def test_names_of_cameras(action_policy):
    """The same as of the server: keys, or paths of keys."""
    image = frames(32, 48)
    expected = action_policy.predict_action(image, TEXT)
    for cameras, observation in (
        ([], {"observation/image": image, "observation/state": np.zeros(8), "prompt": TEXT}),
        (["images/cam"], {"images": {"cam": image}, "task": TEXT}),
    ):
        found = LeRobotPolicy(action_policy, cameras=cameras).select_action(observation)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(KeyError, match="camera: the policy needs 'top', and the keys sent are"):
        LeRobotPolicy(action_policy, cameras=["top"]).select_action({TOP: image, "task": TEXT})


class GymTabletop(gymnasium.Env):
    """The tabletop as a Gymnasium environment."""

    def __init__(self):
        self.table = Tabletop(SceneConfig(4, ("reach",), 5))
        spec = self.table.spec
        self.observation_space = gymnasium.spaces.Dict(
            {"robot": gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)}
        )
        low, high = np.float32(spec.action_low), np.float32(spec.action_high)
        self.action_space = gymnasium.spaces.Box(100 * low, 100 * high)
        self._start, self._step = jax.jit(self.table.reset), jax.jit(self.table.step)
        self._render = jax.jit(lambda state: self.table.render(state, 32))

    def _seen(self) -> dict[str, np.ndarray]:
        return {"robot": np.asarray(self._render(self.state))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.steps = self._start(jax.random.key(seed)), 0
        return self._seen(), {}

    def step(self, action):
        self.state, self.steps = self._step(self.state, action), self.steps + 1
        success = bool(self.table.success(self.state))
        return self._seen(), float(success), success, self.steps == 5, {"steps": self.steps}


@pytest.mark.slow
def test_gymnasium(action_policy):
    env = gymnasium.wrappers.PassiveEnvChecker(GymTabletop())
    found = rollout(action_policy, env, TEXT, images=["robot"], seed=3)
    assert found.truncated and not found.terminated and found.info == {"steps": 5}
    observation, _ = env.reset(seed=3)
    for action in found.actions:
        image = fit_image(observation["robot"], (32, 48), "crop")
        np.testing.assert_array_equal(action, action_policy.predict_action(image, TEXT))
        observation, reward, *_ = env.step(action)
        assert reward == 0.0
    assert found.actions.shape == (5, 2) and found.rewards.shape == (5,)
    cut = rollout(action_policy, env, TEXT, images=["robot"], seed=3, max_steps=2)
    np.testing.assert_array_equal(cut.actions, found.actions[:2])
    assert cut.truncated
