"""An imported image tokenizer as a run: it labels, and gives policies its weights. Not trained."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from lapa_jax.nn import surgery
from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import typed_config
from lapa_jax.policy.front_end import VqganConfig, front_end_config
from lapa_jax.policy.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from lapa_jax.stages.stage import Assets, Params, Sources, Stage, Variables, require_source


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

    @staticmethod
    def make_assets(config: ConfigDict, sources: Sources) -> dict[str, bytes]:
        """Only training makes assets."""
        raise ValueError(
            "config.stage='image_tokenizer' cannot be trained: its runs come from lapa import "
            "--format vqgan_pickle"
        )

    def encode(self, params: Params, variables: Variables, images: jax.Array) -> jax.Array:
        """Codes int32 (B, h, w) of images uint8 (B, H, W, 3)."""
        return self.model.apply(params, variables, "encode", images)[0]

    def decode(self, params: Params, variables: Variables, codes: jax.Array) -> jax.Array:
        """Images float32 (B, H, W, 3) in [-1, 1] of codes (B, h, w)."""
        return self.model.apply(params, variables, "decode", codes)[0]


# What a policy's `frozen_from` and `adopt` are: its model has a `front_end`.


def tokenizer_source(front_end: Mapping[str, Any]) -> tuple[str, str] | None:
    """(config key, workdir in it) of the run that gives a front-end its tokenizer, if it has
    one."""
    settings = front_end_config(front_end)[1]
    if not isinstance(settings, VqganConfig):
        return None
    if not settings.weights:
        raise ValueError(
            "model.front_end.weights is empty: name the run of an image tokenizer (lapa import "
            "--format vqgan_pickle)"
        )
    return "model.front_end.weights", settings.weights


def adopt_tokenizer(
    front_end: Mapping[str, Any], variables: Variables, config: ConfigDict, params: Params
) -> Variables:
    """A policy's fresh variables with the encoder of that run, given its config and parameters."""
    tokenizer = front_end_config(front_end)[1].tokenizer
    require_source(config, "image_tokenizer", tokenizer.KEY, tokenizer.architecture())
    here = variables["front_end"]
    surgery.plan_swap(params["encoder"], here["encoder"], may_change=())
    return variables | {"front_end": here | {"encoder": params["encoder"]}}
