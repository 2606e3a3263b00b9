"""RotVLA's Δ: what happens when a latent action is applied again, to the frame that it led to.

A latent that says how things move moves them on, so that the result differs from the later frame;
a latent that says how the later frame looks draws it once more. Δ = MSE' − MSE, of z read off
(o, o'): MSE between o' and what is drawn of o and z, MSE' between o' and what is drawn of o' and z.
"""

from typing import Any

from lapa_jax.diagnostics.reconstruction import decoder_errors
from lapa_jax.diagnostics.sample import Sample
from lapa_jax.diagnostics.statistics import means, relative

PAIRS = 512


def of_sample(sample: Sample) -> dict[str, Any]:
    """{delta, mse, mse_again}, where the decoder answers, with intervals over episodes, and
    `relative`, Δ over the MSE of a copy of the first frame: about 1 where z moves things on as far
    again and draws well, 0 where it draws the later frame whatever it is given, -1 where the
    decoder copies what it is given. None where nothing moves."""
    rows = sample.spread_rows(PAIRS)
    first, last, episode = sample.first[rows], sample.last[rows], sample.episode[rows]
    received = sample.received[rows]
    mse, copy = decoder_errors(sample, first, received, first, last)
    mse_again, _ = decoder_errors(sample, last, received, first, last)
    values = {"delta": mse_again - mse, "mse": mse, "mse_again": mse_again}
    value, interval = relative(values["delta"], copy, episode)
    more = {"relative": value, "relative_interval": interval}
    return means(values, episode, seed=0) | more
