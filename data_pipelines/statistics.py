"""Exact action statistics and the bin edges of action tokens, from the actions of an index.

Only valid actions count: the last step of an RLDS episode has none. Never called by training; the
results travel in configs and checkpoints.
"""

from typing import Any

import numpy as np
from absl import logging
from scipy.cluster.vq import kmeans2

from data_pipelines.index import CorpusIndex


def valid_action_rows(index: CorpusIndex) -> np.ndarray:
    """Rows whose action was executed: all but the last step of each episode, int64."""
    if index.actions is None:
        names = [key for key, kind in index.keys.items() if kind == "float"]
        raise ValueError(
            f"{index.directory} has no actions under steps/{index.action_key}; float "
            f"features: {names or 'none'} (data.corpora.<name>.action_key)"
        )
    last = index.episode_start + index.episode_length - 1
    valid = np.ones(index.num_frames, bool)
    valid[last] = False
    rows = np.flatnonzero(valid)
    if not len(rows):
        raise ValueError(
            f"{index.directory}: every episode has a single step, so there is no "
            "valid action (the last one of an episode never counts)"
        )
    return rows


def action_statistics(index: CorpusIndex) -> dict[str, Any]:
    """Per dimension: mean, std, min, max, q01, q99, constant; and num_actions. JSON-ready."""
    rows = valid_action_rows(index)
    found: dict[str, Any] = {
        name: [] for name in ("mean", "std", "min", "max", "q01", "q99", "constant")
    }
    for dimension in range(index.action_dim):  # one column in memory at a time
        column = index.actions[rows, dimension].astype(np.float64)
        q01, q99 = np.quantile(column, [0.01, 0.99])
        low, high = float(column.min()), float(column.max())
        for name, value in (
            ("mean", column.mean()),
            ("std", column.std()),
            ("min", low),
            ("max", high),
            ("q01", q01),
            ("q99", q99),
        ):
            found[name].append(float(value))
        found["constant"].append(low == high)
    if any(found["constant"]):
        logging.warning(
            "%s: action dimensions %s are constant.",
            index.directory,
            np.flatnonzero(found["constant"]).tolist(),
        )
    return {**found, "num_actions": len(rows)}


def quantile_edges(actions: np.ndarray, bins: int) -> list[np.ndarray]:
    """Bin edges of each dimension of `actions` (N, A) so that bins are equally full.

    The semantics of pandas.qcut(column, bins, duplicates="drop"): quantiles by linear
    interpolation, equal ones merged, so a dimension may have fewer than `bins` bins and the edges
    are ragged. A constant dimension v gets the one bin [v - e, v + e], e = 1e-3 * max(1, |v|),
    whose centre is v again.
    """
    if actions.ndim != 2 or not len(actions):
        raise ValueError(f"actions have shape {actions.shape}, expected (N, action_dim), N > 0")
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    if not np.isfinite(actions).all():
        row, dimension = np.argwhere(~np.isfinite(actions))[0]
        raise ValueError(f"action {row}, dimension {dimension} is {actions[row, dimension]}")
    probabilities = np.linspace(0, 1, bins + 1)
    # As pandas does: a probability that is not representable is rounded up, so that a sample which
    # lies exactly on an edge falls into the bin below it.
    off = bins * probabilities != np.arange(bins + 1)
    probabilities[off] = np.nextafter(probabilities[off], 1)
    edges = []
    for dimension in range(actions.shape[1]):
        column = actions[:, dimension].astype(np.float64)
        unique = np.unique(np.quantile(column, probabilities))
        if len(unique) == 1:
            half = 1e-3 * max(1.0, abs(unique[0]))
            unique = np.array([unique[0] - half, unique[0] + half])
            logging.warning(
                "Action dimension %d is constant (%g): it gets a single bin.", dimension, column[0]
            )
        edges.append(unique)
    return edges


def action_clusters(actions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(centres (count, A), scale (A,)) of `count` clusters of whole actions (N, A): k-means with
    each dimension in units of its standard deviation, the same for the same actions."""
    if actions.ndim != 2 or len(actions) < count or count < 1:
        raise ValueError(
            f"{count} clusters of actions of shape {actions.shape}: need at least as "
            "many actions as clusters (model.action_vocab)"
        )
    if not np.isfinite(actions).all():
        row, dimension = np.argwhere(~np.isfinite(actions))[0]
        raise ValueError(f"action {row}, dimension {dimension} is {actions[row, dimension]}")
    scale = actions.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    centres, _ = kmeans2(
        (actions / scale).astype(np.float64), count, minit="++", seed=0, missing="raise"
    )
    return centres * scale, scale
