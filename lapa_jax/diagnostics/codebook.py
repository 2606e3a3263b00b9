"""Health of the discrete code: usage, perplexity, dead codes, joint entropy, actions per code.

Inputs are latent actions z, int (N, L) with values in [0, codebook_size); outputs are plain dicts
and lists that go to JSON as they are. Entropies are plug-in estimates in bits.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def check_codes(z: np.ndarray, codebook_size: int) -> np.ndarray:
    """The codes as an int64 (N, L) array, or an error that names what is wrong."""
    z = np.asarray(z)
    if codebook_size < 1:
        raise ValueError(f"codebook_size must be at least 1, got {codebook_size}")
    if z.ndim != 2 or z.shape[0] == 0 or z.shape[1] == 0:
        raise ValueError(f"z must have shape (N, code_length) with N, L >= 1, got {z.shape}")
    if not np.issubdtype(z.dtype, np.integer):
        raise ValueError(f"z must be an integer array, got dtype {z.dtype}")
    low, high = int(z.min()), int(z.max())
    if low < 0 or high >= codebook_size:
        raise ValueError(
            f"z holds values in [{low}, {high}], expected [0, {codebook_size}): "
            "drop unlabelled rows (-1) first and check codebook_size"
        )
    return z.astype(np.int64)


def entropy_bits(counts: np.ndarray) -> float:
    """Plug-in entropy in bits of the distribution proportional to `counts`."""
    counts = np.asarray(counts, np.float64)
    total = counts.sum()
    if total <= 0 or (counts < 0).any():
        raise ValueError("counts must be non-negative with a positive sum")
    share = counts[counts > 0] / total
    # max: an only outcome gives -0.0
    return max(0.0, float(-(share * np.log2(share)).sum()))


def slot_histogram(z: np.ndarray, codebook_size: int) -> np.ndarray:
    """How often each slot holds each code: int64 (L, codebook_size)."""
    z = check_codes(z, codebook_size)
    return np.stack([np.bincount(slot, minlength=codebook_size) for slot in z.T])


def joint_counts(z: np.ndarray, codebook_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct joint codes, most common first (ties: by code).

    Returns (codes (M, L), counts (M,), index (N,)), where codes[index] gives z back.
    """
    z = check_codes(z, codebook_size)
    length = z.shape[1]
    if length * math.log2(max(codebook_size, 2)) < 62:
        # One integer per joint code: many times faster than unique over rows.
        place = codebook_size ** np.arange(length - 1, -1, -1, dtype=np.int64)
        flat, index, counts = np.unique(z @ place, return_inverse=True, return_counts=True)
        codes = flat[:, None] // place % codebook_size
    else:
        codes, index, counts = np.unique(z, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return codes[order], counts[order], rank[index.reshape(-1)]


def codebook_report(z: np.ndarray, codebook_size: int, *, top: int = 16) -> dict[str, Any]:
    """Usage of the code over a set of frame pairs.

    N samples show at most log2(N) bits of joint entropy, so `joint_entropy_fraction` (of
    L*log2(K)) is bounded by `joint_entropy_bound_bits` / capacity; read
    `joint_entropy_fraction_of_bound` when N is not far above the number of joint codes.
    """
    z = check_codes(z, codebook_size)
    samples, length = z.shape
    histogram = slot_histogram(z, codebook_size)
    entropies = [entropy_bits(row) for row in histogram]
    perplexity = [2.0**value for value in entropies]
    codes, counts, _ = joint_counts(z, codebook_size)
    joint = entropy_bits(counts)
    capacity = length * math.log2(codebook_size)
    bound = min(capacity, math.log2(samples))
    dead_per_slot = [np.flatnonzero(row == 0).tolist() for row in histogram]
    dead = np.flatnonzero(histogram.sum(0) == 0).tolist()
    return {
        "samples": samples,
        "codebook_size": int(codebook_size),
        "code_length": length,
        "histogram": histogram.tolist(),
        "slot_entropy_bits": entropies,
        "slot_perplexity": perplexity,
        "slot_modal_share": (histogram.max(1) / samples).tolist(),
        "mean_perplexity": float(np.mean(perplexity)),
        "mean_perplexity_fraction": float(np.mean(perplexity)) / codebook_size,
        "dead_codes_per_slot": dead_per_slot,
        # The slots of a quantizer may share one codebook: dead means unused in every slot.
        "dead_codes": dead,
        "dead_code_fraction": len(dead) / codebook_size,
        "joint_codes_used": len(codes),
        "joint_codes_possible": int(codebook_size) ** length,
        "joint_entropy_bits": joint,
        "joint_entropy_capacity_bits": capacity,
        "joint_entropy_bound_bits": bound,
        "joint_entropy_fraction": joint / capacity if capacity else None,
        "joint_entropy_fraction_of_bound": joint / bound if bound else None,
        "joint_perplexity": 2.0**joint,
        "joint_modal_share": int(counts[0]) / samples,
        "common_joint_codes": [
            {"code": code.tolist(), "count": int(count), "share": int(count) / samples}
            for code, count in zip(codes[:top], counts[:top], strict=True)
        ],
    }


def codebook_intervals(
    z: np.ndarray, codebook_size: int, episode: np.ndarray, *, seed: int, resamples: int = 1000
) -> dict[str, list[float]]:
    """Episode-bootstrap 95 % intervals of mean_perplexity and joint_entropy_bits.

    A resample holds fewer distinct pairs than the sample, so that its entropy is lower: each
    interval is moved by the mean of that difference, and lies about the plug-in estimate, which is
    biased low in its turn.
    """
    z = check_codes(z, codebook_size)
    slots = (z + codebook_size * np.arange(z.shape[1])).astype(np.int64)
    _, _, joint = joint_counts(z, codebook_size)
    names, index = np.unique(np.asarray(episode), return_inverse=True)
    index = index.reshape(-1)
    table = np.zeros((len(names), codebook_size * z.shape[1]))
    np.add.at(table, (np.repeat(index, z.shape[1]), slots.reshape(-1)), 1)
    joint_table = np.zeros((len(names), joint.max() + 1))
    np.add.at(joint_table, (index, joint), 1)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)

    def interval(statistic: Callable[[np.ndarray], float], table: np.ndarray) -> list[float]:
        values = np.array([statistic(counts) for counts in draws @ table])
        moved = values + statistic(table.sum(0)) - values.mean()
        return np.quantile(moved, [0.025, 0.975]).tolist()

    def perplexity(counts: np.ndarray) -> float:
        return float(np.mean([2.0 ** entropy_bits(slot) for slot in np.split(counts, z.shape[1])]))

    return {
        "mean_perplexity_interval": interval(perplexity, table),
        "joint_entropy_bits_interval": interval(entropy_bits, joint_table),
    }


def actions_per_code(
    z: np.ndarray, actions: np.ndarray, codebook_size: int, *, min_count: int = 2
) -> list[dict[str, Any]]:
    """Mean and covariance of the true action under each joint code, most common code first.

    Codes seen fewer than `min_count` times have no usable covariance and are left out; the counts
    of those returned say what share of the samples they cover.
    """
    codes, counts, index = joint_counts(z, codebook_size)
    actions = np.asarray(actions, np.float64)
    if actions.ndim != 2 or len(actions) != len(index):
        raise ValueError(
            f"actions must have shape (N, action_dim) with N = {len(index)}, got {actions.shape}"
        )
    if not np.isfinite(actions).all():
        raise ValueError("actions hold non-finite values: drop steps without a valid action first")
    if min_count < 2:
        raise ValueError(f"min_count must be at least 2 for a covariance, got {min_count}")
    groups = np.split(actions[np.argsort(index, kind="stable")], np.cumsum(counts)[:-1])
    return [
        {
            "code": code.tolist(),
            "count": int(count),
            "share": int(count) / len(index),
            "mean": group.mean(0).tolist(),
            "covariance": np.cov(group, rowvar=False).reshape(2 * actions.shape[1:]).tolist(),
        }
        for code, count, group in zip(codes, counts, groups, strict=True)
        if count >= min_count
    ]
