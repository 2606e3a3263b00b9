"""How far imagined frames stay near the true ones: step by step, and as a distribution.

Intervals resample episodes. Shape suffixes: N episodes, K steps of a rollout, M samples, D features
of one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lapa_jax.diagnostics.reconstruction import psnr
from lapa_jax.diagnostics.statistics import bootstrap_ratio, means, relative

SPLITS = 50


def by_step(
    error_NK: np.ndarray, forced_NK: np.ndarray, copy_NK: np.ndarray, *, seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each step, from mean squared errors float (N, K) against the true frame: of what
    was imagined from the first frame alone, of what was imagined one step on from the true frame
    before (teacher-forced), and of the first frame itself.

    `mse` and `psnr` (dB, of the mean error); `skill`: 1 − mse / that of copying the first frame, of
    both; `times_forced`: mse / the teacher-forced one, so 1 where nothing adds up over the steps.
    NAME_interval is of 95 % by resampling episodes; None of one episode, and of ratios where
    resamples may have nothing below. A ratio over nothing is None.
    """
    shapes = {error_NK.shape, forced_NK.shape, copy_NK.shape}
    if len(shapes) != 1 or error_NK.ndim != 2 or not error_NK.size:
        raise ValueError(f"errors must be of one shape (episodes, steps), got {sorted(shapes)}")
    episode = np.arange(len(error_NK))
    rows = []
    for k in range(error_NK.shape[1]):
        error, forced, copy = error_NK[:, k], forced_NK[:, k], copy_NK[:, k]
        row: dict[str, Any] = {"step": k + 1, "mse_copy": float(copy.mean())}
        for prefix, values in (("", error), ("forced_", forced)):
            mean = bootstrap_ratio(values, np.ones(len(values)), episode, seed=seed)
            row |= {
                f"{prefix}mse": mean.estimate,
                f"{prefix}mse_interval": [mean.low, mean.high],
                f"{prefix}psnr": psnr(mean.estimate),
                f"{prefix}psnr_interval": [psnr(mean.high), psnr(mean.low)],
            }
            row |= _skill(values, copy, episode, seed=seed, prefix=prefix)
        row["times_forced"], row["times_forced_interval"] = relative(
            error, forced, episode, seed=seed
        )
        rows.append(_without_intervals(row) if len(episode) == 1 else row)
    return rows


def beside(
    error_NK: np.ndarray, other_NK: np.ndarray, copy_NK: np.ndarray, *, seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each step of two models that imagined the same (N, K): `skill` of the other, and
    `above`, the skill of the first less that, with 95 % by resampling episodes, both in each."""
    episode, rows = np.arange(len(error_NK)), []
    for k in range(error_NK.shape[1]):
        error, other, copy = error_NK[:, k], other_NK[:, k], copy_NK[:, k]
        row: dict[str, Any] = {"step": k + 1, "mse": float(other.mean())}
        row |= _skill(other, copy, episode, seed=seed)
        row["above"], row["above_interval"] = relative(other - error, copy, episode, seed=seed)
        rows.append(_without_intervals(row) if len(episode) == 1 else row)
    return rows


def _skill(
    error_N: np.ndarray, copy_N: np.ndarray, episode_N: np.ndarray, *, seed: int, prefix: str = ""
) -> dict[str, Any]:
    """1 − the ratio of mean errors, and its interval."""
    ratio, ends = relative(error_N, copy_N, episode_N, seed=seed)
    return {
        f"{prefix}skill": None if ratio is None else 1.0 - ratio,
        f"{prefix}skill_interval": ends and [1.0 - ends[1], 1.0 - ends[0]],
    }


def _without_intervals(row: dict[str, Any]) -> dict[str, Any]:
    """Of one episode there is none."""
    return row | {name: None for name in row if name.endswith("_interval")}


def steps_above_copying(rows: list[dict[str, Any]]) -> int | None:
    """Up to which step of `by_step` the interval of skill lies above 0 without a break; None where
    the first step has no interval."""
    if rows[0]["skill_interval"] is None:
        return None
    above = [bool(row["skill_interval"]) and row["skill_interval"][0] > 0.0 for row in rows]
    return above.index(False) if False in above else len(above)


def executed_by_step(
    error_NK: np.ndarray, copy_NK: np.ndarray, known_NK: np.ndarray, *, seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each step that any of N episodes reached (`known`, bool), over those that did, from
    mean squared errors float (N, K) against what an execution looked like: of the imagined frames,
    and of the first frame.

    `n`, `mse`, `mse_copy`, `skill`: 1 − their ratio. NAME_interval is of 95 % by resampling
    episodes; None of one episode, and of ratios where resamples may have nothing below.
    """
    rows = []
    for k in range(known_NK.shape[1]):
        at = np.flatnonzero(known_NK[:, k])
        if not len(at):
            break
        error, copy = error_NK[at, k], copy_NK[at, k]
        row: dict[str, Any] = {"step": k + 1, "n": len(at)}
        row |= means({"mse": error, "mse_copy": copy}, at, seed=seed)
        row |= _skill(error, copy, at, seed=seed)
        rows.append(_without_intervals(row) if len(at) == 1 else row)
    return rows


def action_r2(
    true_NKA: np.ndarray, read_NKA: np.ndarray, known_NK: np.ndarray, *, seed: int = 0
) -> dict[str, Any]:
    """`action_r2`: 1 − the squared error of actions (N, K, A) by that of the mean true action, over
    the windows that are `known`, bool, each dimension in units of its own spread; and its interval
    of 95 % by resampling episodes. 0 of whoever says the mean action, 1 of a perfect reading; None
    where no true action differs from another."""
    episode = np.nonzero(known_NK)[0]
    true, read = (x[known_NK].astype(np.float64) for x in (true_NKA, read_NKA))
    spread = true.std(0) if len(true) else np.zeros(true.shape[1])
    moves = spread > 1e-9
    if not moves.any():
        return {"action_r2": None, "action_r2_interval": None}
    true, read = (x[:, moves] / spread[moves] for x in (true, read))
    error, below = ((true - x) ** 2 for x in (read, true.mean(0)))
    ratio, ends = relative(error.sum(1), below.sum(1), episode, seed=seed)
    interval = ends and len(np.unique(episode)) > 1
    return {
        "action_r2": 1.0 - ratio,
        "action_r2_interval": [1.0 - ends[1], 1.0 - ends[0]] if interval else None,
    }


def frechet_distance(x_MD: np.ndarray, y_MD: np.ndarray) -> float:
    """Squared Fréchet distance of two normals fitted to samples: |m_x − m_y|² + tr(C_x + C_y −
    2 (C_x C_y)^½), Dowson and Landau 1982, eq. 4, as Heusel et al. 2017 use it.

    The trace of the root is the sum of the roots of the eigenvalues of C_x^½ C_y C_x^½, which is
    symmetric: no complex root of a rounded matrix. Raises ValueError for fewer samples than D + 1,
    whose covariance has no inverse.
    """
    x, y = np.asarray(x_MD, np.float64), np.asarray(y_MD, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"samples must be (M, D) of one D, got {x.shape} and {y.shape}")
    if min(len(x), len(y)) <= x.shape[1]:
        raise ValueError(
            f"{min(len(x), len(y))} samples of {x.shape[1]} features: the Fréchet distance takes "
            "more samples than features"
        )
    of_x, of_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    values, vectors = np.linalg.eigh(of_x)
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    both = np.sqrt(np.linalg.eigvalsh(root @ of_y @ root).clip(0.0)).sum()
    apart = np.square(x.mean(0) - y.mean(0)).sum()
    return float(max(0.0, apart + np.trace(of_x) + np.trace(of_y) - 2.0 * both))


def frechet_report(
    features: Mapping[str, np.ndarray], *, seed: int = 0, splits: int = SPLITS
) -> dict[str, Any]:
    """Fréchet distances from true clips, of features (N, K, D) by name, "true" among them.

    The distance grows as samples get fewer, so all are measured alike: episodes are split in two
    halves at random, and the true steps of one half are compared with the NAME's of the other.
    "true" is then what two sets of true clips are apart, below which nothing can be told. Each has
    the mean over splits, `distance`, and the middle 95 % of them, `range`, which is no interval of
    an estimate: splits share episodes. `above_true` and its range are of the difference on the same
    split. `distances` is None where a half has no more samples than D.
    """
    N, K, D = features["true"].shape
    half = N // 2
    report: dict[str, Any] = {"features": D, "samples": half * K, "splits": splits}
    if half * K <= D:
        return report | {"distances": None}
    rng, found = np.random.default_rng(seed), {name: [] for name in features}
    for _ in range(splits):
        order = rng.permutation(N)
        true = features["true"][order[:half]].reshape(-1, D)
        for name, values in features.items():
            other = values[order[half : 2 * half]].reshape(-1, D)
            found[name].append(frechet_distance(true, other))
    floor, distances = np.array(found["true"]), {}
    for name, values in found.items():
        above = np.array(values) - floor
        distances[name] = {
            "distance": float(np.mean(values)),
            "range": np.quantile(values, [0.025, 0.975]).tolist(),
            "above_true": float(above.mean()),
            "above_true_range": np.quantile(above, [0.025, 0.975]).tolist(),
        }
    return report | {"distances": distances}
