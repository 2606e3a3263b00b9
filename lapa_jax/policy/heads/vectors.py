"""Vectors that heads predict as numbers: chunks of actions, or latent actions of quantizers without
codes. Normalised by the statistics of the run's own data.

Shape suffixes: B examples, R rows, k examples of a row, n vectors of an example, V numbers of a
vector.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.normalise import MODES, Normaliser
from lapa_jax.policy.heads.base import COLUMNS, Assets, Head, HeadConfig, Sources
from lapa_jax.policy.modality import ACTION, MODALITIES

Normalisation = Annotated[str, MODES, "of each dimension, by the statistics of the run's own data"]
STATISTICS = "{}_statistics.json"  # the asset, of a modality


class Vectors:
    """Those of one modality: `count` in an example, of `dim` numbers each."""

    def __init__(self, modality: str, config: ConfigDict, assets: Assets):
        self.modality = modality
        if STATISTICS.format(modality) not in assets:
            raise ValueError(
                f"model.targets.{modality} is of vectors, and the run has no statistics of them: "
                "leave it out, or train it (loss_weight above 0.0)"
            )
        self.statistics = Normaliser.from_json(assets[STATISTICS.format(modality)])
        self.dim, self.acts = self.statistics.dim, modality == MODALITIES[ACTION]
        if not self.acts and "code_length" not in config:
            raise ValueError("config.code_length is missing: how many vectors a z has")
        self.count = config.data.action_horizon if self.acts else config.code_length

    @staticmethod
    def make_assets(modality: str, normalisation: str, sources: Sources) -> dict[str, bytes]:
        found = sources.statistics(modality, normalisation)
        return {STATISTICS.format(modality): found.to_json()}

    def rows(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Loader columns → normalised "targets" float32 (B, n, V), "mask" bool (B, n) of those that
        are known, and "beyond" float32 (B, n): the share of their numbers beyond those that become
        -1 and 1. ValueError for vectors of another number or width and for what is not finite."""
        values = batch[COLUMNS[self.modality]]
        if values.dtype.kind != "f":
            raise ValueError(
                f"model.targets.{self.modality} is of vectors; its label set holds codes: set "
                "name='tokens'"
            )
        given = values.shape[1:] if values.ndim == 3 else (1, *values.shape[1:])
        if given != (self.count, self.dim):
            key = "data.action_horizon" if self.acts else "config.code_length"
            raise ValueError(
                f"{COLUMNS[self.modality]} of shape {list(given)}: {key} is {self.count}, and the "
                f"run's statistics are of {self.dim} numbers"
            )
        values = values.reshape(-1, self.count, self.dim)
        try:
            targets = self.statistics.normalise(values.astype(np.float32))
        except ValueError as error:
            raise ValueError(f"{COLUMNS[self.modality]}: {error}") from error
        mask = np.ones(targets.shape[:2], bool)
        if self.acts:
            mask = batch["action_mask"].reshape(mask.shape)
        beyond = self.statistics.beyond(values).mean(axis=-1, dtype=np.float32)
        return {"targets": targets, "mask": mask, "beyond": beyond}

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        n = self.count
        return {
            "targets": jax.ShapeDtypeStruct((n, self.dim), jnp.float32),
            "mask": jax.ShapeDtypeStruct((n,), jnp.bool_),
            "beyond": jax.ShapeDtypeStruct((n,), jnp.float32),
        }

    def restored(self, values_BnV: jax.Array) -> jax.Array:
        """In the units of the data, (B, n, V); of a single action (B, V)."""
        values = self.statistics.restore(values_BnV, jnp)
        return values[:, 0] if self.acts and self.count == 1 else values


def masked_mean(values_Rn: jax.Array, mask_Rn: jax.Array) -> jax.Array:
    """The sum where the mask is True, by how many those are; 0 where none is."""
    return jnp.where(mask_Rn, values_Rn, 0.0).sum() / jnp.maximum(mask_Rn.sum(), 1)


def absolute_error(
    outputs_RnV: jax.Array, targets: Mapping[str, jax.Array], metrics: Mapping[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of normalised vectors, mean over those that are known, with these metrics."""
    error = jnp.abs(outputs_RnV - targets["targets"]).mean(axis=-1)
    loss = masked_mean(error, targets["mask"])
    return loss, {"l1": loss, "loss_weight": targets["mask"].sum(), **metrics}


class VectorHead(Head):
    """What heads of vectors have in common; `settings` have a `normalisation`."""

    vectors: Vectors

    def __init__(self, modality: str, settings: HeadConfig, config: ConfigDict, assets: Assets):
        self.modality, self.settings = modality, settings
        self.vectors = Vectors(modality, config, assets)
        self.num_outputs = self.vectors.dim
        if self.acts:
            self.horizon = self.vectors.count

    @property
    def statistics(self) -> Normaliser:
        return self.vectors.statistics

    @staticmethod
    def columns(modality: str, config: ConfigDict) -> tuple[str, ...]:
        masked = ("action_mask",) if modality == MODALITIES[ACTION] else ()
        return (COLUMNS[modality], *masked)

    @staticmethod
    def make_assets(
        modality: str, settings: Any, config: ConfigDict, sources: Sources
    ) -> dict[str, bytes]:
        return Vectors.make_assets(modality, settings.normalisation, sources)

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self.vectors.spec()

    def out_of_range(self, targets: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The metric: the share of known numbers beyond those of the statistics."""
        beyond = masked_mean(targets["beyond"], targets["mask"])
        return {f"{self.modality}_out_of_range": beyond}

    def describe(self) -> dict[str, Any]:
        found = self.vectors.statistics
        return {
            "dim": found.dim,
            "head": self.name,
            "normalisation": found.mode,
            "low": None if found.min is None else list(found.min),  # of the training data
            "high": None if found.max is None else list(found.max),
        }
