"""Vectors one after the other, each fed before the next is predicted, by absolute error: what comes
after them in the row sees what they are. For latent actions of quantizers without codes.

Shape suffixes: B examples, R rows, n vectors of an example, D width, V numbers of a vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lapa_jax.nn.layers import Dense, dtype_of
from lapa_jax.nn.module import Functional, Tree
from lapa_jax.policy.decoding import one_by_one
from lapa_jax.policy.heads.base import Assets, Backbone, Decoded, HeadConfig
from lapa_jax.policy.heads.vectors import Normalisation, VectorHead, absolute_error
from lapa_jax.policy.modality import FILL


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(HeadConfig):
    """Those of every head."""

    normalisation: Normalisation = "q01_q99"


class SequenceHead(VectorHead):
    name = "vectors"
    next_token = True
    vocab = 0
    settings: SequenceConfig

    def __init__(self, modality: str, settings: SequenceConfig, config: ConfigDict, assets: Assets):
        super().__init__(modality, settings, config, assets)
        self.num_slots = self.vectors.count

    def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        targets = self.vectors.rows(batch)
        return np.full(targets["mask"].shape, FILL, np.int32), targets

    def embedding(self, model: Backbone, rngs: nnx.Rngs) -> nnx.Module:
        return VectorEmbedding(self.vectors.dim, model, rngs)

    def draw(self, targets: Mapping[str, jax.Array], rng: jax.Array) -> dict[str, jax.Array]:
        return {"fed": targets["targets"]}

    def loss(
        self, outputs_RnV: jax.Array, targets: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return absolute_error(outputs_RnV, targets, self.out_of_range(targets))

    def decode(
        self,
        model: Functional,
        params: Tree,
        variables: Tree,
        prompts: Mapping[str, jax.Array],
        images: jax.Array | None,
    ) -> Decoded:
        """Nothing is drawn."""
        given = (model, params, variables, prompts, images, self.modality, self.num_slots)
        found = one_by_one(*given)
        ids = jnp.full(found.shape[:2], FILL, jnp.int32)
        return Decoded(self.vectors.restored(found), ids, fed=found)


class VectorEmbedding(nnx.Module):
    def __init__(self, dim: int, model: Backbone, rngs: nnx.Rngs):
        self.dim, self.dtype = model.dim, dtype_of(model.compute_dtype)
        given = dict(dtype=self.dtype, bias=True, rngs=rngs)
        self.into = Dense((dim,), (model.dim,), (None, "embed"), **given)

    def __call__(self, fed: jax.Array) -> jax.Array:
        """(..., V) → (..., D)."""
        if jnp.issubdtype(fed.dtype, jnp.integer):  # ids of other tokens
            return jnp.zeros((*fed.shape, self.dim), self.dtype)
        return self.into(fed.astype(self.dtype))
