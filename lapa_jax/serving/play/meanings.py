"""What latent actions stand for in a corpus: the mean true action under each code, or the spread of
vectors, of a label set by the model that is played."""

from typing import Any

import numpy as np
from absl import logging

from data_pipelines.index import CorpusIndex
from lapa_jax.world.action_map import label_set_of
from lapa_jax.world.imagination import Imagination

MAX_CODES = 64  # that are told one by one


def meanings(imagination: Imagination, index: CorpusIndex) -> dict[str, Any]:
    """As JSON. Of codes `actions` (positions, codes, dimensions), the true actions of a window
    summed, in the mean over its pairs, null where a code has none, and `shares` (positions, codes)
    of the pairs; of vectors `mean` and `std` (vectors, width). Empty where nothing is known."""
    labels = label_set_of(imagination, index)
    if labels is None:
        told = "%s has no label set by %s (lapa label): what z stands for is not shown"
        logging.warning(told, index.directory, imagination.model.workdir)
        return {}
    told = {"label_set": labels.folder.name, "corpus": index.directory.name}
    rows = np.flatnonzero(labels.valid)
    if not imagination.codes:
        values = labels.labels(rows)
        return told | {"mean": values.mean(axis=0).tolist(), "std": values.std(axis=0).tolist()}
    if imagination.codes > MAX_CODES:
        logging.info("%d codes are too many to tell what each stands for", imagination.codes)
        return {}
    if index.actions is None:
        logging.warning("%s has no actions: what z stands for is not shown", index.directory)
        return {}
    rows, moved = _moved(index, rows, labels.provenance["window_seconds"])
    if not len(rows):
        logging.warning("no pair of %s is labelled within its episode", index.directory)
        return {}
    z = labels.labels(rows)
    actions, shares = [], []
    for of_position in z.T:
        of_code = [of_position == code for code in range(imagination.codes)]
        shares.append([float(here.mean()) for here in of_code])
        actions.append(
            [moved[here].mean(axis=0).tolist() if here.any() else None for here in of_code]
        )
    return told | {"actions": actions, "shares": shares, "pairs": len(rows)}


def _moved(index: CorpusIndex, rows: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """(the rows a window before another row of their episode, the actions from there to it, summed:
    float64 (n, dimensions)). Raises ValueError where the rate of an episode is not known."""
    episode = index.episode_of_rows(rows)
    fps = index.fps[episode].astype(np.float64)
    if not (np.isfinite(fps) & (fps > 0)).all():
        raise ValueError(
            f"--corpus {index.directory}: episodes have no episode_metadata/fps, so how many "
            "actions a window has is not known. Start from --frame instead"
        )
    later = rows + np.rint(seconds * fps).astype(np.int64)
    inside = later < index.episode_start[episode] + index.episode_length[episode]
    actions = np.nan_to_num(index.actions, posinf=0.0, neginf=0.0)  # of last steps
    total = np.concatenate([np.zeros((1, index.action_dim)), np.cumsum(actions, 0, np.float64)])
    return rows[inside], total[later[inside]] - total[rows[inside]]
