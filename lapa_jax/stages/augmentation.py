"""Augmentation of images on the devices: a random crop and random colours, in training alone.

What an example gets is a function of (seed, position): it does not depend on hosts, resume,
microbatches or the place in the batch, and all images of an example get the same.

Shape suffixes: B examples, R rows of a batch, K examples of a row, N images of an example, I image
rows, J image columns.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.nn.image_changes import AUGMENTATIONS, DRAWS, CropAndColour, NoAugmentation, changed
from lapa_jax.nn.registry import named_config, named_settings
from lapa_jax.stages.stage import Batch, Metrics, Params, Stage, Variables

COLUMN = "position_words"
_SALT = 0x617567  # keeps the draws apart from all others of the seed


def augment_settings(name: str) -> ConfigDict:
    """For a new config."""
    return named_settings(name, AUGMENTATIONS, "augment")


def settings_of(data: ConfigDict) -> CropAndColour | None:
    """Those of config.data.augment; None where images stay as they are."""
    _, settings = named_config(data.augment.to_dict(), AUGMENTATIONS, "data.augment")
    return None if isinstance(settings, NoAugmentation) else settings


# ---------------------------------------------------------------- the batch's column


def column(
    data: ConfigDict, batch: dict[str, np.ndarray], order: np.ndarray | None = None, k: int = 1
) -> dict[str, np.ndarray]:
    """What `prepare` adds to a batch: uint32 (R, K, 2), the positions' low and high words, with
    the examples in `order` where it is given. Nothing without augmentation."""
    if settings_of(data) is None:
        return {}
    positions = batch["position"] if order is None else batch["position"][order]
    return {COLUMN: positions.astype("<i8").view("<u4").reshape(-1, k, 2)}


def column_spec(data: ConfigDict, rows: int, k: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Its counterpart in `batch_spec`."""
    if settings_of(data) is None:
        return {}
    return {COLUMN: jax.ShapeDtypeStruct((rows, k, 2), jnp.uint32)}


# ---------------------------------------------------------------- on the devices


def training_loss(stage: Stage) -> Callable[..., tuple[jax.Array, Metrics, Variables]]:
    """The loss that training takes: `stage.loss`, of augmented images where the config asks."""
    settings = settings_of(stage.config.data)
    if settings is None:
        return stage.loss
    if stage.image_column not in stage.batch_spec():
        raise ValueError(
            f"data.augment.name={stage.config.data.augment.name!r} needs images, but batches of "
            f"stage {stage.config.stage!r} have none: choose another model.front_end "
            "('cached_tokens' are of images as they are), or data.augment.name='none'"
        )

    def loss(
        params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        batch = dict(batch)
        words, images = batch.pop(COLUMN), batch[stage.image_column]
        batch[stage.image_column] = augment(settings, stage.config.seed, words, images)
        return stage.loss(params, variables, batch, rng)

    return loss


def augment(
    settings: CropAndColour, seed: int, words_RK2: jax.Array, images: jax.Array
) -> jax.Array:
    """Images uint8 (R, ..., I, J, 3), of each row those of its K examples one after the other, with
    what their positions draw; of the same shape and type."""
    R, K, _ = words_RK2.shape
    by_example = images.reshape(R, K, -1, *images.shape[-3:])

    def one(words_2: jax.Array, images_NIJC: jax.Array) -> jax.Array:
        x_NIJC = changed(settings, draw(seed, words_2), images_NIJC.astype(jnp.float32) / 255.0)
        return jnp.round(x_NIJC * 255.0).astype(jnp.uint8)

    return jax.vmap(jax.vmap(one))(words_RK2, by_example).reshape(images.shape)


def draw(seed: int, words_2: jax.Array) -> jax.Array:
    """The numbers in [0, 1) of the example at a position (uint32 words, low and high)."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _SALT)
    low, high = words_2
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, high), low), (DRAWS,))
