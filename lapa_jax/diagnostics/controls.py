"""Codes that nobody learnt, to set a quantizer's beside: random ones, and k-means of the change.

They are latent actions in form, int (N, L), so that every other diagnostic takes them. A quantizer
should beat the motion codes. scikit-learn is imported where it is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lapa_jax.diagnostics.codebook import codebook_report
from lapa_jax.diagnostics.probes import pooled_frames, split_episodes
from lapa_jax.diagnostics.threads import one_thread


def random_codes(count: int, code_length: int, codebook_size: int, *, seed: int) -> np.ndarray:
    """Codes that are about nothing: uniform int64 (count, code_length) in [0, codebook_size)."""
    return np.random.default_rng(seed).integers(0, codebook_size, (count, code_length))


@dataclass(frozen=True)
class MotionCodes:
    """The nearest of K mean changes between two frames: a quantizer of one slot, not learnt."""

    centers: np.ndarray  # (K, size * size * C)
    size: int

    def __call__(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """int64 (N, 1) for frames (N, H, W, C)."""
        change = _pooled_change(first, last, self.size)
        distance = np.square(self.centers).sum(1) - 2.0 * change @ self.centers.T
        return distance.argmin(1)[:, None]


@one_thread()
def fit_motion_codes(
    first: np.ndarray,
    last: np.ndarray,
    episode: np.ndarray,
    codebook_size: int,
    *,
    seed: int,
    size: int = 8,
) -> MotionCodes:
    """k-means of the pooled difference of the frames, on the training episodes of the probes.

    Fewer distinct differences than `codebook_size` give as many codes as there are. To compare two
    views, fit in one and code both: k-means numbers its clusters at will.
    """
    from sklearn.cluster import KMeans

    change = _pooled_change(first, last, size)
    change = change[~split_episodes(episode, seed=seed)]
    clusters = min(codebook_size, len(np.unique(change, axis=0)))
    found = KMeans(clusters, n_init=4, random_state=seed).fit(change)
    return MotionCodes(found.cluster_centers_, size)


def controls_table(
    codes: Mapping[str, np.ndarray],
    codebook_size: int,
    *,
    efficiency: Mapping[str, dict[str, Any]],
    scene: Mapping[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """One row per feature set of `efficiency` and `scene`, what `label_efficiency` and
    `scene_probe` gave: code use, R² at all labels, and how well it tells the episode.

    `codes` holds the int (N, L) codes of those sets that are discrete. What a set has no number of
    is None: the perplexity of a continuous latent, R² without true actions (an empty `efficiency`).
    """
    table = {}
    for name in dict.fromkeys([*codes, *efficiency, *scene]):
        row: dict[str, Any] = dict.fromkeys(("perplexity", "joint_perplexity"))
        if name in codes:
            health = codebook_report(codes[name], codebook_size)
            row = {"perplexity": health["mean_perplexity"]}
            row["joint_perplexity"] = health["joint_perplexity"]
        for kind in ("linear", "mlp"):
            found = efficiency[name][kind]["all"] if name in efficiency else {}
            row[f"r2_{kind}"] = found.get("r2_mean")
            row[f"r2_{kind}_interval"] = found.get("r2_mean_interval")
        told = scene.get(name, {})
        row["scene_accuracy"] = told.get("accuracy")
        row["scene_accuracy_interval"] = told.get("accuracy_interval")
        row["scene_chance"] = told.get("chance")
        table[name] = row
    return table


def _pooled_change(first: np.ndarray, last: np.ndarray, size: int) -> np.ndarray:
    first, last = np.asarray(first), np.asarray(last)
    if first.shape != last.shape:
        raise ValueError(f"first and last must have one shape, got {first.shape}, {last.shape}")
    return pooled_frames(last, size) - pooled_frames(first, size)
