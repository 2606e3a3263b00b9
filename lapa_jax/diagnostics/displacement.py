"""Whether a larger motion has a larger latent: displacement calibration (AC-LAM).

A latent's size is its distance from the anchor, the mean latent of frames with themselves; where
the model cannot be asked, its norm.
"""

from typing import Any

import numpy as np

from lapa_jax.diagnostics.reconstruction import unit_images
from lapa_jax.diagnostics.sample import Sample, flat, in_batches
from lapa_jax.diagnostics.statistics import rank_correlation

PAIRS = 2000
ANCHORS = 256


def of_sample(sample: Sample) -> dict[str, Any]:
    """{frame_change: {correlation, correlation_interval}, motion: the same where actions are
    known}: Spearman's ρ of ‖z‖, with the root mean square change of the pixels and with the length
    of the true action, each of its dimensions in units of its root mean square."""
    rows = sample.spread_rows(PAIRS)
    anchor = 0.0
    if sample.read is not None:
        still = sample.first[sample.spread_rows(ANCHORS)]
        anchor = flat(in_batches(sample.read, still, still)[1]).mean(0)
    size = np.linalg.norm(sample.flat_latents[rows] - anchor, axis=1)
    change = [
        np.sqrt(np.square(unit_images(a, "first") - unit_images(b, "last")).mean((1, 2, 3)))
        for a, b in (
            (sample.first[part], sample.last[part])
            for part in np.array_split(rows, -(-len(rows) // 256))
        )
    ]
    report = {"frame_change": _correlated(np.concatenate(change), size, sample.episode[rows])}
    if sample.actions is not None:
        actions = np.asarray(sample.actions[rows], np.float64)
        unit = np.sqrt(np.square(actions).mean(0))
        length = np.linalg.norm(actions / np.where(unit > 0, unit, 1.0), axis=1)
        report["motion"] = _correlated(length, size, sample.episode[rows])
    return report


def _correlated(x: np.ndarray, y: np.ndarray, episode: np.ndarray) -> dict[str, Any]:
    value, interval = rank_correlation(x, y, episode)
    return {"correlation": value, "correlation_interval": interval}
