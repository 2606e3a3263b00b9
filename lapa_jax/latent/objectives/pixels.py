"""Objectives that compare pixels.

Shape suffixes: see base.py.
"""

from dataclasses import dataclass

import jax

from lapa_jax.latent.objectives.base import Objective, mean_squared_error


@dataclass(frozen=True)
class PixelsConfig:
    """Nothing to set."""


class Pixels(Objective):
    """Mean squared error of the pixels (the paper)."""

    def __call__(self, model, batch, *, train, rng=None):
        pairs = model.pairs(batch["frames"], train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        recon = model.draw(pairs.first_MIJC, model.tokens(pairs.embedded_MHWD, out.z_q_BLD))
        loss = mean_squared_error(recon, pairs.last_MIJC)
        return model.outcome(pairs, out, recon, loss=loss, train=train)


class PixelsNoBottleneck(Objective):
    """Plain reconstruction: in training the decoder receives the latent itself. The bottleneck
    learns beside it to stand for the latent (squared error), and shapes nothing else."""

    def __call__(self, model, batch, *, train, rng=None):
        pairs = model.pairs(batch["frames"], train=train)
        z_MLQ = pairs.latent_MLQ
        out = model.bottleneck(jax.lax.stop_gradient(z_MLQ), rng=rng, train=train)
        received = z_MLQ if train else out.z_q_BLD
        recon = model.draw(pairs.first_MIJC, model.tokens(pairs.embedded_MHWD, received))
        loss = mean_squared_error(recon, pairs.last_MIJC)
        error = mean_squared_error(jax.lax.stop_gradient(z_MLQ), out.z_q_BLD)
        return model.outcome(
            pairs, out, recon, loss=loss, bottleneck_loss=out.loss + error, train=train
        )
