"""Where what is seen in a frame moves until the frame a window later, in sidecars.

A flow set is a motion set of another kind: of every frame t of a corpus, how far the picture moves
between the frames t and t + window, in pixels to the right and down, as the mean of each square
cell, row by row. Where t + window lies beyond the episode, its last frame stands in.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.index import CorpusIndex, load_index
from data_pipelines.index.labels import Kind
from data_pipelines.loader.motion import frames_of, write_pairs

FLOW = Kind(
    "flow set",
    "flow/{name}/{camera}",
    np.int16,
    "cells_per_frame",
    ("window_seconds", "steps_hash", "cells_per_frame", "width", "grid", "method"),
    "`lapa data flow`",
)
# (uint8 (H, W, 3), the same later) → float32 (H, W, 2), pixels to the right and down
Estimate = Callable[[np.ndarray, np.ndarray], np.ndarray]
# (index, episode, steps between frames) → float32 (steps of the episode, H, W, 2), the same
Exact = Callable[[CorpusIndex, int, int], np.ndarray]


def write_flow(
    directory: str | os.PathLike,
    *,
    window_seconds: float,
    cell: int,
    method: str,
    estimate: Estimate | None = None,
    exact: Exact | None = None,
    fps: float = 0.0,
    split: str = "train",
    image_key: str = "",
    sidecar_dir: str | os.PathLike | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes the flow set of an indexed corpus, in cells of `cell` pixels a side: what `estimate`
    says of its frames, or what `exact` knows. `method` says which in the provenance. Rows of frames
    that cannot be decoded have none. Continues where it was stopped; returns the folder."""
    index = load_index(directory, split=split, sidecar_dir=sidecar_dir, image_key=image_key)
    with frames_of(index) as reader:
        if any(side % cell for side in index.image_size):
            raise ValueError(
                f"--cell {cell} must divide both sides of the images of {index.directory}, "
                f"{index.image_size} (height, width)"
            )
        grid = tuple(side // cell for side in index.image_size)
        told = {"cells_per_frame": grid[0] * grid[1], "width": 2, "dtype": "float16"}
        told |= {"grid": list(grid), "method": method}

        def measure(episode: int, window: int) -> np.ndarray:
            if exact is not None:
                return in_cells(exact(index, episode, window), cell)
            length = int(index.episode_length[episode])
            frames, bad = reader.read(int(index.episode_start[episode]) + np.arange(length))
            found = np.full((length, told["cells_per_frame"], 2), np.nan, np.float32)
            for t in range(length):
                later = min(t + window, length - 1)
                if t not in bad and later not in bad:
                    found[t] = in_cells(estimate(frames[t], frames[later])[None], cell)[0]
            return found

        return write_pairs(
            FLOW, index, measure, told, window_seconds, fps, workers=workers, progress=progress
        )


def in_cells(flow_NIJ2: np.ndarray, cell: int) -> np.ndarray:
    """The means over cells, float32 (N, cells, 2), row by row."""
    N, I, J, _ = flow_NIJ2.shape  # noqa: E741
    by_cell = flow_NIJ2.reshape(N, I // cell, cell, J // cell, cell, 2).mean(axis=(2, 4))
    return by_cell.reshape(N, -1, 2).astype(np.float32)


def dis() -> Estimate:
    """OpenCV's dense inverse search (Kroeger et al. 2016), which must be installed."""
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "--method dis needs OpenCV: pip install opencv-python-headless (or give --method "
            "tabletop, for a corpus of the tabletop)"
        ) from None

    def estimate(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        # One for each call: it keeps what it computes with, and threads share nothing.
        search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, last))
        return search.calc(*grey, None)

    return estimate
