"""Stage 1: learn latent actions from frame pairs (x_t, x_t+H) by predicting the later frame."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.latent import Quantizer, QuantizerConfig, Reading
from lapa_jax.latent.objectives import FeaturesConfig, objective_config
from lapa_jax.nn import surgery
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import typed_config
from lapa_jax.stages import augmentation
from lapa_jax.stages.stage import (
    Assets,
    Batch,
    Metrics,
    Params,
    Stage,
    Variables,
    require_source,
)


class QuantizerStage(Stage):
    """Batch: frames uint8 (B, num_frames, H, W, 3)."""

    fields = ("frames",)
    image_column = "frames"
    alarms = {
        "collapsed": "few codes are in use (perplexity_recent is under model.collapse_fraction of "
        "model.codebook_size). If it lasts: more model.bottleneck.continuous_steps, a smaller "
        "codebook, or a longer data.corpora.*.window_seconds"
    }

    def __init__(self, config: ConfigDict, assets: Assets):
        self.config, self.assets = config, assets
        settings = {
            **config.model,
            "image_size": config.data.image_size,
            "num_frames": config.data.num_frames,
            "compute_dtype": config.compute_dtype,
        }
        self.model_config = typed_config(QuantizerConfig, settings, "model")
        self.model = Functional(lambda rngs: Quantizer(self.model_config, rngs=rngs))

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"frames": batch["frames"]} | augmentation.column(self.config.data, batch)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        data, rows = self.config.data, self.config.global_batch
        shape = (rows, data.num_frames, *data.image_size, 3)
        frames = {"frames": jax.ShapeDtypeStruct(shape, jnp.uint8)}
        return frames | augmentation.column_spec(data, rows)

    def frozen_from(self) -> tuple[str, str] | None:
        settings = self._objective()[1]
        if not isinstance(settings, FeaturesConfig):
            return None
        if not settings.weights:
            raise ValueError(
                "model.objective.weights is empty: name the run of a teacher "
                "(experiments/teacher/tabletop.py, or lapa import --format dinov2)"
            )
        return "model.objective.weights", settings.weights

    def adopt(self, variables: Variables, config: ConfigDict, params: Params) -> Variables:
        teacher = self._objective()[1].teacher
        require_source(config, "teacher", teacher.KEY, teacher.architecture())
        here = self.model.abstract()[1]["objective"]["teacher"]
        surgery.plan_swap(params["encoder"], here, may_change=())
        return variables | {"objective": variables["objective"] | {"teacher": params["encoder"]}}

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

    def _objective(self) -> tuple[str, Any]:
        return objective_config(self.model_config.objective)

    # What the labeller, the evaluator and the report use; pure functions of the parameters.

    def quantize(
        self, params: Params, variables: Variables, first: jax.Array, last: jax.Array
    ) -> jax.Array:
        """Latent actions z int32 (B, code_length) of frames uint8 (B, H, W, 3)."""
        return self.model.apply(params, variables, "quantize", first, last)[0]

    def read(
        self, params: Params, variables: Variables, first: jax.Array, last: jax.Array
    ) -> Reading:
        """z, the latent before the bottleneck and what the decoder receives of frames uint8 (B, H,
        W, 3); of a continuous bottleneck, too."""
        return self.model.apply(params, variables, "read", first, last)[0]

    def decode(
        self, params: Params, variables: Variables, first: jax.Array, z: jax.Array
    ) -> jax.Array:
        """The later frame that z predicts, float32 (B, H, W, 3), not clipped."""
        return self.model.apply(params, variables, "decode", first, z)[0]

    def decode_latent(
        self, params: Params, variables: Variables, first: jax.Array, received: jax.Array
    ) -> jax.Array:
        """The same from what the decoder receives, float32 (B, code_length, quant_dim)."""
        return self.model.apply(params, variables, "decode_latent", first, received)[0]


def _with_skill(metrics: Metrics) -> Metrics:
    """Adds skill = 1 − MSE / MSE(copy of the first frame)."""
    return metrics | {"skill": 1.0 - metrics["mse"] / jnp.maximum(metrics["copy_mse"], 1e-12)}
