"""Chunks that may end early: the episodes of whoever does not look, calls, looks, and pushes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_drive import Stepped, towards

from lapa_jax import envs
from lapa_jax.envs.checked import Pushes, checked_loop
from lapa_jax.envs.drive import closed_loop
from lapa_jax.envs.env import OWN, check_action
from lapa_jax.envs.execution import Execution
from lapa_jax.envs.rollout import rollout
from lapa_jax.envs.tabletop import MAX_STEP

STEPS, N, n = 9, 6, 3


class Looks:
    """Drops what a function of (looks, images) says; notes what it is told."""

    def __init__(self, every, drop):
        self.every, self.drop, self.seen, self.told = every, drop, [], []

    def asked(self, t, images, chunks, due):
        assert images.dtype == np.uint8 and len(images) == len(chunks) == len(due)
        assert due.all() == (t == 0) or t
        self.told.append((images, chunks, due))

    def drops(self, t, images, looks):
        self.seen.append(looks)
        return np.asarray(self.drop(looks)) & (looks > 0)


@pytest.fixture(scope="module")
def scene():
    traced = envs.make({"name": "tabletop", "blocks": 2, "horizon": STEPS})
    states = traced.evaluation_states(0, "reach", N)
    way = states.blocks[jnp.arange(N), states.a] - states.effector
    prompts = {"aims": way / jnp.abs(way).max(-1, keepdims=True)}
    prompts[OWN] = jnp.zeros((N, len(traced.spec.state)))
    return traced, states, prompts


def run(scene, execute, check=None, stepped=False, **options):
    env, states, prompts = scene
    if stepped:
        env = Stepped(env.scene)
        states = env.evaluation_states(0, "reach", N)
    act, key = jax.tree_util.Partial(towards), jax.random.key(3)
    options |= dict(steps=STEPS, view="robot", size=(16, 24), how=Execution(execute=execute))
    return checked_loop(env, act, states, prompts, key, check=check, **options)


def plain(scene, execute):
    act, key = jax.tree_util.Partial(towards), jax.random.key(3)
    how = dict(steps=STEPS, view="robot", size=(16, 24), how=Execution(execute=execute))
    return rollout(*scene[:1], act, *scene[1:], key, **how)


def same(found, wanted):
    np.testing.assert_array_equal(found.success, wanted.success)
    np.testing.assert_array_equal(found.length, wanted.length)
    np.testing.assert_array_equal(found.done, wanted.done)
    for i, length in enumerate(found.length):
        # a pixel may be rounded otherwise by another program
        np.testing.assert_allclose(found.actions[i, :length], wanted.actions[i, :length], atol=2e-4)
        assert not found.actions[i, length:].any()


@pytest.mark.parametrize("stepped", [False, True])
def test_without_drops_episodes_are_those_of_the_scan(scene, stepped):
    wanted = plain(scene, n)
    assert 0 < wanted.success.sum() < N
    bare = run(scene, n, stepped=stepped)
    same(bare.episodes, wanted)
    assert bare.calls.tolist() == (-(-np.asarray(wanted.length) // n)).tolist()
    assert not bare.looks.any() and not bare.drops.any()
    check = Looks(1, lambda looks: np.zeros(N, bool))
    looked = run(scene, n, check, stepped)
    same(looked.episodes, bare.episodes)
    assert looked.calls.tolist() == bare.calls.tolist() and not looked.drops.any()
    # At every step but the first of a chunk, and not once an episode is over.
    length = looked.episodes.length
    assert looked.looks.tolist() == (length - looked.calls).tolist()
    assert np.array(check.seen).max(0).tolist() == [min(x, n) - 1 for x in length]


class Strict(Stepped):
    """As simulators of others are, which refuse what is beyond their bounds."""

    def step(self, state, action):
        return super().step(state, check_action(self.spec, action))


def boldly(images, prompts, key):
    return 1.6 * towards(images, prompts, key)


def test_actions_beyond_the_bounds_are_clipped_and_counted(scene):
    """Alike in the scan, stepped, and checked; where an episode is over nothing counts."""
    env, states, prompts = scene
    act, key, strict = jax.tree_util.Partial(boldly), jax.random.key(3), Strict(env.scene)
    listed = strict.evaluation_states(0, "reach", N)
    how = dict(steps=STEPS, view="robot", size=(16, 24), how=Execution(execute=n))
    wanted = rollout(env, act, states, prompts, key, **how)
    length, said = np.asarray(wanted.length), np.abs(wanted.actions).max(-1)
    assert said.max() == np.float32(MAX_STEP) and 0 < wanted.success.sum() < N
    at_bounds = [(said[i, :stop] == np.float32(MAX_STEP)).sum() for i, stop in enumerate(length)]
    assert np.asarray(wanted.clipped).tolist() == at_bounds and min(at_bounds) >= 1
    for found in (
        closed_loop(strict, act, listed, prompts, key, **how),
        checked_loop(strict, act, listed, prompts, key, **how).episodes,
        checked_loop(env, act, states, prompts, key, **how).episodes,
    ):
        same(found, wanted)
        np.testing.assert_array_equal(found.clipped, wanted.clipped)
    assert not np.any(plain(scene, n).clipped)


def test_actions_of_another_width_are_refused(scene):
    """One number is not as many alike, and several actions are not one."""
    env, states, prompts = scene
    for shape in ((), (1,), (3,), (2, 2)):
        with pytest.raises(ValueError, match=rf"shape \[{', '.join(map(str, shape))}\]: tabletop"):
            check_action(env.spec, np.zeros(shape))
    narrow = jax.tree_util.Partial(lambda *seen: towards(*seen)[..., :1])
    how = dict(steps=STEPS, view="robot", size=(16, 24), how=Execution(execute=n))
    said = r"an action of shape \[1\]: tabletop takes 2 numbers, x \(metres"
    with pytest.raises(ValueError, match=said):
        rollout(env, narrow, states, prompts, jax.random.key(3), **how)


def test_who_drops_at_each_look_asks_as_often_as_who_executes_one(scene):
    found = run(scene, n, Looks(1, lambda looks: np.ones(N, bool)))
    same(found.episodes, plain(scene, 1))
    assert found.calls.tolist() == found.episodes.length.tolist()
    assert found.drops.tolist() == found.looks.tolist() == (found.calls - 1).tolist()


def test_each_episode_asks_when_it_must(scene):
    """The first one drops at its first look, the others never."""
    check = Looks(1, lambda looks: (np.arange(N) == 0) & (looks == 1))
    found = run(scene, n, check)
    length = found.episodes.length
    assert found.calls[0] == length[0] and found.drops[0] == length[0] - 1
    assert found.calls[1:].tolist() == (-(-length[1:] // n)).tolist()
    assert not found.drops[1:].any()
    alone = [due for _, _, due in check.told if due[0] and not due[1:].any()]
    assert alone, "asked for one alone"
    for (images, chunks, _), (later, after, due) in zip(
        check.told[:-1], check.told[1:], strict=True
    ):
        assert (after[~due] == chunks[~due]).all() and images.shape == later.shape


def test_pushes_are_the_same_for_the_same_seed_and_number():
    spec = envs.make({"name": "tabletop"}).spec
    pushes = Pushes(push_rate=0.2, push_steps=3)
    found = pushes.drawn(spec, 5, 40, 30)
    np.testing.assert_array_equal(found[:7], pushes.drawn(spec, 5, 7, 30))
    np.testing.assert_array_equal(found[:, :20], pushes.drawn(spec, 5, 40, 20))
    assert not np.array_equal(found, pushes.drawn(spec, 6, 40, 30), equal_nan=True)
    pushed = ~np.isnan(found)
    assert (pushed.all(-1) == pushed.any(-1)).all() and 0.2 < pushed.mean() < 0.6
    low, high = np.float32(spec.action_low), np.float32(spec.action_high)
    assert (found[pushed.all(-1)] >= low).all() and (found[pushed.all(-1)] <= high).all()
    # Each lasts three steps, in one direction, or to the end.
    for one in found:
        starts = [t for t in range(30) if not np.isnan(one[t, 0])]
        for t in starts[:-2]:
            run = one[max(t - 2, 0) : t + 3, 0]
            assert (run == one[t, 0]).sum() >= min(3, 30 - t)
    assert np.isnan(Pushes().drawn(spec, 5, 4, 30)).all()
    for wrong in (dict(push_rate=1.5), dict(push_steps=0)):
        with pytest.raises(ValueError, match="push_"):
            Pushes(**wrong)


def test_pushes_are_what_is_acted_on(scene):
    spec = scene[0].spec
    pushed = Pushes(push_rate=0.3, push_steps=2).drawn(spec, 0, N, STEPS)
    found, again = (run(scene, n, pushes_NTA=pushed) for _ in range(2))
    same(found.episodes, again.episodes)
    for i, length in enumerate(found.episodes.length):
        given = ~np.isnan(pushed[i, :length])
        np.testing.assert_array_equal(
            found.episodes.actions[i, :length][given], pushed[i, :length][given]
        )
    bare = run(scene, n)
    assert not np.array_equal(found.episodes.actions, bare.episodes.actions)


def test_what_does_not_fit_is_refused(scene):
    def loop(how, check=None, aims=1.0):
        env, states, prompts = scene
        prompts = prompts | {"aims": prompts["aims"] * aims}
        act, key = jax.tree_util.Partial(towards), jax.random.key(0)
        options = dict(steps=2, view="robot", size=(16, 24), how=how, check=check)
        return checked_loop(env, act, states, prompts, key, **options)

    look = Looks(2, lambda looks: looks > 0)
    for how, check, match in (
        (Execution(execute=1, ensemble="oldest_first"), None, "ensemble=oldest_first"),
        (Execution(execute=2, delay=1), None, "delay=1"),
        (Execution(execute=3), look, "execute=3: looks are 2 steps apart"),
        (Execution(execute=2), look, "and more: 4, 6"),
        (Execution(execute=4), None, "execute=4 must be from 1 to 3"),
    ):
        with pytest.raises(ValueError, match=match):
            loop(how, check)
    with pytest.raises(ValueError, match="at step 0 the policy's actions are not finite"):
        loop(Execution(execute=2), aims=jnp.nan)
