"""Reading and decoding frames: open shards, where JPEGs lie in them, and the decoder.

There is one decoder, simplejpeg's, for both backends and for all who walk over a corpus: so they
agree on pixels and on what is damaged. What libjpeg warns about (extraneous bytes, bad codes) is.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import simplejpeg

from data_pipelines import storage
from data_pipelines.index import CorpusIndex
from data_pipelines.rlds.schema import picture_kind
from data_pipelines.sidecar import take
from data_pipelines.storage import Location

_MAX_OPEN_FILES = 256


class BadImage(ValueError):
    """A frame cannot be read or decoded; the loader replaces its example."""


class ImageSizeError(ValueError):
    """A frame has another size than configured: a mistake in the config, not bad data."""

    def __init__(self, found: tuple[int, int]):
        super().__init__(f"the image is {found[0]}x{found[1]} (height x width)")
        self.found = found


class _Opened:
    """A descriptor, closed with the last reference to it: so not under a reader."""

    __slots__ = ("descriptor",)

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close=os.close):
        if hasattr(self, "descriptor"):
            close(self.descriptor)


class ShardFiles:
    """Shards by byte range, at most `limit` local ones open beside those that are being read; safe
    to use from several threads, which share no lock where a shard is open."""

    def __init__(self, limit: int = _MAX_OPEN_FILES):
        self._limit, self._lock = limit, threading.Lock()
        self._open: dict[Path, _Opened] = {}

    def pread(self, path: Location, length: int, offset: int) -> bytes:
        """Up to `length` bytes of a file from `offset` on."""
        file = self._open.get(path)
        if file is None:
            if not isinstance(path, Path):
                return storage.read_range(path, offset, offset + length)
            file = self._opened(path)
        return os.pread(file.descriptor, length, offset)

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def _opened(self, path: Path) -> _Opened:
        with self._lock:
            file = self._open.get(path)
            if file is None:
                while len(self._open) >= self._limit:
                    del self._open[next(iter(self._open))]
                file = self._open[path] = _Opened(path)
            return file


class Place(NamedTuple):
    """Where the JPEG of a frame lies, and its checksum."""

    path: Location
    offset: int
    length: int
    crc: int


def places(index: CorpusIndex, rows: np.ndarray) -> list[Place]:
    """Where frames lie, for all rows at once."""
    shards = index.shard_of_episode[index.episode_of_rows(rows)].tolist()
    columns = (index.frame_offset, index.frame_length, index.frame_crc)
    found = [index.shards[shard] for shard in shards], *(take(x, rows).tolist() for x in columns)
    return list(map(Place, *found))


def read_jpeg(files: ShardFiles, place: Place) -> bytes:
    """The bytes of a frame; BadImage unless they are those that the index was built from."""
    path, offset, length, crc = place
    if length == 0:
        raise BadImage("the image is empty")
    jpeg = files.pread(path, length, offset)
    if len(jpeg) != length:
        raise BadImage(f"truncated shard: {len(jpeg)} of {length} bytes")
    if google_crc32c.value(jpeg) != crc:
        raise BadImage("the bytes changed since the index was built (checksum)")
    return jpeg


class FrameReader:
    """Frames of an index by row, for those who walk a corpus instead of sampling it."""

    _chunk = 16  # frames that a thread decodes in one go

    def __init__(
        self,
        index: CorpusIndex,
        image_size: tuple[int, int],
        num_threads: int = 1,
    ):
        self.index, self.image_size = index, image_size
        self._files = ShardFiles()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="lapa-frames")

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """(uint8 (n, H, W, 3), {position in rows: reason} of bad frames, which are left zero)."""
        frames = np.empty((len(rows), *self.image_size, 3), np.uint8)
        found, bad = places(self.index, rows), {}

        def chunk(start: int) -> None:
            for number in range(start, min(start + self._chunk, len(rows))):
                try:
                    decode_jpeg(read_jpeg(self._files, found[number]), frames[number])
                except BadImage as error:
                    frames[number] = 0
                    bad[number] = str(error)

        list(self._pool.map(chunk, range(0, len(rows), self._chunk)))
        return frames, dict(sorted(bad.items()))

    def close(self) -> None:
        self._pool.shutdown()
        self._files.close()


def decode_jpeg(jpeg: bytes, out: np.ndarray) -> None:
    """Decodes into out, uint8 (H, W, 3). Raises BadImage, or ImageSizeError."""
    try:
        shape = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=out).shape
    except ValueError as error:
        kind = picture_kind(jpeg)
        if kind != "jpeg":
            what = "a PNG" if kind else "no picture of a known kind"
            raise BadImage(f"not decodable: {what}, not a JPEG") from error
        try:
            shape = (*simplejpeg.decode_jpeg_header(jpeg)[:2], 3)
        except ValueError:
            shape = out.shape
        if shape == out.shape:
            raise BadImage(f"not decodable: {error}") from error
    if shape != out.shape:
        raise ImageSizeError(shape[:2])
