"""How much of the camera's own motion a latent action holds (LA-Pose's probe).

NumPy only.
"""

from typing import Any

import numpy as np

from lapa_jax.diagnostics.probes import check_rows, fit_probe, r2_report, split_episodes
from lapa_jax.diagnostics.sample import Sample
from lapa_jax.diagnostics.statistics import bootstrap_ratio

STILL = 1e-6  # of the largest motion: what moves less has no direction


def of_sample(sample: Sample) -> dict[str, Any]:
    """The report on a sample whose camera motions are known."""
    latent_action, episode = sample.latent_action, sample.episode
    return pose_report(latent_action, sample.camera_motion, episode, seed=0)


def pose_report(
    latent_action: np.ndarray, camera_motion: np.ndarray, episode: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """A linear probe of latent actions (N, D) to motions (N, P) over the window, on episodes held
    out: R^2 per dimension and their mean, and the angle in degrees between true motions and those
    that are said, with intervals over episodes. `chance` of the angle: what the mean motion gives.
    """
    x, y, episode = check_rows(latent_action, camera_motion, episode, "camera motions")
    test = split_episodes(episode, seed=seed)
    said = fit_probe(x[~test], y[~test], episode[~test], seed=seed)(x[test])
    report = r2_report(said, y[test], episode[test], seed=seed)
    size = np.linalg.norm(y[test], axis=1)
    moving = size > STILL * size.max(initial=0.0)
    if not moving.any():
        return report
    true, of = y[test][moving], episode[test][moving]
    degrees = _degrees(said[moving], true)
    mean = bootstrap_ratio(degrees, np.ones_like(degrees), of, seed=seed)
    constant = np.broadcast_to(y[~test].mean(0), true.shape)
    return report | {
        "direction": {
            "degrees": mean.estimate,
            "degrees_interval": [mean.low, mean.high],
            "chance": float(_degrees(constant, true).mean()),
        }
    }


def _degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between rows; 90 where one of them is zero."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.where(norms > 0, norms, 1.0)
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
