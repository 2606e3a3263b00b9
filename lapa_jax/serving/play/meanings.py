"""What latent actions stand for in a corpus: the mean true action under each code, or the spread of
vectors, of a label set by the model that is played."""

from typing import Any

import numpy as np
from absl import logging

from data_pipelines.index import CorpusIndex
from lapa_jax.runs.true_actions import of_codes
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
    if not imagination.codes:
        values = labels.labels(np.flatnonzero(labels.valid))
        return told | {"mean": values.mean(axis=0).tolist(), "std": values.std(axis=0).tolist()}
    if imagination.codes > MAX_CODES:
        logging.info("%d codes are too many to tell what each stands for", imagination.codes)
        return {}
    if index.actions is None:
        logging.warning("%s has no actions: what z stands for is not shown", index.directory)
        return {}
    found = of_codes(index, labels)
    if not found.pairs:
        logging.warning("no pair of %s is labelled within its episode", index.directory)
        return {}
    actions = [
        [None if np.isnan(action).any() else action.tolist() for action in of_position]
        for of_position in found.actions_LKA
    ]
    return told | {"actions": actions, "shares": found.shares_LK.tolist(), "pairs": found.pairs}
