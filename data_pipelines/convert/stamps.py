"""Time stamps of decoded frames, put in order where a container has those of decoding."""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av

from data_pipelines.convert.conversion import NeedsSettingError
from data_pipelines.convert.looks import VideoError

_MAX_REORDERED = 16  # frames: as many as may depend on later ones in a row


class UnknownFpsError(NeedsSettingError):
    """The file has neither time stamps nor a frame rate: the user has to give one."""


class Stamped(NamedTuple):
    time: Fraction  # seconds
    held: Fraction  # seconds until the next one, 0 if that is not known
    frame: av.VideoFrame
    window: int  # how many frames later its own time stamp may come


def stamped(
    stream: av.video.stream.VideoStream, rate: Fraction | float, path: str | Path
) -> Iterator[Stamped]:
    """Every frame, with the time stamp that the decoder gives it, or else one after the last."""
    # AVI numbers frames as they are decoded, and so do files that are made of its packets.
    are_of_decoding = stream.container.format.name == "avi"
    only_rise, last_pts, last, number = True, None, None, 0
    for packet in _packets(stream):
        if packet.pts is not None:
            only_rise &= last_pts is None or packet.pts > last_pts
            last_pts = packet.pts
        reorders = stream.codec_context.has_b_frames and (are_of_decoding or only_rise)
        for frame in packet.decode():
            if frame.is_corrupt:
                raise VideoError(f"frame {number} is corrupt")
            number += 1
            stamp = frame.dts if frame.pts is None else frame.pts
            held = frame.duration * frame.time_base if frame.duration and frame.time_base else 0
            held = held or (1 / rate if rate else 0)
            if stamp is not None and frame.time_base:
                time = stamp * frame.time_base
            elif not held:
                raise UnknownFpsError(
                    f"{path} has neither time stamps nor a frame rate; give it with --source_fps"
                )
            else:
                time = Fraction(0) if last is None else last.time + last.held
            last = Stamped(time, held, frame, _MAX_REORDERED if reorders else 0)
            yield last


def _packets(stream: av.video.stream.VideoStream) -> Iterator[av.Packet]:
    """Those of the stream. After the last one PyAV asks those streams for more, too, that began in
    the middle of the file (sound in FLV or MPEG streams), which it does not know."""
    with contextlib.suppress(IndexError):
        yield from stream.container.demux(stream)


def in_order(
    frames: Iterable[Stamped], notes: set[str]
) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
    """(time, held, frame): frames in the order in which they are shown, with their time stamps put
    in order, too."""
    waiting: deque[Stamped] = deque()
    times: list[Fraction] = []
    for following in itertools.chain(frames, [None]):
        if following is not None:
            waiting.append(following)
            heapq.heappush(times, following.time)
        while waiting and (following is None or len(waiting) > following.window):
            first, time = waiting.popleft(), heapq.heappop(times)
            if time != first.time:
                notes.add("time stamps of decoding: put in the order of the frames")
            yield time, first.held, first.frame
