"""Episodes that are stepped side by side: traced or by Python, in the same way."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lapa_jax.envs.env import clip
from lapa_jax.envs.rollout import rollout
from lapa_jax.envs.side_by_side import SideBySide, starts_of
from lapa_jax.envs.tabletop import MAX_STEP, SceneConfig, Tabletop

SCENE = SceneConfig(families=("reach", "separate_blocks"), blocks=3, horizon=8)
SIZE = (16, 16)


class Stepped(Tabletop):
    """The tabletop as a simulator that cannot be traced: a batch of states is a list."""

    spec = property(lambda self: dataclasses.replace(super().spec, traceable=False))

    def evaluation_states(self, seed, task, n, first=0):
        states = super().evaluation_states(seed, task, n, first)
        return [jax.tree.map(lambda x, i=i: x[i], states) for i in range(n)]

    def instructions(self, states, phrasing=0):
        numbers = np.broadcast_to(np.asarray(phrasing), (len(states),))
        return [super(Stepped, self).instructions(*x)[0] for x in zip(states, numbers, strict=True)]

    def tasks_of(self, states):
        return [super(Stepped, self).tasks_of(state)[0] for state in states]

    step, success, expert = (
        jax.jit(getattr(Tabletop, name), static_argnums=0) for name in ("step", "success", "expert")
    )
    render = functools.partialmethod(jax.jit(Tabletop.render, static_argnums=(0, 2, 3)))


def test_tasks_share_the_start_states_and_each_begins_its_list():
    env = Tabletop(SCENE)
    starts = starts_of(env, 5, seed=3)
    assert starts.tasks == ["reach"] * 3 + ["separate_blocks"] * 2 and starts.numbers == [
        0,
        1,
        2,
        0,
        1,
    ]
    separate = env.evaluation_states(3, "separate_blocks", 2)
    np.testing.assert_array_equal(starts.states.blocks[3:], separate.blocks)
    assert starts.instructions[3] == env.instructions(separate)[0]
    assert len(starts_of(env, 1, seed=3)) == 1  # of the first task alone


@pytest.mark.slow
def test_python_steps_as_the_traced_world_does():
    worlds = [
        SideBySide(starts_of(e(SCENE), 4, 0), view="robot", size=SIZE) for e in (Tabletop, Stepped)
    ]
    rng, ever = np.random.default_rng(0), np.zeros(4, bool)
    for _ in range(14):
        going = rng.random(4) < 0.9
        noise = rng.uniform(-MAX_STEP, MAX_STEP, (4, 2)).astype(np.float32)
        moved = []
        for world in worlds:
            before = world.look()
            moved.append(world.step(0.1 * noise + world.expert(), going))
            still = ~moved[-1]
            np.testing.assert_array_equal(world.look()[still], before[still])
        np.testing.assert_array_equal(*moved)
        np.testing.assert_array_equal(*(world.success for world in worlds))
        assert not (moved[0] & ever).any() and (moved[0] <= going).all()
        ever = worlds[0].success.copy()
        np.testing.assert_allclose(*(world.look().astype(int) for world in worlds), atol=2)
    assert 0 < ever.sum() < 4


@pytest.mark.slow
def test_it_ends_as_a_rollout_does():
    starts = starts_of(Tabletop(SCENE), 6, seed=1)
    world = SideBySide(starts, view="robot", size=SIZE)
    held = np.random.default_rng(1).uniform(-MAX_STEP, MAX_STEP, (6, 2)).astype(np.float32)
    held[:2] = world.expert()[:2]
    for _ in range(8):
        world.step(held, np.ones(6, bool))
    act = jax.tree_util.Partial(lambda held, images, prompts, key: held, held)
    found = rollout(starts.env, act, starts.states, {}, jax.random.key(0), steps=8, size=SIZE)
    np.testing.assert_array_equal(world.success, found.success)


def test_actions_beyond_the_bounds_are_clipped_and_told():
    actions = np.float32([[0.0, 0.03], [0.1, 0.0], [0.0, -0.0300001]])
    clipped, beyond = clip(Tabletop(SCENE).spec, actions)
    assert beyond.tolist() == [False, True, False] and np.abs(clipped).max() == np.float32(0.03)
