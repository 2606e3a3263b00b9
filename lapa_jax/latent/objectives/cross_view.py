"""Decoding what another camera sees later with the latent of this one.

Shape suffixes: see base.py; V views of a clip, M = B·V·(T−1) pairs.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from lapa_jax.latent.encoder import flat
from lapa_jax.latent.objectives.base import Objective, by_view, mean_squared_error


@dataclass(frozen=True)
class CrossViewConfig:
    """How much the other views count."""

    cross_weight: Annotated[float, "[0, 1e6]", "on the error in the other views"] = 1.0


class CrossView(Objective):
    """The latent of a pair by one camera must draw the later frame of its own and of every other
    camera from their first frames, so that what only one of them shows helps little (MVP-LAM):

        mean over v of (D(x^v, z^v) − y^v)² + w · mean over v and u ≠ v of (D(x^u, z^v) − y^u)²

    All views of a clip are encoded, each by itself: what labels sees one camera.
    """

    @classmethod
    def views(cls, settings):
        return True

    def __init__(self, settings, config, *, rngs):
        self.weight, self.num_frames = settings.cross_weight, config.num_frames

    def __call__(self, model, batch, *, train, rng=None):
        clips = by_view(batch["frames"], self.num_frames)
        B, V = clips.shape[:2]
        pairs = model.pairs(flat(clips), train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)

        def drawn(z_MLQ):
            return model.draw(pairs.first_MIJC, model.tokens(pairs.embedded_MHWD, z_MLQ))

        recon = drawn(out.z_q_BLD)
        own = mean_squared_error(recon, pairs.last_MIJC)
        z = out.z_q_BLD.reshape(B, V, -1, *out.z_q_BLD.shape[1:])
        cross = jnp.mean(
            jnp.stack(
                [
                    mean_squared_error(
                        drawn(jnp.roll(z, shift, axis=1).reshape(out.z_q_BLD.shape)),
                        pairs.last_MIJC,
                    )
                    for shift in range(1, V)
                ]
            )
        )
        copy = mean_squared_error(pairs.first_MIJC, pairs.last_MIJC)
        metrics = {"cross_mse": cross, "cross_skill": 1.0 - cross / jnp.maximum(copy, 1e-12)}
        metrics = jax.lax.stop_gradient(metrics)
        loss = own + self.weight * cross
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)
