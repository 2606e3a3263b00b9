"""What every environment keeps (lapa_jax/envs/env.py): those of this Python. test_libero.py runs it
in that of LIBERO, which is without JAX, and has this file's cases for it.
"""

import dataclasses
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lapa_jax import envs
from lapa_jax.envs.env import Environment, check_action, load_state, save_state, tasks_named

if HERE := importlib.util.find_spec("jax") is not None:  # the project's own Python
    import jax

    from lapa_jax.envs.tabletop.state import TABLE_HALF

STEPS = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """How one environment is tried. seen(env, state, image): of things whose place is known, where
    they are in the image of the first camera, (column, row), and between which places they should
    be."""

    tasks: tuple[str, ...]  # that are tried
    seen: Callable[[Environment, Any, np.ndarray], list[tuple]]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 0.0  # of the expert, at least, over `episodes` of each task
    episodes: int = 3
    size: tuple[int, int] = (64, 64)
    # In the project's Python; not in it but in that of LIBERO; None: wherever its simulator is.
    here: bool | None = True


def middle(mask: np.ndarray) -> np.ndarray:
    """(column, row) of what a mask shows, in pixels from the upper left corner."""
    return np.argwhere(mask).mean(0)[::-1] + 0.5


def effector_seen(env, state, image):
    x, y = np.asarray(state.effector) / TABLE_HALF
    place = len(image) / 2 * np.array([1 + x, 1 - y])
    return [(middle((image < 60).all(-1)), place - 4, place + 4)]  # the tip


def fingers_seen(env, state, image):
    """The hand begins at one place; the left finger is the only cyan thing there, and the arm comes
    to it from the lower left."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    finger = middle((red < 40) & (green > 120) & (blue > 120))
    arm = middle((red > 80) & (green < 60) & (blue < 60))
    return [(finger, (34, 27.5), (39, 32.5)), (arm, (0, 20.5), (25.5, 32.5))]


def cheese_seen(env, state, image):
    """The cream cheese is the only blue thing; pictures are mirrored."""
    found = env.simulator(state)
    found.stand_at(state)
    camera, thing = found.data.camera("agentview"), found.data.body("cream_cheese_1_main")
    x, y, z = camera.xmat.reshape(3, 3).T @ (thing.xpos - camera.xpos)
    per_radian = 1 / np.tan(np.radians(found.model.camera("agentview").fovy[0] / 2))
    place = len(image) / 2 * np.array([1 + per_radian * x / z, 1 + per_radian * y / z])
    red, _, blue = np.moveaxis(image.astype(int), -1, 0)
    return [(middle(blue > red + 25), place - 2, place + 2)]


def cubes_seen(env, state, image):
    """Of the two cubes the yellow one is brightest, and at the goal's place."""
    red, _, blue = np.moveaxis(image.astype(int), -1, 0)
    yellow = middle((red > 200) & (blue < 180) & (red > blue + 60))
    return [(yellow, (0, 60), (160, 120))]


def tip_seen(env, state, image):
    """Blocks and the arm are on the table, the only dark thing; the arm comes from above."""
    return [(middle((image < 60).all(-1)), (120, 60), (200, 130))]


CASES = {
    "language_table": Case(
        tasks=("block_to_block",),
        seen=tip_seen,
        settings={"oracle": True},
        rate=0.5,
        episodes=2,
        size=(180, 320),
        here=None,
    ),
    "libero": Case(
        tasks=("put_the_bowl_on_the_plate",),
        seen=cheese_seen,
        settings={"drawing": "fast", "horizon": 100},
        size=(128, 128),
        here=False,
    ),
    "metaworld": Case(
        tasks=("drawer-open", "reach"),
        seen=fingers_seen,
        rate=0.9,
        episodes=3,
    ),
    "simpler": Case(
        tasks=("widowx_stack_cube",),
        seen=cubes_seen,
        size=(120, 160),
        here=None,
    ),
    "tabletop": Case(
        tasks=("reach", "block_to_block"),
        seen=effector_seen,
        settings={"blocks": 2, "horizon": 100, "families": ("reach", "block_to_block")},
        rate=0.9,
        episodes=10,
    ),
}


class Plain:
    """An environment as Python sees it, traceable or not."""

    def __init__(self, name: str):
        self.env = env = envs.make({"name": name, **CASES[name].settings})
        assert not env.available(), env.available()
        self.step, self.success, self.expert = env.step, env.success, env.expert
        self.render, self.proprioception = env.render, env.proprioception
        if env.spec.traceable:
            self.step, self.success = jax.jit(env.step), jax.jit(env.success)
            self.expert, self.proprioception = jax.jit(env.expert), jax.jit(env.proprioception)
            self.render = jax.jit(env.render, static_argnums=(1, 2))

    def starts(self, seed: int, task: str, n: int, first: int = 0) -> list[Any]:
        found = self.env.evaluation_states(seed, task, n, first)
        if self.env.spec.traceable:
            return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), found) for i in range(n)]
        return found

    def actions(self, seed: int, n: int) -> np.ndarray:
        spec, rng = self.env.spec, np.random.default_rng(seed)
        return rng.uniform(spec.action_low, spec.action_high, (n, spec.action_dim))

    def follow(self, state: Any, actions: np.ndarray) -> Any:
        for action in actions.astype(np.float32):
            state = self.step(state, action)
        return state


def digest(state: Any) -> str:
    found = hashlib.sha256()
    for field in dataclasses.fields(state):
        value = np.asarray(getattr(state, field.name))
        found.update(f"{field.name}{value.dtype}{value.shape}".encode() + value.tobytes())
    return found.hexdigest()


def trace(name: str) -> list[str]:
    """What an environment does from its seeds on: states and pictures."""
    plain, case = Plain(name), CASES[name]
    spec, found = plain.env.spec, []
    states = [state for task in case.tasks for state in plain.starts(5, task, 2)]
    states += [plain.env.reset(key, case.tasks[0]) for key in plain.env.training_keys(5, 2)]
    for i, state in enumerate(states):
        found.append(digest(state))
        state = plain.follow(state, plain.actions(i, STEPS))
        images = [plain.render(state, case.size, view) for view in spec.views]
        found.append(digest(state))
        found += [hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for x in images]
    return found


def tried(name: str) -> bool:
    here = CASES[name].here
    return here == HERE if here is not None else not envs.make({"name": name}).available()


MARKS = {"metaworld": pytest.mark.simulator}
PARAMS = [pytest.param(name, marks=MARKS.get(name, ())) for name in CASES if tried(name)]


@pytest.fixture(scope="module", params=PARAMS)
def case(request):
    return CASES[request.param], Plain(request.param)


def test_every_environment_has_a_case_or_is_missing():
    assert CASES.keys() <= envs.ENVS.keys()
    for name in envs.ENVS.keys() - CASES.keys():
        assert envs.make({"name": name}).available(), f"{name} can run here: give it a case"
    for name in (name for name in CASES if CASES[name].here is None and not tried(name)):
        why = envs.make({"name": name}).available()
        print(f"{name} is not tried: {why}")
        assert re.search(": (pip|apt-get) install |: python -m ", why) and "\n" not in why


def test_the_spec_is_whole(case):
    case, plain = case
    spec = plain.env.spec
    assert isinstance(plain.env, Environment)
    for names in (spec.actions, spec.action_low, spec.action_high, spec.action_units):
        assert len(names) == spec.action_dim > 0
    assert all(low < high for low, high in zip(spec.action_low, spec.action_high, strict=True))
    for names in (spec.tasks, spec.views, spec.cameras, spec.actions, spec.state):
        assert len(set(names)) == len(names)
    assert (
        spec.cameras and set(spec.cameras) <= set(spec.views) and set(case.tasks) <= {*spec.tasks}
    )
    assert spec.control_hz > 0 and spec.horizon > 0
    with pytest.raises(ValueError, match="no task .*it has .*" + spec.tasks[0]):
        tasks_named(spec, ["fly"])
    with pytest.raises(ValueError, match=f"{spec.name} takes {spec.action_dim} numbers"):
        check_action(spec, np.zeros(spec.action_dim + 1))
    for wrong in (np.nan, spec.action_high[0] * 1.5 + 0.1):
        with pytest.raises(ValueError, match=f"{spec.actions[0]}=.*beyond the bounds"):
            check_action(spec, np.r_[wrong, np.zeros(spec.action_dim - 1)])


def test_seeds_decide_everything_in_any_process(request, case):
    name = request.node.callspec.params["case"]
    code = f"import {'conftest, ' * HERE}test_contract; print(*test_contract.trace({name!r}))"
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": f"{here.parents[1]}:{here.parent}:{here}"}
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert other.stdout.split() == trace(name)


def test_a_state_is_all_there_is(case, tmp_path):
    """It can be kept in a file, shown in another view, and gone on from, whatever was done in
    between."""
    case, plain = case
    spec = plain.env.spec
    start, other = plain.starts(1, case.tasks[0], 2)
    actions = plain.actions(0, 2 * STEPS)
    middle = plain.follow(start, actions[:STEPS])
    save_state(tmp_path / "state.npz", middle)
    pictures = [np.asarray(plain.render(middle, case.size, view)) for view in spec.views]
    end = plain.follow(middle, actions[STEPS:])
    plain.follow(other, actions)
    plain.render(other, case.size, spec.views[-1])
    read = load_state(tmp_path / "state.npz", type(middle))
    assert digest(read) == digest(middle)
    for view, picture in zip(spec.views, pictures, strict=True):
        assert picture.dtype == np.uint8 and picture.shape == (*case.size, 3)
        np.testing.assert_array_equal(plain.render(read, case.size, view), picture, view)
    assert digest(plain.follow(read, actions[STEPS:])) == digest(end) != digest(middle)
    found = np.asarray(plain.proprioception(middle))
    assert found.shape == (len(spec.state),) and found.dtype == np.float32
    assert (found != np.asarray(plain.proprioception(end))).any() or not spec.state


def test_success_is_of_the_expert_not_of_time(case):
    case, plain = case
    spec, env = plain.env.spec, plain.env
    for task in case.tasks:
        starts = plain.starts(2, task, case.episodes)
        assert not any(plain.success(state) for state in starts), task
        idle = starts[0]
        for _ in range(spec.horizon):
            idle = plain.step(idle, np.zeros(spec.action_dim, np.float32))
        assert not plain.success(idle), f"{task}: doing nothing succeeds"
        if env.expert is None:
            continue
        solved = 0
        for state in starts:
            for _ in range(spec.horizon):
                state = plain.step(state, check_action(spec, plain.expert(state)))
                if plain.success(state):
                    solved += 1
                    break
        assert solved >= case.rate * len(starts), task


def test_start_states_are_a_list(case):
    case, plain = case
    task = case.tasks[0]
    first, second, third = (digest(state) for state in plain.starts(3, task, 3))
    assert len({first, second, third}) == 3
    assert [digest(state) for state in plain.starts(3, task, 1, first=2)] == [third]
    keys, more = (np.asarray(jax_bits(plain.env.training_keys(3, n))) for n in (2, 3))
    np.testing.assert_array_equal(keys, more[:2])
    trained = {digest(plain.env.reset(key, task)) for key in plain.env.training_keys(3, 3)}
    assert len(trained) == 3 and not trained & {first, second, third}


def jax_bits(keys: Any) -> Any:
    return keys if isinstance(keys, np.ndarray) else jax.random.key_data(keys)


def test_every_state_has_words(case):
    case, plain = case
    env = plain.env
    for task in case.tasks:
        states = env.evaluation_states(4, task, 2)
        assert env.tasks_of(states) == [task] * 2
        for split in ("train", "held_out"):
            every = set(env.all_instructions(split))
            for phrasing in env.phrasings(split):
                texts = env.instructions(states, phrasing)
                assert all(texts) and set(texts) <= every
    assert not {*env.phrasings("train")} & {*env.phrasings("held_out")}
    assert not {*env.all_instructions("train")} & {*env.all_instructions("held_out")}


def test_pictures_are_upright(case):
    case, plain = case
    for seed in range(3):
        (state,) = plain.starts(seed, case.tasks[0], 1)
        image = np.asarray(plain.render(state, case.size, plain.env.spec.cameras[0]))
        for found, low, high in case.seen(plain.env, state, image):
            assert (found > low).all() and (found < high).all(), (found, low, high)
