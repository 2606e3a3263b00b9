"""Traces of a few steps, for TensorBoard's profile page (xprof) and Perfetto.

`lapa train --profile 100:105` traces the steps 100 to 104; `kill -USR1 PID` traces the next five of
that process, at any time. Each process writes its own files under WORKDIR/profile/.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging

from data_pipelines.storage import places

ON_SIGNAL = 5  # steps


def parse(text: str) -> tuple[int, int] | None:
    """ "100:105" → (100, 105): the first step and the one after the last; None for ""."""
    if not text:
        return None
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and 1 <= int(first) < int(end)):
        raise ValueError(f"--profile {text!r} must be FIRST:END with 1 <= FIRST < END, as 100:105")
    return int(first), int(end)


class Profiler:
    """Starts and stops traces between steps."""

    def __init__(self, workdir: str | Path, span: tuple[int, int] | None):
        self._span = span
        self._directory = places.scratch(places.directory(workdir)) / "profile"
        self._asked = threading.Event()
        self._until: int | None = None  # the step before which the trace ends

    @contextlib.contextmanager
    def on_signal(self) -> Iterator[None]:
        """While inside, SIGUSR1 asks for a trace, and at the end an open one is closed."""
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGUSR1, lambda *_: self._asked.set()) if main else None
        try:
            yield
        finally:
            if self._until is not None:
                self._stop()
            if main:
                signal.signal(signal.SIGUSR1, before)

    def before(self, step: int, wait_for: object) -> None:
        """To be called before `step` is dispatched. `wait_for`: arrays that the steps before it
        compute: these end before a trace starts, and a trace ends with them."""
        if self._until is not None and step >= self._until:
            jax.block_until_ready(wait_for)
            self._stop()
        end = None
        if self._span is not None and self._span[0] <= step < self._span[1]:
            end = self._span[1]
        elif self._asked.is_set():
            self._asked.clear()
            end = step + ON_SIGNAL
        if end is not None and self._until is None:
            jax.block_until_ready(wait_for)
            folder = self._directory / f"step_{step}"
            jax.profiler.start_trace(str(folder))
            self._until = end
            logging.warning("tracing steps %d to %d to %s", step, end - 1, folder)

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._until = None
        logging.warning("trace written: tensorboard --logdir %s", self._directory)
