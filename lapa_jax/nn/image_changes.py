"""Random changes of images, on the devices: a crop and colours.

Shape suffixes: N images of one draw, I image rows, J image columns, C colours.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

DRAWS = 9  # numbers in [0, 1) that `changed` takes: see there


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


def changed(settings: CropAndColour, draw_9: jax.Array, x_NIJC: jax.Array) -> jax.Array:
    """Images float32 in [0, 1] with what nine numbers in [0, 1) say: crop row, crop column,
    brightness, contrast, hue, saturation, value, and whether the former two and the latter three
    change."""
    x = _crop(x_NIJC, settings.crop_area, draw_9[:2])
    brightness, contrast, hue, saturation, value = 2.0 * draw_9[2:7] - 1.0  # in [-1, 1)
    first, second = draw_9[7:] < settings.colour_fraction
    lit = x * (1.0 + settings.contrast * contrast) + settings.brightness * brightness
    x = jnp.where(first, jnp.clip(lit, 0.0, 1.0), x)
    shifted = shift_hsv(
        x,
        settings.hue_degrees * hue,
        settings.saturation * saturation,
        settings.value * value,
    )
    return jnp.where(second, shifted, x)


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
