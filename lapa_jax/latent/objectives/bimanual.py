"""Two arms, one codebook (CUBic).

Shape suffixes: see base.py; H codes of an arm, A dimensions of its actions.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from lapa_jax.latent.objectives.base import Objective, mean_squared_error
from lapa_jax.latent.objectives.known import Standardizer, error_where_known
from lapa_jax.nn.layers import Dense


@dataclass(frozen=True)
class BimanualConfig:
    """Which actions are whose, and how much they count. The defaults are those of two arms of
    seven."""

    action_dim: Annotated[int, "[2, 4096]", "of the actions, of both arms"] = 14
    left_dims: Annotated[
        int, "[1, 4095]", "so many first ones of them are the left arm's, the rest the right's"
    ] = 7
    action_weight: Annotated[
        float, "[0, 1e6]", "of the error of known actions of each arm, told by its own codes"
    ] = 0.01
    coordination_weight: Annotated[
        float, "[0, 1e6]", "of the error with which one arm's latent tells the other's"
    ] = 0.003

    def __post_init__(self) -> None:
        if self.left_dims >= self.action_dim:
            raise ValueError(
                f"model.objective.left_dims={self.left_dims} must be less than "
                f"model.objective.action_dim={self.action_dim}: the rest is the right arm's, and "
                "with one arm there is nothing to coordinate (model.objective.name='pixels')"
            )


class Bimanual(Objective):
    """The first half of the codes is the left arm's, the second the right's, all of one codebook.
    Together they draw the later frame; each half alone tells the actions of its arm, where they are
    known; and through one small network, which serves both directions, each half tells the other
    half's latent, which then has no gradient: what both arms do together is said so that it agrees.

    Of the paper this keeps that arms share tokens, that each is read alone and that they are
    coordinated both ways by a shared mapping. It has two codebooks and a policy of its own; here
    the codebook is one and any policy takes the labels. Without known actions (videos) nothing says
    which half is which arm: a part of the corpora must have them.
    """

    def __init__(self, settings, config, *, rngs):
        if config.code_length % 2:
            raise ValueError(
                f"model.code_length={config.code_length} must be even for model.objective.name="
                "'bimanual': half of the codes is each arm's"
            )
        half, G = (config.code_length // 2, config.quant_dim), config.mlp_dim

        def dense(inputs, outputs, axes):
            return Dense(inputs, outputs, axes, bias=True, dtype=jnp.float32, rngs=rngs)

        self.units = Standardizer(settings.action_dim)
        dims = settings.left_dims, settings.action_dim - settings.left_dims
        self.left_told, self.right_told = (dense(half, (A,), (None, None, None)) for A in dims)
        self.hidden = dense(half, (G,), (None, None, "mlp"))
        self.other = dense((G,), half, ("mlp", None, None))
        self.half, self.left = half[0], settings.left_dims
        self.weights = settings.action_weight, settings.coordination_weight

    @classmethod
    def columns(cls, settings):
        return {
            "action": jax.ShapeDtypeStruct((settings.action_dim,), jnp.float32),
            "action_known": jax.ShapeDtypeStruct((), bool),
        }

    def __call__(self, model, batch, *, train, rng=None):
        pairs = model.pairs(batch["frames"], train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        recon = model.draw(pairs.first_MIJC, model.tokens(pairs.embedded_MHWD, out.z_q_BLD))
        known_B = batch["action_known"]
        action_BA = self.units(batch["action"], known_B, train=train)
        of_arm = jnp.split(action_BA, [self.left], axis=-1)
        first_BLQ = out.z_q_BLD.reshape(len(known_B), -1, *out.z_q_BLD.shape[1:])[:, 0]
        halves = jnp.split(first_BLQ, [self.half], axis=1)
        left, right = (
            error_where_known(told(z_BHQ), wanted_BA, known_B)
            for told, z_BHQ, wanted_BA in zip(
                (self.left_told, self.right_told), halves, of_arm, strict=True
            )
        )
        one, other = jnp.split(pairs.latent_MLQ, [self.half], axis=1)
        apart = 0.5 * (self._untold(one, other) + self._untold(other, one))
        by_action, by_other = self.weights
        loss = mean_squared_error(recon, pairs.last_MIJC)
        loss = loss + by_action * 0.5 * (left + right) + by_other * apart
        metrics = {"action_error_left": left, "action_error_right": right, "arms_apart": apart}
        metrics["action_known"] = jnp.mean(known_B)
        metrics = jax.lax.stop_gradient(metrics)
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)

    def _untold(self, one_MHQ, other_MHQ):
        """What of one arm's latent the other does not tell, squared."""
        found = self.other(jax.nn.gelu(self.hidden(one_MHQ)))
        return mean_squared_error(found, jax.lax.stop_gradient(other_MHQ))
