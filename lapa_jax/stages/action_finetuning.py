"""Stage 3: the policy's head is swapped, and it learns real actions from a little robot data."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.policy.codecs import action as action_tokens
from lapa_jax.stages.policy import TOKENIZER, PolicyStage
from lapa_jax.stages.stage import Assets, Params, Variables

ACTION_BINS = "action_bins.json"


class ActionFinetuning(PolicyStage):
    head = "action"
    target_field = "action"
    fields = ("frames", "instruction", "action")

    def __init__(self, config: ConfigDict, assets: Assets):
        self.actions = action_tokens.from_json(assets[ACTION_BINS])
        super().__init__(config, assets, limits=self.actions.num_bins)

    @staticmethod
    def make_assets(
        config: ConfigDict,
        *,
        inherited: Assets,
        instructions: Sequence[str],
        action_edges: Callable[[int], list[np.ndarray]],
        action_clusters: Callable[[int], tuple[np.ndarray, np.ndarray]],
    ) -> dict[str, bytes]:
        """Bins or clusters come from this run's own labelled data."""
        size, kind = config.model.action_vocab, config.action_tokens
        if kind == "bins":
            tokenizer = action_tokens.ActionTokenizer(action_edges(size))
        elif kind == "clusters":
            tokenizer = action_tokens.ActionClusters(*action_clusters(size))
        else:
            raise ValueError(f"action_tokens={kind!r} must be 'bins' or 'clusters'")
        return {
            TOKENIZER: PolicyStage.make_tokenizer(config, inherited, instructions),
            ACTION_BINS: tokenizer.to_json(),
        }

    def targets(self, values: np.ndarray) -> np.ndarray:
        if values.ndim != 2:
            raise ValueError(
                f"data.action_horizon is {values.shape[1]}, but this head predicts one action: set "
                "it to 1"
            )
        return self.actions.encode(values)

    def act(
        self,
        params: Params,
        variables: Variables,
        prompts: Mapping[str, jax.Array],
        images: jax.Array | None,
        **options,
    ) -> jax.Array:
        """Actions float32 (B, action_dim) in the units of the data; pure, may be jitted.

        Decoding is confined to the ids that each token has, so none is out of range.
        """
        ids, _ = self.predict(params, variables, prompts, images, **options)
        return self.actions.centre_of(ids, jnp)
