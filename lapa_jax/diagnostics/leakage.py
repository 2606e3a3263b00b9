"""Whether a latent action is about the scene rather than about the motion in it.

Rows must be in order of time within each episode. scikit-learn is imported where it is used.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from lapa_jax.diagnostics.code_probes import code_report
from lapa_jax.diagnostics.networks import standardise
from lapa_jax.diagnostics.probes import check_rows, pooled_frames, split_in_time
from lapa_jax.diagnostics.statistics import bootstrap_ratio
from lapa_jax.diagnostics.threads import one_thread


def code_given_scene(
    z: np.ndarray, first_frames: np.ndarray, episode: np.ndarray, codebook_size: int, *, seed: int
) -> dict[str, Any]:
    """H(z | first frame) from above: `bits` of a `code_report` by logistic regression on the pooled
    first frame, in `other_episodes` (a rule that holds in every scene; None for fewer than 3) and
    `later_in_episode` (the scene is known, and so is what was done in it before; None without an
    episode of 3 rows).

    Where either is near 0 the code is a function of the scene; where both are near
    `marginal_bits` the scene tells nothing of it, as far as a linear map of the pooled frame sees.
    """
    scene = pooled_frames(first_frames)
    _, counts = np.unique(episode, return_counts=True)
    report = {}
    for name, possible in (
        ("other_episodes", len(counts) >= 3),
        ("later_in_episode", counts.max() >= 3),
    ):
        report[name] = None
        if possible:
            within = name == "later_in_episode"
            report[name] = code_report(
                scene, z, episode, codebook_size, kind="logistic", seed=seed, within_episodes=within
            )
    return report


@one_thread()
def scene_probe(
    features: Mapping[str, np.ndarray], episode: np.ndarray, *, seed: int, max_episodes: int = 50
) -> dict[str, dict[str, Any]]:
    """How often a logistic regression tells which of E episodes a row is from, per feature set
    (N, D): it learns from the first half of each and is tested on the later.

    At most `max_episodes` of those with 2 rows or more are drawn. `accuracy` is the mean over
    episodes, so that any constant guess has `chance` = 1/E; its 95 % interval is an episode
    bootstrap. Motion that lasts through an episode tells it as well as its looks: read a score
    beside that of the first frame and of motion codes (`controls`).
    """
    from sklearn.linear_model import LogisticRegression

    names, index, counts = np.unique(episode, return_inverse=True, return_counts=True)
    usable = np.flatnonzero(counts >= 2)
    if len(usable) < 2 or max_episodes < 2:
        raise ValueError(
            f"telling episodes apart takes at least 2 with 2 rows or more, got {len(usable)} of "
            f"{len(names)} and max_episodes={max_episodes}: take rows more densely"
        )
    drawn = np.random.default_rng(seed).permutation(usable)[:max_episodes]
    chosen = np.isin(index, drawn)
    rows = index[chosen]
    test = split_in_time(rows)
    report = {}
    for name, values in features.items():
        x, _, _ = check_rows(values, index[:, None], episode, "episode numbers")
        train, later = standardise(x[chosen][~test], x[chosen][test])
        # Episodes of more rows must not be guessed more often.
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        with warnings.catch_warnings():
            # Many episodes of few rows each look like numbers to scikit-learn; they are names.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            hits = model.fit(train, rows[~test]).predict(later) == rows[test]
        share = 1.0 / np.bincount(rows[test])[rows[test]]
        found = bootstrap_ratio(hits * share, share, rows[test], seed=seed)
        report[name] = {
            "accuracy": found.estimate,
            "accuracy_interval": [found.low, found.high],
            "chance": 1.0 / len(drawn),
            "episodes": len(drawn),
            "train_rows": int((~test).sum()),
            "test_rows": int(test.sum()),
        }
    return report
