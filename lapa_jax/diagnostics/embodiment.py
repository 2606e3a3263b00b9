"""Whether one motion seen in two views (another embodiment, another camera) is one latent action.

Row i of both views is the same window of the same state trajectory. NumPy only.
"""

from typing import Any

import numpy as np

from lapa_jax.diagnostics.codebook import check_codes
from lapa_jax.diagnostics.networks import standardise
from lapa_jax.diagnostics.probes import fit_probe, r2_report, split_episodes
from lapa_jax.diagnostics.statistics import bootstrap_ratio


def shuffle_within(episode: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of rows that exchanges the windows of each episode among themselves."""
    rng = np.random.default_rng(seed)
    keys = rng.random(len(episode))
    places = np.argsort(episode, kind="stable")
    drawn = np.lexsort((keys, episode))
    order = np.empty(len(episode), np.int64)
    order[places] = drawn
    return order


def code_agreement(
    one: np.ndarray, other: np.ndarray, episode: np.ndarray, codebook_size: int, *, seed: int
) -> dict[str, Any]:
    """Share of windows with the same codes in both views, and of the null: the other view's codes
    exchanged within the episode. Above the null, agreement is about the motion; the null itself is
    high where a code tells the episode (the scene) or few codes are used."""
    one, other = check_codes(one, codebook_size), check_codes(other, codebook_size)
    if one.shape != other.shape:
        raise ValueError(f"the views have codes of shapes {one.shape} and {other.shape}")
    ones = np.ones(len(one))

    def share(other: np.ndarray) -> dict[str, float]:
        same = (one == other).all(axis=1)
        return bootstrap_ratio(same, ones, episode, seed=seed).as_dict()

    return {"agreement": share(other), "null": share(other[shuffle_within(episode, seed)])}


def retrieval(one: np.ndarray, other: np.ndarray, episode: np.ndarray, *, seed: int) -> dict:
    """R@1: how often the nearest latent of the other view is the same window; `chance` is 1/N.

    Latents (N, D) are standardised per view, so that a constant offset between views costs
    nothing.
    """
    (one,), (other,) = (standardise(np.asarray(x, np.float64)) for x in (one, other))
    hits = np.empty(len(one))
    for start in range(0, len(one), 1024):
        block = one[start : start + 1024]
        distance = np.square(other).sum(1) - 2.0 * block @ other.T
        stop = start + len(block)
        hits[start:stop] = distance.argmin(1) == np.arange(start, stop)
    found = bootstrap_ratio(hits, np.ones(len(hits)), episode, seed=seed)
    return found.as_dict() | {"chance": 1.0 / len(one)}


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """Linear centred kernel alignment of two sets of latents (N, D), in [0, 1] (Kornblith et al.
    2019, section 3)."""
    x, y = (np.asarray(v, np.float64) - np.mean(v, axis=0) for v in (one, other))
    cross = np.square(x.T @ y).sum()
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if scale == 0.0:
        raise ValueError("the latents of a view never change: their alignment is not defined")
    return float(cross / scale)


def cross_view_probe(
    one: np.ndarray,
    other: np.ndarray,
    actions: np.ndarray,
    episode: np.ndarray,
    *,
    seed: int,
) -> dict[str, Any]:
    """R² of a linear probe from latent actions (N, D) to actions that is fitted in the first view
    and tested in the other, on other episodes; beside the same probe tested in its own view."""
    test = split_episodes(episode, seed=seed)
    probe = fit_probe(one[~test], actions[~test], episode[~test], seed=seed)
    return {
        name: r2_report(probe(features[test]), actions[test], episode[test], seed=seed)
        for name, features in (("same_view", one), ("other_view", other))
    }
