"""Linear probes: how much of the true action a latent action carries, beside controls.

A ridge regression from features to actions, split by episode; the ridge is chosen on held-out
training episodes by the same rule for every feature set, so that wide controls are not handicapped.
R^2 is per action dimension on test episodes. NumPy and SciPy only. `label_efficiency` adds a
network and fewer labels, `code_probes` goes the other way round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from lapa_jax.diagnostics.codebook import check_codes
from lapa_jax.diagnostics.statistics import bootstrap_ratio

# Relative to the mean variance of a feature direction times the number of rows.
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def one_hot_codes(z: np.ndarray, codebook_size: int) -> np.ndarray:
    """One-hot of every slot, side by side: float64 (N, L * codebook_size)."""
    z = check_codes(z, codebook_size)
    return np.eye(codebook_size)[z].reshape(len(z), -1)


def pooled_frames(images: np.ndarray, size: int = 8) -> np.ndarray:
    """Frames averaged to size x size: what the scene alone tells, float64 (N, size*size*C)."""
    images = np.asarray(images)
    if images.ndim != 4 or min(images.shape[1:3]) < size:
        raise ValueError(
            f"images must be (N, H, W, C) with H, W of at least {size}, got {images.shape}"
        )
    n, h, w, c = images.shape
    if h % size or w % size:  # blocks that differ by a pixel
        rows, columns = (np.arange(size + 1) * side // size for side in (h, w))
        sums = np.add.reduceat(images, rows[:-1], axis=1, dtype=np.float64)
        sums = np.add.reduceat(sums, columns[:-1], axis=2)
        counts = np.diff(rows)[:, None] * np.diff(columns)
        return (sums / counts[..., None]).reshape(n, -1)
    blocks = images.reshape(n, size, h // size, size, w // size, c)
    return blocks.mean((2, 4), dtype=np.float64).reshape(n, -1)


def split_episodes(episode: np.ndarray, *, seed: int, test_fraction: float = 0.25) -> np.ndarray:
    """Bool (N,): True where the row's episode was drawn for the test; no episode is in both."""
    names, index = np.unique(np.asarray(episode), return_inverse=True)
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction must lie in (0, 1), got {test_fraction}")
    if len(names) < 2:
        raise ValueError(f"a split by episode needs at least 2 episodes, got {len(names)}")
    count = min(max(round(test_fraction * len(names)), 1), len(names) - 1)
    chosen = np.zeros(len(names), bool)
    chosen[np.random.default_rng(seed).permutation(len(names))[:count]] = True
    return chosen[index.reshape(-1)]


def split_in_time(episode: np.ndarray) -> np.ndarray:
    """Bool (N,): True for the later half of the rows of each episode, in the order they are in.

    The middle row of an odd number, and so an only row, is in the first half.
    """
    _, index, counts = np.unique(np.asarray(episode), return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    if counts.max(initial=0) < 2:
        raise ValueError(
            f"a split in time needs an episode of at least 2 rows, but {len(counts)} have 1 each: "
            "take rows more densely"
        )
    order = np.argsort(index, kind="stable")
    place = np.empty(len(index), np.int64)
    place[order] = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place >= (counts - counts // 2)[index]


@dataclass(frozen=True)
class LinearMap:
    """prediction = (x - x_mean) / x_scale @ weights + y_mean."""

    x_mean: np.ndarray
    x_scale: np.ndarray
    weights: np.ndarray
    y_mean: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.x_mean) / self.x_scale @ self.weights + self.y_mean


def fit_ridge(x: np.ndarray, y: np.ndarray, ridges: tuple[float, ...] = RIDGES) -> list[LinearMap]:
    """One map per ridge from a single decomposition; features are standardised."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    scale = x.std(0)
    scale = np.where(scale > 0, scale, 1.0)  # a constant feature stays, with weight 0
    normal = (x - x_mean) / scale
    try:
        u, s, vt = scipy.linalg.svd(normal, full_matrices=False)
    except scipy.linalg.LinAlgError:  # the fast driver may not converge, on one-hot codes as well
        u, s, vt = scipy.linalg.svd(normal, full_matrices=False, lapack_driver="gesvd")
    unit = float((s**2).mean()) or 1.0
    projected = u.T @ (y - y_mean)
    return [
        LinearMap(x_mean, scale, vt.T @ ((s / (s**2 + r * unit))[:, None] * projected), y_mean)
        for r in ridges
    ]


def check_rows(
    features: np.ndarray, targets: np.ndarray, episode: np.ndarray, name: str = "actions"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 (N, D), float64 (N, A) and (N,), or an error that names what is wrong; `name` is that
    of the targets."""
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    episode = np.asarray(episode)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or episode.shape != (len(x),):
        raise ValueError(
            f"need features (N, D), {name} (N, A) and episode (N,), got "
            f"{x.shape}, {y.shape}, {episode.shape}"
        )
    for what, value in (("features", x), (name, y)):
        if not np.isfinite(value).all():
            raise ValueError(f"{what} hold non-finite values: drop those rows first")
    return x, y, episode


def linear_probe(
    features: np.ndarray,
    actions: np.ndarray,
    episode: np.ndarray,
    *,
    seed: int,
    resamples: int = 1000,
) -> dict[str, Any]:
    """R^2 per action dimension on held-out episodes, with bootstrap intervals over them.

    `r2` of a dimension that never changes in the test is None; `r2_mean` averages the others. The
    intervals resample test episodes around the fixed test mean and the fixed probe.
    """
    x, y, episode = check_rows(features, actions, episode)
    test = split_episodes(episode, seed=seed)
    train = ~test
    probe = fit_probe(x[train], y[train], episode[train], seed=seed)
    scores = r2_report(probe(x[test]), y[test], episode[test], seed=seed, resamples=resamples)
    return scores | {
        "ridge": list(probe.ridges),
        "features": x.shape[1],
        "train_rows": int(train.sum()),
        "train_episodes": len(np.unique(episode[train])),
    }


@dataclass(frozen=True)
class Probe:
    """A linear map per action dimension, each with its own ridge."""

    maps: tuple[LinearMap, ...]
    ridges: tuple[float, ...]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.stack([one(x)[:, dim] for dim, one in enumerate(self.maps)], 1)


def fit_probe(x: np.ndarray, y: np.ndarray, episode: np.ndarray, *, seed: int) -> Probe:
    """A ridge regression whose ridges are chosen on part of the episodes."""
    return fit_probe_by_folds(x, y, [held_episodes(episode, seed=seed)])


def held_episodes(episode: np.ndarray, *, seed: int) -> np.ndarray:
    """Bool (N,): the training rows that a probe's settings are chosen on, whole episodes."""
    if len(np.unique(episode)) < 2:
        raise ValueError("the probe needs at least 3 episodes: train, validation and test")
    return split_episodes(episode, seed=seed + 1)


def fit_probe_by_folds(x: np.ndarray, y: np.ndarray, folds: Sequence[np.ndarray]) -> Probe:
    """A ridge regression whose ridges are chosen on the rows that each bool mask (N,) holds out."""
    errors = sum(
        np.array([((one(x[held]) - y[held]) ** 2).sum(0) for one in fit_ridge(x[~held], y[~held])])
        for held in folds
    )
    # Each dimension picks its own: one that cannot be predicted must not shrink the others.
    best = errors.argmin(0)
    maps = fit_ridge(x, y)
    return Probe(tuple(maps[r] for r in best), tuple(RIDGES[r] for r in best))


def r2_report(
    prediction: np.ndarray,
    actual: np.ndarray,
    episode: np.ndarray,
    *,
    seed: int,
    resamples: int = 1000,
) -> dict[str, Any]:
    """R^2 per dimension and their mean, with intervals over episodes.

    A dimension that never changes has no R^2 (None) and no part in the mean.
    """
    residual = (prediction - actual) ** 2
    total = (actual - actual.mean(0)) ** 2
    options = dict(seed=seed, resamples=resamples)
    moving = total.any(axis=0)
    r2: list[float | None] = []
    intervals: list[list[float] | None] = []
    for dim in range(actual.shape[1]):
        if not moving[dim]:
            r2.append(None)
            intervals.append(None)
            continue
        ratio = bootstrap_ratio(residual[:, dim], total[:, dim], episode, **options)
        r2.append(1 - ratio.estimate)
        intervals.append([1 - ratio.high, 1 - ratio.low])
    mean = mean_interval = None
    if moving.any():
        mean = float(np.mean([value for value in r2 if value is not None]))
        # Each dimension's share of its own total: their mean is that of the ratios.
        scaled = (residual[:, moving] / total[:, moving].sum(0)).mean(1)
        weight = (total[:, moving] / total[:, moving].sum(0)).mean(1)
        ratio = bootstrap_ratio(scaled, weight, episode, **options)
        mean_interval = [1 - ratio.high, 1 - ratio.low]
    return {
        "r2": r2,
        "r2_interval": intervals,
        "r2_mean": mean,
        "r2_mean_interval": mean_interval,
        "confidence": 0.95,
        "test_rows": len(actual),
        "test_episodes": len(np.unique(episode)),
    }


def probe_latent_actions(
    latent_action: np.ndarray,
    actions: np.ndarray,
    episode: np.ndarray,
    *,
    seed: int,
    first_frames: np.ndarray | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """The probe of the latent action beside its controls (`feature_sets`), all on one split."""
    sets = feature_sets(latent_action, seed=seed, first_frames=first_frames, extra=extra)
    return {
        name: linear_probe(value, actions, episode, seed=seed, **options)
        for name, value in sets.items()
    }


def feature_sets(
    latent_action: np.ndarray,
    *,
    seed: int,
    first_frames: np.ndarray | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """What a probe may see, by name: the latent action (one-hot codes, or a continuous latent) and
    its controls, each (N, D).

    `shuffled_latent_action`: the same in random order (should be about 0);
    `first_frame`: what the scene alone tells; `first_frame_and_latent_action` minus `first_frame`
    is what the latent action adds. `extra` holds more feature sets (N, D), such as the latent
    before the bottleneck.
    """
    sets: dict[str, np.ndarray] = {
        "latent_action": latent_action,
        "shuffled_latent_action": np.random.default_rng(seed).permutation(latent_action),
    }
    if first_frames is not None:
        scene = pooled_frames(first_frames)
        sets["first_frame"] = scene
        sets["first_frame_and_latent_action"] = np.concatenate([scene, latent_action], 1)
    for name, value in (extra or {}).items():
        if name in sets:
            raise ValueError(f"extra feature set {name!r} has the name of a built-in one")
        sets[name] = np.asarray(value)
    return sets
