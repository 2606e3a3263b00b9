"""Processes that work for another one."""

import ctypes
import signal
import sys

_PDEATHSIG = 1  # of prctl: the signal when the parent is gone


def end_with_parent() -> None:
    """Called in a process: it is killed when the thread that started it ends, however that does.
    Linux alone knows how."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
