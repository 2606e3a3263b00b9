"""The right to write a run's directory, also where several hosts share it.

The lock file names its holder and shows a sign of life. A lock of the system, which is on it too,
is seen at once by processes of one machine, and by others only where the file system takes it there
(NFS does; a bucket has none at all). So where the holder is of another machine, whoever wants the
lock waits for a sign of life, and takes it if none comes.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.storage import Lock, LockedError, places

BEAT_SECONDS = 10.0
DEAD_SECONDS = 60.0  # without a sign of life
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. Times are in seconds since the epoch."""

    host: str
    pid: int
    since: float
    machine: str  # one start of its kernel, and its numbering of processes
    key: str  # of this time of holding
    beat: int = 0

    def is_gone(self) -> bool:
        """Whether it is surely dead: a process of this machine that is not there."""
        if self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {since}"


def holder_of(path: Path) -> Holder | None:
    """Who has written a lock file; None without one, or where it says nothing that is known."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def silent_seconds(path: Path) -> float:
    """Since the last sign of life of who holds a lock file."""
    found = path.stat()
    return time.time() - (found.mtime if places.is_remote(path) else found.st_mtime)


class Lease:
    """Held from its making to `release` (or the end of a `with`).

    path: of the lock file, whose directory is made. what: is written, for the message. instead:
    what else one can do. Raises LockedError, naming the holder, where another holds it; then
    nothing was written.
    """

    def __init__(self, path: Path, what: str | Path, instead: str):
        self._path, self._what, self._instead = path, what, instead
        self._lock: Lock | None = None
        now = time.time()
        self._holder = Holder(socket.gethostname(), os.getpid(), now, _machine(), uuid.uuid4().hex)
        self.lost = False
        if places.is_remote(path):
            self._take_remote()
        else:
            self._take()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def confirm(self) -> None:
        """Raises LockedError where another process has taken the lock: it believed this one dead,
        of which it saw no sign of life for long."""
        if self.lost or self._taken():
            self.lost = True
            raise LockedError(
                errno.EAGAIN,
                f"{self._what} was taken over by {holder_of(self._path)}: this process had shown "
                f"no sign of life for {DEAD_SECONDS:g} s. It writes nothing more there",
            )

    def release(self) -> None:
        """Gives the lock back."""
        self._ended.set()
        self._thread.join()
        if not self._taken():
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release(keep=True)

    # --- Taking it ---

    def _take(self) -> None:
        try:
            self._lock = Lock(self._path, self._what)
        except LockedError as error:
            raise self._held(holder_of(self._path)) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logging.warning("%s has no file locks: other processes show in it alone", self._path)
        before = holder_of(self._path)
        # The system frees the locks of a process of this machine that has ended.
        freed = self._lock is not None and before and before.machine == self._holder.machine
        try:
            if before is not None and not freed:
                self._await_death(before)
            self._write()
            if before is not None and not freed:
                time.sleep(DEAD_SECONDS / 60)  # another may have waited as long
                if self._taken():
                    raise self._held(holder_of(self._path))
        except BaseException:
            if self._lock is not None:
                self._lock.release(keep=True)
            raise

    def _take_remote(self) -> None:
        while not self._create():
            stamp = self._await_death(holder_of(self._path))
            if stamp is not None and _stamp(self._path) == stamp:
                self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Whether the object was not there; then it is."""
        import fsspec

        try:
            fsspec.filesystem("gcs").pipe_file(str(self._path), self._text(), mode="create")
        except FileExistsError:
            return False
        return True

    def _await_death(self, before: Holder | None) -> Any:
        """What the file held while its holder showed no sign of life for long enough; else
        raises."""
        stamp = _stamp(self._path)
        if stamp is None or before is not None and before.is_gone():
            return stamp
        logging.warning(
            "%s is held by %s, if that lives: waiting %g s for a sign of life",
            *(self._what, before or "another process", DEAD_SECONDS),
        )
        end = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, DEAD_SECONDS / 4))
            if (now := _stamp(self._path)) != stamp:
                if now is None:
                    return None
                raise self._held(holder_of(self._path) or before)
        return stamp

    def _held(self, by: Holder | None) -> LockedError:
        return LockedError(
            errno.EAGAIN,
            f"{self._what} is being written by {by or 'another process'} (lock {self._path}): "
            f"wait for it, or {self._instead}",
        )

    # --- Holding it ---

    def _text(self) -> bytes:
        return (json.dumps(asdict(self._holder)) + "\n").encode()

    def _write(self) -> None:
        """In place: the lock of the system is of this file."""
        with open(self._path, "wb") as file:
            file.write(self._text())

    def _taken(self) -> bool:
        """Whether the file names another holder."""
        found = holder_of(self._path)
        return found is not None and found.key != self._holder.key

    def _live(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT_SECONDS):
            beat += 1
            try:
                if self._taken():
                    self.lost = True
                    return
                if places.is_remote(self._path):
                    self._holder = Holder(**{**asdict(self._holder), "beat": beat})
                    self._path.write_text(self._text().decode())
                else:
                    os.utime(self._path)
            except OSError as error:  # it may work the next time
                logging.warning("no sign of life into %s: %s", self._path, error)


def _stamp(path: Path) -> Any:
    """What a sign of life changes; None without the file."""
    try:
        with path.open("rb") as file:  # as it is now, also where attributes are cached
            return file.read(), None if places.is_remote(path) else os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()
