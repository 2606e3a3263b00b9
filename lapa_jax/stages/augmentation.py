"""Augmentation of images on the devices: a random crop and random colours, in training alone.

What an example gets is a function of (seed, position): it does not depend on hosts, resume,
microbatches or the place in the batch, and all images of an example get the same.

Shape suffixes: B examples, R rows of a batch, K examples of a row, N images of an example, I image
rows, J image columns, C colours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.nn.registry import named_config, named_settings
from lapa_jax.stages.stage import Batch, Metrics, Params, Stage, Variables

COLUMN = "position_words"
_SALT = 0x617567  # keeps the draws apart from all others of the seed


@dataclass(frozen=True)
class NoAugmentation:
    """Images as they are."""


@dataclass(frozen=True)
class CropAndColour:
    """A crop of `crop_area` of the image, at its aspect, anywhere, resized to the whole. Then of
    `colour_fraction` of the examples brightness and contrast change: x * (1 ± contrast) ±
    brightness; and, drawn apart, of as many hue, saturation and value. All are uniform, and of
    values in [0, 1] but for the hue.

    The defaults are of the original's fine-tuning on a real robot, in units of its own: 5 of 180 in
    hue, 20 of 255 in saturation and value."""

    crop_area: Annotated[float, "(0, 1]", "of the image that a crop has"] = 0.9
    brightness: Annotated[float, "[0, 1]", "added or taken away at most"] = 0.2
    contrast: Annotated[float, "[0, 1]", "by which values are scaled up or down at most"] = 0.2
    hue_degrees: Annotated[float, "[0, 180]", "by which the hue turns at most"] = 10.0
    saturation: Annotated[float, "[0, 1]", "added or taken away at most"] = 20 / 255
    value: Annotated[float, "[0, 1]", "added or taken away at most"] = 20 / 255
    colour_fraction: Annotated[float, "[0, 1]", "of the examples whose colours change"] = 0.5


AUGMENTATIONS = {"none": (NoAugmentation, None), "crop_and_colour": (CropAndColour, None)}


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
        return _apply(settings, draw(seed, words_2), images_NIJC)

    return jax.vmap(jax.vmap(one))(words_RK2, by_example).reshape(images.shape)


def draw(seed: int, words_2: jax.Array) -> jax.Array:
    """The nine numbers in [0, 1) of the example at a position (uint32 words, low and high): crop
    row, crop column, brightness, contrast, hue, saturation, value, and whether the former two and
    the latter three change."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _SALT)
    low, high = words_2
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, high), low), (9,))


def _apply(settings: CropAndColour, draw_9: jax.Array, images_NIJC: jax.Array) -> jax.Array:
    x = _crop(images_NIJC.astype(jnp.float32) / 255.0, settings.crop_area, draw_9[:2])
    brightness, contrast, hue, saturation, value = 2.0 * draw_9[2:7] - 1.0  # in [-1, 1)
    first, second = draw_9[7:] < settings.colour_fraction
    changed = x * (1.0 + settings.contrast * contrast) + settings.brightness * brightness
    x = jnp.where(first, jnp.clip(changed, 0.0, 1.0), x)
    changed = shift_hsv(
        x,
        settings.hue_degrees * hue,
        settings.saturation * saturation,
        settings.value * value,
    )
    x = jnp.where(second, changed, x)
    return jnp.round(x * 255.0).astype(jnp.uint8)


def _crop(x_NIJC: jax.Array, area: float, place_2: jax.Array) -> jax.Array:
    """Bilinear; place 0 is the top or left, 1 the bottom or right."""
    side = area**0.5
    sides = jnp.array(x_NIJC.shape[1:3], jnp.float32)
    cropped = jax.image.scale_and_translate(
        x_NIJC,
        x_NIJC.shape,
        (1, 2),
        jnp.full(2, 1.0 / side, jnp.float32),
        -place_2 * sides * (1.0 - side) / side,
        "linear",
        antialias=False,
    )
    return jnp.clip(cropped, 0.0, 1.0)


def shift_hsv(
    x_C: jax.Array, hue_degrees: jax.Array, saturation: jax.Array, value: jax.Array
) -> jax.Array:
    """Colours (..., 3) in [0, 1], with these added to their hue, saturation and value, of which the
    latter two stay in [0, 1]."""
    red, green, blue = x_C[..., 0], x_C[..., 1], x_C[..., 2]
    high = x_C.max(-1)
    chroma = high - x_C.min(-1)
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    sixths = jnp.where(
        high == red,
        (green - blue) / divisor,
        jnp.where(high == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    sixths = jnp.where(chroma > 0, sixths, 0.0) + hue_degrees / 60.0  # grey has the hue of red
    s = jnp.clip(chroma / jnp.where(high > 0, high, 1.0) + saturation, 0.0, 1.0)[..., None]
    v = jnp.clip(high + value, 0.0, 1.0)[..., None]
    k = jnp.mod(jnp.array([5.0, 3.0, 1.0]) + sixths[..., None], 6.0)
    return v * (1.0 - s * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0))
