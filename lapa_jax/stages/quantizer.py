"""Stage 1: learn latent actions from frame pairs (x_t, x_t+H) by predicting the later frame."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.models.module import Functional
from lapa_jax.models.quantizer import Quantizer, QuantizerConfig, quantizer_flops
from lapa_jax.stages.stage import Assets, Batch, Metrics, Params, Variables


class QuantizerStage:
    """Batch: frames uint8 (B, num_frames, H, W, 3)."""

    fields = ("frames",)
    alarms = {
        "collapsed": "few codes are in use (perplexity_recent is under model.collapse_fraction of "
        "model.codebook_size). If it lasts: more model.bottleneck.continuous_steps, a smaller "
        "codebook, or a longer data.corpora.*.window_seconds"
    }

    def __init__(self, config: ConfigDict, assets: Assets):
        del assets
        self.config = config
        self.model_config = QuantizerConfig(
            **config.model,
            image_size=config.data.image_size,
            num_frames=config.data.num_frames,
            compute_dtype=config.compute_dtype,
        )
        self.model = Functional(lambda rngs: Quantizer(self.model_config, rngs=rngs))

    @staticmethod
    def make_assets(
        config: ConfigDict,
        *,
        inherited: Assets,
        instructions: Sequence[str],
        action_edges: Callable[[int], list[np.ndarray]],
        action_clusters: Callable[[int], tuple[np.ndarray, np.ndarray]],
    ) -> dict[str, bytes]:
        del config, inherited, instructions, action_edges, action_clusters
        return {}

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"frames": batch["frames"]}

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        data = self.config.data
        shape = (self.config.global_batch, data.num_frames, *data.image_size, 3)
        return {"frames": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def init(self, key: jax.Array) -> tuple[Params, Variables]:
        return self.model.init(key)

    def axes(self) -> Params:
        return self.model.axes()

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        out, variables = self.model.apply(
            params, variables, "__call__", batch["frames"], train=True, rng=rng
        )
        return out["loss"], _with_skill(out["metrics"]), variables

    def eval_metrics(self, params: Params, variables: Variables, batch: Batch) -> Metrics:
        out, _ = self.model.apply(params, variables, "__call__", batch["frames"], train=False)
        return _with_skill(out["metrics"])

    def after_update(
        self, params: Params, variables: Variables, step: jax.Array, rng: jax.Array
    ) -> tuple[Params, Variables]:
        return self.model.after_update(params, variables, step, rng)

    def model_flops(self) -> float:
        return 3.0 * quantizer_flops(self.model_config)

    def trainable(self, path: tuple[str, ...]) -> bool:
        del path
        return True

    # What the labeller, the evaluator and the report use; pure functions of the parameters.

    def quantize(
        self, params: Params, variables: Variables, first: jax.Array, last: jax.Array
    ) -> jax.Array:
        """Latent actions z int32 (B, code_length) of frames uint8 (B, H, W, 3)."""
        return self.model.apply(params, variables, "quantize", first, last)[0]

    def encode(
        self, params: Params, variables: Variables, first: jax.Array, last: jax.Array
    ) -> jax.Array:
        """The latent before the bottleneck, float32 (B, code_length, quant_dim)."""
        return self.model.apply(params, variables, "encode", first, last)[0]

    def decode(
        self, params: Params, variables: Variables, first: jax.Array, z: jax.Array
    ) -> jax.Array:
        """The later frame that z predicts, float32 (B, H, W, 3), not clipped."""
        return self.model.apply(params, variables, "decode", first, z)[0]


def _with_skill(metrics: Metrics) -> Metrics:
    """Adds skill = 1 − MSE / MSE(copy of the first frame)."""
    return metrics | {"skill": 1.0 - metrics["mse"] / jnp.maximum(metrics["copy_mse"], 1e-12)}
