"""How much moves between the two frames of a pair, in sidecars: static pairs can be left out.

A motion set is a label set of another kind: of every frame t of a corpus, the mean absolute
difference of all values of the frames t and t + window, in 1/256 of a grey level (of 255). Where
t + window lies beyond the episode, its last frame stands in.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import sidecar
from data_pipelines.index import CorpusIndex, load_index
from data_pipelines.index.labels import Kind, LabelSet, LabelSetWriter
from data_pipelines.loader.frames import FrameReader
from data_pipelines.loader.settings import CorpusSettings
from data_pipelines.loader.steps import window_steps
from data_pipelines.progress import Progress

STEPS_PER_LEVEL = 256
MOTION = Kind(
    "motion set",
    "motion/{name}/{camera}",
    np.uint16,
    "values_per_frame",
    ("window_seconds", "steps_hash", "codebook_size", "values_per_frame"),
    "`lapa data motion`",
)


class _Flags(CorpusSettings):
    """A corpus whose keys are flags."""

    def key(self, name: str) -> str:
        return f"--{name}"


def set_name(window_seconds: float) -> str:
    """A set is named by its window."""
    return f"{window_seconds:g}"


def steps_hash(steps: np.ndarray) -> str:
    """Of the steps between the frames of a pair, which depend on the window and on fps."""
    return sidecar.array_digest(steps.astype(np.int64))


def write_motion(
    directory: str | os.PathLike,
    *,
    window_seconds: float,
    fps: float = 0.0,
    split: str = "train",
    image_key: str = "",
    sidecar_dir: str | os.PathLike | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Decodes every frame of an indexed corpus once and writes its motion set; continues where it
    was stopped. fps: 0.0 takes that of the episodes. image_key "": the only
    one that is indexed. Returns the folder."""
    index = load_index(directory, split=split, sidecar_dir=sidecar_dir, image_key=image_key)
    told = {"codebook_size": 255 * STEPS_PER_LEVEL + 1, "values_per_frame": 1}
    with frames_of(index) as reader:

        def measure(episode: int, window: int) -> np.ndarray:
            return _differences(index, reader, episode, window)[:, None]

        return write_pairs(
            MOTION, index, measure, told, window_seconds, fps, workers=workers, progress=progress
        )


@contextlib.contextmanager
def frames_of(index: CorpusIndex) -> Iterator[FrameReader]:
    """Of its own size."""
    if index.image_size is None:
        raise ValueError(f"no first frame of {index.directory} can be read: its size is unknown")
    reader = FrameReader(index, index.image_size)
    try:
        yield reader
    finally:
        reader.close()


def write_pairs(
    kind: Kind,
    index: CorpusIndex,
    measure: Callable[[int, int], np.ndarray],
    told: dict[str, Any],
    window_seconds: float,
    fps: float = 0.0,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes what `measure` gives of each (episode, steps between the frames of a pair), a row for
    each of its steps, as a set of this kind whose provenance is `told` and the window; continues
    where it was stopped. Returns the folder."""
    path = str(index.directory)
    settings = _Flags(Path(path).name, path, window_seconds=window_seconds, fps=fps)
    steps = window_steps(settings, index)
    window = {"window_seconds": float(window_seconds), "steps_hash": steps_hash(steps)}
    name = set_name(window_seconds)
    writer = LabelSetWriter(index.sidecar_dir, name, index, provenance=window | told, kind=kind)
    missing = writer.missing_shards()
    rows = [index.rows_of_shard(shard) for shard in missing]
    total = sum(part.stop - part.start for part in rows)
    what = kind.what.removesuffix(" set")
    with (
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
        Progress(what, total, unit="frame", show=progress) as bar,
    ):
        for shard in missing:
            episodes = np.flatnonzero(index.shard_of_episode == shard).tolist()
            found = list(pool.map(lambda one: measure(one, int(steps[one])), episodes))
            found = np.concatenate(found) if found else writer.unlabelled(shard)
            writer.write_shard(shard, found)
            bar.update(len(found))
    writer.finish()
    return writer.folder


def _differences(index: CorpusIndex, reader: FrameReader, episode: int, window: int) -> np.ndarray:
    """int64 (steps of the episode,), -1 where a frame of the pair cannot be decoded."""
    first, length = int(index.episode_start[episode]), int(index.episode_length[episode])
    values = np.full(length, -1, np.int64)
    kept: deque[np.ndarray | None] = deque(maxlen=window + 1)  # the latest; None: undecodable
    for step in range(length):
        frames, bad = reader.read(np.array([first + step]))
        kept.append(None if bad else frames[0])
        if step >= window:
            values[step - window] = _difference(kept[0], kept[-1])
    for back in range(1, min(window, length) + 1):
        values[-back] = _difference(kept[-back], kept[-1])
    return values


def _difference(one: np.ndarray | None, other: np.ndarray | None) -> int:
    if one is None or other is None:
        return -1
    total = int((np.maximum(one, other) - np.minimum(one, other)).sum(dtype=np.uint64))
    return round(total * STEPS_PER_LEVEL / one.size)


def shares_below(motion: LabelSet, levels: Sequence[float]) -> list[float]:
    """Which part of the frames differs by less than each level."""
    count, below = motion.provenance["num_frames"], np.zeros(len(levels), np.int64)
    for start in range(0, count, 2**20):
        found = motion.labels(np.arange(start, min(start + 2**20, count)))[:, 0]
        found = found[found >= 0] / STEPS_PER_LEVEL
        below += [int((found < level).sum()) for level in levels]
    return (below / count).tolist()


def check_window(
    settings: CorpusSettings, found: LabelSet, steps: np.ndarray, kind: Kind = MOTION
) -> None:
    """Refuses a set of other pairs than a corpus draws."""
    if found.provenance["steps_hash"] != steps_hash(steps):
        raise ValueError(
            f"{found.folder} was made with other steps between the frames of a pair than corpus "
            f"{settings.name!r} has: delete it and make it again with {kind.command} --fps "
            f"{settings.fps:g} ({settings.key('fps')})"
        )
