import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.envs.env import Environment
from lapa_jax.envs.rollout import collect_expert, rollout
from lapa_jax.envs.tabletop import FAMILIES, FULL, VIEWS, SceneConfig, Tabletop, language, tasks
from lapa_jax.envs.tabletop.flow import flow
from lapa_jax.envs.tabletop.state import (
    BLOCK_LIMIT,
    BLOCK_RADIUS,
    EFFECTOR_LIMIT,
    MAX_STEP,
    TABLE_HALF,
)

MOVING = "moving_camera"
STEPS = 100  # stricter than the 200 that a user has
PER_FAMILY = 100


@pytest.fixture(scope="module")
def env() -> Tabletop:
    return Tabletop(FULL)


@pytest.fixture(scope="module")
def demonstrations(env):
    families = jnp.repeat(jnp.arange(len(FAMILIES)), PER_FAMILY)
    keys = env.training_keys(0, len(families))
    return jax.device_get(collect_expert(env, keys, families, STEPS, 0.0))


@pytest.fixture(scope="module")
def starts(demonstrations):
    return jax.tree.map(lambda x: x[:, 0], demonstrations.states)


@pytest.fixture(scope="module")
def reset(env):
    return env.resets


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(env.step)


@pytest.fixture(scope="module")
def draw(env):
    return jax.jit(env.render, static_argnums=(1, 2))


def at(states, *index):
    return jax.tree.map(lambda x: x[index], states)


def assert_close(first, second, atol):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_protocol_and_spec(env):
    assert isinstance(env, Environment)
    assert hash(env) == hash(Tabletop(FULL)) and env == Tabletop(FULL)
    assert env.spec.tasks == FAMILIES
    assert env.spec.action_high == (MAX_STEP, MAX_STEP)


def test_expert_solves_every_family(demonstrations):
    rate = demonstrations.success.reshape(len(FAMILIES), PER_FAMILY).mean(1)
    assert (rate >= 0.95).all(), dict(zip(FAMILIES, rate, strict=True))


def test_nothing_is_solved_at_reset(demonstrations):
    assert not demonstrations.done[:, 0].any()


@pytest.mark.slow
def test_small_scenes_and_held_out_combinations():
    few = Tabletop(SceneConfig(blocks=3, families=FAMILIES, combinations="held_out"))
    families = jnp.arange(600) % len(FAMILIES)

    @jax.jit
    def make(keys):
        states = jax.vmap(few.reset)(keys, families)
        return states, jax.vmap(few.success)(states)

    states, solved = jax.device_get(make(few.training_keys(1, 600)))
    assert not solved.any()
    assert (np.sort(states.kinds)[:, 1:] != np.sort(states.kinds)[:, :-1]).all()
    found = np.array(few.tasks(states))
    held = np.asarray(tasks.held_out_combination(*jnp.asarray(found).T))
    assert held.all()
    count = sum(1 for _ in language.all_tasks(FAMILIES))
    every = jnp.asarray(list(language.all_tasks(FAMILIES))).T
    assert 0.1 < np.asarray(tasks.held_out_combination(*every)).sum() / count < 0.15


@pytest.mark.slow
def test_contact_keeps_blocks_apart_and_on_the_board(env, demonstrations):
    blocks = demonstrations.states.blocks
    n = blocks.shape[-2]
    gap = np.linalg.norm(blocks[..., :, None, :] - blocks[..., None, :, :], axis=-1)
    gap = gap + np.eye(n)
    assert gap.min() > 2 * BLOCK_RADIUS - 0.004
    assert np.abs(blocks).max() <= BLOCK_LIMIT + 1e-6
    assert np.abs(demonstrations.states.effector).max() <= EFFECTOR_LIMIT + 1e-6
    to_effector = np.linalg.norm(blocks - demonstrations.states.effector[..., None, :], axis=-1)
    assert to_effector.min() > BLOCK_RADIUS


@pytest.mark.slow
def test_random_pushing_keeps_blocks_apart(env, starts):
    # A constant heading runs into blocks, walls and corners.
    states = at(starts, slice(64))
    actions = jax.random.uniform(jax.random.key(0), (64, 2), minval=-MAX_STEP, maxval=MAX_STEP)

    @jax.jit
    def run(states):
        def body(s, _):
            s = jax.vmap(env.step)(s, actions)
            return s, s.blocks

        return jax.lax.scan(body, states, None, length=25)[1]

    blocks = np.asarray(run(states))
    gap = np.linalg.norm(blocks[..., :, None, :] - blocks[..., None, :, :], axis=-1) + np.eye(8)
    assert gap.min() > 2 * BLOCK_RADIUS - 0.008
    assert np.abs(blocks).max() <= BLOCK_LIMIT + 1e-6


@pytest.mark.slow
def test_pushing_moves_a_block_and_free_space_does_not(starts, step):
    state = at(starts, 0)
    far = jnp.array([[0.0, 0.0]] + [[-0.2 + 0.08 * i, 0.2] for i in range(6)] + [[0.2, -0.2]])
    state = state.replace(blocks=far, effector=jnp.array([-0.08, 0.0]))
    moved = step(state, jnp.array([0.0, -0.03]))
    np.testing.assert_allclose(moved.blocks, far, atol=1e-6)
    np.testing.assert_allclose(moved.effector, [-0.08, -0.03], atol=1e-6)
    for _ in range(3):
        state = step(state, jnp.array([0.03, 0.0]))
    np.testing.assert_allclose(state.blocks[0], [0.06, 0.0], atol=1e-4)
    np.testing.assert_allclose(state.blocks[1:], far[1:], atol=1e-6)


@pytest.mark.slow
def test_batched_equals_single(env, demonstrations, starts, step, reset):
    """The trajectories of one big jitted scan, state by state."""
    keys = env.training_keys(0, len(FAMILIES) * PER_FAMILY)
    assert_close(
        reset(keys[::PER_FAMILY], jnp.arange(6)), at(starts, slice(0, None, PER_FAMILY)), 1e-6
    )
    expert = jax.jit(env.expert)
    for t in (0, 3, 8):
        state = at(demonstrations.states, PER_FAMILY, t)
        action = expert(state)
        np.testing.assert_allclose(action, demonstrations.actions[PER_FAMILY, t], atol=1e-5)
        assert_close(step(state, action), at(demonstrations.states, PER_FAMILY, t + 1), 1e-5)


def test_reset_repeats(reset, env):
    keys, families = env.training_keys(4, 6), jnp.arange(6)
    assert_close(reset(keys, families), reset(keys, families), 0.0)


@pytest.mark.slow
def test_views_show_one_state_differently(starts, draw):
    state = at(starts, 0)
    before = jax.tree.map(np.array, state)
    images = {view: np.asarray(draw(state, 64, view)) for view in VIEWS}
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    names = list(images)
    for i, first in enumerate(names):
        assert images[first].shape == (64, 64, 3) and images[first].dtype == np.uint8
        for second in names[i + 1 :]:
            changed = (np.abs(images[first].astype(int) - images[second]) > 16).any(-1).mean()
            assert changed > 0.005, (first, second)
    # The hand and the arm hide only a small part of the board.
    changed = (np.abs(images["robot"].astype(int) - images["human"]) > 16).any(-1).mean()
    assert changed < 0.25


def test_a_camera_moves_as_is_said(env, starts, draw):
    state, shifts = at(starts, 0).replace(time=jnp.int32(0)), []
    for step in range(6):
        shifts.append(np.asarray(env.camera_motion(state.replace(time=jnp.int32(step)), MOVING)))
    right, up = np.sum(shifts, axis=0) * 64 / (2 * TABLE_HALF)  # in pixels
    assert np.hypot(right, up) > 2 and not np.any(env.camera_motion(state, "robot"))
    now, later = (np.asarray(draw(state.replace(time=t), 64, MOVING)) for t in (0, 6))
    inner = slice(12, -12)
    errors = {
        (rows, columns): np.abs(
            np.roll(now, (rows, columns), (0, 1))[inner, inner].astype(int) - later[inner, inner]
        ).mean()
        for rows in range(-10, 11)
        for columns in range(-10, 11)
    }
    best = min(errors, key=errors.get)
    np.testing.assert_allclose(best, (up, -right), atol=1.0)


def test_distractors_move_by_time_alone(step, starts, draw):
    state = at(starts, 0)
    image = draw(state, 64, "distractors")
    later = draw(state.replace(time=state.time + 6), 64, "distractors")
    assert (image != later).any()
    other = draw(state.replace(seed=state.seed + 1), 64, "distractors")
    assert (image != other).any()
    moved = step(state, jnp.array([0.01, 0.0])).replace(time=state.time)
    hidden = state.replace(effector=jnp.array([5.0, 5.0]), blocks=state.blocks * 0 + 5.0)
    hidden_moved = moved.replace(effector=hidden.effector, blocks=hidden.blocks)
    np.testing.assert_array_equal(
        draw(hidden, 64, "distractors"), draw(hidden_moved, 64, "distractors")
    )


@pytest.mark.slow
@pytest.mark.parametrize("view", ["human", "camera", MOVING])
def test_flow_says_where_pixels_go(demonstrations, draw, view):
    """What moves has the colour of its place in the later picture, but at edges and where it is
    hidden by then."""
    n = 64
    state, later = at(demonstrations.states, n, 2), at(demonstrations.states, n, 8)
    first, last = (np.asarray(draw(one, 64, view)).astype(int) for one in (state, later))
    moved = np.asarray(jax.jit(flow, static_argnums=(2, 3))(state, later, 64, view))
    assert moved.shape == (64, 64, 2) and moved.dtype == np.float32
    rows, columns = np.nonzero(np.linalg.norm(moved, axis=-1) > 1.0)
    there = (np.stack([columns, rows], -1) + np.rint(moved[rows, columns])).astype(int)
    inside = ((there >= 0) & (there < 64)).all(-1)
    rows, columns, (x, y) = rows[inside], columns[inside], there[inside].T
    kept = np.abs(first[rows, columns] - last[y, x]).max(-1)
    still = np.abs(first[rows, columns] - last[rows, columns]).max(-1)
    assert len(rows) > 50 and np.median(kept) < 12
    assert (kept < 40).mean() > max(0.7, 0.15 + (still < 40).mean())
    same = np.asarray(jax.jit(flow, static_argnums=(2, 3))(state, state, 64, view))
    np.testing.assert_allclose(same, 0.0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("view", ["robot", "camera"])
def test_sizes_agree(starts, draw, view):
    state = at(starts, 7)
    small = np.asarray(draw(state, 64, view), np.float32)
    large = np.asarray(draw(state, 128, view), np.float32)
    down = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small - down).mean() < 2.0
    # Edges are anti-aliased: there are colours between block and board.
    assert len(np.unique(small.reshape(-1, 3), axis=0)) > 100


@pytest.mark.slow
def test_every_kind_looks_different(starts, draw):
    state = at(starts, 0)
    blocks = np.where(np.arange(8)[:, None] == 0, 0.0, 5.0).astype(np.float32)
    state = state.replace(blocks=blocks, angles=jnp.zeros(8), effector=jnp.array([5.0, 5.0]))
    others = state.kinds[1:]
    images = [
        np.asarray(
            draw(state.replace(kinds=np.append(np.int32(k), others)), 64, "robot"), np.float32
        )
        for k in range(language.NUM_KINDS)
    ]
    for i in range(len(images)):
        for j in range(i):
            assert (np.abs(images[i] - images[j]).max(-1) > 60).sum() >= 8, (i, j)


def test_unknown_view_and_family_are_named(env, starts):
    with pytest.raises(ValueError, match="view 'x'"):
        env.render(at(starts, 0), 64, "x")
    with pytest.raises(ValueError, match="family 'x'"):
        env.reset(jax.random.key(0), "x")
    with pytest.raises(ValueError, match="SceneConfig.blocks = 2: .*3 or more with separate_bl"):
        SceneConfig(blocks=2, families=("separate_blocks",))
    with pytest.raises(ValueError, match="families"):
        SceneConfig(families=("x",))


def test_instructions_parse_back(env, starts):
    found = env.tasks(starts)
    for phrasing in env.phrasings("all"):
        texts = env.instructions(starts, phrasing)
        assert [language.parse(t) for t in texts] == [(t, phrasing) for t in found]
    with pytest.raises(ValueError, match="phrasing"):
        env.instructions(starts, language.NUM_PHRASINGS)


def test_instructions_name_blocks_that_are_there(env, starts):
    for i, task in enumerate(env.tasks(starts)):
        kinds = starts.kinds[i]
        assert len(set(kinds.tolist())) == len(kinds)
        assert task.kind_a in kinds and (task.kind_b in kinds or task.kind_b == -1)


def test_held_out_phrasings_are_disjoint(env):
    train, held = set(env.all_instructions("train")), set(env.all_instructions("held_out"))
    assert train and held and not train & held
    assert len(train | held) == len(env.all_instructions("all"))


@pytest.mark.slow
def test_language_is_necessary(env, reset):
    """One scene admits tasks with other words and other success conditions."""
    keys = jnp.stack([jax.random.key(5)] * len(FAMILIES))
    states = reset(keys, jnp.arange(len(FAMILIES)))
    for scene in (states.blocks, states.kinds, states.effector, states.angles):
        assert (np.asarray(scene) == np.asarray(scene)[:1]).all()
    assert len(set(env.instructions(states))) == len(FAMILIES)

    # Solve each task, then judge the outcome by the other tasks of the same scene.
    @jax.jit
    def judge(states):
        move = jax.vmap(lambda s: env.step(s, env.expert(s)))
        final = jax.lax.scan(lambda s, _: (move(s), None), states, None, length=80)[0]

        def one(outcome, task):
            return env.success(task.replace(blocks=outcome.blocks, effector=outcome.effector))

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(final, states)

    judged = np.asarray(judge(states))
    assert judged.diagonal().all()
    assert judged.sum() < judged.size / 2


@pytest.mark.slow
def test_evaluation_states_are_fixed_and_apart_from_training(env, reset):
    first = env.evaluation_states(0, "reach", 6)
    again = env.evaluation_states(0, "reach", 6)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    longer = env.evaluation_states(1, "reach", 6)
    assert not (np.asarray(first.blocks) == np.asarray(longer.blocks)).all()
    train = reset(env.training_keys(0, 6), jnp.full(6, FAMILIES.index("reach")))
    assert not (np.asarray(first.blocks) == np.asarray(train.blocks)).any()


@pytest.mark.slow
def test_collection_records_executed_actions(env, demonstrations):
    n = len(FAMILIES) * PER_FAMILY
    families = jnp.repeat(jnp.arange(len(FAMILIES)), PER_FAMILY)
    noisy = jax.device_get(collect_expert(env, env.training_keys(0, n), families, STEPS, 0.2))
    assert np.abs(noisy.actions[:, 0] - demonstrations.actions[:, 0]).mean() > 1e-3
    assert np.abs(noisy.actions).max() <= MAX_STEP
    assert noisy.success.mean() > 0.95

    @jax.jit
    def replay(states, actions):
        body = lambda s, a: (jax.vmap(env.step)(s, a), None)  # noqa: E731
        return jax.lax.scan(body, states, actions.swapaxes(0, 1))[0]

    few = slice(64)
    final = replay(at(noisy.states, few, 0), noisy.actions[few, :10])
    np.testing.assert_allclose(final.blocks, noisy.states.blocks[few, 10], atol=1e-4)
    for i in np.flatnonzero(noisy.success):
        length = noisy.length[i]
        assert noisy.done[i, length] and not noisy.done[i, length - 1]


@pytest.mark.slow
def test_rollout_runs_a_policy_and_success_is_sticky(env):
    small = Tabletop(SceneConfig(blocks=2, families=("reach",)))
    states = small.evaluation_states(0, "reach", 4)
    tokens = jnp.zeros((4, 3), jnp.int32)

    def straight(params, images, tokens, key):
        assert images.shape == (4, 32, 32, 3) and images.dtype == jnp.uint8
        return params

    aim = states.blocks[jnp.arange(4), states.a] - states.effector
    aim = MAX_STEP * aim / jnp.abs(aim).max(-1, keepdims=True)
    act = jax.tree_util.Partial(straight, aim)
    out = rollout(small, act, states, tokens, jax.random.key(0), steps=40, view="human", size=32)
    assert out.success.all() and (out.length < 40).all()
    still = jax.tree_util.Partial(straight, aim * 0)
    out = rollout(small, still, states, tokens, jax.random.key(0), steps=5, view="human", size=32)
    assert not out.success.any() and (out.length == 5).all()
    assert out.states.blocks.shape == (4, 6, 2, 2) and out.actions.shape == (4, 5, 2)
