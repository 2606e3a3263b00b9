"""Latents that add up, beside any other objective.

Shape suffixes: see base.py; P pairs of a clip's frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lapa_jax.latent.encoder import Pairs, flat
from lapa_jax.latent.objectives.base import Objective, Tools, mean_squared_error


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


class Algebraic(Objective):
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
        objective, inner = settings.of
        self.of = objective(inner, config, rngs=rngs)
        self.additivity, self.reversal = settings.additivity, settings.reversal

    @classmethod
    def columns(cls, settings):
        objective, inner = settings.of
        return objective.columns(inner)

    @classmethod
    def fields(cls, settings):
        objective, inner = settings.of
        return objective.fields(inner)

    @classmethod
    def prepare(cls, settings, batch):
        objective, inner = settings.of
        return objective.prepare(inner, batch)

    @classmethod
    def reads_patches(cls, settings):
        objective, inner = settings.of
        return objective.reads_patches(inner)

    @classmethod
    def borrowed(cls, settings):
        objective, inner = settings.of
        if (found := objective.borrowed(inner)) is None:
            return None
        below, key = found.ours.removeprefix("objective"), "model.objective"
        return found._replace(
            ours=f"objective/of{below}",
            key=found.key.replace(key, f"{key}.of", 1),
            settings_key=found.settings_key.replace(key, f"{key}.of", 1),
        )

    def seen(self, frames_BTIJC, embedded_BTHWD):
        return self.of.seen(frames_BTIJC, embedded_BTHWD)

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
        outcome = self.of(_Shared(model, frames, pairs), batch, train=train, rng=rng)
        gaps = {
            "additivity_gap": mean_squared_error(long, step[:, :-1] + step[:, 1:]),
            "reversal_gap": mean_squared_error(step[:, :-1], -back),
        }
        loss = self.additivity * gaps["additivity_gap"] + self.reversal * gaps["reversal_gap"]
        metrics = outcome["metrics"] | jax.lax.stop_gradient(gaps)
        return outcome | {"loss": outcome["loss"] + loss, "metrics": metrics}

    def received(self, z_MLQ):
        return self.of.received(z_MLQ)

    def after_update(self, model, step, rng):
        self.of.after_update(model, step, rng)


class _Shared:
    """The toolbox, which has the pairs of these frames already."""

    def __init__(self, model: Tools, frames_BTIJC: jax.Array, pairs: Pairs):
        self._model, self._frames, self._pairs = model, frames_BTIJC, pairs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def pairs(self, frames_BTIJC: jax.Array, *, train: bool) -> Pairs:
        given = frames_BTIJC is self._frames
        return self._pairs if given else self._model.pairs(frames_BTIJC, train=train)
