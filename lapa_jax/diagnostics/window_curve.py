"""What z says of the true motion by the time between its two frames.

One probe per window, on the same chains of frames and the same split by episode, so that windows
differ in nothing else.
"""

from typing import Any

from lapa_jax.diagnostics.probes import linear_probe
from lapa_jax.diagnostics.sample import Sample


def of_sample(sample: Sample) -> dict[str, Any]:
    """{windows, as text: r2_mean of a `linear_probe` to the actions summed over so many windows,
    with its interval}, of a sample with chains whose actions are known."""
    chains = sample.chains
    report = {}
    for place, windows in enumerate(chains.at[1:], 1):
        z, latents, _ = sample.read_chains(0.0, windows)
        features = sample.features(z, latents)
        found = linear_probe(features, chains.moved[:, place], chains.episode, seed=0)
        report[f"{windows:g}"] = {key: found[key] for key in ("r2_mean", "r2_mean_interval")}
    return report
