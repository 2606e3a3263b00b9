"""Hidden states at the slots of actions pulled towards the latent action of the example, as
LA-Align of "From Pixels to Tokens" (arXiv:2605.04678): 1 - cosine of what a small network makes of
their norm and the mean of the vectors of z. Codes count as vectors that are 1 at each of them. z is
data: nothing that made it is trained. Says nothing itself.

Shape suffixes: R rows, n slots, D width, V numbers of a vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from lapa_jax.nn.layers import Dense, LayerNorm, dtype_of
from lapa_jax.policy.codecs import Codes
from lapa_jax.policy.heads.base import COLUMNS, Assets, Backbone, Head, HeadConfig, Sources
from lapa_jax.policy.heads.vectors import Normalisation, Vectors


@dataclass(frozen=True, kw_only=True)
class AlignConfig(HeadConfig):
    """Those of every head, and what is pulled where."""

    codebook_size: Annotated[int, "[0, 1e7]", "the quantizer's; 0: z is of vectors"] = 0
    normalisation: Normalisation = "none"
    layer: Annotated[int, "[1, 1024]", "of the backbone, after which hidden states are pulled"] = 2
    dim: Annotated[int, "[1, 65536]", "width inside of the network"] = 128


class AlignHead(Head):
    name = "align"
    num_slots = vocab = 0
    settings: AlignConfig

    def __init__(self, modality: str, settings: AlignConfig, config: ConfigDict, assets: Assets):
        self.modality, self.settings, self.pulls = modality, settings, settings.layer
        where = f"model.targets.{modality}"
        if self.acts:
            raise ValueError(f"{where}.name='align' is of latent actions, beside a head of actions")
        if settings.layer > config.model.depth:
            raise ValueError(
                f"{where}.layer={settings.layer} must be at most model.depth={config.model.depth}"
            )
        self.vectors = self.codec = None
        if not settings.codebook_size:
            self.vectors = Vectors(modality, config, assets)
            self.num_outputs = self.vectors.dim
            return
        if "code_length" not in config:
            raise ValueError("config.code_length is missing: how many codes a z has")
        self.codec = Codes(settings.codebook_size, config.code_length)
        self.num_outputs = settings.codebook_size * config.code_length

    @staticmethod
    def make_assets(
        modality: str, settings: AlignConfig, config: ConfigDict, sources: Sources
    ) -> dict[str, bytes]:
        if settings.codebook_size:
            return {}
        return Vectors.make_assets(modality, settings.normalisation, sources)

    def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if self.vectors:
            targets = self.vectors.rows(batch)["targets"].mean(axis=1)
        else:
            codes = self.codec.encode(batch[COLUMNS[self.modality]])
            one = codes[..., None] == np.arange(self.settings.codebook_size)
            targets = one.reshape(len(codes), -1).astype(np.float32)
        return np.zeros((len(targets), 0), np.int32), {"targets": targets[:, None]}

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"targets": jax.ShapeDtypeStruct((1, self.num_outputs), jnp.float32)}

    def output(self, model: Backbone, rngs: nnx.Rngs) -> nnx.Module:
        dtype = dtype_of(model.compute_dtype)
        return Projection(model.dim, self.settings.dim, self.num_outputs, dtype=dtype, rngs=rngs)

    def loss(
        self, outputs_RnV: jax.Array, targets: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """1 - cosine, mean over all slots, those of one example to the same z."""
        z_RkV = targets["targets"]
        of_one = outputs_RnV.shape[1] // z_RkV.shape[1]
        z_RnV = jnp.repeat(z_RkV, of_one, axis=1)
        # A z of zeros has no direction: it pulls nowhere.
        similar = optax.cosine_similarity(outputs_RnV, z_RnV, epsilon=1e-8).mean()
        return 1.0 - similar, {"similarity": similar}


class Projection(nnx.Module):
    """Norm, linear, GELU, linear: hidden states (..., D) → (..., V)."""

    def __init__(self, inputs: int, dim: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        given = dict(bias=True, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(inputs, bias=True)
        self.into = Dense((inputs,), (dim,), ("embed", "mlp"), **given)
        self.out = Dense((dim,), (outputs,), ("mlp", None), **given)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jax.nn.gelu(self.into(self.norm(x)), approximate=False))
