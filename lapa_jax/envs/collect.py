"""Expert episodes of an environment as RLDS corpora, one per view.

Every view shows the same trajectories under the same episode ids. Episode k is a function of
(seed, split, environment, noise) alone, not of the batch size or of the other arguments. A run that
is stopped leaves no corpus, and the same command starts it again.
"""

import contextlib
import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.convert.decode import encode_jpeg
from data_pipelines.progress import Progress
from data_pipelines.rlds import schema
from data_pipelines.rlds.writer import RldsWriter
from lapa_jax.envs.env import Environment, Size
from lapa_jax.envs.rollout import Episodes, collect_expert, render_states

_RENDER_BATCH = 256  # frames per call of the renderer
_ATTEMPTS_PER_EPISODE = 4


@dataclasses.dataclass
class CollectReport:
    """What was collected. `dropped`: episodes that did not succeed and were left out."""

    directories: dict[str, Path]
    episodes: int
    frames: int
    dropped: int
    failed: int  # of the kept episodes
    episodes_of_family: dict[str, int]
    dropped_of_family: dict[str, int]

    def table(self) -> str:
        lines = [f"{view:<12}  {path}" for view, path in self.directories.items()]
        lines += [
            f"episodes      {self.episodes} ({self.failed} without success)",
            f"frames        {self.frames} per view",
            f"dropped       {self.dropped} that did not succeed",
        ]
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
    with_actions: bool = True,
    with_language: bool = True,
    seed: int = 0,
    size: Size = 64,
    split: str = "train",
    noise: float = 0.0,
    only_successful: bool = True,
    batch_size: int = 64,
    progress: bool = True,
) -> CollectReport:
    """Writes `episodes` expert episodes to out/<view> for each view.

    noise: standard deviation of the exploration noise, as a part of the action range; recorded
    actions are those that were executed. Splits of equal seed hold different episodes.
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
    spec = schema.EpisodeSpec(
        image_shape=(height, width, 3),
        action_dim=env.spec.action_dim if with_actions else 0,
        language=with_language,
        source=env.spec.name,
        fps=env.spec.control_hz,
        extras={"family": "string"},
    )
    batch_size = min(batch_size, max(8, episodes))
    limit = -(-(_ATTEMPTS_PER_EPISODE * episodes + 64) // batch_size) * batch_size
    keys = env.training_keys(_split_seed(seed, split), limit)
    report = CollectReport({view: Path(out) / view for view in views}, 0, 0, 0, 0, {}, {})
    kept, dropped, phrasings = Counter(), Counter(), np.array(env.phrasings("train"))
    with contextlib.ExitStack() as stack:
        writers = {
            view: stack.enter_context(
                RldsWriter(path, name=f"{env.spec.name}_{view}", spec=spec, split=split)
            )
            for view, path in report.directories.items()
        }
        bar = stack.enter_context(Progress("collect", episodes, unit="episode", show=progress))
        bar.waits()
        for start in range(0, limit, batch_size):
            found = collect_expert(
                env, keys[start : start + batch_size], None, env.spec.horizon, noise
            )
            found = jax.tree.map(np.asarray, found)
            families = env.tasks_of(jax.tree.map(lambda x: x[:, 0], found.states))
            chosen = np.flatnonzero(found.success | (not only_successful))
            chosen = chosen[: episodes - report.episodes]
            # Those after the last one that was needed are neither kept nor dropped.
            looked_at = int(chosen[-1]) + 1 if len(chosen) + report.episodes == episodes else None
            tried = Counter(families[:looked_at])
            taken = Counter(families[i] for i in chosen)
            dropped.update(tried - taken)
            kept.update(taken)
            ids = {i: f"{split}-{seed}-{start + i:07d}" for i in chosen}
            draws = [np.random.default_rng((seed, start + i)).choice(phrasings) for i in chosen]
            for view, writer in writers.items() if len(chosen) else ():
                for episode in _episodes(env, found, ids, draws, spec, view):
                    writer.write(episode)
            report.episodes += len(chosen)
            report.frames += int((found.length[chosen] + 1).sum())
            report.failed += int((~found.success[chosen]).sum())
            bar.update(len(chosen))
            if report.episodes == episodes:
                break
        if report.episodes < episodes:
            raise ValueError(
                f"only {report.episodes} of {report.episodes + dropped.total()} expert episodes "
                f"succeeded within horizon={env.spec.horizon}, {episodes} were asked for: raise "
                "the horizon (--horizon), lower the noise (--noise) or keep the failures "
                f"(--keep_failures). Dropped: {dict(dropped)}"
            )
    report.dropped = dropped.total()
    report.episodes_of_family, report.dropped_of_family = dict(kept), dict(dropped)
    return report


def _episodes(
    env: Environment,
    found: Episodes,
    ids: dict[int, str],
    phrasings: Sequence[int],
    spec: schema.EpisodeSpec,
    view: str,
) -> Iterator[schema.Episode]:
    """The demonstrations whose numbers `ids` has, as one view shows them."""
    chosen = list(ids)
    starts = jax.tree.map(lambda x: x[chosen, 0], found.states)
    texts, families = env.instructions(starts, np.array(phrasings)), env.tasks_of(starts)
    counts = found.length[chosen] + 1  # states; the last one has no action of its own
    rows, times = np.repeat(chosen, counts), np.concatenate([np.arange(n) for n in counts])
    states = jax.tree.map(lambda x: x[rows, times], found.states)
    images = _render(env, states, len(rows), spec.image_shape[:2], view)
    ends = np.cumsum(counts)
    for number, (i, count) in enumerate(zip(chosen, counts, strict=True)):
        actions = np.zeros((count, found.actions.shape[-1]), np.float32)
        actions[:-1] = found.actions[i, : count - 1]
        reward = np.zeros(count, np.float32)
        reward[-1] = found.success[i]
        yield schema.Episode(
            images=images[ends[number] - count : ends[number]],
            actions=actions if spec.action_dim else None,
            instruction=texts[number] if spec.language else "",
            episode_id=ids[i],
            camera=view,
            reward=reward,
            terminal=bool(found.success[i]),
            extras={"family": families[number]},
        )


def _render(env: Environment, states: Any, count: int, size: Size, view: str) -> list[bytes]:
    """JPEG frames of `count` states, in batches of one shape so that one program serves all."""
    images: list[bytes] = []
    for start in range(0, count, _RENDER_BATCH):
        rows = np.minimum(np.arange(start, start + _RENDER_BATCH), count - 1)
        batch = jax.tree.map(lambda x, rows=rows: x[rows], states)
        frames = np.asarray(render_states(env, batch, size, view))
        images += [encode_jpeg(frame) for frame in frames[: count - start]]
    return images


def _split_seed(seed: int, split: str) -> int:
    """Another seed per split, so that a test split with the same --seed holds new episodes."""
    return seed if split == "train" else (seed + zlib.crc32(split.encode())) & 0x7FFFFFFF
