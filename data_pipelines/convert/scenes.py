"""Where a video cuts to another scene, from the colours of its frames.

The distance of two frames is the mean, over brightness and the two colour differences, of half the
summed difference of their histograms: 0 for the same colours, 1 for none in common. Bins are wide
and shared between neighbours, so that a change of exposure moves little. A cut is a jump: the
distance to the frame before is at least the threshold and twice each of the two distances before
it in the scene, and the frame after is as far from the frame before (a flash is not).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

_HEIGHT, _WIDTH = 36, 64  # pixels that are looked at
_BINS = (8, 16, 16)  # of brightness and the colour differences


def _shares(bins: int) -> np.ndarray:
    """float32 (256, bins): the share of each level in its two nearest bins."""
    place = (np.arange(256) + 0.5) / 256 * bins - 0.5
    return np.maximum(0, 1 - np.abs(place.clip(0, bins - 1)[:, None] - np.arange(bins))).astype(
        np.float32
    )


_SHARES = tuple(map(_shares, _BINS))


def numbered(
    frames: Iterable[tuple[Fraction, av.VideoFrame]], threshold: float
) -> Iterator[tuple[Fraction, tuple[av.VideoFrame, int]]]:
    """(time, (frame, number of its scene)) of frames in order; held back by one frame."""
    reformatter = VideoReformatter()
    scene, steps = 0, [0.0, 0.0]  # the last two distances
    before = None  # colours of the frame before
    coloured = ((time, frame, _colours(frame, reformatter)) for time, frame in frames)
    for this, after in itertools.pairwise(itertools.chain(coloured, [None])):
        time, frame, colours = this
        next_colours = (after or this)[2]
        if before is not None and _is_cut(before, colours, next_colours, steps, threshold):
            scene += 1
        yield time, (frame, scene)
        before = colours


def _is_cut(
    before: np.ndarray, this: np.ndarray, after: np.ndarray, steps: list[float], threshold: float
) -> bool:
    step = _distance(before, this)
    is_jump = step >= threshold and step >= 2 * max(steps)
    is_cut = is_jump and _distance(before, after) >= threshold
    steps[:] = (0.0, 0.0) if is_cut else (steps[1], step)
    return is_cut


def _colours(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Histograms of the three channels, one after the other; each sums to 1/3."""
    small = reformatter.reformat(
        frame, width=_WIDTH, height=_HEIGHT, format="yuv444p", interpolation="POINT"
    ).to_ndarray()
    channels = small.reshape(3, _HEIGHT * _WIDTH)
    counts = [np.bincount(channel, minlength=256) for channel in channels]
    histograms = [count @ shares for count, shares in zip(counts, _SHARES, strict=True)]
    return np.concatenate(histograms) / (3 * _HEIGHT * _WIDTH)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).sum() / 2)
