"""Latents that are rotations, and motions in a row that are products of them.

Shape suffixes: see base.py; N = √(L·Q), rows and columns of a rotation.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.encoder import Pairs, flat
from lapa_jax.latent.objectives.base import Objective, mean_squared_error
from lapa_jax.nn import rotations


@dataclass(frozen=True)
class RotationConfig:
    """How latents become rotations, and how two of them one."""

    projection: Annotated[
        str,
        ("exp", "nearest"),
        "the exponential of the latent's skew part, or the nearest rotation (the paper)",
    ] = "exp"
    composition: Annotated[
        str,
        ("anchored", "product"),
        "of z1 and then z2: z2 zI' z1, zI the mean of what a frame and itself give, or the "
        "projection of z1 z2, without anchor; readers of the paper have it both ways",
    ] = "anchored"
    compose_weight: Annotated[
        float, "[0, 1e6]", "on the error of the third frame, drawn from the first by both"
    ] = 1.0


class Rotation(Objective):
    """RotVLA (arXiv 2605.13403). A latent is read as an N x N matrix, what the bottleneck gives of
    it becomes a rotation z, and that is what the decoder receives. Over frames 0, 1, 2 in a row:
    mean (D(0, z01) − 1)² + mean (D(1, z12) − 2)², and mean (D(0, z) − 2)² of the composed z.

    The exponential is smooth everywhere, of latents divided by √N, so that normalised ones turn by
    about one radian. The nearest rotation of a matrix jumps where its determinant changes sign.
    Frames paired with themselves count for the anchor alone, as they are before the bottleneck:
    the normalised mean and the codes are those of steps. Of two clips one is composed: drawing all
    would cost a fifth more.
    """

    num_frames = 3

    def __init__(self, settings: RotationConfig, config: QuantizerConfig, *, rngs):
        numbers = config.code_length * config.quant_dim
        self.side = math.isqrt(numbers)
        if self.side < 2 or self.side**2 != numbers:
            raise ValueError(
                f"model.code_length={config.code_length} x model.quant_dim={config.quant_dim} must "
                "be the square of 2 or more for model.objective.name='rotation': the rows and "
                "columns of a rotation"
            )
        self.settings = settings

    def __call__(self, model, batch, *, train, rng=None):
        frames = batch["frames"]
        n, anchored = frames.shape[1] - 2, self.settings.composition == "anchored"
        firsts, lasts = [*range(n + 1), *[0] * anchored], [*range(1, n + 2), *[0] * anchored]
        embedded = model.patches(frames)
        shared = {"embedded_BTHWD": embedded, "counted": range(n + 1)}
        z_BPLQ = model.latents(frames, firsts, lasts, train=train, **shared)
        pairs = Pairs(
            *(flat(frames[:, :-1]), flat(frames[:, 1:]), embedded),
            latent_MLQ=flat(z_BPLQ[:, : n + 1]),
        )
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        z_MNN = self._rotation(out.z_q_BLD)
        z_BTNN = z_MNN.reshape(len(frames), n + 1, *z_MNN.shape[1:])[::2]
        still_BNN = self._rotation(z_BPLQ[:, n + 1]) if anchored else None
        both_NN, metrics = self._composed(flat(z_BTNN[:, :-1]), flat(z_BTNN[:, 1:]), still_BNN)

        # One pass of the decoder for steps and, of every second clip, for two of them.
        first, embedded_1 = pairs.first_MIJC, pairs.embedded_MHWD
        further, embedded_2 = flat(frames[::2, :-2]), flat(embedded[::2, :-2])
        z = jnp.concatenate([z_MNN, both_NN]).reshape(-1, *pairs.latent_MLQ.shape[1:])
        tokens = model.tokens(jnp.concatenate([embedded_1, embedded_2]), z)
        recon = model.draw(jnp.concatenate([first, further]), tokens)
        recon, third = recon[: len(first)], recon[len(first) :]
        wanted = flat(frames[::2, 2:])
        composed = mean_squared_error(third, wanted)
        copy = mean_squared_error(further, wanted)
        metrics |= {"composed_skill": 1.0 - composed / jnp.maximum(copy, 1e-12)}
        loss = mean_squared_error(recon, pairs.last_MIJC) + self.settings.compose_weight * composed
        metrics = jax.lax.stop_gradient(metrics)
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)

    def _composed(
        self, first_MNN: jax.Array, second_MNN: jax.Array, still_BNN: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(the rotation of two steps, metrics), given what frames and themselves give."""
        if still_BNN is None:
            return rotations.nearest(rotations.product(first_MNN, second_MNN)), {}
        anchor_NN = rotations.nearest(jnp.mean(still_BNN, axis=0))
        apart = jnp.linalg.norm(anchor_NN - jnp.eye(self.side))
        return rotations.after(second_MNN, first_MNN, anchor_NN), {"anchor_distance": apart}

    def compose(self, model, first_MLQ, second_MLQ, still_NLQ):
        first_MNN, second_MNN = (
            self._rotation(model.bottleneck(z_MLQ, train=False).z_q_BLD)
            for z_MLQ in (first_MLQ, second_MLQ)
        )
        anchored = self.settings.composition == "anchored"
        still_NNN = self._rotation(still_NLQ) if anchored else None
        return self._composed(first_MNN, second_MNN, still_NNN)[0].reshape(first_MLQ.shape)

    def received(self, z_MLQ):
        return self._rotation(z_MLQ).reshape(z_MLQ.shape)

    def _rotation(self, z_MLQ: jax.Array) -> jax.Array:
        matrix_MNN = z_MLQ.reshape(-1, self.side, self.side)
        if self.settings.projection == "nearest":
            return rotations.nearest(matrix_MNN)
        return rotations.exponential(matrix_MNN / math.sqrt(self.side))
