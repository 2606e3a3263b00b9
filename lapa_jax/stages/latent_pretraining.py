"""Stage 2: a policy learns to predict the latent action z from the image and the instruction."""

from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from lapa_jax.stages.policy import TOKENIZER, PolicyStage
from lapa_jax.stages.stage import Assets


class LatentPretraining(PolicyStage):
    head = "latent"
    target_field = "latent_action"
    fields = ("frames", "instruction", "latent_action")

    def __init__(self, config: ConfigDict, assets: Assets):
        size = config.model.latent_vocab
        if config.model.legacy:
            self.text_loss_weight = 0.01  # as the original's
        super().__init__(config, assets, limits=[size] * config.code_length)

    @staticmethod
    def make_assets(
        config: ConfigDict,
        *,
        inherited: Assets,
        instructions: Sequence[str],
        action_edges: Callable[[int], list[np.ndarray]],
        action_clusters: Callable[[int], tuple[np.ndarray, np.ndarray]],
    ) -> dict[str, bytes]:
        del action_edges, action_clusters
        return {TOKENIZER: PolicyStage.make_tokenizer(config, inherited, instructions)}

    def targets(self, values: np.ndarray) -> np.ndarray:
        """z int32 (B, code_length), checked against the config."""
        if values.ndim != 2:
            raise ValueError(
                f"data.corpora.*.label_set: labels are vectors {values.dtype}{values.shape[1:]} of "
                "a quantizer without codes, but this head predicts codes: name a label set of codes"
            )
        if values.shape[1] != len(self.limits):
            raise ValueError(
                f"the label set has codes of length {values.shape[1]}; "
                f"config.code_length={len(self.limits)}"
            )
        if values.min() < 0 or values.max() >= self.limits[0]:
            raise ValueError(
                f"latent actions run from {values.min()} to {values.max()}; "
                f"model.latent_vocab={self.limits[0]}"
            )
        return values
