"""What codes do: the mean true action of the pairs of a labelled corpus that have each of them."""

from typing import NamedTuple

import numpy as np

from data_pipelines.index import CorpusIndex
from data_pipelines.index.labels import LabelSet


class OfCodes(NamedTuple):
    """Of code k at position l of a z: the true actions of a window, summed, in the mean over its
    pairs, and its share of the pairs."""

    actions_LKA: np.ndarray  # float64, NaN where a code has no pair
    shares_LK: np.ndarray  # float64
    pairs: int


def of_codes(index: CorpusIndex, labels: LabelSet) -> OfCodes:
    """Of a corpus with actions and a label set of codes. No `pairs` where no pair is labelled
    within its episode; raises ValueError where the rate of an episode is not known."""
    rows, moved = _moved(index, np.flatnonzero(labels.valid), labels.provenance["window_seconds"])
    size, z = labels.codebook_size, labels.labels(rows)
    actions = np.full((labels.code_length, size, index.action_dim), np.nan)
    shares = np.zeros((labels.code_length, size))
    for position, of_position in enumerate(z.T):
        for code in range(size):
            here = of_position == code
            if here.any():
                actions[position, code] = moved[here].mean(axis=0)
                shares[position, code] = here.mean()
    return OfCodes(actions, shares, len(rows))


def _moved(index: CorpusIndex, rows: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """(the rows a window before another row of their episode, the actions from there to it, summed:
    float64 (n, dimensions)). Raises ValueError where the rate of an episode is not known."""
    episode = index.episode_of_rows(rows)
    fps = index.fps[episode].astype(np.float64)
    if not (np.isfinite(fps) & (fps > 0)).all():
        raise ValueError(
            f"{index.directory}: episodes have no episode_metadata/fps, so how many actions a "
            "window has is not known: write the corpus with its fps"
        )
    later = rows + np.rint(seconds * fps).astype(np.int64)
    inside = later < index.episode_start[episode] + index.episode_length[episode]
    actions = np.nan_to_num(index.actions, posinf=0.0, neginf=0.0)  # of last steps
    total = np.concatenate([np.zeros((1, index.action_dim)), np.cumsum(actions, 0, np.float64)])
    return rows[inside], total[later[inside]] - total[rows[inside]]
