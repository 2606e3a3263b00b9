"""All frames or frame pairs of a corpus in order, pairs as a quantizer was trained to see them.

What `lapa label` and `lapa evaluate` walk over; training samples instead.
"""

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data_pipelines.index import CorpusIndex, load_index
from data_pipelines.loader import DataSettings, open_mixture, order
from data_pipelines.loader.frames import FrameReader
from data_pipelines.loader.settings import CorpusSettings

BATCH = 256
CHAIN = 4  # windows


@dataclasses.dataclass(frozen=True)
class Batch:
    """`size` examples of n frames each (pairs: 2); padded to one number of examples by repeating
    the last, so devices see one shape."""

    rows: np.ndarray  # int64 (size, n) frame rows of the index
    frames: np.ndarray  # uint8 (padded size, n, H, W, 3)
    good: np.ndarray  # bool (size,): all its frames could be decoded

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def first(self) -> np.ndarray:
        return self.frames[:, 0]

    @property
    def last(self) -> np.ndarray:
        return self.frames[:, 1]


class Frames:
    """Examples of given rows of an index in batches, decoded one ahead by all cores."""

    def __init__(
        self,
        index: CorpusIndex,
        image_size: tuple[int, int],
        *,
        batch: int = BATCH,
    ):
        self.index, self.batch = index, batch
        self._reader = FrameReader(index, image_size, num_threads=os.cpu_count() or 1)

    def batches(self, rows: np.ndarray) -> Iterator[Batch]:
        """Batches of these rows, int64 (N, n). Neighbours share frames: decoded once."""
        return self.stream(self.split(rows))

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]

    def stream(self, parts: list[np.ndarray]) -> Iterator[Batch]:
        """A batch of each part, which has at most as many rows as a batch."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._read, parts[0]) if parts else None
            for following in [*parts[1:], None][: len(parts)]:
                ready = ahead.result()
                if following is not None:
                    ahead = pool.submit(self._read, following)
                yield ready

    def _read(self, rows: np.ndarray) -> Batch:
        unique, places = np.unique(rows, return_inverse=True)
        places = places.reshape(rows.shape)
        frames, bad = self._reader.read(unique)
        for number, reason in bad.items():
            logging.warning("frame row %d of %s: %s", unique[number], self.index.directory, reason)
        good = ~np.isin(places, list(bad)).any(axis=1)
        padded = np.pad(places, ((0, self.batch - len(rows)), (0, 0)), "edge")
        return Batch(rows, frames[padded], good)


class Pairs(Frames):
    """`corpus`: keys as under data.corpora; without `window_seconds`, that of the training.
    `held_out`: only pairs of episodes that the training did not draw from."""

    def __init__(
        self, config: ConfigDict, corpus: dict, *, batch: int = BATCH, held_out: bool = False
    ):
        self.window_seconds = corpus.get("window_seconds") or trained_window(config)
        there = {"fps": 0.0} | corpus | {"window_seconds": self.window_seconds}
        data = DataSettings.of(config.data).on({"corpus": there}).in_order()
        opened = open_mixture(data, ["frames"]).corpora[0]
        super().__init__(opened.index, data.image_size, batch=batch)
        samples = np.arange(opened.num_samples)
        # Every eligible pair, int64 (N, 2), ascending.
        rows = opened.frame_rows(samples, np.zeros_like(samples), seed=0)
        if held_out:
            drawn = drawn_in_training(config, self.index)
            rows = rows[~drawn[self.index.episode_of_rows(rows[:, 0])]]
            if not len(rows):
                raise ValueError(
                    f"no episode of {self.index.directory} was held out of the training, of "
                    f"{self.index.num_episodes}: train with a smaller data.corpora.<name>.fraction "
                    "(quantizer/videos: a larger holdout; of few episodes it may leave none out), "
                    "or evaluate another corpus"
                )
        self.rows = rows

    def chains(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows int64 (C, F), when each frame is in windows (F,)) of at most `count` clips of
        CHAIN windows that begin where pairs do, evenly spread, with the frame half a window after
        the first where there is one. Of fewer windows, but 2 at least, where under half of the
        episodes are as long; C is 0 where none is."""
        first, window = self.rows[:, 0], self.rows[:, 1] - self.rows[:, 0]
        episode = self.index.episode_of_rows(first)
        end = self.index.episode_start[episode] + self.index.episode_length[episode]
        for whole in range(CHAIN, 1, -1):
            fits = first + whole * window < end
            if 2 * len(np.unique(episode[fits])) >= len(np.unique(episode)):
                break
        at = np.arange(whole + 1.0)
        if not (window % 2).any():
            at = np.insert(at, 1, 0.5)
        chosen = np.flatnonzero(fits)
        chosen = chosen[:: max(1, -(-len(chosen) // count))]
        steps = (window[chosen, None] * at).astype(np.int64)
        return first[chosen, None] + steps, at

    def moved(self, rows: np.ndarray) -> np.ndarray | None:
        """The true actions summed from the first of its frames to each, float32 (n, F, A) for rows
        (n, F); None without actions."""
        if self.index.actions is None:
            return None
        ends = [np.stack([rows[:, 0], end], axis=1) for end in rows.T]
        return np.stack([self.actions(pair) for pair in ends], axis=1)

    def actions(self, rows: np.ndarray) -> np.ndarray | None:
        """Sum of the true actions over each window, float32 (n, A); None without actions."""
        if self.index.actions is None:
            return None
        actions = np.nan_to_num(self.index.actions, posinf=0.0, neginf=0.0)  # of last steps
        total = np.concatenate([np.zeros((1, self.index.action_dim)), np.cumsum(actions, axis=0)])
        return (total[rows[:, 1]] - total[rows[:, 0]]).astype(np.float32)


def drawn_in_training(config: ConfigDict, index: CorpusIndex) -> np.ndarray:
    """Which episodes of a corpus the training of `config` could draw from, bool (episodes,): none
    of a corpus that is not among those of the training, by its place or by its hash."""
    drawn = np.zeros(index.num_episodes, bool)
    for corpus in DataSettings.of(config.data).corpora:
        if _is_at(corpus, index):
            drawn |= order.drawn_from(corpus.fraction, index.num_episodes)
    return drawn


def _is_at(corpus: CorpusSettings, index: CorpusIndex) -> bool:
    here, there = (os.path.realpath(str(place)) for place in (index.directory, corpus.path))
    if here == there:
        return corpus.split == index.split
    view = dict(image_key=corpus.image_key, sidecar_dir=corpus.sidecar_dir or None)
    try:
        return load_index(corpus.path, split=corpus.split, **view).hash == index.hash
    except (OSError, ValueError):
        return False  # the corpora of the training are not at hand any more


def trained_window(config: ConfigDict) -> float:
    """Seconds between the frames of a pair, one for all corpora of the training."""
    windows = {c.window_seconds for c in config.data.corpora.values()}
    if not windows:
        raise ValueError(
            "the run was imported, and does not know the windows of its training: `lapa label` and "
            "`lapa evaluate` take one as --window_seconds"
        )
    if len(windows) != 1:
        raise ValueError(
            f"the quantizer was trained with the windows {sorted(windows)}; `lapa label` and `lapa "
            "evaluate` take one of them as --window_seconds"
        )
    return windows.pop()
