"""Pixels and, where it is known, how the camera moved (LA-Pose, arXiv 2604.27448).

A linear map from the latent says it. Few labels are enough: data.corpora.*.action_fraction says of
how many episodes the motion is known, which is read in the place of actions (action_key).

Shape suffixes: see base.py; K steps, P dimensions of a motion.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.objectives.base import mean_squared_error
from lapa_jax.latent.objectives.known import Labels, OfWindows


@dataclass(frozen=True)
class PoseConfig:
    """The sizes of what is known, which are those of the data."""

    pose_dim: Annotated[int, "[1, 4096]", "of the motion of a step (data.corpora.*.action_key)"] = 2
    horizon: Annotated[
        int, "[1, 4096]", "steps of a window, whose motions are added: data.action_horizon"
    ] = 1
    pose_weight: Annotated[float, "[0, 1e6]", "of the error of the motion in the loss"] = 0.1


class Pose(OfWindows):
    """Mean squared errors of the pixels and of the camera's motion over the first window, in units
    in which it varies by 1: a constant costs 1."""

    def __init__(self, settings: PoseConfig, config: QuantizerConfig, *, rngs):
        self.motion = Labels(config, settings.pose_dim, rngs=rngs)
        self.weight = settings.pose_weight

    @classmethod
    def width(cls, settings):
        return settings.pose_dim

    def __call__(self, model, batch, *, train, rng=None):
        pairs = model.pairs(batch["frames"], train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        recon = model.draw(pairs.first_MIJC, model.tokens(pairs.embedded_MHWD, out.z_q_BLD))
        latent = pairs.latent_MLQ
        of_first = latent.reshape(len(batch["frames"]), -1, *latent.shape[1:])[:, 0]
        moved_BP, known_B = jnp.sum(batch["action"], axis=1), jnp.all(batch["action_mask"], axis=1)
        error = self.motion(of_first, moved_BP, known_B, train=train)
        metrics = {"pose_error": error, "pose_known": jnp.mean(known_B)}
        loss = mean_squared_error(recon, pairs.last_MIJC) + self.weight * error
        metrics = jax.lax.stop_gradient(metrics)
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)
