"""Pairs across a camera cut: the first frame of one episode, the later frame of another.

No motion leads from one to the other. What the decoder still draws of the later frame, z has
carried as a picture.
"""

from typing import Any

import numpy as np

from lapa_jax.diagnostics.reconstruction import decoder_errors
from lapa_jax.diagnostics.sample import Sample, in_batches
from lapa_jax.diagnostics.statistics import relative

PAIRS = 512


def of_sample(sample: Sample) -> dict[str, Any]:
    """{skill, skill_exchanged, carried} across cuts: skill over copying the first frame, of what is
    drawn from the z of the cut and from the z of another cut, and their difference, what z carries
    of the other scene. Needs 2 episodes."""
    rows = sample.spread_rows(PAIRS)
    episode = sample.episode[rows]
    first, last = sample.first[rows], sample.last[rows[across(episode, seed=0)]]
    _, _, received = in_batches(sample.read, first, last)
    other = np.roll(np.arange(len(rows)), len(rows) // 2)
    own, copy = decoder_errors(sample, first, received, first, last)
    exchanged, _ = decoder_errors(sample, first, received[other], first, last)
    report: dict[str, Any] = {"cuts": len(rows)}
    for name, above in (
        ("skill", copy - own),
        ("skill_exchanged", copy - exchanged),
        ("carried", exchanged - own),
    ):
        value, interval = relative(above, copy, episode)
        report |= {name: value, f"{name}_interval": interval}
    return report


def across(episode: np.ndarray, *, seed: int) -> np.ndarray:
    """For each row (N,) the number of a row of another episode, any of them equally likely."""
    order = np.argsort(episode, kind="stable")
    _, start, count = np.unique(episode[order], return_index=True, return_counts=True)
    if len(count) < 2:
        raise ValueError("a cut leads from one episode to another: there is 1 episode")
    start, count = np.repeat(start, count), np.repeat(count, count)
    drawn = np.random.default_rng(seed).integers(0, len(episode) - count)
    found = np.empty_like(order)
    found[order] = order[(start + count + drawn) % len(episode)]
    return found
