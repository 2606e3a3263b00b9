"""Images of clients: decoded within bounds, resized as `lapa data convert` resizes those of
training."""

import io
import re

import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.convert.conversion import FITS
from data_pipelines.convert.looks import fit_image
from data_pipelines.rlds.schema import picture_kind
from lapa_jax.serving.limits import Limits, Refused

RESIZING = (*FITS, "none")
_ASPECT = 8  # a side may be so many times the other: what is cropped away is computed first
_PNG_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # 8 bits a channel, or fewer
_MARKER = re.compile(rb"\xff+([^\xff\x00\x01\xd0-\xd8])", re.DOTALL)  # that has a length
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def decode(data: bytes, limits: Limits) -> np.ndarray:
    """uint8 (H, W, 3) of a JPEG or a PNG, whose header is read first. Raises Refused.

    Rotation marks (EXIF) and transparency are ignored, as they are in training data.
    """
    readers = {"jpeg": _jpeg, "png": _png}
    kind = picture_kind(data)
    if not kind:
        raise Refused(422, "image is neither a JPEG nor a PNG")
    return readers[kind](data, limits)


def _jpeg(data: bytes, limits: Limits) -> np.ndarray:
    scans = jpeg_scans(data, limits.image_scans + 1)
    if scans > limits.image_scans:
        raise Refused(413, f"image is a JPEG of more than {limits.image_scans} scans")
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        check_size(height, width, limits.image_pixels)
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        raise Refused(422, "image is a damaged JPEG, or of a kind that is not read") from error


def jpeg_scans(data: bytes, most: int) -> int:
    """How many scans a JPEG has, each of which goes over all of its pixels; counts up to `most`.
    Markers are found as libjpeg finds them."""
    at, scans = 2, 0
    while scans < most and (found := _MARKER.search(data, at)):
        if found[1][0] == _END_OF_IMAGE:
            break
        scans += found[1][0] == _START_OF_SCAN
        at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
    return scans


def _png(data: bytes, limits: Limits) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            check_size(image.height, image.width, limits.image_pixels)
            if image.mode not in _PNG_MODES:
                raise Refused(422, f"image is a PNG of mode {image.mode}, not of 8 bits")
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:  # raised before we can look at the header
        raise Refused(413, f"image has too many pixels: at most {limits.image_pixels}") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        raise Refused(422, "image is a damaged PNG") from error


def check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1 or height * width > max_pixels:
        raise Refused(413, f"image of {height} x {width} pixels: at most {max_pixels} pixels")
    if max(height, width) > _ASPECT * min(height, width):
        raise Refused(422, f"image of {height} x {width} pixels: at most {_ASPECT} to 1")


def resize(image: np.ndarray, size: tuple[int, int], how: str) -> np.ndarray:
    """uint8 (H, W, 3) of `size`: untouched where it is that already. Raises Refused for "none"."""
    if image.shape[:2] == tuple(size):
        return image
    if how == "none":
        raise Refused(422, f"image of {image.shape[:2]} pixels must be of {tuple(size)}")
    return fit_image(image, size, how)
