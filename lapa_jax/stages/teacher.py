"""A teacher for quantizers that predict features: an image encoder that learns from frames."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.latent.teacher import MaskedAutoencoder, MaskedAutoencoderConfig
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import typed_config
from lapa_jax.stages import augmentation
from lapa_jax.stages.stage import Assets, Batch, Metrics, Params, Stage, Variables


class TeacherStage(Stage):
    """Batch: image uint8 (B, H, W, 3). An imported encoder is a run of this stage, too."""

    fields = ("frames",)
    image_column = "image"

    def __init__(self, config: ConfigDict, assets: Assets):
        self.config, self.assets = config, assets
        settings = {
            **config.model,
            "image_size": config.data.image_size,
            "compute_dtype": config.compute_dtype,
        }
        self.model_config = typed_config(MaskedAutoencoderConfig, settings, "model")
        self.model = Functional(lambda rngs: MaskedAutoencoder(self.model_config, rngs=rngs))

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": batch["frames"][:, 0]} | augmentation.column(self.config.data, batch)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        data, rows = self.config.data, self.config.global_batch
        image = {"image": jax.ShapeDtypeStruct((rows, *data.image_size, 3), jnp.uint8)}
        return image | augmentation.column_spec(data, rows)

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        (loss, metrics), variables = self.model.apply(
            params, variables, "__call__", batch["image"], rng=rng
        )
        return loss, metrics, variables

    def features(self, params: Params, variables: Variables, images: jax.Array) -> jax.Array:
        """Features float32 (B, patch rows, patch columns, dim) of images (B, H, W, 3)."""
        return self.model.apply(params, variables, "features", images)[0]
