"""Blocks of expert episodes, each written as one part of each of the corpora to be.

What steps a simulator runs in processes of its own: here is nothing of JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import sidecar, storage
from data_pipelines.convert import executors
from data_pipelines.convert.decode import encode_jpeg
from data_pipelines.rlds import schema, writer
from lapa_jax.envs.env import Environment

ATTEMPTS = 50  # at one episode, until the expert succeeds


@dataclasses.dataclass(frozen=True)
class Plan:
    """What decides the episodes; it goes to the processes that make them."""

    env: Environment
    spec: schema.EpisodeSpec
    views: tuple[str, ...]
    tasks: tuple[str, ...]
    seed: int
    split: str
    noise: float
    only_successful: bool

    @property
    def corpora(self) -> tuple[str, ...]:
        """What they are called: one a view, or one of all, whose other views are cameras."""
        return ("+".join(self.views),) if self.spec.cameras else self.views

    @property
    def split_seed(self) -> int:
        return split_seed(self.split, self.seed)

    def phrasing(self, number: int) -> int:
        """That the instruction of an episode has."""
        return np.random.default_rng((self.seed, number)).choice(self.env.phrasings("train"))


def split_seed(split: str, seed: int) -> int:
    """Another one per split, so that a test split with the same seed holds new episodes."""
    return seed if split == "train" else (seed + zlib.crc32(split.encode())) & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True)
class Block(executors.Job):
    """Episode numbers, and the part of each corpus, `path` being the first; `wanted` episodes at
    most are kept."""

    part: int
    numbers: range
    wanted: int
    paths: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Try:
    """An attempt at an episode; `episodes`, of each corpus, where it is kept."""

    task: str
    success: bool
    episodes: tuple[schema.Episode, ...] = ()


def episodes(
    plan: Plan,
    number: int,
    *,
    task: str,
    success: bool,
    text: str,
    actions: np.ndarray,
    states: np.ndarray | None,
    images: Sequence[list[bytes]],
    camera_motion: Sequence[np.ndarray | None],
) -> tuple[schema.Episode, ...]:
    """What each corpus holds of one. actions float32 (T, A), as executed; states float32 (T+1, S);
    images and camera_motion: of each view T+1."""
    spec, steps = plan.spec, len(images[0])
    taken, reward = np.zeros((steps, actions.shape[1]), np.float32), np.zeros(steps, np.float32)
    taken[:-1] = actions  # the last state has none of its own
    reward[-1] = success
    (task_key,) = spec.extras
    own = len(plan.corpora)  # views with a corpus of their own
    others = dict(zip(spec.cameras, images[1:], strict=True)) if spec.cameras else {}
    return tuple(
        schema.Episode(
            images=of_view,
            actions=taken if spec.action_dim else None,
            states=states,
            instruction=text if spec.language else "",
            episode_id=f"{plan.split}-{plan.seed}-{number:07d}",
            camera=view,
            reward=reward,
            terminal=success,
            extras={task_key: task},
            views=others,
            camera_motion=moves,
        )
        for view, of_view, moves in zip(
            plan.views[:own], images[:own], camera_motion[:own], strict=True
        )
    )


def write(tries: Callable[[Block], Iterator[Try]], spec: schema.EpisodeSpec, job: Block) -> dict:
    """Makes the episodes of a block; each part gets its name once it is whole, and its manifest
    when all are: {part, size, records: bytes of each, frames: of each, tries: [task, success,
    kept] of each attempt}."""
    told: dict[str, Any] = {"part": job.part, "frames": [], "tries": []}
    records: list[list[int]] = [[] for _ in job.paths]
    with contextlib.ExitStack() as stack:
        unfinished = [stack.enter_context(storage.atomic_path(path)) for path in job.paths]
        parts = [writer.ShardFile(path) for path in unfinished]
        try:
            for one in tries(job):
                told["tries"].append([one.task, one.success, bool(one.episodes)])
                if not one.episodes:
                    continue
                told["frames"].append(one.episodes[0].num_steps)
                for found, part, sizes in zip(one.episodes, parts, records, strict=True):
                    record = schema.encode_episode(found, spec)
                    part.append(record)
                    sizes.append(len(record))
            for part in parts:
                part.close()
        except BaseException:
            for part in parts:
                part.discard()
            raise
    for path, part, sizes in zip(job.paths, parts, records, strict=True):
        manifest = path.with_suffix(".json")
        sidecar.write_json(manifest, told | {"size": part.size, "records": sizes})
    return told | {"records": records}


def stepped(plan: Plan, job: Block) -> Iterator[Try]:
    """Episodes of an environment that is stepped in Python: tasks take turns, and each episode is
    tried with key after key until the expert succeeds."""
    for number in job.numbers:
        for attempt in range(ATTEMPTS):
            found = _try(plan, number, attempt)
            yield found
            if found.episodes:
                break
        else:
            raise executors.NeedsSettingError(failed(plan, 0, ATTEMPTS, f"of {found.task} "))


def failed(plan: Plan, kept: int, tried: int, of: str = "") -> str:
    """That experts fail, and what helps."""
    return (
        f"only {kept} of {tried} expert episodes {of}succeeded within "
        f"horizon={plan.env.spec.horizon}: raise the horizon (--horizon), lower the noise (--noise)"
        " or keep the failures (--keep_failures)"
    )


def start_key(plan: Plan, number: int, attempt: int = 0) -> Any:
    """The reset key of an episode."""
    entropy = np.random.SeedSequence((plan.split_seed, number)).generate_state(1, np.uint64)
    return plan.env.training_keys(int(entropy[0]) >> 1, attempt + 1)[attempt]


def _try(plan: Plan, number: int, attempt: int) -> Try:
    env, spec = plan.env, plan.env.spec
    task = plan.tasks[number % len(plan.tasks)]
    state = env.reset(start_key(plan, number, attempt), task)
    rng = np.random.default_rng((plan.split_seed, number, attempt))
    low, high = np.float32(spec.action_low), np.float32(spec.action_high)
    states, actions, success = [state], [], False
    while not success and len(actions) < spec.horizon:
        drawn = rng.standard_normal(len(low), np.float32) * np.float32(plan.noise * 0.5)
        actions.append(np.clip(env.expert(state) + drawn * (high - low), low, high))
        state = env.step(state, actions[-1])
        states.append(state)
        success = bool(env.success(state))
    if not success and plan.only_successful:
        return Try(task, success)
    size = plan.spec.image_shape[:2]
    images: list[list[bytes]] = [[] for _ in plan.views]
    for state in states:
        for view, of_view in zip(plan.views, images, strict=True):
            of_view.append(encode_jpeg(env.render(state, size, view)))
    made = episodes(
        plan,
        number,
        task=task,
        success=success,
        text=env.instructions(states[:1], plan.phrasing(number))[0],
        actions=np.stack(actions),
        states=np.stack([env.proprioception(state) for state in states]) if spec.state else None,
        images=images,
        camera_motion=[None] * len(images),
    )
    return Try(task, success, made)
