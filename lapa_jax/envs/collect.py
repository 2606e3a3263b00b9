"""Expert episodes of an environment as RLDS corpora, one per view, or one of all views.

Every view shows the same trajectories under the same episode ids. Episode k is a function of
(seed, split, environment, tasks, noise) alone, not of the number of processes. A block of episodes
that is finished survives a stop (data_pipelines/convert/staging.py): the same command goes on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.convert import executors
from data_pipelines.convert.decode import encode_jpeg
from data_pipelines.progress import COMPILING, Progress
from data_pipelines.rlds import schema
from lapa_jax.envs import demonstrations
from lapa_jax.envs.corpora import Corpora
from lapa_jax.envs.demonstrations import Block, Plan, Try
from lapa_jax.envs.env import Environment, NotWholeError, Size, tasks_named, usable
from lapa_jax.envs.rollout import Episodes, collect_expert, render_states

_RENDER_BATCH = 256  # frames per call of the renderer
_ATTEMPTS_PER_EPISODE = 4
_BLOCK = 8  # episodes of a simulator that are made, or lost, together


@dataclasses.dataclass
class CollectReport:
    """What was collected. `dropped`: episodes that did not succeed and were left out; `resumed`:
    those that a run before had made."""

    directories: dict[str, Path]
    episodes: int
    frames: int
    dropped: int
    failed: int  # of the kept episodes
    episodes_of_family: dict[str, int]
    dropped_of_family: dict[str, int]
    resumed: int = 0

    def table(self) -> str:
        lines = [f"{view:<12}  {path}" for view, path in self.directories.items()]
        lines += [
            f"episodes      {self.episodes} ({self.failed} without success)",
            f"frames        {self.frames} per view",
            f"dropped       {self.dropped} that did not succeed",
        ]
        lines += [f"from before   {self.resumed} episodes"] * bool(self.resumed)
        for family in sorted(self.episodes_of_family.keys() | self.dropped_of_family.keys()):
            lines.append(
                f"  {family:<24} {self.episodes_of_family.get(family, 0):>6} kept, "
                f"{self.dropped_of_family.get(family, 0)} dropped"
            )
        return "\n".join(lines)


def collect(
    env: Environment,
    out: str | Path,
    *,
    episodes: int,
    views: Sequence[str] = ("robot",),
    tasks: Sequence[str] = (),
    with_actions: bool = True,
    with_language: bool = True,
    with_state: bool = False,
    together: bool = False,
    seed: int = 0,
    size: Size = 64,
    split: str = "train",
    noise: float = 0.0,
    only_successful: bool = True,
    batch_size: int = 64,
    workers: int = 1,
    progress: bool = True,
) -> CollectReport:
    """Writes `episodes` expert episodes to out/<view> for each view; `together`, to out/<views
    joined by +>, where the first is `image` and each other one a camera of its name.

    noise: standard deviation of the exploration noise, as a part of the action range; recorded
    actions are those that were executed. with_state: also of the tabletop, whose corpora else have
    none, what a robot knows of itself. Splits of equal seed hold different episodes. An
    environment that can be traced makes `batch_size` at once, of the tasks that it draws; of any
    other `tasks` (default: all) take turns, and `workers` processes make them.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1 (--episodes)")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 8:
        raise ValueError(f"size={size} must be at least 8 pixels a side (--size)")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise={noise} must lie in 0..1, parts of the action range (--noise)")
    unknown = [view for view in views if view not in env.spec.views]
    if unknown or not views or len(set(views)) != len(views):
        raise ValueError(
            f"views={list(views)} must be different ones of {list(env.spec.views)} (--views)"
        )
    if env.expert is None:
        raise ValueError(
            f"{env.spec.name} has no scripted expert whose episodes could be collected"
        )
    if tasks and env.spec.traceable:
        raise ValueError(f"--tasks: {env.spec.name} draws them; its flag is --families")
    if together and len(views) < 2:
        raise ValueError(f"--together is of several views; --views are {list(views)}")
    cameras = tuple(views[1:]) if together else ()
    plan = Plan(
        env=usable(env),
        spec=_spec(env, (height, width), with_actions, with_language, with_state, views, cameras),
        views=tuple(views),
        tasks=tasks_named(env.spec, tasks),
        seed=seed,
        split=split,
        noise=noise,
        only_successful=only_successful,
    )
    batch_size = min(batch_size, max(8, episodes)) if env.spec.traceable else _BLOCK
    where = executors.Local(1 if env.spec.traceable else workers)
    with Corpora(plan, Path(out), _settings(plan, episodes, batch_size)) as corpora:
        resumed = corpora.episodes
        if not corpora.planned:
            try:
                _make(plan, corpora, episodes, batch_size, where, progress)
            except executors.NeedsSettingError:
                corpora.remove()  # it would end so again
                raise
            except NotWholeError as error:  # without the traces of another process
                raise error.with_traceback(None) from None
        report = _report(corpora, resumed)
        corpora.publish(where)
    return report


def _spec(
    env: Environment,
    size: tuple[int, int],
    with_actions: bool,
    with_language: bool,
    with_state: bool,
    views: Sequence[str],
    cameras: tuple[str, ...],
) -> schema.EpisodeSpec:
    # The tabletop's corpora stay as they have always been, unless more is asked for.
    old = env.spec.name == "tabletop"
    return schema.EpisodeSpec(
        image_shape=(*size, 3),
        action_dim=env.spec.action_dim if with_actions else 0,
        state_dim=0 if old and not with_state else len(env.spec.state),
        language=with_language,
        source=env.spec.name,
        fps=env.spec.control_hz,
        extras={"family" if old else "task": "string"},
        cameras=cameras,
        camera_motion_dim=2 if set(views) & set(env.spec.moving_views) else 0,
    )


def _settings(plan: Plan, episodes: int, block: int) -> dict[str, Any]:
    """All that decides the corpora, by what the flags are called."""
    (settings,) = dataclasses.asdict(plan.env).values()
    if plan.spec.state_dim and plan.env.spec.name == "tabletop":
        settings["state"] = True
    if plan.spec.cameras:
        settings["together"] = True
    return settings | {
        "benchmark": plan.env.spec.name,
        "episodes": episodes,
        "views": plan.views,
        "tasks": plan.tasks,
        "seed": plan.seed,
        "size": plan.spec.image_shape[:2],
        "noise": plan.noise,
        "keep_failures": not plan.only_successful,
        "actions": bool(plan.spec.action_dim),
        "language": plan.spec.language,
        "episodes at once": block,
    }


def _make(
    plan: Plan,
    corpora: Corpora,
    episodes: int,
    block: int,
    where: executors.Local,
    progress: bool,
) -> None:
    """Makes the blocks that are missing."""
    if plan.env.spec.traceable:
        limit = -(-(_ATTEMPTS_PER_EPISODE * episodes + 64) // block) * block
        tries = functools.partial(_batch, plan, plan.env.training_keys(plan.split_seed, limit))
        jobs: Iterable[Block] = _while_wanted(corpora, episodes, limit, block)
    else:
        tries = functools.partial(demonstrations.stepped, plan)
        jobs = [
            corpora.block(part, range(start, min(start + block, episodes)), block)
            for part, start in enumerate(range(0, episodes, block))
            if part not in corpora.finished
        ]
    done = corpora.episodes
    with Progress("collect", episodes, unit="episode", done=done, show=progress) as bar:
        bar.waits(COMPILING if plan.env.spec.traceable else "the simulators start")
        write = functools.partial(demonstrations.write, tries, plan.spec)
        with executors.run(write, jobs, where) as results:
            for result in results:
                corpora.add(result)
                bar.update(len(result["frames"]))
    if corpora.episodes < episodes:
        tried = [one for result in corpora.results for one in result["tries"]]
        dropped = dict(Counter(task for task, _, kept in tried if not kept))
        told = demonstrations.failed(plan, corpora.episodes, len(tried))
        raise executors.NeedsSettingError(f"{told}; {episodes} were asked for. Dropped: {dropped}")


def _while_wanted(corpora: Corpora, episodes: int, limit: int, block: int) -> Iterator[Block]:
    """One after the other is made while episodes lack."""
    for part, start in enumerate(range(0, limit, block)):
        if corpora.episodes == episodes:
            return
        if part not in corpora.finished:
            wanted = episodes - corpora.episodes
            yield corpora.block(part, range(start, start + block), wanted)


def _batch(plan: Plan, keys: jax.Array, job: Block) -> Iterator[Try]:
    """Episodes of a traceable environment, all at once; after the last one that is wanted no more
    are looked at."""
    env, of_job = plan.env, keys[job.numbers.start : job.numbers.stop]
    found = collect_expert(env, of_job, None, env.spec.horizon, plan.noise)
    found = jax.tree.map(np.asarray, found)
    tasks = env.tasks_of(jax.tree.map(lambda x: x[:, 0], found.states))
    chosen = np.flatnonzero(found.success | (not plan.only_successful))[: job.wanted]
    made = _episodes(plan, found, chosen, job.numbers)
    looked_at = int(chosen[-1]) + 1 if len(chosen) == job.wanted else len(tasks)
    for i in range(looked_at):
        yield Try(tasks[i], bool(found.success[i]), next(made) if i in chosen else ())


def _episodes(
    plan: Plan, found: Episodes, chosen: np.ndarray, numbers: range
) -> Iterator[tuple[schema.Episode, ...]]:
    """Of each chosen one what every corpus holds."""
    env, counts = plan.env, found.length[chosen] + 1  # states
    starts = jax.tree.map(lambda x: x[chosen, 0], found.states)
    texts = env.instructions(starts, np.array([plan.phrasing(numbers[i]) for i in chosen]))
    rows, times = np.repeat(chosen, counts), np.concatenate([np.arange(n) for n in counts])
    states = jax.tree.map(lambda x: x[rows, times], found.states)
    images = [
        _render(env, states, len(rows), plan.spec.image_shape[:2], view) for view in plan.views
    ]
    own = None
    if plan.spec.state_dim:
        own = np.asarray(jax.vmap(env.proprioception)(states), np.float32)
    moves: list[np.ndarray | None] = [None] * len(plan.views)
    if plan.spec.camera_motion_dim:
        moves = [_camera_motion(env, states, view) for view in plan.views]
    stops = np.cumsum(counts)
    told = zip(chosen, env.tasks_of(starts), texts, stops - counts, stops, strict=True)
    for i, task, text, start, stop in told:
        yield demonstrations.episodes(
            plan,
            numbers[i],
            task=task,
            success=bool(found.success[i]),
            text=text,
            actions=found.actions[i, : stop - start - 1],
            states=None if own is None else own[start:stop],
            images=[of_view[start:stop] for of_view in images],
            camera_motion=[None if m is None else m[start:stop] for m in moves],
        )


def _camera_motion(env: Environment, states: Any, view: str) -> np.ndarray:
    """Float32 (n, 2) of n states."""
    moves = jax.vmap(lambda state: env.camera_motion(state, view))
    return np.asarray(moves(states), np.float32)


def _render(env: Environment, states: Any, count: int, size: Size, view: str) -> list[bytes]:
    """JPEG frames of `count` states, in batches of one shape so that one program serves all."""
    images: list[bytes] = []
    for start in range(0, count, _RENDER_BATCH):
        rows = np.minimum(np.arange(start, start + _RENDER_BATCH), count - 1)
        batch = jax.tree.map(lambda x, rows=rows: x[rows], states)
        frames = np.asarray(render_states(env, batch, size, view))
        images += [encode_jpeg(frame) for frame in frames[: count - start]]
    return images


def _report(corpora: Corpora, resumed: int) -> CollectReport:
    kept, dropped = Counter(), Counter()
    frames = failed = 0
    for result in corpora.results:
        frames += sum(result["frames"])
        for task, success, is_kept in result["tries"]:
            (kept if is_kept else dropped)[task] += 1
            failed += is_kept and not success
    return CollectReport(
        directories=corpora.directories,
        episodes=kept.total(),
        frames=frames,
        dropped=dropped.total(),
        failed=failed,
        episodes_of_family=dict(kept),
        dropped_of_family=dict(dropped),
        resumed=resumed,
    )
