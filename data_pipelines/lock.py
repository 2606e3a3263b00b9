"""One writer at a time: two processes that write the same thing refuse each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


class LockedError(OSError):
    """Another process is writing the same thing."""


class Lock:
    """Held from its making to `release` (or the end of a `with`). The system frees the lock of a
    process that dies.

    path: of the lock file, beside what is written; its directory is made. what: is written, for
    the message. Raises LockedError where another process, or another lock of this one, holds it.
    """

    def __init__(self, path: Path, what: str | Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self._descriptor)
                raise LockedError(
                    error.errno,
                    f"{what} is being written by another process (lock {path}); wait for "
                    "it or choose another output directory",
                ) from error
            # The file that we locked may just have been removed by its former owner.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(self._descriptor).st_ino:
                    return
            os.close(self._descriptor)

    def release(self) -> None:
        if self._descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
