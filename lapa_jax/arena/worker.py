"""A process that steps one environment and asks a policy for its actions: `python -m
lapa_jax.arena.worker`, in the simulator's own Python.

Needs NumPy, websockets and msgpack, and what the environment needs. On standard input, a line of
JSON each: first the settings (`Setup`), then episodes (`Job`). Where standard output was, a line of
JSON for what is done, and an empty one now and then while steps are taken; what the simulator
prints goes to standard error.
"""

import dataclasses
import functools
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from data_pipelines.processes import end_with_parent
from lapa_jax import envs
from lapa_jax.arena.client import Policy, ServerError
from lapa_jax.envs import words
from lapa_jax.envs.env import Environment, NotWholeError, clip
from lapa_jax.envs.execution import FOLLOWING, Chunks, Execution

BEAT_SECONDS = 0.2
_BLOCK = 16  # start states of a traceable environment that are made at once


@dataclasses.dataclass(frozen=True)
class Setup:
    """How all episodes are run."""

    env: dict[str, Any]  # of envs.make
    server: str
    answer_seconds: float
    start_seconds: float
    seed: int
    steps: int  # of an episode at most
    phrasings: str  # split of the instructions; none; shuffled: those of the other tasks
    cameras: Sequence[str]  # views
    image_size: Sequence[int]  # height, width
    image_keys: Sequence[str]  # of each camera, or one of all of them
    state_key: str
    prompt_key: str
    execution: dict[str, Any]  # of Execution: how chunks are acted on
    follows: bool  # whether the policy takes what the answer before says


@dataclasses.dataclass(frozen=True)
class Job:
    task: str
    number: int  # in the list of start states of (seed, task)
    frames: str = ""  # file for what the first camera sees at each step, .npy; "": none


def observation(
    how: Setup, images: Sequence[np.ndarray], state: np.ndarray, text: str
) -> dict[str, Any]:
    """As openpi's clients send it."""
    one_field = len(how.image_keys) == 1 and len(images) > 1
    sent = [np.stack(images)] if one_field else images
    found: dict[str, Any] = dict(zip(how.image_keys, sent, strict=True))
    if state.size:
        found[how.state_key] = state
    return found | {how.prompt_key: text}


def callable_by_python(env: Environment, how: Setup) -> Any:
    """The functions of one state that an episode needs, compiled where they can be, and `start`."""
    found = SimpleNamespace(
        **{name: getattr(env, name) for name in ("step", "success", "render", "proprioception")}
    )

    def start(seed: int, task: str, number: int) -> Any:
        return env.evaluation_states(seed, task, 1, number)[0]

    found.start = start
    if env.spec.traceable:
        import jax  # is this simulator's, then

        for name in ("step", "success", "proprioception"):
            setattr(found, name, jax.jit(getattr(env, name)))
        found.render = jax.jit(env.render, static_argnums=(1, 2))

        @functools.lru_cache
        def block(seed: int, task: str, first: int) -> Any:  # each compiles something
            return jax.device_get(env.evaluation_states(seed, task, _BLOCK, first))

        def start_of(seed: int, task: str, number: int) -> Any:
            states = block(seed, task, number - number % _BLOCK)
            return jax.tree.map(lambda x: x[number % _BLOCK], states)

        found.start = start_of
        state = start_of(how.seed, env.spec.tasks[0], 0)  # compiles, outside of any episode
        state = found.step(state, np.zeros(env.spec.action_dim, np.float32))
        found.success(state), found.proprioception(state)
        for view in how.cameras:
            found.render(state, tuple(how.image_size), view).block_until_ready()
    return found


def told(env: Environment, does: Any, how: Setup, job: Job, state: Any) -> str:
    """The instruction of an episode that starts in `state`."""

    def start(task: str) -> Any:
        return does.start(how.seed, task, job.number)

    return words.told(env, how.phrasings, state, job.task, job.number, start)


def episode(
    env: Environment, does: Any, policy: Policy, how: Setup, job: Job, beat: Callable[[], None]
) -> dict[str, Any]:
    """Runs one; what is recorded of it."""
    clock, spec, size = time.perf_counter, env.spec, tuple(how.image_size)
    began = clock()
    state = does.start(how.seed, job.task, job.number)
    text = told(env, does, how, job, state)
    done = bool(does.success(state))
    reset = simulator = clock() - began
    latency, frames = [], []
    steps = clipped = 0
    chunks = Chunks(Execution(**how.execution))
    while True:
        over = done or steps == how.steps
        asks = chunks.due and not over
        if job.frames or asks:
            then = clock()
            wanted = how.cameras if asks else how.cameras[:1]
            images = [np.asarray(does.render(state, size, view)) for view in wanted]
            frames += images[:1] if job.frames else []
            simulator += clock() - then
        if over:
            break
        if asks:
            then = clock()
            own = np.asarray(does.proprioception(state), np.float32)
            asked = clock()
            simulator += asked - then
            sent = observation(how, images, own, text)
            if how.follows and chunks.going_on():
                sent |= dict(zip(FOLLOWING, chunks.going_on(), strict=True))
            answer = policy.ask(sent, spec.action_dim)
            latency.append(clock() - asked)
            try:
                chunks.answered(answer)
            except ValueError as error:
                raise ServerError(f"{policy.url}: {error}") from error
        action, beyond = clip(spec, chunks.next())
        clipped += bool(beyond)
        then = clock()
        state = does.step(state, action)
        done = bool(does.success(state))
        simulator += clock() - then
        steps += 1
        beat()
    total = clock() - began
    if job.frames:
        with open(job.frames, "wb") as file:
            np.save(file, np.stack(frames))
    return {
        "task": job.task,
        "number": job.number,
        "seed": how.seed,
        "instruction": text,
        "success": done,
        "steps": steps,
        "clipped": clipped,
        "asked": len(latency),
        "latency_ms": _ms(statistics.median(latency)) if latency else None,
        "latency_max_ms": _ms(max(latency)) if latency else None,
        "reset_s": round(reset, 5),
        "simulator_s": round(simulator, 5),  # with the reset
        "policy_s": round(sum(latency), 5),
        "total_s": round(total, 5),
    }


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


class Replies:
    """Where standard output was. Simulators print; from here on that goes to standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._last = time.monotonic()

    def send(self, message: dict[str, Any]) -> None:
        self._file.write(json.dumps(message).encode() + b"\n")
        self._last = time.monotonic()

    def beat(self) -> None:
        if time.monotonic() > self._last + BEAT_SECONDS:
            self._file.write(b"\n")
            self._last = time.monotonic()


def main() -> int:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when
    replies = Replies()
    how = Setup(**json.loads(sys.stdin.readline()))
    try:
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in how.env.items()}
        env = envs.make(plain)
        if why := env.available():
            raise RuntimeError(f"{why} (this is {sys.executable})")
        does = callable_by_python(env, how)
        policy = Policy(how.server, how.answer_seconds, how.start_seconds)
    except ModuleNotFoundError as error:
        replies.send({"cannot": f"{error} in {sys.executable}: install it there (--python)"})
        return 1
    except Exception as error:
        replies.send({"cannot": f"{error}"})
        return 1
    replies.send({"ready": os.getpid()})
    for line in sys.stdin:
        try:
            found = episode(env, does, policy, how, Job(**json.loads(line)), replies.beat)
        except ServerError as error:
            replies.send({"server": str(error)})
            return 1
        except NotWholeError as error:
            replies.send({"cannot": str(error)})
            return 1
        replies.send({"done": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
