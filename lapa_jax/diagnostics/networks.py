"""A small network as a probe: two hidden layers of 64, for what a linear map cannot read.

The number of updates is what keeps it from overfitting. Both functions return predictions after
each number of updates asked for (ascending from 0, as `schedule` gives them), so that the caller
can choose one on held-out rows, as a ridge is chosen; 0 updates predict the mean. Seeded;
scikit-learn is imported when a network is trained.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

UPDATES = (0, 10, 20, 40, 80, 160, 320, 640)
MAX_PASSES = 100  # over the rows: few rows are learnt by heart long before the last of UPDATES
BATCH = 64


def schedule(rows: int) -> list[int]:
    """The numbers of updates worth trying when `rows` rows are learnt from."""
    return [n for n in UPDATES if n * min(BATCH, rows) <= MAX_PASSES * rows]


def standardise(x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All arrays (., D) in units of the spread of `x`; a feature constant in `x` is 0 in all."""
    scale = x.std(0)
    scale = np.where(scale > 0, scale, np.inf)
    return [(value - x.mean(0)) / scale for value in (x, *others)]


def regression_trace(
    x: np.ndarray, y: np.ndarray, x_eval: np.ndarray, updates: list[int], *, seed: int
) -> np.ndarray:
    """Predictions for `x_eval` (M, D) by a network that learns y (N, A) from x (N, D), after each
    number of updates: float64 (len(updates), M, A)."""
    from sklearn.neural_network import MLPRegressor

    x, x_eval = standardise(x, x_eval)
    mean, scale = y.mean(0), y.std(0)
    (target,) = standardise(y)
    # A column of one is a vector to scikit-learn.
    target = target if y.shape[1] > 1 else target[:, 0]
    network = MLPRegressor(**_settings(len(x)), random_state=seed)
    trace = [np.broadcast_to(mean, (len(x_eval), y.shape[1]))]
    for rows in _rows_between(updates, len(x), seed):
        network.partial_fit(x[rows], target[rows])
        trace.append(network.predict(x_eval).reshape(len(x_eval), -1) * scale + mean)
    return np.stack(trace)


def class_trace(
    x: np.ndarray, labels: np.ndarray, x_eval: np.ndarray, updates: list[int], *, seed: int
) -> np.ndarray:
    """As `regression_trace`, of labels int (N,) that take all of 0..C-1, C >= 2: probabilities
    (len(updates), M, C). Before the first update they are the shares of the labels."""
    from sklearn.neural_network import MLPClassifier

    x, x_eval = standardise(x, x_eval)
    share = np.bincount(labels) / len(labels)
    network = MLPClassifier(**_settings(len(x)), random_state=seed)
    trace = [np.broadcast_to(share, (len(x_eval), len(share)))]
    for rows in _rows_between(updates, len(x), seed):
        network.partial_fit(x[rows], labels[rows], classes=np.arange(len(share)))
        trace.append(network.predict_proba(x_eval))
    return np.stack(trace)


def _settings(rows: int) -> dict[str, Any]:
    return dict(
        hidden_layer_sizes=(64, 64),
        learning_rate_init=0.01,
        alpha=1e-3,
        batch_size=min(BATCH, rows),
        shuffle=False,  # the rows come in a drawn order
    )


def _rows_between(updates: list[int], rows: int, seed: int) -> Iterator[np.ndarray]:
    """The rows of the batches from each number of updates to the next: seeded passes over all."""
    batch = min(BATCH, rows)
    rng = np.random.default_rng(seed)
    passes = -(-updates[-1] * batch // rows)
    order = np.concatenate([rng.permutation(rows) for _ in range(passes)])
    for start, stop in pairwise(updates):
        yield order[start * batch : stop * batch]
