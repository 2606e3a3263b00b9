"""Small video files for the converter's tests, made with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import simplejpeg

# container suffix, codec, pixel format
KINDS = [
    (".mp4", "libx264", "yuv420p"),
    (".mp4", "mpeg4", "yuv420p"),
    (".mkv", "ffv1", "yuv420p"),
    (".webm", "libvpx-vp9", "yuv420p"),
    (".avi", "mjpeg", "yuvj420p"),
    (".mov", "libx264", "yuv444p"),
]
RED, GREEN, BLUE, WHITE = (230, 20, 20), (20, 200, 20), (20, 20, 230), (240, 240, 240)


def grey_frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frame i is uniformly of level 10 + 8 i, so that it can be told from its neighbours."""
    return [np.full((height, width, 3), 10 + 8 * i, np.uint8) for i in range(count)]


def frame_numbers(jpegs: Sequence[bytes]) -> list[int]:
    """Inverse of grey_frames."""
    return [round((simplejpeg.decode_jpeg(jpeg).mean() - 10) / 8) for jpeg in jpegs]


def corner_frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Top left red, top right green, bottom left blue, bottom right white."""
    frame = np.zeros((height, width, 3), np.uint8)
    half_y, half_x = height // 2, width // 2
    frame[:half_y, :half_x], frame[:half_y, half_x:] = RED, GREEN
    frame[half_y:, :half_x], frame[half_y:, half_x:] = BLUE, WHITE
    return [frame] * count


def corners(jpeg: bytes) -> list[str]:
    """Colours of top left, top right, bottom left, bottom right."""
    image = simplejpeg.decode_jpeg(jpeg).astype(int)
    h, w = image.shape[0] // 4, image.shape[1] // 4
    names = {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE, "black": (0, 0, 0)}

    def name(pixel: np.ndarray) -> str:
        return min(names, key=lambda key: np.abs(pixel - names[key]).sum())

    return [name(image[y, x]) for y in (h, -h - 1) for x in (w, -w - 1)]


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    fps: int = 20,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    matrix: Sequence[float] | None = None,
    pixel_aspect: Fraction | None = None,
    kind: str | None = None,
    options: dict[str, str] | None = None,
    **metadata: str,
) -> Path:
    """times: seconds of each frame (variable frame rate), otherwise i / fps. matrix: where a step
    to the right and one down go when shown. kind: of container, where the name does not tell.
    options: of the encoder. metadata: of the stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=fps)
        if len(frames):
            stream.height, stream.width = frames[0].shape[:2]
        else:
            stream.height, stream.width = 48, 64
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000 if times else fps)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            a, b, c, d = (round(value * 65536) for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        stream.metadata.update(metadata)
        stream.options = options or {}
        container.start_encoding()  # a header even without frames
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format=("rgb24", "rgba")[image.shape[2] - 3])
            frame.pts = round(times[number] * 1000) if times else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
