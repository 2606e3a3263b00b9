"""How many bits latent actions and true actions share, without a probe that has to find them.

Estimates by nearest neighbours: of continuous latents Kraskov, Stögbauer and Grassberger 2004
(KSG, estimator 1), of codes Ross 2014. scikit-learn has both of single numbers only; these are of
vectors. Distances are the largest over dimensions.
"""

from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

from lapa_jax.diagnostics.codebook import joint_counts
from lapa_jax.diagnostics.embodiment import shuffle_within
from lapa_jax.diagnostics.networks import standardise
from lapa_jax.diagnostics.sample import Sample
from lapa_jax.diagnostics.statistics import means

NEIGHBOURS = 5
PAIRS = 4000
DIMENSIONS = 8  # of the latent's principal components: in many, all neighbours are far
KEPT = 0.99  # of its variance, where fewer components have that


def of_sample(sample: Sample) -> dict[str, Any]:
    """{latent: {bits, bits_interval, chance, dimensions}, codes: the same where there are codes} of
    the pairs whose actions are known.

    `chance`: the same with z exchanged among the pairs of each episode, which is what the episode
    alone tells. Intervals resample episodes around the same neighbours.
    """
    rows = sample.spread_rows(PAIRS)
    (actions,) = standardise(np.asarray(sample.actions[rows], np.float64))
    episode = sample.episode[rows]
    other = shuffle_within(episode, seed=0)
    latents = principal(sample.flat_latents[rows])
    report = {
        "latent": _report(ksg(latents, actions), ksg(latents[other], actions), episode)
        | {"dimensions": latents.shape[1]}
    }
    if sample.z is not None:
        joint = joint_counts(sample.z[rows], sample.codebook_size)[2]
        bits = (ross(code, actions) for code in (joint, joint[other]))
        report["codes"] = _report(*bits, episode)
    return report


def _report(bits: np.ndarray, exchanged: np.ndarray, episode: np.ndarray) -> dict[str, Any]:
    return means({"bits": bits}, episode, seed=0) | {"chance": float(exchanged.mean())}


def principal(x: np.ndarray) -> np.ndarray:
    """The first principal components of standardised x (N, D): (N, at most DIMENSIONS), those that
    have KEPT of the variance, in one unit."""
    (x,) = standardise(np.asarray(x, np.float64))
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    share = np.cumsum(np.square(s)) / max(np.square(s).sum(), 1e-300)
    count = min(int(np.searchsorted(share, KEPT)) + 1, DIMENSIONS, len(s))
    return (u * s)[:, :count]


def ksg(x: np.ndarray, y: np.ndarray, *, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """The terms (N,) in bits, whose mean estimates the information that x (N, D) and y (N, E)
    share."""
    x, y = (_apart(v, seed) for seed, v in enumerate((x, y)))
    k = min(neighbours, len(x) - 1)
    both = np.concatenate([x, y], axis=1)
    distance, _ = cKDTree(both).query(both, k + 1, p=np.inf)
    within = [_within(v, v, distance[:, -1]) for v in (x, y)]
    nats = digamma(k) + digamma(len(x)) - sum(digamma(np.maximum(n, 1)) for n in within)
    return nats / np.log(2)


def ross(code: np.ndarray, y: np.ndarray, *, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """As `ksg`, of codes int (N,) and y (N, E). Codes of no more than `neighbours` rows are taken
    for one, which cannot add information."""
    y = _apart(y, seed=1)
    _, code, counts = np.unique(code, return_inverse=True, return_counts=True)
    code = np.where(counts[code] > neighbours, code, -1)
    tree, nats = cKDTree(y), np.zeros(len(y))
    for one in np.unique(code):
        mine = y[code == one]
        k = min(neighbours, len(mine) - 1)
        if k < 1:
            continue  # a single row of a rare code: nothing is known of it
        distance, _ = cKDTree(mine).query(mine, k + 1, p=np.inf)
        near = _within(mine, tree, distance[:, -1])
        terms = digamma(len(y)) + digamma(k) - digamma(len(mine)) - digamma(np.maximum(near, 1))
        nats[code == one] = terms
    return nats / np.log(2)


def _within(points: np.ndarray, of: np.ndarray | cKDTree, distance: np.ndarray) -> np.ndarray:
    """How many are nearer than `distance` to each point; itself is one of them."""
    tree = of if isinstance(of, cKDTree) else cKDTree(of)
    radius = np.nextafter(distance, 0)
    return tree.query_ball_point(points, radius, p=np.inf, return_length=True)


def _apart(x: np.ndarray, seed: int) -> np.ndarray:
    """x with noise far below its spread, so that equal values (a gripper's) are no ties."""
    x = np.asarray(x, np.float64)
    noise = np.random.default_rng(seed).normal(size=x.shape)
    return x + 1e-10 * np.maximum(np.abs(x).mean(0), 1e-300) * noise
