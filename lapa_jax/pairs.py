"""All frame pairs of a corpus in order, as a quantizer was trained to see them.

What `lapa label` and `lapa evaluate` walk over; training samples pairs instead.
"""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data_pipelines.backends import FrameReader
from data_pipelines.mixture import open_mixture
from experiments import base
from lapa_jax import runs

BATCH = 256


@dataclasses.dataclass(frozen=True)
class Batch:
    """`size` pairs; frames are padded to BATCH by repeating the last, so devices see one shape."""

    rows: np.ndarray  # int64 (size, 2) frame rows of the index
    frames: np.ndarray  # uint8 (BATCH, 2, H, W, 3)
    good: np.ndarray  # bool (size,): both frames could be decoded

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def first(self) -> np.ndarray:
        return self.frames[:, 0]

    @property
    def last(self) -> np.ndarray:
        return self.frames[:, 1]


class Pairs:
    """`corpus`: keys as under data.corpora; without `window_seconds`, that of the training."""

    def __init__(self, config: ConfigDict, corpus: dict):
        self.window_seconds = corpus.get("window_seconds") or trained_window(config)
        data = ConfigDict(config.data.to_dict())
        template = next((c.to_dict() for c in data.corpora.values()), base.corpus(""))
        template |= {"label_set": "", "fps": 0.0, "fraction": 1.0}
        data.corpora = ConfigDict(
            {"corpus": template | corpus | {"window_seconds": self.window_seconds}}
        )
        data.sampling, data.num_frames = "per_frame", 2
        opened = open_mixture(data, ["frames"]).corpora[0]
        self.index = opened.index
        samples = np.arange(opened.num_samples)
        # Every eligible pair, int64 (N, 2), ascending.
        self.rows = opened.frame_rows(samples, np.zeros_like(samples), seed=0)
        self._reader = FrameReader(self.index, tuple(data.image_size), data.decode)

    def batches(self, rows: np.ndarray) -> Iterator[Batch]:
        """Batches of these pairs, decoded one ahead. Neighbours share frames: decoded once."""
        parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._read, parts[0]) if parts else None
            for following in [*parts[1:], None][: len(parts)]:
                ready = ahead.result()
                if following is not None:
                    ahead = pool.submit(self._read, following)
                yield ready

    def actions(self, rows: np.ndarray) -> np.ndarray | None:
        """Sum of the true actions over each window, float32 (n, A); None without actions."""
        if self.index.actions is None:
            return None
        total = np.concatenate(
            [np.zeros((1, self.index.action_dim)), np.cumsum(self.index.actions, axis=0)]
        )
        return (total[rows[:, 1]] - total[rows[:, 0]]).astype(np.float32)

    def _read(self, rows: np.ndarray) -> Batch:
        unique, places = np.unique(rows, return_inverse=True)
        places = places.reshape(rows.shape)
        frames, bad = self._reader.read(unique)
        for number, reason in bad.items():
            logging.warning("frame row %d of %s: %s", unique[number], self.index.directory, reason)
        good = ~np.isin(places, list(bad)).any(axis=1)
        padded = np.pad(places, ((0, BATCH - len(rows)), (0, 0)), "edge")
        return Batch(rows, frames[padded], good)


def require_quantizer(run: runs.Run) -> None:
    if run.config.stage != "quantizer":
        raise ValueError(f"{run.workdir} is a run of stage {run.config.stage!r}, not a quantizer")


def trained_window(config: ConfigDict) -> float:
    """Seconds between the frames of a pair, one for all corpora of the training."""
    windows = {c.window_seconds for c in config.data.corpora.values()}
    if len(windows) != 1:
        raise ValueError(
            f"the quantizer was trained with the windows {sorted(windows)}; `lapa label` and `lapa "
            "evaluate` take one of them as --window_seconds"
        )
    return windows.pop()
