"""An imported image tokenizer as a run: it labels, and gives policies its weights. Not trained."""

import jax
from ml_collections import ConfigDict

from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import typed_config
from lapa_jax.policy.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from lapa_jax.stages.stage import Assets, Params, Stage, Variables


class ImageTokenizerStage(Stage):
    fields = ("frames",)

    def __init__(self, config: ConfigDict, assets: Assets):
        del assets
        self.config = config
        self.model_config = typed_config(ImageTokenizerConfig, config.model, "model")
        dtype = dtype_of(config.compute_dtype)
        self.model = Functional(
            lambda rngs: ImageTokenizer(self.model_config, dtype=dtype, rngs=rngs)
        )

    def encode(self, params: Params, variables: Variables, images: jax.Array) -> jax.Array:
        """Codes int32 (B, h, w) of images uint8 (B, H, W, 3)."""
        return self.model.apply(params, variables, "encode", images)[0]

    def decode(self, params: Params, variables: Variables, codes: jax.Array) -> jax.Array:
        """Images float32 (B, H, W, 3) in [-1, 1] of codes (B, h, w)."""
        return self.model.apply(params, variables, "decode", codes)[0]
