"""Reading and decoding frames, and the two ways to run ahead of training: threads and tf.data.

A backend turns what the loader plans (which rows) into decoded batches, in order and bounded. Both
give the same examples in the same order; decoded pixels may differ by JPEG rounding only.
"""

import importlib.util
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import google_crc32c
import numpy as np

from data_pipelines import storage
from data_pipelines.index import CorpusIndex
from data_pipelines.sidecar import take
from data_pipelines.storage import Location

_MAX_OPEN_FILES = 256
Decoder = Callable[[bytes, np.ndarray], None]


class BadImage(ValueError):
    """A frame cannot be read or decoded; the loader replaces its example."""


class ImageSizeError(ValueError):
    """A frame has another size than configured: a mistake in the config, not bad data."""

    def __init__(self, found: tuple[int, int]):
        super().__init__(f"the image is {found[0]}x{found[1]} (height x width)")
        self.found = found


class ShardFiles:
    """Shards by byte range, at most `limit` local ones open; safe to use from several threads."""

    def __init__(self, limit: int = _MAX_OPEN_FILES):
        self._limit, self._lock = limit, threading.Lock()
        self._open: OrderedDict[Path, list[int]] = OrderedDict()  # path → [descriptor, users]

    def pread(self, path: Location, length: int, offset: int) -> bytes:
        """Up to `length` bytes of a file from `offset` on."""
        if not isinstance(path, Path):
            return storage.read_range(path, offset, offset + length)
        with self._lock:
            entry = self._open.get(path)
            if entry is None:
                self._close_idle(self._limit - 1)
                entry = self._open[path] = [os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0]
            self._open.move_to_end(path)
            entry[1] += 1
        try:
            return os.pread(entry[0], length, offset)
        finally:
            with self._lock:
                entry[1] -= 1

    def close(self) -> None:
        with self._lock:
            self._close_idle(0)

    def __del__(self):
        self.close()

    def _close_idle(self, limit: int) -> None:
        for path in list(self._open):
            if len(self._open) <= limit:
                return
            if self._open[path][1] == 0:  # a descriptor in use must not be closed under a reader
                os.close(self._open.pop(path)[0])


class Place(NamedTuple):
    """Where the JPEG of a frame lies, and its checksum."""

    path: Location
    offset: int
    length: int
    crc: int


def places(index: CorpusIndex, rows: np.ndarray) -> list[Place]:
    """Where frames lie, for all rows at once."""
    shards = index.shard_of_episode[index.episode_of_rows(rows)].tolist()
    return [
        Place(index.shards[shard], *rest)
        for shard, *rest in zip(
            shards,
            take(index.frame_offset, rows).tolist(),
            take(index.frame_length, rows).tolist(),
            take(index.frame_crc, rows).tolist(),
            strict=True,
        )
    ]


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


class Buffers:
    """Arrays whose memory is used again once nothing refers to them or to a view of them: memory
    that comes anew from the system is zeroed page by page, 5 % of the time of a batch."""

    def __init__(self, limit: int):
        self._limit, self._free = limit, deque()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 with any content."""
        size = int(np.prod(shape))
        try:
            owner = self._free.popleft()
        except IndexError:
            owner = np.empty(size, np.uint8)
        if owner.size != size:
            owner = np.empty(size, np.uint8)
        # NumPy makes views of a view refer to the owner, but not past another kind of object: a
        # memoryview in between keeps them referring to this array, which is what is watched.
        array = np.frombuffer(owner.data, np.uint8)
        weakref.finalize(array, self._give_back, owner).atexit = False
        return array.reshape(shape)

    def _give_back(self, owner: np.ndarray) -> None:
        if len(self._free) < self._limit:
            self._free.append(owner)


class FrameReader:
    """Frames of an index by row, for those who walk a corpus instead of sampling it."""

    _chunk = 16  # frames that a thread decodes in one go

    def __init__(
        self,
        index: CorpusIndex,
        image_size: tuple[int, int],
        decode: str = "auto",
        num_threads: int = 1,
    ):
        self.index, self.image_size = index, image_size
        self._files, self._decode = ShardFiles(), make_decoder(backend_name(decode))
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="lapa-frames")

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """(uint8 (n, H, W, 3), {position in rows: reason} of bad frames, which are left zero)."""
        frames = np.empty((len(rows), *self.image_size, 3), np.uint8)
        found, bad = places(self.index, rows), {}

        def chunk(start: int) -> None:
            for number in range(start, min(start + self._chunk, len(rows))):
                try:
                    self._decode(read_jpeg(self._files, found[number]), frames[number])
                except BadImage as error:
                    frames[number] = 0
                    bad[number] = str(error)

        list(self._pool.map(chunk, range(0, len(rows), self._chunk)))
        return frames, dict(sorted(bad.items()))

    def close(self) -> None:
        self._pool.shutdown()
        self._files.close()


# ---------------------------------------------------------------- decoding


def backend_name(decode: str) -> str:
    """data.decode → "threads" or "tf"."""
    has_simplejpeg = importlib.util.find_spec("simplejpeg") is not None
    if decode == "auto":
        return "threads" if has_simplejpeg else "tf"
    if decode not in ("threads", "tf"):
        raise ValueError(f"data.decode is {decode!r}; it must be auto, threads or tf")
    if decode == "threads" and not has_simplejpeg:
        raise ValueError(
            "data.decode is 'threads', which needs the package simplejpeg; install it "
            "or set data.decode='tf'"
        )
    return decode


def make_decoder(backend: str) -> Decoder:
    """decoder(jpeg, out): decodes into out, uint8 (H, W, 3)."""
    return _simplejpeg_decoder() if backend == "threads" else _tensorflow_decoder()


def _simplejpeg_decoder() -> Decoder:
    import simplejpeg

    def decode(jpeg: bytes, out: np.ndarray) -> None:
        try:
            shape = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=out).shape
        except ValueError as error:
            try:
                shape = (*simplejpeg.decode_jpeg_header(jpeg)[:2], 3)
            except ValueError:
                shape = out.shape
            if shape == out.shape:
                raise BadImage(f"not decodable: {error}") from error
        if shape != out.shape:
            raise ImageSizeError(shape[:2])

    return decode


def _tensorflow_decoder() -> Decoder:
    tf = _tensorflow()

    def decode(jpeg: bytes, out: np.ndarray) -> None:
        try:
            image = _decode_op(tf, jpeg).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise BadImage(f"not decodable: {error.message}") from error
        if image.shape != out.shape:
            raise ImageSizeError(image.shape[:2])
        out[:] = image

    return decode


def _tensorflow() -> Any:
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # the accelerator belongs to JAX
    return tf


def _decode_op(tf: Any, jpeg: Any) -> Any:
    # The accurate DCT is what simplejpeg uses; TensorFlow's default is the fast one.
    return tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")


# ---------------------------------------------------------------- running ahead


class Source(Protocol):
    """What a backend needs of the loader; every method may be called from any thread."""

    chunk: int  # examples that a thread fills in one go

    def plan(self, step: int) -> Any: ...
    def begin(self, step: int) -> Any: ...
    def read(self, plan: Any) -> list[bytes]: ...
    def fill(self, plan: Any, start: int, stop: int) -> None: ...
    def finish(self, plan: Any) -> dict[str, Any]: ...
    def batch(self, step: int) -> dict[str, Any]: ...


def iterate_threads(
    source: Source, start_step: int, num_threads: int, prefetch: int
) -> Iterator[dict[str, Any]]:
    """Batches from start_step on, decoded by a pool of threads, at most `prefetch` ahead."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="lapa-data")

    def begin(step: int, done: Future) -> None:
        try:
            plan = source.begin(step)
            starts = range(0, plan.size, source.chunk)
            left, lock = len(starts), threading.Lock()

            def chunk(start: int) -> None:
                nonlocal left
                try:
                    if not done.done():
                        source.fill(plan, start, min(start + source.chunk, plan.size))
                    with lock:
                        left -= 1
                        last = left == 0
                    if last and not done.done():
                        done.set_result(source.finish(plan))
                except Exception as error:  # goes to the consumer, whatever it is
                    fail(done, lock, error)

            for start in starts:
                pool.submit(chunk, start)
        except Exception as error:
            fail(done, threading.Lock(), error)

    def fail(done: Future, lock: threading.Lock, error: Exception) -> None:
        with lock:
            if not done.done():
                done.set_exception(error)

    waiting: deque[Future] = deque()
    step = start_step
    try:
        while True:
            while len(waiting) < prefetch:
                waiting.append(Future())
                pool.submit(begin, step, waiting[-1])
                step += 1
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def iterate_tensorflow(
    source: Source,
    start_step: int,
    num_threads: int,
    prefetch: int,
    frames_shape: tuple[int, ...],
    shared: bool,
) -> Iterator[dict[str, Any]]:
    """The same batches by tf.data: range → read → decode → prefetch, deterministic, no state.

    shared: examples share images, which `read` then gives as one object, to be decoded once.
    """
    tf, num_images = _tensorflow(), int(np.prod(frames_shape[:2]))

    def stream(first: int) -> Iterator[Any]:
        # step → its plan, after replacements, until its frames are there
        plans: dict[int, Any] = {}

        def read(step: np.int64) -> tuple[np.ndarray, np.ndarray]:
            plan = plans[int(step)] = source.begin(int(step))
            jpegs = source.read(plan)
            distinct = list({id(jpeg): jpeg for jpeg in jpegs}.values()) if shared else jpegs
            number = {id(jpeg): n for n, jpeg in enumerate(distinct)}
            which = np.array([number[id(jpeg)] for jpeg in jpegs], np.int32)
            return np.array(distinct, object), which

        def load(step: Any) -> tuple[Any, Any]:
            types = tf.string, tf.int32
            jpegs, which = tf.numpy_function(read, [step], types, stateful=False)
            which = tf.ensure_shape(which, [num_images])
            frames = tf.map_fn(
                lambda jpeg: _decode_op(tf, jpeg),
                tf.ensure_shape(jpegs, [None if shared else num_images]),
                fn_output_signature=tf.TensorSpec(frames_shape[2:], tf.uint8),
            )
            frames = tf.gather(frames, which) if shared else frames
            return step, tf.reshape(frames, frames_shape)

        dataset = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
        dataset = dataset.map(load, num_parallel_calls=num_threads, deterministic=True)
        dataset = dataset.prefetch(prefetch)
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.experimental_optimization.inject_prefetch = False
        options.threading.private_threadpool_size = num_threads
        options.threading.max_intra_op_parallelism = 1
        for step, frames in dataset.with_options(options).as_numpy_iterator():
            plan = plans.pop(int(step))
            plan.frames = frames
            yield plan

    def produce() -> Iterator[dict[str, Any]]:
        step, plans = start_step, stream(start_step)
        while True:
            try:
                plan = next(plans)
            except tf.errors.OpError:
                # A frame that does not decode, or an error in `read`: this step is made without
                # tf.data, which replaces the example or raises the true error.
                result, plans = source.batch(step), stream(step + 1)
            else:
                result = source.finish(plan)
            yield result
            step += 1

    # One thread of ours, so that `finish` (labels, tokens) runs beside the training step.
    batches = produce()
    pool = ThreadPoolExecutor(1, thread_name_prefix="lapa-data")
    waiting: deque[Future] = deque()
    try:
        while True:
            while len(waiting) < 2:
                waiting.append(pool.submit(next, batches))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
