"""All vectors of a chunk in one pass, by absolute error (Kim et al. 2025, arXiv:2502.19645).

Each step has a slot; the slots see the prompt and each other. With the decoder "mlp", what each
gives goes through the layers of OpenVLA-OFT's head; with "pool", all are pooled to one vector by
attention, as in UniVLA (Bu et al. 2025, arXiv:2505.06111), which one map turns into the chunk.

Shape suffixes: B examples, R rows, k examples of a row, n slots, D width, V numbers of a vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.module import Functional, Tree
from lapa_jax.policy.decoding import in_one_pass
from lapa_jax.policy.heads.base import Assets, Backbone, Decoded, HeadConfig
from lapa_jax.policy.heads.decoders import PooledDecoder, ResidualDecoder
from lapa_jax.policy.heads.vectors import Normalisation, VectorHead, absolute_error

DECODERS = ("linear", "mlp", "pool")


@dataclass(frozen=True, kw_only=True)
class ChunkConfig(HeadConfig):
    """Those of every head, and how vectors are made of hidden states."""

    normalisation: Normalisation = "q01_q99"
    decoder: Annotated[
        str,
        DECODERS,
        "of hidden states: one linear map, OpenVLA-OFT's layers for each step, or UniVLA's pooling",
    ] = "linear"
    decoder_dim: Annotated[int, "[8, 65536]", "width of `mlp` and `pool`"] = 128


class ChunkHead(VectorHead):
    one_block = True
    name = "chunk"
    settings: ChunkConfig

    def __init__(self, modality: str, settings: ChunkConfig, config: ConfigDict, assets: Assets):
        super().__init__(modality, settings, config, assets)
        self.num_slots = self.vocab = self.vectors.count

    def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """A slot's id is its step."""
        targets = self.vectors.rows(batch)
        steps = np.arange(self.num_slots, dtype=np.int32)
        return np.tile(steps, (len(targets["targets"]), 1)), targets

    def output(self, model: Backbone, rngs: nnx.Rngs) -> nnx.Module:
        if self.settings.decoder == "linear":
            return super().output(model, rngs)
        sizes = model.dim, self.settings.decoder_dim
        given = dict(dtype=dtype_of(model.compute_dtype), rngs=rngs)
        if self.settings.decoder == "mlp":
            return ResidualDecoder(*sizes, self.num_outputs, **given)
        return PooledDecoder(*sizes, self.num_slots, self.num_outputs, **given)

    def loss(
        self, outputs_RnV: jax.Array, targets: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Absolute error of normalised numbers, mean over the steps that are known."""
        return absolute_error(outputs_RnV, targets, self.out_of_range(targets))

    def decode(
        self,
        model: Functional,
        params: Tree,
        variables: Tree,
        prompts: Mapping[str, jax.Array],
        images: jax.Array | None,
    ) -> Decoded:
        """One pass; nothing is drawn."""
        B, n = len(prompts["tokens"]), self.num_slots
        ids = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (B, n))
        found = in_one_pass(model, params, variables, prompts, images, self.modality, ids)
        return Decoded(self.vectors.restored(found))
