"""Decoded frame -> RGB picture of one size that looks as FFmpeg shows the frame.

swscale scales to planar RGB, each pixel with chroma of its own (asked for packed RGB it shares
chroma between two and loses 2 of 255), then packs. Matrix and range of a frame are honoured.
Colours of another light (PQ, HLG, linear) or gamut (BT.2020, P3) go to those of SDR (BT.709) by
swscale's own mapping, which keeps reference white (203 cd/m2) and compresses what is brighter. It
is right for RGB alone, so it comes after the first step, which then keeps 16 bits.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)

from data_pipelines.convert.conversion import RecordingError

_FLAGS = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
_PQ, _HLG, _UNKNOWN, _BT2020 = 16, 18, 2, 9
_UNSAID = (0, 2, 3)  # reserved or unknown
_LIGHTS = {_PQ: "HDR (PQ)", _HLG: "HDR (HLG)"}
# H.273 numbers whose colours are shown as they are: SDR of any standard, reserved and unknown.
_SDR_LIGHTS = (*range(8), 11, 12, 13, 14, 15)
_SDR_GAMUTS = (*range(8), 22)
_MATRICES = (0, 1, 2, 4, 5, 6, 7, 9)  # that swscale knows; it takes 2, unknown, for BT.601
_GRAY_FULL = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)
_MAX_PIXELS = 1 << 26  # of a frame before what is too much of it is cropped away
TRANSPARENT = "transparent: shown without its transparency"
_NOTES = {
    Type.STEREO3D: "stereo 3D: the views are side by side, as stored",
    Type.SPHERICAL: "360 degrees: the projection is shown as stored",
    Type.ICC_PROFILE: "an ICC profile is not applied",
}
_MAX_KEPT = 8  # reformatters of a thread
_local = threading.local()


class VideoError(RecordingError):
    """The file cannot be converted."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """FFmpeg's errors, and those of reading a file, as VideoError."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"undecodable: {error.strerror or error}") from error


def fit_frame(
    frame: av.VideoFrame,
    size: tuple[int, int],
    fit: str,
    pixel_aspect: Fraction = Fraction(1),
) -> np.ndarray:
    """uint8 (*size, 3): scaled (aspect kept), then cropped or padded in the centre; or stretched.

    size: height, width. fit: one of FITS. pixel_aspect: width by height of a stored pixel. Raises
    VideoError for what cannot be shown right.
    """
    turned, down, right = orientation(frame)
    height, width = reversed(size) if turned else size  # as stored; the small result is turned
    if fit == "stretch":
        image = _scaled(frame, height, width)
        image = image.swapaxes(0, 1) if turned else image
        return np.ascontiguousarray(image[::down, ::right])
    shown_width = frame.width * pixel_aspect
    ratios = (width / shown_width, height / Fraction(frame.height))
    scale = max(ratios) if fit == "crop" else min(ratios)
    scaled_width = max(1, round(shown_width * scale))
    scaled_height = max(1, round(frame.height * scale))
    if scaled_height * scaled_width > _MAX_PIXELS:
        shape = f"{frame.width}x{frame.height} with pixels of {pixel_aspect}:1"
        raise VideoError(f"{shape} would fill {size} only at {scaled_width}x{scaled_height}")
    image = _scaled(frame, scaled_height, scaled_width)
    if fit == "crop":
        top, left = (scaled_height - height) // 2, (scaled_width - width) // 2
        image = image[top : top + height, left : left + width]
    else:
        top, left = (height - scaled_height) // 2, (width - scaled_width) // 2
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[top : top + scaled_height, left : left + scaled_width] = image
        image = canvas
    image = image.swapaxes(0, 1) if turned else image
    return np.ascontiguousarray(image[::down, ::right])


def fit_image(image: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """uint8 (H, W, 3) at another size (height, width), as a frame of a video would be."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return fit_frame(frame, size, fit)


def orientation(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """(rows and columns change places, then the step through rows, the step through columns).

    By the display matrix, whose rows say where right and down of the stored picture point to.
    """
    try:
        found = frame.side_data.get(Type.DISPLAYMATRIX)
        matrix = (1, 0, 0, 0, 1) if found is None else np.frombuffer(found, np.int32)[:5].tolist()
    except ValueError:  # side data of a kind that this PyAV does not know: it gives the angle alone
        angle = math.radians(frame.rotation)
        matrix = (math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle))
    a, b, _, c, d = matrix
    if not (a or b or c or d):
        return False, 1, 1
    near = math.tan(math.radians(1)) * max(map(abs, (a, b, c, d)))  # FFmpeg's tolerance
    turned = abs(a) <= near
    if max(map(abs, (a, d) if turned else (b, c))) > near:
        angle = math.degrees(math.atan2(b, a))
        raise VideoError(f"rotated by {angle:.0f} degrees, not a multiple of 90, or sheared")
    across, along = (c, b) if turned else (a, d)
    return turned, -1 if along < 0 else 1, -1 if across < 0 else 1


_COLOURS = ("colorspace", "color_primaries", "color_trc")


def colours(stream: av.video.stream.VideoStream) -> dict[str, int]:
    """What its container says of a stream that has not been decoded yet."""
    said = {name: getattr(stream.codec_context, name) for name in _COLOURS}
    return {name: value for name, value in said.items() if value != _UNKNOWN}


def complete(frame: av.VideoFrame, said: dict[str, int]) -> None:
    """Gives a frame whose coded stream does not tell its colours those of the container."""
    for name, value in said.items():
        if getattr(frame, name) == _UNKNOWN:
            setattr(frame, name, value)


def notes(frame: av.VideoFrame) -> set[str]:
    """What others may show otherwise, for the report. Raises VideoError for what nobody shows."""
    found = set()
    if light := _LIGHTS.get(frame.color_trc):
        found.add(f"{light}: mapped to SDR")
    elif _needs_mapping(frame):
        found.add(
            f"colours of {_name(ColorPrimaries, frame.color_primaries)}, "
            f"{_name(ColorTrc, frame.color_trc)}: mapped to BT.709"
        )
    elif frame.colorspace == _BT2020 and frame.color_trc == _UNKNOWN:
        found.add("coded as BT.2020, without saying whether HDR: shown as SDR")
    if frame.interlaced_frame:
        found.add("interlaced: both fields of a frame are shown at once")
    if _has_alpha(frame.format.name) and _is_transparent(frame):
        found.add(TRANSPARENT)
    try:
        kinds = {data.type for data in frame.side_data}
    except ValueError:  # see orientation
        kinds = set()
    if kinds & {Type.DOVI_METADATA, Type.DOVI_RPU_BUFFER} and frame.color_trc == _UNKNOWN:
        raise VideoError("Dolby Vision without colours that others can show (profile 5)")
    return found | {text for kind, text in _NOTES.items() if kind in kinds}


@functools.cache
def _has_alpha(pixel_format: str) -> bool:
    return any(part.is_alpha for part in av.VideoFormat(pixel_format).components)


def _is_transparent(frame: av.VideoFrame) -> bool:
    return bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())


def _name(kind: type, value: int) -> str:
    return kind(value).name if value in list(kind) else str(value)


def _needs_mapping(frame: av.VideoFrame) -> bool:
    return frame.color_trc not in _SDR_LIGHTS or frame.color_primaries not in _SDR_GAMUTS


def _scaled(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3) RGB."""
    if frame.colorspace not in _MATRICES:
        raise VideoError(
            f"its colours are coded by matrix {frame.colorspace} of H.273: neither RGB nor YCbCr"
        )
    is_hdr, mapped = frame.color_trc in _LIGHTS, _needs_mapping(frame)
    if is_hdr and frame.colorspace == _UNKNOWN:
        frame.colorspace = _BT2020
    if "555" in frame.format.name or "565" in frame.format.name:
        # White of 31 becomes 255 unscaled and packed alone, else 248.
        frame = _packed("unpack", frame)
    shrinks = width <= frame.width and height <= frame.height
    planes = _reformatter("scale").reformat(
        frame,
        width=width,
        height=height,
        format="gbrp16le" if mapped else "gbrp",
        interpolation=_FLAGS | (Interpolation.AREA if shrinks else Interpolation.BICUBIC),
        threads=1,  # parallel over files, see --workers
    )
    if planes.color_trc in _UNSAID:
        planes.color_trc = _UNKNOWN
    if planes.color_primaries in _UNSAID:
        planes.color_primaries = _BT2020 if is_hdr else _UNKNOWN
    image = (_mapped(planes) if mapped else _packed("pack", planes)).to_ndarray()
    # swscale takes grey for full range, whatever the frame says.
    is_narrow_gray = frame.color_range == ColorRange.MPEG and frame.format.name.startswith("gray")
    return _GRAY_FULL[image] if is_narrow_gray else image


def _mapped(planes: av.VideoFrame) -> av.VideoFrame:
    light, gamut = planes.color_trc, planes.color_primaries
    is_sdr = light in _SDR_LIGHTS and light != _UNKNOWN
    try:
        return _packed(
            # The tables of a mapping cost seconds, and swscale makes them anew for another size.
            ("map", light, gamut, planes.height, planes.width),
            planes,
            dst_color_trc=ColorTrc(light) if is_sdr else ColorTrc.BT709,
            dst_color_primaries=ColorPrimaries.BT709,
        )
    except av.FFmpegError as error:
        names = f"{_name(ColorPrimaries, gamut)}, {_name(ColorTrc, light)}"
        raise VideoError(f"its colours ({names}) cannot be mapped to SDR") from error


def _packed(key: Any, planes: av.VideoFrame, **target: Any) -> av.VideoFrame:
    how = dict(format="rgb24", interpolation=Interpolation.POINT, threads=1)
    return _reformatter(key).reformat(planes, **how, **target)


def _reformatter(key: Any) -> VideoReformatter:
    """One of this thread for each use."""
    kept = _local.__dict__.setdefault("kept", {})
    if key not in kept:
        if len(kept) > _MAX_KEPT:
            kept.clear()
        kept[key] = VideoReformatter()
    return kept[key]
