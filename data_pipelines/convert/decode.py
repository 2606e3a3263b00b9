"""One video file -> JPEG frames of one size at one frame rate, through PyAV (its own FFmpeg).

Frames are chosen by time stamp (the nearest one, ties to the earlier), so a variable frame rate
keeps its real timing; looks.py says how they look. A file that cannot be converted whole raises
VideoError: a partly read video is never passed off as a full one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import simplejpeg

from data_pipelines.convert import endings, looks, scenes, stamps
from data_pipelines.convert.conversion import FITS, Options
from data_pipelines.convert.looks import VideoError
from data_pipelines.convert.stamps import UnknownFpsError as UnknownFpsError
from data_pipelines.rlds.schema import jpeg_size, picture_kind

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".qt", ".f4v", ".3gp", ".3g2")
EXTENSIONS += (".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".flv")
EXTENSIONS += (".ogv", ".gif", ".divx")

# A video file decides by its content which demuxer opens it. Playlists would make FFmpeg open other
# files and addresses, so only plain containers and the file protocol are admitted.
_OPEN_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif",
    "protocol_whitelist": "file",
}
# Titles that are no UTF-8 spoil no video. From 19 on PyAV has no say in it.
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_MAX_GAP_SECONDS = 60
MAX_EPISODE_BYTES = 1 << 30  # TensorFlow's Example parser stops at 2 GiB
_CROPPING = r"Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)"  # left, right, top, bottom
_DURATION_TAG = re.compile(r"^(\d+):(\d\d):(\d\d(?:\.\d+)?)$")


@dataclasses.dataclass(frozen=True)
class VideoSettings:
    """What every converted frame looks like. Part of the resume check: see staging.py."""

    fps: float
    height: int
    width: int
    fit: str
    quality: int
    clip_seconds: float = 0.0
    source_fps: float = 0.0
    cut_threshold: float = 0.0  # of scenes.py; 0: scenes are not told apart

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise ValueError(f"fps={self.fps} must be above 0 (--fps)")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"size {self.height}x{self.width} must be at least 1x1 (--size)")
        if self.fit not in FITS:
            raise ValueError(f"fit={self.fit!r} is not one of {FITS} (--fit)")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality} must lie in 1..100 (--quality)")
        if self.source_fps < 0:
            raise ValueError(f"source_fps={self.source_fps} must not be negative (--source_fps)")
        if not 0 <= self.cut_threshold <= 1:
            raise ValueError(
                f"cut_threshold={self.cut_threshold} must lie in 0..1 (--split_scenes)"
            )
        if self.clip_seconds and self.clip_frames < 2:
            raise ValueError(
                f"clip_seconds={self.clip_seconds} gives {self.clip_frames} frames at {self.fps}"
                " fps; an episode needs at least 2 (--clip_seconds, 0 for whole videos)"
            )

    @classmethod
    def of(cls, options: Options, fps: float, **further: float) -> VideoSettings:
        """As the options of a conversion say."""
        return cls(fps, *options.size, options.fit, options.quality, **further)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def is_cut(self) -> bool:
        """Whether a video may give several episodes."""
        return bool(self.clip_frames or self.cut_threshold)

    @property
    def clip_frames(self) -> int:
        """Frames per episode, 0 for whole videos."""
        return round(self.clip_seconds * self.fps)


@dataclasses.dataclass
class Clip:
    """Consecutive frames of one video; `repeated` of them show a source frame once more. notes:
    what is to be told of the video so far."""

    notes: set[str]
    images: list[bytes] = dataclasses.field(default_factory=list)
    repeated: int = 0
    num_bytes: int = 0


class Shown(NamedTuple):
    """A frame of a video: seconds, JPEG, and what is to be told of the video so far."""

    time: float
    jpeg: bytes
    notes: set[str]


class Span(NamedTuple):
    """Seconds of a video, counted from its first frame; end None: to its last one."""

    start: Fraction = Fraction(0)
    end: Fraction | None = None


def nearest_of_spans(
    frames: Iterable[tuple[Fraction, object]],
    fps: Fraction,
    tolerance: Fraction,
    spans: Sequence[Span],
) -> Iterator[tuple[int, object | None, int]]:
    """(number of the span, frame, whether it was shown before in it) at the times start, start +
    1/fps, ... before the end of each span; when it is over (number, None, steps that the video is
    too short for it)."""
    origin, counts = None, [0] * len(spans)
    left = sorted(range(len(spans)), key=lambda number: spans[number].start)

    def due(number: int) -> Fraction:
        return spans[number].start + counts[number] / fps

    def is_over(number: int) -> bool:
        return spans[number].end is not None and due(number) >= spans[number].end

    for (time, frame), after in itertools.pairwise(itertools.chain(frames, [None])):
        origin = time if origin is None else origin
        last = time + tolerance
        if after is not None:
            gap = after[0] - time
            if gap < 0:
                span = f"{float(time):g} s to {float(after[0]):g} s"
                raise VideoError(f"time stamps go back from {span}")
            if gap > _MAX_GAP_SECONDS:
                raise VideoError(f"gap of {float(gap):.0f} s between two time stamps")
            last = time + gap / 2
        for number in tuple(left):
            if spans[number].start > last - origin:
                break
            shown = 0
            while due(number) <= last - origin and not is_over(number):
                yield number, frame, shown
                shown, counts[number] = 1, counts[number] + 1
            if is_over(number):
                left.remove(number)
                yield number, None, 0
        if not left:
            return
    if origin is None:
        raise VideoError("no frames")
    for number in left:
        end = spans[number].end
        missing = 0 if end is None else math.ceil((end - due(number)) * fps)
        yield number, None, missing


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """uint8 (H, W, 3) RGB -> JPEG bytes, 4:2:0."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )


def read_clips(path: str | Path, settings: VideoSettings) -> Iterator[Clip]:
    """The clips of one video, in order. Errors may come after some clips: drop those too."""
    for _, clip, _ in read_spans(path, settings, (Span(),)):
        if clip is not None:
            yield clip


def read_spans(
    path: str | Path, settings: VideoSettings, spans: Sequence[Span]
) -> Iterator[tuple[int, Clip | None, int]]:
    """(number of the span, clip, 0) of one video, read once, and (number, None, steps that the
    video is too short) when a span is over."""
    with _open(path) as stream:
        encode, notes = _encoder(stream, settings), set()
        frames = _timed_frames(stream, path, settings, notes)
        if settings.cut_threshold:
            frames = scenes.numbered(frames, settings.cut_threshold)
        else:
            frames = ((time, (frame, 0)) for time, frame in frames)
        tick = stream.time_base or Fraction(0)
        yield from clips_of(frames, tick, encode, settings, spans, notes)


def clips_of(
    frames: Iterable[tuple[Fraction, tuple[Any, int]]],
    tick: Fraction,
    encode: Callable[[Any], bytes],
    settings: VideoSettings,
    spans: Sequence[Span],
    notes: set[str],
) -> Iterator[tuple[int, Clip | None, int]]:
    """As `read_spans`, of (time, (frame, number of its scene)); times are rounded to ticks. notes:
    those of the clips, which `frames` adds to."""
    fps = Fraction(str(settings.fps))
    # Containers round times to their tick: the last frame counts if it is a tick too early.
    tolerance = min(tick, 1 / fps / 4)
    clips = [Clip(notes) for _ in spans]
    scene_of, encoded = [0] * len(spans), None
    for number, found, count in nearest_of_spans(frames, fps, tolerance, spans):
        clip = clips[number]
        if found is None:
            if clip.images:
                yield number, clip, 0
            yield number, None, count
            clips[number] = Clip(notes)
            continue
        frame, scene = found
        if scene != scene_of[number] and clip.images:
            yield number, clip, 0
            clips[number] = clip = Clip(notes)
        scene_of[number] = scene
        if found is not encoded:
            encoded, image = found, encode(frame)
        clip.images.append(image)
        clip.repeated += count
        clip.num_bytes += len(image)
        if clip.num_bytes > MAX_EPISODE_BYTES:
            raise VideoError("an episode above 1 GiB; split the video with --clip_seconds")
        if len(clip.images) == settings.clip_frames:
            yield number, clip, 0
            clips[number] = Clip(notes)


def read_frames(path: str | Path, settings: VideoSettings) -> Iterator[Shown]:
    """Every frame of one video, read once from start to end."""
    with _open(path) as stream:
        encode, notes = _encoder(stream, settings), set()
        for time, frame in _timed_frames(stream, path, settings, notes):
            yield Shown(float(time), encode(frame), notes)


def numbered_frames(
    path: str | Path, numbers: Sequence[int], settings: VideoSettings
) -> list[bytes]:
    """The JPEGs of these frames of a video, counted from 0 as they are shown. Raises VideoError."""
    wanted, found = set(numbers), {}
    for number, shown in enumerate(read_frames(path, settings)):
        if number in wanted:
            found[number] = shown.jpeg
    if missing := sorted(wanted - found.keys()):
        raise VideoError(f"{path} has no frame {missing[0]}")
    return [found[number] for number in numbers]


def convert_picture(data: bytes | np.ndarray, settings: VideoSettings) -> bytes:
    """The JPEG of a JPEG, a PNG or an array uint8 (H, W, 1, 3 or 4); its own bytes where it is a
    JPEG of the right size. Rotation marks (EXIF), colour profiles and transparency are ignored, as
    those who read RLDS do. Raises VideoError.
    """
    if isinstance(data, np.ndarray):
        image = np.repeat(data, 3, 2) if data.shape[2] == 1 else data[..., :3]
    elif (kind := picture_kind(data)) == "jpeg":
        try:
            size, image = jpeg_size(data), simplejpeg.decode_jpeg(data)
            if size == (*settings.size, 3):
                return data  # whole, as its decoding tells
        except ValueError as error:
            raise VideoError(f"undecodable: {error}") from error
    elif kind == "png":
        if data[24:26] == b"\x10\0":
            raise VideoError("grey of 16 bits, as distances have: no picture of 8 bits")
        image = _decode_png(data)
    else:
        start = data[:4].hex(" ") or "nothing"
        raise VideoError(f"neither JPEG nor PNG: it starts with {start}")
    return encode_jpeg(looks.fit_image(image, settings.size, settings.fit), settings.quality)


def _decode_png(data: bytes) -> np.ndarray:
    # A decoder of its own: FFmpeg's adds the picture before to one that is no key frame.
    decoder = av.CodecContext.create("png", "r")
    decoder.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    decoder.thread_count = 1
    packet = av.Packet(data)
    packet.is_keyframe = True
    with looks.explained():
        frames = decoder.decode(packet)
        if len(frames) != 1:
            raise VideoError(f"undecodable: a PNG of {len(frames)} frames")
        return frames[0].to_ndarray(format="rgb24")


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[av.video.stream.VideoStream]:
    path = Path(path).absolute()  # an absolute path cannot be taken for a protocol ("concat:...")
    if not path.exists():
        raise VideoError("no such file")
    if path.stat().st_size == 0:
        raise VideoError("empty file")
    with looks.explained():
        if gone := endings.missing(path):
            raise VideoError(f"cut off: {gone}")
    with (
        looks.explained(),
        av.open(str(path), options=_OPEN_OPTIONS, **_METADATA) as container,
    ):
        stream = _video_stream(container)
        stream.codec_context.thread_count = 1  # parallel over files, see --workers
        stream.codec_context.flags |= av.codec.context.Flags.unaligned  # crop to the pixel
        yield stream


def _encoder(
    stream: av.video.stream.VideoStream, settings: VideoSettings
) -> Callable[[av.VideoFrame], bytes]:
    """Frame of this stream -> JPEG."""
    pixel_aspect = stream.sample_aspect_ratio or Fraction(1)
    return lambda frame: encode_jpeg(
        looks.fit_frame(frame, settings.size, settings.fit, pixel_aspect), settings.quality
    )


def _video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:  # cover art of a song
            return stream
    raise VideoError("no video stream")


def _timed_frames(
    stream: av.video.stream.VideoStream, path: str | Path, settings: VideoSettings, notes: set[str]
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """(time in seconds, frame) of every frame; checks that the stream is as long as it says. Adds
    to `notes`."""
    rate = stream.average_rate or stream.guessed_rate
    rate = rate or (settings.source_fps and Fraction(str(settings.source_fps)))
    crop, said = _cropping(stream), looks.colours(stream)
    if stream.metadata.get("alpha_mode") == "1":  # of WebM, whose decoder leaves it out
        notes.add(looks.TRANSPARENT)
    if others := len(stream.container.streams.video) - 1:
        notes.add(f"{others} more pictures or video streams in the file: not used")
    start = end = None
    for time, held, frame in stamps.in_order(stamps.stamped(stream, rate, path), notes):
        start = time if start is None else start
        end = time + held
        if crop is not None:
            crop.push(frame)
            frame = crop.pull()
        looks.complete(frame, said)
        notes |= looks.notes(frame)
        yield time, frame
    if start is None:
        raise VideoError("no frames")
    declared = _declared_seconds(stream)
    read = float(end - start)
    # Containers round and pad; a loss larger than this is a file that was cut off.
    if declared and declared - max(read, float(end)) > 0.5 + 0.1 * declared:
        raise VideoError(f"cut off: {read:.1f} s of {declared:.1f} s could be read")


def _cropping(stream: av.video.stream.VideoStream) -> av.filter.Graph | None:
    """What crops frames as the container says; decoders crop as the coded stream says.

    PyAV shows what FFmpeg knows of it in a text alone, which FFmpeg writes to its log.
    """
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        text = stream.container.dumps_format()
    finally:
        av.logging.set_level(level)
    _, _, text = text.partition(f"Stream #0:{stream.index}")
    found = re.search(_CROPPING, text.partition("Stream #")[0])
    if not found:
        return None
    left, right, top, bottom = map(int, found.groups())
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(template=stream),
        graph.add("crop", f"iw-{left + right}:ih-{top + bottom}:{left}:{top}:exact=1"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _declared_seconds(stream: av.video.stream.VideoStream) -> float:
    """Length of this stream according to its container, 0 if it does not say."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    match = _DURATION_TAG.match(stream.metadata.get("DURATION", ""))  # Matroska
    if match:
        hours, minutes, seconds = match.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return 0.0
