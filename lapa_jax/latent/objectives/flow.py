"""Optical flow as a second target beside pixels.

Shape suffixes: see base.py; U and V rows and columns of the cells of flow.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from lapa_jax.latent.objectives.base import Objective, mean_squared_error
from lapa_jax.nn.layers import Dense
from lapa_jax.nn.patches import from_patches


@dataclass(frozen=True)
class FlowConfig:
    """Which flow sets are learnt from (`lapa data flow`), and how much they count."""

    grid: Annotated[
        tuple[int, int], "[1, 8192]", "rows and columns of the cells of the corpora's flow sets"
    ] = (16, 16)
    flow_weight: Annotated[
        float, "(0, 1e6]", "on the squared error of flow, as a part of that of no motion"
    ] = 0.03  # at a tenth of it, codes say what pixels alone make them say

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))


class Flow(Objective):
    """Pixels, and from the same tokens the flow of each cell, of the first pair of each clip
    (LAOF, which has a decoder of its own for an image of the flow). What moves by itself, as light
    or a screen, has no flow; what the hand moves has.

    The error of flow is divided by that of "nothing moves" over the batch: it does not depend on
    the size of images.
    """

    def __init__(self, settings, config, *, rngs):
        rows, columns = (n / m for n, m in zip(settings.grid, config.grid, strict=True))
        if rows != columns or rows % 1:
            raise ValueError(
                f"model.objective.grid={settings.grid} must be a whole multiple of the patches "
                f"{config.grid} (model.image_size / model.patch_size), the same on both sides: "
                "another --cell of `lapa data flow`, or another model.patch_size"
            )
        self.side, self.grid, self.weight = int(rows), settings.grid, settings.flow_weight
        self.head = Dense(
            (config.dim,),
            (2 * self.side**2,),
            ("embed", None),
            bias=True,
            std=0.0,
            dtype=jnp.float32,
            rngs=rngs,
        )

    @classmethod
    def columns(cls, settings):
        cells = settings.grid[0] * settings.grid[1]
        return {"flow": jax.ShapeDtypeStruct((cells, 2), jnp.float32)}

    def __call__(self, model, batch, *, train, rng=None):
        pairs = model.pairs(batch["frames"], train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        tokens_MHWD = model.tokens(pairs.embedded_MHWD, out.z_q_BLD)
        recon = model.draw(pairs.first_MIJC, tokens_MHWD)
        wanted_BUV2 = batch["flow"].reshape(-1, *self.grid, 2)
        of_clip = tokens_MHWD.reshape(len(wanted_BUV2), -1, *tokens_MHWD.shape[1:])
        found_BUV2 = from_patches(self.head(of_clip[:, 0].astype(jnp.float32)), self.side)
        still = mean_squared_error(wanted_BUV2, 0.0)
        error = mean_squared_error(found_BUV2, wanted_BUV2) / jnp.maximum(still, 1e-6)
        loss = mean_squared_error(recon, pairs.last_MIJC) + self.weight * error
        metrics = {"flow_skill": jax.lax.stop_gradient(1.0 - error)}
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)
