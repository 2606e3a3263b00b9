"""What a policy's token accuracy is to be compared with: tokens guessed without a policy.

Each example is guessed by what was fitted on other episodes, a quarter of the episodes at a time,
so that all examples count: the same that the policy is asked. scikit-learn is imported where it is
used.
"""

from functools import partial
from typing import Any

import numpy as np

from lapa_jax.diagnostics.code_probes import logistic_candidates, probabilities
from lapa_jax.diagnostics.codebook import check_codes
from lapa_jax.diagnostics.probes import held_episodes, pooled_frames
from lapa_jax.diagnostics.statistics import means
from lapa_jax.diagnostics.threads import one_thread

FOLDS = 4
MIN_EPISODES = 4  # three to fit and choose with where one is asked


@one_thread()
def token_controls(
    tokens: np.ndarray,
    episode: np.ndarray,
    frames: np.ndarray | None,
    vocab: int,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """{majority_accuracy, majority_sequence_accuracy} of int tokens (N, n) below `vocab`, slot by
    slot the most common one of other episodes, and with frames (N, H, W, 3) {first_frame_accuracy,
    first_frame_sequence_accuracy}, by a logistic regression on the pooled frame; each with its
    interval over episodes. Empty for fewer than MIN_EPISODES."""
    tokens = check_codes(tokens, vocab)
    names, index = np.unique(episode, return_inverse=True)
    if len(names) < MIN_EPISODES:
        return {}
    scene = np.zeros((len(tokens), 1)) if frames is None else pooled_frames(frames)
    fold = np.random.default_rng(seed).permutation(len(names))[index] % FOLDS
    guessed = np.zeros((2, *tokens.shape), np.int64)  # by the majority, by the frame
    candidates = partial(logistic_candidates, codebook_size=vocab)
    for number in range(FOLDS):
        test = fold == number
        held = held_episodes(episode[~test], seed=seed)
        for slot in range(tokens.shape[1]):
            known = tokens[~test, slot]
            found = probabilities(candidates, scene[~test], known, held, scene[test])
            guessed[:, test, slot] = found.argmax(2)
    report: dict[str, Any] = {}
    for name, guess in zip(("majority", "first_frame"), guessed, strict=True):
        if name == "first_frame" and frames is None:
            continue
        right = guess == tokens
        values = {f"{name}_accuracy": right.mean(1), f"{name}_sequence_accuracy": right.all(1)}
        report |= means(values, episode, seed=seed)
    return report
