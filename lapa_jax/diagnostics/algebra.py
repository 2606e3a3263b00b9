"""Whether latent actions add up as motions do: z02 = z01 + z12, z10 = −z01, nothing for no motion.

o0, o1, ... are frames a window apart, z_ij the latent before the bottleneck of the pair (o_i, o_j),
counted from the anchor z_I, the mean latent of pairs of one frame with itself: what stands still is
then 0, whatever constant a model adds to its latents (`anchor` says how large that is). Errors are
squared and relative: 0 is exact, and `chance` is the same with the added part of another chain.
"""

from typing import Any

import numpy as np

from lapa_jax.diagnostics.reconstruction import decoder_errors, image_errors, skill
from lapa_jax.diagnostics.sample import BATCH, Sample, flat, in_batches
from lapa_jax.diagnostics.statistics import relative


def of_sample(sample: Sample) -> dict[str, Any]:
    """{additivity, reversal, identity, anchor, cumulative} of a sample with chains, with intervals
    over episodes.

    additivity: |z02 − z01 − z12|² / |z02|². reversal: |z01 + z10|² / |z01|². identity: how much
    latents of no motion differ among themselves, |z00 − z_I|² / |z01|². anchor: |z_I|² / |z01|²,
    z01 as the model gives it. cumulative: by the number of windows k, `error`, which is
    |z0k − z01 − z12 − ...|² / |z0k|², the skill of what the decoder makes of o0 and z0k (`direct`)
    and, where it draws frames, of what it draws step by step, each from what it drew before
    (`chained`). What is over nothing is None. composed_skill: of o2 as drawn from o0 and what the
    model makes of z01 and z12, where it says how motions compose; beside `direct` of 2 windows.
    """
    chains = sample.chains
    episode = chains.episode

    def latents(start: float, end: float) -> np.ndarray:
        return flat(sample.read_chains(start, end)[1]).astype(np.float64)

    def ratio(above: np.ndarray, below: np.ndarray) -> dict[str, Any]:
        value, interval = relative(np.square(above).sum(1), np.square(below).sum(1), episode)
        return {"value": value, "value_interval": interval}

    still = latents(0, 0)
    anchor = still.mean(0)
    one, back, next_, two = (latents(*p) - anchor for p in ((0, 1), (1, 0), (1, 2), (0, 2)))
    other = np.roll(np.arange(len(one)), len(one) // 2)
    added, turned = ratio(two - one - next_, two), ratio(one + back, one)
    added["chance"] = ratio(two - one - next_[other], two)["value"]
    turned["chance"] = ratio(one + back[other], one)["value"]
    report: dict[str, Any] = {
        "chains": len(one),
        "additivity": added,
        "reversal": turned,
        "identity": ratio(still - anchor, one),
        "anchor": ratio(np.broadcast_to(anchor, one.shape), one + anchor)["value"],
        "cumulative": {},
    }
    if sample.compose is not None:
        report["composed_skill"], report["composed_skill_interval"] = _composed(sample)
    drawn, total = chains.frame(0), np.zeros_like(one)
    for k in range(1, chains.whole + 1):
        total = total + latents(k - 1, k) - anchor
        long = latents(0, k) - anchor
        found = {"error": ratio(long - total, long)["value"]}
        step, whole = (sample.read_chains(i, k)[2] for i in (k - 1, 0))
        first, last = chains.frame(0), chains.frame(k)
        errors = {"direct": decoder_errors(sample, first, whole, first, last)}
        if sample.draws_frames:
            drawn = in_batches(sample.decode, drawn, step).clip(0.0, 1.0)
            errors["chained"] = image_errors(first, last, drawn)
        found |= {name: skill(*(float(x.mean()) for x in both)) for name, both in errors.items()}
        report["cumulative"][str(k)] = found
    return report


def _composed(sample: Sample) -> tuple[float | None, list[float] | None]:
    chains = sample.chains
    (_, one, _), (_, then, _) = sample.read_chains(0, 1), sample.read_chains(1, 2)
    still = sample.read_chains(0, 0)[1]
    still = still[np.resize(np.arange(len(still)), BATCH)]
    both = in_batches(lambda *pair: sample.compose(*pair, still), one, then)
    error, copy = decoder_errors(sample, chains.frame(0), both, chains.frame(0), chains.frame(2))
    return relative(copy - error, copy, chains.episode)
