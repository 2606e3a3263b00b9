"""An image tokenizer: it labels, and gives policies and dynamics models its weights. One of
architecture "patches" is trained here, on frames alone; "vqgan" is imported."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.rlds.schema import images_per_example
from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import typed_config
from lapa_jax.stages import augmentation
from lapa_jax.stages.stage import Assets, Batch, Metrics, Params, Stage, Variables
from lapa_jax.world.tokenizers import tokenizer_of


class ImageTokenizerStage(Stage):
    """Batch: frames uint8 (B, T, H, W, 3), each of which is an image by itself."""

    fields = ("frames",)
    image_column = "frames"

    def __init__(self, config: ConfigDict, assets: Assets):
        self.config, self.assets = config, assets
        sizes = dict(image_size=config.data.image_size, compute_dtype=config.compute_dtype)
        shape, kind = tokenizer_of(config.model)
        self.model_config = typed_config(shape, {**config.model, **sizes}, "model")
        dtype = dtype_of(config.compute_dtype)
        self.model = Functional(lambda rngs: kind(self.model_config, dtype=dtype, rngs=rngs))

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"frames": batch["frames"]} | augmentation.column(self.config.data, batch)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        data, rows = self.config.data, self.config.global_batch
        shape = (rows, images_per_example(data), *data.image_size, 3)
        frames = {"frames": jax.ShapeDtypeStruct(shape, jnp.uint8)}
        return frames | augmentation.column_spec(data, rows)

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        return self._outcome(params, variables, batch["frames"], train=True, rng=rng)

    def eval_metrics(self, params: Params, variables: Variables, batch: Batch) -> Metrics:
        loss, metrics, _ = self._outcome(params, variables, batch["frames"], train=False)
        return metrics | {"loss": loss}

    def _outcome(self, params, variables, frames_BTIJC, **options):
        images = frames_BTIJC.reshape(-1, *frames_BTIJC.shape[2:])
        (drawn, bottleneck_loss, metrics), variables = self.model.apply(
            params, variables, "__call__", images, **options
        )
        mse = jnp.mean(jnp.square(drawn - images.astype(jnp.float32) / 255.0))
        metrics |= {"mse": mse, "bottleneck_loss": bottleneck_loss}
        if frames_BTIJC.shape[1] > 1:  # what it draws of a frame is to be nearer than its neighbour
            frames = frames_BTIJC.astype(jnp.float32) / 255.0
            copy = jnp.mean(jnp.square(frames[:, 1:] - frames[:, :-1]))
            metrics |= {"copy_mse": copy, "skill": 1.0 - mse / jnp.maximum(copy, 1e-12)}
        return mse + bottleneck_loss, metrics, variables

    def after_update(
        self, params: Params, variables: Variables, step: jax.Array, rng: jax.Array
    ) -> tuple[Params, Variables]:
        return self.model.after_update(params, variables, step, rng)

    def encode(self, params: Params, variables: Variables, images: jax.Array) -> jax.Array:
        """Codes int32 (B, h, w) of images uint8 (B, H, W, 3)."""
        return self.model.apply(params, variables, "encode", images)[0]

    def decode(self, params: Params, variables: Variables, codes: jax.Array) -> jax.Array:
        """Images float32 (B, H, W, 3) in [-1, 1] of codes (B, h, w)."""
        return self.model.apply(params, variables, "decode", codes)[0]
