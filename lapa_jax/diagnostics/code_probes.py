"""The other way round: how well the code can be told from something else, in bits.

A classifier per slot is fitted on some rows and scored on others. Its cross-entropy there is an
upper bound of H(z | input), up to the chance of the sample; what it lacks to `marginal_bits`, the
cross-entropy of the training shares of the codes on the same rows, is what the input explains.

Probabilities are smoothed as if the n training rows had one more, spread evenly over all K codes:
(n p + 1/K) / (n + 1). A code never seen in training costs log2(K (n + 1)) bits, not infinitely
many. scikit-learn is imported when a classifier is fitted.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from lapa_jax.diagnostics.codebook import check_codes
from lapa_jax.diagnostics.networks import class_trace, schedule, standardise
from lapa_jax.diagnostics.probes import (
    check_rows,
    held_episodes,
    split_episodes,
    split_in_time,
)
from lapa_jax.diagnostics.statistics import means
from lapa_jax.diagnostics.threads import one_thread

# Inverse penalties of the logistic regression; 0, the marginal, is always tried as well.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
MAX_ITERATIONS = 200

# (x, codes, x_eval) -> smoothed probabilities (M, K) of all K codes, setting by setting; the first
# are the marginal, the shares of the codes in training.
Candidates = Callable[[np.ndarray, np.ndarray, np.ndarray], Iterator[np.ndarray]]


def action_to_code(
    z: np.ndarray, actions: np.ndarray, episode: np.ndarray, codebook_size: int, *, seed: int
) -> dict[str, Any]:
    """How well the true action tells the code: {"logistic": report, "mlp": report} of
    `code_report`. `explained_bits` of a slot estimates from below the information they share."""
    return {
        kind: code_report(actions, z, episode, codebook_size, kind=kind, seed=seed)
        for kind in ("logistic", "mlp")
    }


@one_thread()
def code_report(
    features: np.ndarray,
    z: np.ndarray,
    episode: np.ndarray,
    codebook_size: int,
    *,
    kind: str,
    seed: int,
    within_episodes: bool = False,
) -> dict[str, Any]:
    """Held-out cross-entropy of the codes (N, L) given features (N, D), in bits per pair.

    `kind`: "logistic" or "mlp". The test rows are a quarter of the episodes or, with
    `within_episodes`, the later half of each; the setting of the classifier is chosen on training
    rows that are held out in the same way. `bits`, `marginal_bits` and their difference
    `explained_bits` are sums over slots: the first two bound joint entropies from above, the third
    counts again what slots share. `accuracy` and that of the most common training code,
    `modal_accuracy`, are means over slots; `slots` has all of them slot by slot. Intervals are
    95 %, by a bootstrap over the test episodes.
    """
    z = check_codes(z, codebook_size)
    x, _, episode = check_rows(features, z, episode, "z")
    kinds = {"logistic": logistic_candidates, "mlp": partial(network_candidates, seed=seed)}
    if kind not in kinds:
        raise ValueError(f"kind must be one of {sorted(kinds)}, got {kind!r}")
    if within_episodes:
        test = split_in_time(episode)
        held = split_in_time(episode[~test])
    else:
        test = split_episodes(episode, seed=seed)
        held = held_episodes(episode[~test], seed=seed)
    candidates = partial(kinds[kind], codebook_size=codebook_size)
    scores = [
        _score(probabilities(candidates, x[~test], slot[~test], held, x[test]), slot[test])
        for slot in z.T
    ]
    slots = [means(score, episode[test], seed=seed) for score in scores]
    total = {name: sum(score[name] for score in scores) for name in scores[0]}
    for name in ("accuracy", "modal_accuracy"):
        total[name] = total[name] / len(scores)
    return means(total, episode[test], seed=seed) | {
        "slots": slots,
        "train_rows": int((~test).sum()),
        "test_rows": int(test.sum()),
        "test_episodes": len(np.unique(episode[test])),
    }


def probabilities(
    candidates: Candidates, x: np.ndarray, code: np.ndarray, held: np.ndarray, x_test: np.ndarray
) -> np.ndarray:
    """Probabilities (2, M, K) of the test rows: by the marginal and by the best setting."""
    best = best_setting(candidates, x, code, held)
    fitted = list(islice(candidates(x, code, x_test), best + 1))
    return np.stack([fitted[0], fitted[best]])


def best_setting(candidates: Candidates, x: np.ndarray, code: np.ndarray, held: np.ndarray) -> int:
    """Which candidate, fitted on the other rows, says best what the held ones (bool (N,)) are."""
    best, lowest = 0, np.inf
    for number, tried in enumerate(candidates(x[~held], code[~held], x[held])):
        loss = -np.log2(tried[np.arange(held.sum()), code[held]]).mean()
        if loss < lowest:
            best, lowest = number, loss
        elif number == best + 2:
            break  # it overfits, and later settings cost the most
    return best


@dataclass(frozen=True)
class CodeClassifier:
    """scores (M, K) = (x - mean) / scale @ weights + bias, the log probabilities of all K codes up
    to a constant of a row; -inf of codes that were never seen."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / self.scale @ self.weights + self.bias


@one_thread()
def fit_classifier(
    x: np.ndarray, code: np.ndarray, held: np.ndarray, *, codebook_size: int
) -> CodeClassifier:
    """The best of `logistic_candidates` of features (N, D) and the codes of one slot (N,): chosen
    on the rows `held`, bool (N,), then fitted on all."""
    best = best_setting(partial(logistic_candidates, codebook_size=codebook_size), x, code, held)
    seen, labels = np.unique(code, return_inverse=True)
    scale = x.std(0)
    scale = np.where(scale > 0, scale, np.inf)
    weights = np.zeros((x.shape[1], codebook_size))
    bias = np.full(codebook_size, -np.inf)
    bias[seen] = np.log(np.bincount(labels) / len(labels))  # the marginal
    if best:
        (model,) = islice(_logistic_fits((x - x.mean(0)) / scale, labels), best - 1, best)
        # Of two codes it has the scores of the second alone.
        first = [np.zeros_like(model.coef_[0])] * (len(seen) == 2)
        weights[:, seen] = np.stack([*first, *model.coef_], axis=1)
        bias[seen] = [*[0.0] * len(first), *model.intercept_]
    return CodeClassifier(x.mean(0), scale, weights, bias)


def logistic_candidates(
    x: np.ndarray, code: np.ndarray, x_eval: np.ndarray, *, codebook_size: int
) -> Iterator[np.ndarray]:
    """The marginal, then a multinomial logistic regression of each of STRENGTHS."""
    seen, labels = np.unique(code, return_inverse=True)
    share = np.bincount(labels) / len(labels)
    yield _smooth(np.broadcast_to(share, (len(x_eval), len(seen))), seen, len(x), codebook_size)
    if len(seen) == 1:
        return
    x, x_eval = standardise(x, x_eval)
    for model in _logistic_fits(x, labels):
        yield _smooth(model.predict_proba(x_eval), seen, len(x), codebook_size)


def _logistic_fits(x: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
    """The regression of each of STRENGTHS: one object, fitted again for the next."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # Each starts from the one before, which is the fast way to the weakly penalised.
    model = LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS)
    for strength in STRENGTHS:
        with warnings.catch_warnings():
            # The cross-entropy of a fit that stopped early is a bound like any other, only less
            # tight; many codes from pixels would take minutes.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength).fit(x, labels)
        yield model


def network_candidates(
    x: np.ndarray, code: np.ndarray, x_eval: np.ndarray, *, codebook_size: int, seed: int
) -> Iterator[np.ndarray]:
    """The marginal, then a small network after more and more updates."""
    seen, labels = np.unique(code, return_inverse=True)
    if len(seen) == 1:
        found = np.ones((1, len(x_eval), 1))
    else:
        found = class_trace(x, labels, x_eval, schedule(len(x)), seed=seed)
    for one in found:
        yield _smooth(one, seen, len(x), codebook_size)


def _smooth(found: np.ndarray, seen: np.ndarray, rows: int, codebook_size: int) -> np.ndarray:
    """Probabilities of the seen codes (M, seen) as smoothed ones of all: (M, K)."""
    probability = np.zeros((len(found), codebook_size))
    probability[:, seen] = found
    return (rows * probability + 1.0 / codebook_size) / (rows + 1)


def _score(probability: np.ndarray, code: np.ndarray) -> dict[str, np.ndarray]:
    """Per test row, from the probabilities (2, M, K) of `probabilities`."""
    marginal, best = -np.log2(probability[:, np.arange(len(code)), code])
    modal_hit, hit = (probability.argmax(2) == code).astype(np.float64)
    return {
        "bits": best,
        "marginal_bits": marginal,
        "explained_bits": marginal - best,
        "accuracy": hit,
        "modal_accuracy": modal_hit,
    }
