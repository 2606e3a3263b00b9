"""The environment protocol: what collection, rollouts and evaluation may ask of a benchmark.

Every method but those of languages and seeds is a pure function of one state. Of a traceable
environment a state is a pytree, a batch of them the same pytree with leading axes, and callers vmap
and jit as they wish (envs/rollout.py). Of any other a state is a frozen dataclass of NumPy arrays,
numbers and strings with all that the simulator needs to go on from there, a batch is a list, and
envs/drive.py steps it in Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

OWN = "proprioception"  # in prompts of rollouts: what a robot knows of itself, at each question
GOING_ON = "going_on"  # in prompts, too: what the last answer says of the steps from there on
Size = int | tuple[int, int]  # of an image in pixels: a side, or height and width
State = TypeVar("State")


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What a policy and a data writer must know of an environment."""

    name: str
    tasks: tuple[str, ...]
    actions: tuple[str, ...]  # names of the dimensions
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_units: tuple[str, ...]  # of each dimension
    control_hz: float  # of actions, each of which may be several steps of the simulator
    horizon: int  # actions after which an episode has failed
    views: tuple[str, ...]  # all that can be rendered
    cameras: tuple[str, ...]  # the views that a policy sees where nothing else is said, main first
    image_size: tuple[int, int]  # height, width; of pictures where nothing else is said
    state: tuple[str, ...]  # names of the dimensions of `proprioception`; () where there is none
    traceable: bool  # True: methods may be called under jit and vmap
    # of whose cameras `camera_motion(state, view)` says how they move to the next step, (2,)
    moving_views: tuple[str, ...] = ()

    @property
    def action_dim(self) -> int:
        return len(self.actions)


@runtime_checkable
class Environment(Protocol):
    """A language-conditioned benchmark, made of an instance of its `Settings`, a dataclass of keys.

    Making one costs nothing: what is missing here is said by `available`, and what takes time is
    loaded by the first reset. One whose simulator needs a Python of its own has its path as
    `python`, with which the workers of lapa_jax/arena run.
    """

    # The scripted policy, state → action; None where there is none.
    expert: Callable[[Any], Any] | None

    @property
    def spec(self) -> EnvSpec: ...

    @staticmethod
    def available() -> str:
        """Why it cannot run here, and the command that mends it, in one line; "" where it can."""

    def reset(self, key: Any, task: Any = None) -> Any:
        """The start state of a key, of `training_keys` or any other, and of a task of the spec;
        None: one that the key chooses. Equal arguments give equal states, in any process."""

    def step(self, state: Any, action: Any) -> Any: ...

    def success(self, state: Any) -> Any:
        """bool: whether the task is done in this state, whatever time it is."""

    def render(self, state: Any, size: Size, view: str) -> Any:
        """uint8 (height, width, 3), row 0 at the top."""

    def proprioception(self, state: Any) -> Any:
        """float32 (len(spec.state),): what a robot knows of itself."""

    def tasks_of(self, states: Any) -> list[str]: ...

    def phrasings(self, split: str = "train") -> range: ...

    def instructions(self, states: Any, phrasing: int | np.ndarray = 0) -> list[str]: ...

    def all_instructions(self, split: str = "train") -> list[str]: ...

    def training_keys(self, seed: int, n: int) -> Any:
        """n reset keys for collecting data; key k does not depend on n."""

    def evaluation_states(self, seed: int, task: str, n: int, first: int = 0) -> Any:
        """Start states [first, first + n) of the fixed list of (seed, task), batched; never those
        of `training_keys`."""


class NotWholeError(RuntimeError):
    """Files of a simulator are missing or damaged; says what mends it. No other try helps."""


def usable(env: Environment) -> Environment:
    """`env`, or RuntimeError that says why it cannot run here and what mends that."""
    if why := env.available():
        raise RuntimeError(why)
    return env


def check_action(spec: EnvSpec, action: np.ndarray) -> np.ndarray:
    """float32 (A,); ValueError for an action of another dimension, one that is not finite and one
    beyond the bounds, by more than rounding."""
    action = np.asarray(action, np.float32)
    _check_shape(spec, action.shape)
    beyond = _beyond(spec, action) | np.isnan(action)
    if beyond.any():
        i, low, high = int(np.argmax(beyond)), spec.action_low, spec.action_high
        raise ValueError(
            f"{spec.actions[i]}={action[i]:g} is beyond the bounds of {spec.name}, "
            f"[{low[i]:g}, {high[i]:g}] {spec.action_units[i]}"
        )
    return np.clip(action, np.float32(spec.action_low), np.float32(spec.action_high))


def clip(spec: EnvSpec, action: Any, xp: Any = np) -> tuple[Any, Any]:
    """Actions (..., A) within the bounds, and which were beyond them, by more than rounding, bool
    (...): for who tells how many these were. xp may be jax.numpy. ValueError for actions of another
    dimension."""
    _check_shape(spec, action.shape[-1:])
    beyond = _beyond(spec, action).any(-1)
    return xp.clip(action, np.float32(spec.action_low), np.float32(spec.action_high)), beyond


def _check_shape(spec: EnvSpec, shape: tuple[int, ...]) -> None:
    if shape != (spec.action_dim,):
        named = (f"{n} ({u})" for n, u in zip(spec.actions, spec.action_units, strict=True))
        raise ValueError(
            f"an action of shape {list(shape)}: {spec.name} takes {spec.action_dim} numbers, "
            f"{', '.join(named)}"
        )


def _beyond(spec: EnvSpec, action: Any) -> Any:
    low, high = np.float32(spec.action_low), np.float32(spec.action_high)
    slack = 1e-4 * (high - low)
    return (action < low - slack) | (action > high + slack)


def missing_packages(needs: Mapping[str, str], mends: str) -> str:
    """Which package this Python lacks, or has in another version than it must ("": any), and what
    mends it, in one line; "" where all are there."""
    for name, version in needs.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed in this Python: {mends}"
        if version and found != version:
            return f"{name} is {found}, not {version}: {mends}"
    return ""


def task_drawn(tasks: Sequence[str], key: int, task: str | None) -> str:
    """`task`, or that which the reset key draws of these; ValueError for one that is none of
    them."""
    if task is None:
        return tasks[np.random.default_rng((key, 0)).integers(len(tasks))]
    if task not in tasks:
        raise ValueError(f"task {task!r} is not one of {list(tasks)}")
    return task


def phrasing_numbers(split: str, trained: int, count: int) -> range:
    """Phrasings of "train", the first `trained` of `count`, of "held_out", the others, or "all"."""
    ranges = {"train": range(trained), "held_out": range(trained, count), "all": range(count)}
    if split not in ranges:
        raise ValueError(f"split {split!r} is not one of {list(ranges)}")
    return ranges[split]


def reset_key(domain: int, *entropy: int) -> int:
    """A reset key of 63 bits, of another set of them for each domain."""
    word = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return word >> 2 << 1 | domain


@contextlib.contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator, which benchmarks draw from, at a seed; afterwards as before."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


# --- States of simulators in files ---


def save_state(path: str | Path, state: Any) -> None:
    """A state that is a dataclass as an .npz file."""
    with open(path, "wb") as file:
        np.savez(file, **{f.name: getattr(state, f.name) for f in dataclasses.fields(state)})


def load_state(path: str | Path, kind: type[State]) -> State:
    """The state of that dataclass that `save_state` wrote, to the bit."""
    with np.load(path, allow_pickle=False) as found:
        names = {field.name for field in dataclasses.fields(kind)}
        if set(found.files) != names:
            raise ValueError(
                f"{path} holds {sorted(found.files)}, a {kind.__name__} {sorted(names)}"
            )
        return kind(**{name: found[name][()] for name in names})


def tasks_named(spec: EnvSpec, wanted: Sequence[str], flag: str = "--tasks") -> tuple[str, ...]:
    """`wanted`, or all tasks of the spec; ValueError lists the known ones."""
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"{flag} {','.join(wanted)} must be different ones")
    if unknown := [task for task in wanted if task not in spec.tasks]:
        raise ValueError(
            f"{flag}: {spec.name} has no task {unknown}; it has {', '.join(spec.tasks)}"
        )
    return tuple(wanted) or spec.tasks
