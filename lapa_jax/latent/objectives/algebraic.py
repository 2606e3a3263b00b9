"""Latents that add up, beside any other objective.

Shape suffixes: see base.py; P pairs of a clip's frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lapa_jax.latent.encoder import Pairs, flat
from lapa_jax.latent.objectives.base import mean_squared_error
from lapa_jax.latent.objectives.mixed import Changed, Mixed


@dataclass(frozen=True)
class AlgebraicConfig:
    """Whose latents add up, and how much that counts."""

    of: Annotated[
        Mapping[str, Any], "the objective that it is added to, which sees the pairs of neighbours"
    ] = field(default_factory=lambda: {"name": "pixels"})
    additivity: Annotated[
        float, "[0, 1e6]", "on the squared gap between a step of two and the sum of its steps"
    ] = 1.0
    reversal: Annotated[
        float, "[0, 1e6]", "on the square of the sum of a step and the step back"
    ] = 1.0


class Algebraic(Mixed):
    """Over frames 0, 1, 2 in a row, with a the latents before the bottleneck:
    mean (a02 − a01 − a12)² + mean (a01 + a10)² (ALAM, arXiv 2605.10819), beside the loss of another
    objective on the pairs 01 and 12. Gradients reach all latents.

    a = 0 would do, and shrinks as long as nothing opposes it: here latents are divided by their
    deviation, so that both terms count in units of it. They are also freed of a mean μ
    (`Normalizer`), which would break both were it that of the steps: where z01 = −z10, z less μ
    have the sum −2μ. So here mean and deviation are those of steps and the same steps back
    together: what steps do on average stays in them, what they have in common whichever way they go
    is taken off, and it is the latents that are read that obey. With model.normalize_decay=0 only
    the other objective opposes a = 0.

    In a longer clip all triplets count. What it costs depends on model.spatial_sees: "frame" lets
    the pairs of a clip share the spatial layers.
    """

    num_frames = 3

    def __init__(self, settings: AlgebraicConfig, config, *, rngs):
        super().__init__(settings, config, rngs=rngs)
        self.additivity, self.reversal = settings.additivity, settings.reversal

    def __call__(self, model, batch, *, train, rng=None):
        frames = batch["frames"]
        n = frames.shape[1] - 2  # triplets
        back, step = [(t + 1, t) for t in range(n)], [(t, t + 1) for t in range(n + 1)]
        long = [(t, t + 2) for t in range(n)]
        firsts, lasts = zip(*back, *step, *long, strict=True)
        embedded = model.patches(frames)
        shared = {"embedded_BTHWD": embedded, "counted": range(2 * n)}
        latent_BPLQ = model.latents(frames, firsts, lasts, train=train, **shared)
        back, step, long = jnp.split(latent_BPLQ, (n, 2 * n + 1), axis=1)
        pairs = Pairs(flat(frames[:, :-1]), flat(frames[:, 1:]), embedded, flat(step))

        def of_these(others, *, train):
            return pairs if others is frames else model.pairs(others, train=train)

        outcome = self.of(Changed(model, pairs=of_these), batch, train=train, rng=rng)
        gaps = {
            "additivity_gap": mean_squared_error(long, step[:, :-1] + step[:, 1:]),
            "reversal_gap": mean_squared_error(step[:, :-1], -back),
        }
        loss = self.additivity * gaps["additivity_gap"] + self.reversal * gaps["reversal_gap"]
        metrics = outcome["metrics"] | jax.lax.stop_gradient(gaps)
        return outcome | {"loss": outcome["loss"] + loss, "metrics": metrics}
