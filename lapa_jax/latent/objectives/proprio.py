"""Pixels and, where the robot's state is known, what becomes of it (villa-X, Chen et al. 2025).

A small forward model says from state and latent action which states and actions follow. It is told
whose body that is (the number of the corpus) and how often it acts a second, so that the latent
need not hold them. Videos without a robot have no part in it, example by example.

Shape suffixes: see base.py; K steps of a chunk, S state dimensions, A action dimensions, G wide.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.objectives.base import mean_squared_error
from lapa_jax.latent.objectives.known import OfChunks, Standardizer, error_where_known
from lapa_jax.nn.layers import Dense, truncated_normal
from lapa_jax.nn.module import param

WAVES = 8  # a rate is told as so many sines and cosines
SLOWEST = 100.0  # the slowest of them turns by a radian in so many Hz


@dataclass(frozen=True)
class ProprioConfig:
    """The sizes of what is predicted, which are those of the data."""

    state_dim: Annotated[int, "[1, 4096]", "of the states (data.corpora.*.state_key)"] = 2
    action_dim: Annotated[int, "[1, 4096]", "of the actions"] = 2
    horizon: Annotated[
        int, "[1, 4096]", "states and actions that are predicted: data.action_horizon"
    ] = 1
    corpora: Annotated[int, "[1, 1e6]", "that tell bodies apart: as many as data.corpora has"] = 1
    state_weight: Annotated[
        float, "[0, 1e6]", "of the error of states, and as much of that of actions, in the loss"
    ] = 0.1


class Proprio(OfChunks):
    """Mean squared errors of the pixels, of the changes of the state within a chunk and of its
    actions; the latter two in units in which each varies by 1, where a constant costs 1."""

    def __init__(self, settings: ProprioConfig, config: QuantizerConfig, *, rngs: nnx.Rngs):
        S, A, G = settings.state_dim, settings.action_dim, config.mlp_dim

        def dense(inputs, outputs, axes):
            return Dense(inputs, outputs, axes, bias=True, dtype=jnp.float32, rngs=rngs)

        self.state_units, self.change_units = Standardizer(S), Standardizer(S)
        self.action_units = Standardizer(A)
        self.state = dense((S,), (G,), (None, "mlp"))
        self.latent = dense((config.code_length, config.quant_dim), (G,), (None, None, "mlp"))
        self.rate = dense((2 * WAVES,), (G,), (None, "mlp"))
        self.body = param(truncated_normal(rngs.params(), (settings.corpora, G), 0.02), None, "mlp")
        self.out = dense((G,), (settings.horizon, S + A), ("mlp", None, None))
        self.state_dim, self.weight = S, settings.state_weight

    @classmethod
    def columns(cls, settings):
        K, S = settings.horizon, settings.state_dim
        return super().columns(settings) | {
            "state": jax.ShapeDtypeStruct((S,), jnp.float32),
            "state_ahead": jax.ShapeDtypeStruct((K, S), jnp.float32),
            "corpus": jax.ShapeDtypeStruct((), jnp.int32),
            "control_hz": jax.ShapeDtypeStruct((), jnp.float32),
        }

    @classmethod
    def prepare(cls, settings, batch):
        if (most := int(batch["corpus"].max())) >= settings.corpora:
            raise ValueError(
                f"it is number {most} from 0 of data.corpora, but model.objective.corpora="
                f"{settings.corpora}: that must be as many as there are"
            )
        return {name: batch[name] for name in cls.columns(settings)} | super().prepare(
            settings, batch
        )

    def __call__(self, model, batch, *, train, rng=None):
        pairs = model.pairs(batch["frames"], train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        recon = model.draw(pairs.first_MIJC, model.tokens(pairs.embedded_MHWD, out.z_q_BLD))
        z_MLQ = out.z_q_BLD
        of_clip = z_MLQ.reshape(len(batch["frames"]), -1, *z_MLQ.shape[1:])
        state, action, known = self._errors(of_clip[:, 0], batch, train=train)
        metrics = {"state_error": state, "action_error": action, "state_known": known}
        loss = mean_squared_error(recon, pairs.last_MIJC) + self.weight * (state + action)
        metrics = jax.lax.stop_gradient(metrics)
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)

    def _errors(self, z_BLQ, batch, *, train):
        """(error of states, of actions, share of the examples whose state is known)."""
        now_BS, ahead_BKS = batch["state"], batch["state_ahead"]
        known_B = jnp.all(jnp.isfinite(now_BS), axis=-1)
        now_BS = jnp.where(known_B[:, None], now_BS, 0.0)
        moved_BK = known_B[:, None] & jnp.all(jnp.isfinite(ahead_BKS), axis=-1)
        change_BKS = jnp.where(moved_BK[..., None], ahead_BKS - now_BS[:, None], 0.0)
        acted_BK = known_B[:, None] & batch["action_mask"]

        def wanted(units, x_BKX, known_BK):
            rows = x_BKX.reshape(-1, x_BKX.shape[-1])
            return units(rows, known_BK.reshape(-1), train=train)

        said_BKX = self._said(self.state_units(now_BS, known_B, train=train), z_BLQ, batch)
        said_NX = said_BKX.reshape(-1, said_BKX.shape[-1])
        change_NS, action_NA = jnp.split(said_NX, [self.state_dim], axis=-1)
        state = error_where_known(
            change_NS, wanted(self.change_units, change_BKS, moved_BK), moved_BK.reshape(-1)
        )
        action = error_where_known(
            action_NA, wanted(self.action_units, batch["action"], acted_BK), acted_BK.reshape(-1)
        )
        return state, action, jnp.mean(known_B)

    def _said(self, state_BS, z_BLQ, batch):
        """Changes of states and actions (B, K, S + A), in standard units."""
        waves = 1.0 / SLOWEST ** (np.arange(WAVES, dtype=np.float32) / (WAVES - 1))
        turn_BW = batch["control_hz"][:, None] * waves
        told = jnp.concatenate([jnp.sin(turn_BW), jnp.cos(turn_BW)], axis=-1)
        x = self.state(state_BS) + self.latent(z_BLQ) + self.rate(told)
        return self.out(jax.nn.gelu(x + self.body[...][batch["corpus"]]))
