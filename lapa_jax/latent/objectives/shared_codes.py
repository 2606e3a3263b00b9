"""One codebook for what is seen and what is done (UniT).

Shape suffixes: see base.py; K steps of a chunk, A action dimensions, G width of the branches.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from lapa_jax.latent.objectives.known import OfWindows, Standardizer
from lapa_jax.nn.layers import Dense


@dataclass(frozen=True)
class SharedCodesConfig:
    """The sizes of actions, which are those of the data, and how much they count."""

    action_dim: Annotated[int, "[1, 4096]", "of the actions"] = 2
    horizon: Annotated[
        int, "[1, 4096]", "actions of an example, of the steps of its window: data.action_horizon"
    ] = 1
    action_weight: Annotated[
        float, "[0, 1e6]", "of the error of actions in the loss, beside that of pixels"
    ] = 0.01


class SharedCodes(OfWindows):
    """Three branches into one codebook: what the frames show, what the actions say, and both
    together. The codes of each must draw the later frame and tell the actions
    (cross-reconstruction), so that a code means the same whichever branch it comes from:

        mean over the branches b of (D(x, z^b) − y)² + w · (A(z^b) − a)²

    Where actions are not known there is the branch of the frames alone, without a target of
    actions: videos of people learn the same codes. In a clip of more pairs, actions belong to the
    first. Labels are those of the frames. Of the paper's tokenizer this keeps the branches, the
    codebook and what they reconstruct; what is reconstructed of frames are pixels here.
    """

    def __init__(self, settings, config, *, rngs):
        K, A, G = settings.horizon, settings.action_dim, config.mlp_dim
        latent = (config.code_length, config.quant_dim)

        def dense(inputs, outputs, axes):
            return Dense(inputs, outputs, axes, bias=True, dtype=jnp.float32, rngs=rngs)

        self.units = Standardizer(A)
        self.acted, self.fused = (dense((K, A), (G,), (None, None, "mlp")) for _ in range(2))
        self.shown = dense(latent, (G,), (None, None, "mlp"))
        self.acted_latent, self.fused_latent = (
            dense((G,), latent, ("mlp", None, None)) for _ in range(2)
        )
        self.told = dense(latent, (K, A), (None,) * 4)
        self.weight = settings.action_weight

    def __call__(self, model, batch, *, train, rng=None):
        pairs = model.pairs(batch["frames"], train=train)
        B = len(batch["frames"])
        mask_BK = batch["action_mask"]
        known_B = mask_BK[:, 0]
        rows = batch["action"].reshape(-1, batch["action"].shape[-1])
        action_BKA = self.units(rows, mask_BK.reshape(-1), train=train)
        action_BKA = action_BKA.reshape(batch["action"].shape)

        def firsts(x):
            """Of the first pair of each clip."""
            return x.reshape(B, -1, *x.shape[1:])[:, 0]

        seen_BLQ = firsts(pairs.latent_MLQ)
        others = [
            self.acted_latent(jax.nn.gelu(self.acted(action_BKA))),
            self.fused_latent(jax.nn.gelu(self.fused(action_BKA) + self.shown(seen_BLQ))),
        ]
        # What is not known must not reach the codebook: there the frames stand in.
        still_BLQ = jax.lax.stop_gradient(seen_BLQ)
        others = [jnp.where(known_B[:, None, None], x, still_BLQ) for x in others]
        out = model.bottleneck(jnp.concatenate([pairs.latent_MLQ, *others]), rng=rng, train=train)
        M = len(pairs.latent_MLQ)
        z_MLQ, *others = jnp.split(out.z_q_BLD, [M, M + B])
        recon = model.draw(pairs.first_MIJC, model.tokens(pairs.embedded_MHWD, z_MLQ))

        def errors(drawn_BIJC, z_BLQ):
            """Of pixels and of actions, of the examples whose actions are known."""
            pixel_B = jnp.mean(jnp.square(drawn_BIJC - firsts(pairs.last_MIJC)), axis=(1, 2, 3))
            action_BK = jnp.mean(jnp.square(self.told(z_BLQ) - action_BKA), axis=-1)
            return _mean(pixel_B, known_B), _mean(action_BK, mask_BK)

        def drawn(z_BLQ):
            tokens = model.tokens(firsts(pairs.embedded_MHWD), z_BLQ)
            return model.draw(firsts(pairs.first_MIJC), tokens)

        _, told = errors(firsts(recon), firsts(z_MLQ))
        pixels, actions = zip(*[errors(drawn(z), z) for z in others], strict=True)
        own = jnp.mean(jnp.square(recon - pairs.last_MIJC))
        loss = (own + sum(pixels)) / 3 + self.weight * (told + sum(actions)) / 3
        codes = None if out.codes_BL is None else out.codes_BL[:M]
        metrics = {
            "mse_of_action_codes": pixels[0],
            "mse_of_fused_codes": pixels[1],
            "action_error": told,
            "action_error_of_action_codes": actions[0],
            "action_known": jnp.mean(known_B),
        }
        if codes is not None:
            same_B = jnp.all(firsts(codes) == out.codes_BL[M : M + B], axis=-1)
            metrics["codes_agree"] = _mean(same_B.astype(jnp.float32), known_B)
        metrics = jax.lax.stop_gradient(metrics)
        out = out._replace(codes_BL=codes, z_q_BLD=z_MLQ)
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)


def _mean(x: jax.Array, known: jax.Array) -> jax.Array:
    """Of what is known; 0 where nothing is."""
    return jnp.sum(jnp.where(known, x, 0.0)) / jnp.maximum(jnp.sum(known), 1)
