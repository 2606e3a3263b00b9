"""The two ways to run ahead of training: threads and tf.data.

Each turns plans (which rows) into batches, in order and bounded, and gives the same examples.
"""

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from data_pipelines.loader.frames import decode_op, tensorflow

Batch = dict[str, Any]


class Plan(Protocol):
    """The batch of a step while it is made: that of loader.py, which says what each does."""

    frames: Any
    chunks: Callable[[], list[tuple[int, int]]]
    read: Callable[[], list[bytes]]
    fill: Callable[[int, int], None]
    finish: Callable[[], Batch]


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


def by_threads(
    plan: Callable[[int], Plan], start_step: int, num_threads: int, prefetch: int
) -> Iterator[Batch]:
    """Batches from start_step on, at most `prefetch` ahead, decoded by a pool of threads. `plan`
    gives that of a step, for steps in a row."""
    decoders = ThreadPoolExecutor(num_threads, thread_name_prefix="lapa-data")
    makers = ThreadPoolExecutor(prefetch, thread_name_prefix="lapa-data-step")

    def make(step: int) -> Batch:
        made = plan(step)
        for filled in [decoders.submit(made.fill, *chunk) for chunk in made.chunks()]:
            filled.result()
        return made.finish()

    steps = itertools.count(start_step)
    try:
        yield from _in_turn(lambda: makers.submit(make, next(steps)), prefetch)
    finally:
        decoders.shutdown(wait=True, cancel_futures=True)
        makers.shutdown(wait=True, cancel_futures=True)


def _in_turn(submit: Callable[[], Future], ahead: int) -> Iterator[Batch]:
    waiting = deque(submit() for _ in range(ahead))
    while True:
        yield waiting.popleft().result()
        waiting.append(submit())


def by_tensorflow(
    plan: Callable[[int], Plan],
    batch: Callable[[int], Batch],
    start_step: int,
    num_threads: int,
    prefetch: int,
    shape: tuple[int, ...],
    shared: bool,
) -> Iterator[Batch]:
    """The same batches by tf.data: range → read → decode → prefetch, deterministic, no state.

    batch: that of any step, without tf.data. shape: of the frames. shared: examples share images,
    which `Plan.read` then gives as one object, to be decoded once.
    """
    tf, num_images = tensorflow(), int(np.prod(shape[:2]))

    def stream(first: int) -> Iterator[Plan]:
        # step → its plan, after replacements, until its frames are there
        plans: dict[int, Plan] = {}

        def read(step: np.int64) -> tuple[np.ndarray, np.ndarray]:
            made = plans[int(step)] = plan(int(step))
            jpegs = made.read()
            distinct = list({id(jpeg): jpeg for jpeg in jpegs}.values()) if shared else jpegs
            number = {id(jpeg): n for n, jpeg in enumerate(distinct)}
            which = np.array([number[id(jpeg)] for jpeg in jpegs], np.int32)
            return np.array(distinct, object), which

        def load(step: Any) -> tuple[Any, Any]:
            types = tf.string, tf.int32
            jpegs, which = tf.numpy_function(read, [step], types, stateful=False)
            which = tf.ensure_shape(which, [num_images])
            frames = tf.map_fn(
                lambda jpeg: decode_op(tf, jpeg),
                tf.ensure_shape(jpegs, [None if shared else num_images]),
                fn_output_signature=tf.TensorSpec(shape[2:], tf.uint8),
            )
            frames = tf.gather(frames, which) if shared else frames
            return step, tf.reshape(frames, shape)

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
            made = plans.pop(int(step))
            made.frames = frames
            yield made

    def produce() -> Iterator[Batch]:
        plans = stream(start_step)
        for step in itertools.count(start_step):
            try:
                made = next(plans)
            except tf.errors.OpError:
                # A frame that does not decode, or an error in `read`: this step is made without
                # tf.data, which replaces the example or raises the true error.
                result, plans = batch(step), stream(step + 1)
            else:
                result = made.finish()
            yield result

    # One thread of ours, so that `finish` (labels, tokens) runs beside the training step.
    batches = produce()
    maker = ThreadPoolExecutor(1, thread_name_prefix="lapa-data")
    try:
        yield from _in_turn(lambda: maker.submit(next, batches), 2)
    finally:
        maker.shutdown(wait=True, cancel_futures=True)
