"""Environments by name, those that only Python steps, and chunks of actions."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax import envs
from lapa_jax.envs.drive import closed_loop, drive
from lapa_jax.envs.env import GOING_ON, OWN, Environment, EnvSpec
from lapa_jax.envs.execution import Execution
from lapa_jax.envs.rollout import rollout
from lapa_jax.envs.tabletop import MAX_STEP, Tabletop

STEPS = 9


class Stepped(Tabletop):
    """The tabletop as a simulator that cannot be traced: a batch of states is a list."""

    spec = property(lambda self: dataclasses.replace(super().spec, traceable=False))
    _step, _success = (
        jax.jit(Tabletop.step, static_argnums=0),
        jax.jit(Tabletop.success, static_argnums=0),
    )
    _render = jax.jit(Tabletop.render, static_argnums=(0, 2, 3))

    def evaluation_states(self, seed, task, n, first=0):
        states = super().evaluation_states(seed, task, n, first)
        return [jax.tree.map(lambda x, i=i: x[i], states) for i in range(n)]

    def step(self, state, action):
        return self._step(state, action)

    def success(self, state):
        return self._success(state)

    def render(self, state, size, view):
        return np.asarray(self._render(state, size, view))


def towards(images, prompts, key):
    """Chunks of three actions, drawn about the way to the block and scaled by what is seen and by
    where the effector is."""
    aims, own = prompts["aims"], prompts[OWN]
    seen = images.astype(jnp.float32).mean((1, 2, 3))[:, None, None] / 255.0
    seen += 0.1 * own[:, None, :1]
    noise = jax.random.normal(key, (len(aims), 3, 2))
    if GOING_ON in prompts:  # the answer before, as far as it is to be followed
        before, weights = prompts[GOING_ON]
        noise += weights[:, None] * before / MAX_STEP
    return MAX_STEP * jnp.clip(aims[:, None] * (0.5 + seen) + 0.3 * noise, -1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        Execution(execute=1),
        Execution(execute=2, delay=1),
        Execution(execute=1, ensemble="newest_first", ensemble_decay=0.1),
    ],
)
def test_stepping_gives_the_successes_of_the_scan(how):
    settings = {"blocks": 2, "horizon": STEPS}
    traced = envs.make({"name": "tabletop", **settings})
    stepped = Stepped(traced.scene)
    states = traced.evaluation_states(0, "reach", 6)
    way = states.blocks[jnp.arange(6), states.a] - states.effector
    aims = way / jnp.abs(way).max(-1, keepdims=True)
    options = dict(steps=STEPS, view="robot", size=(16, 24), how=how)
    act, key = jax.tree_util.Partial(towards), jax.random.key(3)
    prompts = {"aims": aims, OWN: jnp.zeros((6, len(traced.spec.state)))}
    if how.delay:
        prompts[GOING_ON] = jnp.zeros((6, 3, 2)), jnp.zeros(3)
    scan = rollout(traced, act, states, prompts, key, **options)
    again = stepped.evaluation_states(0, "reach", 6)
    found = closed_loop(stepped, act, again, prompts, key, **options)
    assert 0 < scan.success.sum() < 6, "some reach it"
    np.testing.assert_array_equal(found.success, scan.success)
    np.testing.assert_array_equal(found.length, scan.length)
    for i, length in enumerate(found.length):
        # a pixel may be rounded otherwise by another program
        np.testing.assert_allclose(found.actions[i, :length], scan.actions[i, :length], atol=2e-4)
        assert not found.actions[i, length:].any()
    lost = prompts | {"aims": aims * jnp.nan}
    with pytest.raises(ValueError, match="at step 0 the policy's actions are not finite"):
        closed_loop(stepped, act, again, lost, key, **options)
    with pytest.raises(ValueError, match="execute=4 must be from 1 to 3"):
        rollout(traced, act, states, prompts, key, **(options | {"how": Execution(execute=4)}))


@dataclasses.dataclass(frozen=True)
class Line:
    """Settings of `Counter`."""

    goal: Annotated[int, "[1, 9]", "place to reach"] = 3
    horizon: Annotated[int, "[1, 99]", "steps of an episode at most"] = 5


class Counter:
    """Walks along a line to its goal; a state is (place, goal)."""

    expert = None

    def __init__(self, line: Line):
        self.line = line
        self.spec = EnvSpec(
            name="counter",
            tasks=("walk",),
            actions=("forward",),
            action_low=(-1.0,),
            action_high=(1.0,),
            action_units=("places",),
            control_hz=1.0,
            horizon=line.horizon,
            views=("front",),
            cameras=("front",),
            state=(),
            image_size=(2, 3),
            traceable=False,
        )

    @staticmethod
    def available():
        return ""

    def reset(self, key, task=None):
        return 0, self.line.goal

    def step(self, state, action):
        return state[0] + int(action[0]), state[1]

    def success(self, state):
        return state[0] >= state[1]

    def render(self, state, size, view):
        assert view == "front"
        return np.full((*size, 3), state[0], np.uint8)

    def proprioception(self, state):
        return np.zeros(0, np.float32)

    def tasks_of(self, states):
        return ["walk"] * len(states)

    def phrasings(self, split="train"):
        return range(1)

    def instructions(self, states, phrasing=0):
        return [f"walk {goal}" for _, goal in states]

    def all_instructions(self, split="train"):
        return [f"walk {self.line.goal}"]

    def training_keys(self, seed, n):
        return jax.random.split(jax.random.key(seed), n)

    def evaluation_states(self, seed, task, n, first=0):
        return [(0, self.line.goal + i) for i in range(first, first + n)]


def test_an_environment_is_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(envs.ENVS, "counter", (Line, Counter))
    env = envs.make({"name": "counter", "goal": 2})
    assert isinstance(env, Environment) and env.spec.action_dim == 1
    calls = []

    def act(images, texts, key):
        calls.append(images[:, 0, 0, 0].tolist())
        assert images.shape == (3, 2, 3, 3) and texts == ["walk 2", "walk 3", "walk 4"]
        return np.ones((3, 2, 1))

    states = env.evaluation_states(0, "walk", 3)
    how = dict(steps=3, how=Execution(execute=2))
    found = drive(env, act, states, env.instructions(states), jax.random.key(0), **how)
    assert found.success.tolist() == [True, True, False] and found.length.tolist() == [2, 3, 3]
    # asked every second step; what is over stays as it was seen last
    assert calls == [[0, 0, 0], [0, 2, 2]]
    assert found.actions[..., 0].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="evaluation.env.name='moon' must be one of"):
        envs.make({"name": "moon"})
    with pytest.raises(ValueError, match=r"evaluation.env: unknown keys \['goal'\]"):
        envs.make({"name": "tabletop", "goal": 2})
    with pytest.raises(ValueError, match="evaluation.env.blocks=1 must be"):
        envs.make({"name": "tabletop", "blocks": 1})


@pytest.mark.slow
def test_pictures_need_not_be_square():
    """The shorter side shows what a square does, the longer one more of its surroundings."""
    env = Tabletop()
    state = env.reset(jax.random.key(0), "reach")
    square, wide, tall = (env.render(state, size) for size in (32, (32, 48), (48, 32)))
    assert wide.shape == (32, 48, 3) and tall.shape == (48, 32, 3)
    np.testing.assert_array_equal(wide[:, 8:40], square)
    np.testing.assert_array_equal(tall[8:40], square)
