"""The two ways to run ahead of training: threads and tf.data.

Each turns plans (which rows) into batches, in order and bounded, and gives the same batches.
"""

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

Batch = dict[str, Any]


class Plan(Protocol):
    """The batch of a step while it is made: that of loader.py, which says what each does."""

    size: int
    chunks: Callable[[], list[tuple[int, int]]]
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
    plan: Callable[[int], Plan], start_step: int, num_threads: int, prefetch: int
) -> Iterator[Batch]:
    """The same batches by tf.data: range → read and decode → prefetch, deterministic, no state.

    Only the numbers of steps travel through tf.data: frames would be copied on the way.
    """
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # the accelerator belongs to JAX
    done: dict[int, Plan | Exception] = {}  # step → its plan with its frames, or what went wrong

    def fill(step: np.int64) -> np.int64:
        try:
            made = plan(int(step))
            made.fill(0, made.size)
        except Exception as error:  # TensorFlow would raise one of its own instead
            made = error
        done[int(step)] = made
        return step

    dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    dataset = dataset.map(
        lambda step: tf.numpy_function(fill, [step], tf.int64, stateful=False),
        num_parallel_calls=num_threads,
        deterministic=True,
    ).prefetch(prefetch)
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    options.threading.private_threadpool_size = num_threads
    options.threading.max_intra_op_parallelism = 1
    steps = dataset.with_options(options).as_numpy_iterator()

    def produce() -> Iterator[Batch]:
        for step in steps:
            made = done.pop(int(step))
            if isinstance(made, Exception):
                raise made
            yield made.finish()

    # One thread of ours, so that `finish` (labels, tokens) runs beside the training step.
    batches = produce()
    maker = ThreadPoolExecutor(1, thread_name_prefix="lapa-data")
    try:
        yield from _in_turn(lambda: maker.submit(next, batches), 2)
    finally:
        maker.shutdown(wait=True, cancel_futures=True)
