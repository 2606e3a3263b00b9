"""How many labels it takes to read the action off a latent action, linearly and by a network.

Labels are rows drawn from the training episodes, the first n of one seeded order, so that more
labels include the fewer. All label counts and feature sets are tested on the same episodes, which
are those of `probes.linear_probe`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lapa_jax.diagnostics.networks import regression_trace, schedule
from lapa_jax.diagnostics.probes import (
    check_rows,
    fit_probe_by_folds,
    held_episodes,
    r2_report,
    split_episodes,
)
from lapa_jax.diagnostics.threads import one_thread

COUNTS = (10, 100, 1000)
FEW = 200  # below, a held-out quarter is too small to choose by


@one_thread()
def label_efficiency(
    features: Mapping[str, np.ndarray],
    actions: np.ndarray,
    episode: np.ndarray,
    *,
    seed: int,
    counts: Sequence[int] = COUNTS,
    resamples: int = 1000,
) -> dict[str, dict[str, dict[str, Any]]]:
    """{feature set: {"linear" | "mlp": {"10", "100", "1000", "all": R² on held-out episodes}}}.

    `features`: sets (N, D) as `probes.feature_sets` gives them: `first_frame` is the control that
    shows what the scene alone tells. A count of at least as many labels as there are is left out.
    Each entry is an `r2_report` with its episode-bootstrap 95 % intervals, which do not hold the
    chance of which rows are labelled; "linear" at "all" is `linear_probe`.
    """
    if not features:
        raise ValueError("features holds no feature set: give at least one (N, D) array by name")
    if any(count < 2 for count in counts):
        raise ValueError(f"counts must be at least 2 labels each, got {list(counts)}")
    test = split_episodes(episode, seed=seed)
    train = np.flatnonzero(~test)
    order = np.random.default_rng(seed).permutation(train)
    labelled = {str(n): np.sort(order[:n]) for n in sorted(counts) if n < len(train)}
    labelled["all"] = train
    report: dict[str, Any] = {name: {"linear": {}, "mlp": {}} for name in features}
    for name, values in features.items():
        x, y, episode = check_rows(values, actions, episode)
        for count, rows in labelled.items():
            if count == "all":
                folds = [held_episodes(episode[rows], seed=seed)]
            else:
                folds = label_folds(episode[rows], seed=seed)
            size = {
                "features": x.shape[1],
                "train_rows": len(rows),
                "train_episodes": len(np.unique(episode[rows])),
            }
            for kind, fit in (("linear", _linear), ("mlp", _network)):
                prediction, chosen = fit(x[rows], y[rows], folds, x[test], seed)
                scores = r2_report(
                    prediction, y[test], episode[test], seed=seed, resamples=resamples
                )
                report[name][kind][count] = scores | chosen | size
    return report


def label_folds(episode: np.ndarray, *, seed: int) -> list[np.ndarray]:
    """Bool masks (N,) of the labels to choose a probe's settings on.

    From FEW labels on, a quarter of their episodes once; of fewer, every label once, in at most
    five folds of episodes. Labels of an only episode are split row by row.
    """
    names, group = np.unique(episode, return_inverse=True)
    if len(episode) >= FEW and len(names) > 1:
        return [held_episodes(episode, seed=seed)]
    if len(names) == 1:
        group = np.arange(len(episode))
    count = group.max() + 1
    fold = np.random.default_rng(seed + 1).permutation(count) % min(5, count)
    return [fold[group] == number for number in range(fold.max() + 1)]


def _linear(
    x: np.ndarray, y: np.ndarray, folds: list[np.ndarray], x_test: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    del seed  # nothing is drawn
    probe = fit_probe_by_folds(x, y, folds)
    return probe(x_test), {"ridge": list(probe.ridges)}


def _network(
    x: np.ndarray, y: np.ndarray, folds: list[np.ndarray], x_test: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    updates = schedule(len(x))
    errors = sum(
        ((regression_trace(x[~h], y[~h], x[h], updates, seed=seed) - y[h]) ** 2).sum(1)
        for h in folds
    )
    # As of the ridges, each dimension picks its own.
    best = errors.argmin(0)
    trace = regression_trace(x, y, x_test, updates, seed=seed)
    prediction = np.stack([trace[b, :, dim] for dim, b in enumerate(best)], 1)
    return prediction, {"updates": [updates[b] for b in best]}
