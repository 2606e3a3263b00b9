"""Expert episodes of the tabletop world as RLDS corpora, one per view.

Every view shows the same trajectories under the same episode ids. Episode k is a function of
(seed, split, scene, noise) alone, not of the batch size or of the other arguments. A run that is
stopped leaves no corpus, and the same command starts it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.convert.decode import encode_jpeg
from data_pipelines.rlds import schema
from data_pipelines.rlds.writer import RldsWriter
from lapa_jax.envs.rollout import collect_expert
from lapa_jax.envs.tabletop import FAMILIES, Tabletop

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
    env: Tabletop,
    out: str | Path,
    *,
    episodes: int,
    views: Sequence[str] = ("robot",),
    with_actions: bool = True,
    with_language: bool = True,
    seed: int = 0,
    size: int = 64,
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
    if size < 8:
        raise ValueError(f"size={size} must be at least 8 pixels (--size)")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise={noise} must lie in 0..1, parts of the action range (--noise)")
    unknown = [view for view in views if view not in env.spec.views]
    if unknown or not views or len(set(views)) != len(views):
        raise ValueError(
            f"views={list(views)} must be different ones of {list(env.spec.views)} (--views)"
        )
    spec = schema.EpisodeSpec(
        image_shape=(size, size, 3),
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
    kept, dropped = Counter(), Counter()
    with contextlib.ExitStack() as stack:
        writers = {
            view: stack.enter_context(
                RldsWriter(path, name=f"{env.spec.name}_{view}", spec=spec, split=split)
            )
            for view, path in report.directories.items()
        }
        bar = stack.enter_context(tqdm(total=episodes, unit="episode", disable=not progress))
        for start in range(0, limit, batch_size):
            found = collect_expert(
                env, keys[start : start + batch_size], None, env.spec.horizon, noise
            )
            success, lengths = np.asarray(found.success), np.asarray(found.length)
            families = [FAMILIES[f] for f in np.asarray(found.states.family[:, 0])]
            chosen = []
            for i in range(batch_size):
                if report.episodes + len(chosen) == episodes:
                    break
                if only_successful and not success[i]:
                    dropped[families[i]] += 1
                else:
                    chosen.append(i)
            _write_batch(
                env,
                found,
                chosen,
                writers,
                spec,
                ids=[f"{split}-{seed}-{start + i:07d}" for i in chosen],
                families=families,
                size=size,
                seed=seed,
                first_attempt=start,
            )
            kept.update(families[i] for i in chosen)
            report.episodes += len(chosen)
            report.frames += int(sum(lengths[i] + 1 for i in chosen))
            report.failed += int(sum(not success[i] for i in chosen))
            bar.update(len(chosen))
            if report.episodes == episodes:
                break
        if report.episodes < episodes:
            raise ValueError(
                f"only {report.episodes} of {report.episodes + dropped.total()} expert episodes "
                f"succeeded within horizon={env.spec.horizon}, {episodes} were asked for: raise "
                "SceneConfig.horizon (--horizon), lower the noise (--noise) or keep the failures "
                f"(--keep_failures). Dropped: {dict(dropped)}"
            )
    report.dropped = dropped.total()
    report.episodes_of_family, report.dropped_of_family = dict(kept), dict(dropped)
    return report


def _write_batch(
    env: Tabletop,
    found: Any,
    chosen: list[int],
    writers: dict[str, RldsWriter],
    spec: schema.EpisodeSpec,
    *,
    ids: list[str],
    families: list[str],
    size: int,
    seed: int,
    first_attempt: int,
) -> None:
    """Renders and writes the chosen episodes of one batch of demonstrations."""
    if not chosen:
        return
    states = jax.tree.map(np.asarray, found.states)
    lengths, success = np.asarray(found.length), np.asarray(found.success)
    actions = np.asarray(found.actions, np.float32)
    phrasings = np.array(env.phrasings("train"))
    draws = [np.random.default_rng((seed, first_attempt + i)).choice(phrasings) for i in chosen]
    texts = env.instructions(jax.tree.map(lambda x: x[chosen, 0], states), np.array(draws))
    steps = lengths[chosen] + 1  # states; the last one has no action of its own
    rows = np.repeat(chosen, steps)
    times = np.concatenate([np.arange(n) for n in steps])
    flat = jax.tree.map(lambda x: x[rows, times], states)
    for view, writer in writers.items():
        images = _render(env, flat, len(rows), size, view)
        ends = np.cumsum(steps)
        for number, i in enumerate(chosen):
            count = int(steps[number])
            taken = np.zeros((count, actions.shape[-1]), np.float32)
            taken[:-1] = actions[i, : count - 1]
            reward = np.zeros(count, np.float32)
            reward[-1] = success[i]
            writer.write(
                schema.Episode(
                    images=images[ends[number] - count : ends[number]],
                    actions=taken if spec.action_dim else None,
                    instruction=texts[number] if spec.language else "",
                    episode_id=ids[number],
                    camera=view,
                    reward=reward,
                    terminal=bool(success[i]),
                    extras={"family": families[i]},
                )
            )


def _render(env: Tabletop, states: Any, count: int, size: int, view: str) -> list[bytes]:
    """JPEG frames of `count` states, in batches of one shape so that one program serves all."""
    images: list[bytes] = []
    for start in range(0, count, _RENDER_BATCH):
        rows = np.minimum(np.arange(start, start + _RENDER_BATCH), count - 1)
        batch = jax.tree.map(lambda x, rows=rows: x[rows], states)
        frames = np.asarray(_render_states(env, batch, size, view))
        images += [encode_jpeg(frame) for frame in frames[: count - start]]
    return images


@functools.partial(jax.jit, static_argnames=("env", "size", "view"))
def _render_states(env: Tabletop, states: Any, size: int, view: str) -> jax.Array:
    return jax.vmap(lambda state: env.render(state, size, view))(states)


def _split_seed(seed: int, split: str) -> int:
    """Another seed per split, so that a test split with the same --seed holds new episodes."""
    return seed if split == "train" else (seed + zlib.crc32(split.encode())) & 0x7FFFFFFF
