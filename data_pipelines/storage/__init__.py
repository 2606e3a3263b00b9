"""Where files lie, how they are written whole or not at all, and by one writer at a time.

Files of a corpus lie on a disk or behind a URL that fsspec knows (gs://, s3://). A location is a
`Path`, or a `RemotePath` for a URL. Nothing here writes to a URL. Sidecars that lie behind one are
fetched into a cache folder and memory-mapped from there. Runs: places.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from absl import logging

CACHE_ENV = "LAPA_CACHE"
GOOGLE = ("storage.googleapis.com", 443)
TELL_SECONDS, REACH_SECONDS = 3, 12


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder behind a URL; the part of `Path` that reading needs."""

    url: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rpartition("/")[0])

    def __truediv__(self, name: str | os.PathLike) -> RemotePath:
        return RemotePath(f"{self.url}/{os.fspath(name)}")

    def is_file(self) -> bool:
        return filesystem(self).isfile(self.url)

    def read_bytes(self) -> bytes:
        return filesystem(self).cat_file(self.url)

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        raise ValueError(
            f"{self.url} is no local path: what is written, or read by other means than training, "
            "must be local (give a local directory, or a local sidecar_dir)"
        )


Location = Path | RemotePath


def locate(path: str | os.PathLike | RemotePath) -> Location:
    """The location that a path or URL means."""
    if isinstance(path, RemotePath):
        return path
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return RemotePath(text.rstrip("/")) if "://" in text else Path(text)


@cache
def reach(protocol: str) -> None:
    """Raises ConnectionError where Google's storage does not answer; gcsfs asks for a minute. Knows
    nothing of other storages, of proxies, and of addresses that are configured."""
    if protocol not in ("gs", "gcs") or "STORAGE_EMULATOR_HOST" in os.environ:
        return
    import urllib.request

    import fsspec

    if "endpoint_url" in fsspec.config.conf.get("gcs", {}) or urllib.request.getproxies():
        return
    failed: list[object] = [f"no answer in {REACH_SECONDS} s"]

    def connect() -> None:
        try:
            socket.create_connection(GOOGLE, timeout=REACH_SECONDS).close()
            failed.clear()
        except OSError as error:
            failed[:] = [error]

    trying = threading.Thread(target=connect, daemon=True)  # to ask for a name takes its own time
    trying.start()
    trying.join(TELL_SECONDS)
    if trying.is_alive():
        logging.warning("waiting for %s:// (%s:%d), %d s at most", protocol, *GOOGLE, REACH_SECONDS)
        trying.join(REACH_SECONDS - TELL_SECONDS)
    if failed:
        raise ConnectionError(
            f"{protocol}:// cannot be reached from here: {GOOGLE[0]}:{GOOGLE[1]}: {failed[0]}"
        )


@cache
def _filesystem(protocol: str) -> Any:
    import fsspec

    reach(protocol)
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}.get(protocol)
        hint = f"pip install {package}" if package else "install the package that it names"
        raise ValueError(f"{protocol}:// needs a package of fsspec ({error}): {hint}") from error
    except ValueError as error:
        raise ValueError(f"fsspec knows no {protocol}:// ({error})") from error


def filesystem(location: RemotePath) -> Any:
    """The fsspec file system of a URL."""
    return _filesystem(location.url.partition("://")[0])


def list_names(folder: Location) -> list[str] | None:
    """Names of the files directly in a folder, sorted; None where there is no such folder."""
    if isinstance(folder, Path):
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else None
    filesystem(folder).invalidate_cache()  # of listings, which may be old
    try:
        found = filesystem(folder).ls(folder.url, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found)


def given_folder(path: str | os.PathLike, what: str) -> Path:
    """`path`, if it is a directory. OSError says what it is instead, and `what` is meant."""
    path = Path(path)
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"{path} is a file: {what} is meant")
    raise FileNotFoundError(f"{path} does not exist: {what} is meant")


def size(location: Location) -> int:
    """Bytes of a file."""
    if isinstance(location, Path):
        return location.stat().st_size
    return int(filesystem(location).info(location.url)["size"])


def read_range(location: Location, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file, fewer where it ends before."""
    if isinstance(location, Path):
        with open(location, "rb") as file:
            file.seek(start)
            return file.read(stop - start)
    return filesystem(location).cat_file(location.url, start=start, end=stop)


def cache_folder(location: Location) -> Path:
    """Where what belongs to a location is kept on this machine: below $LAPA_CACHE, or else
    ~/.cache/lapa_jax."""
    root = os.environ.get(CACHE_ENV) or Path.home() / ".cache" / "lapa_jax"
    text = str(location if isinstance(location, RemotePath) else location.absolute())
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Path(root) / f"{Path(text).name or 'root'}-{digest}"


def fetch(root: Location, folder: str) -> Path:
    """A local root below which <folder> holds the files of <root>/<folder>: root itself where it is
    local, else a copy that is made anew where the manifests (its .json files) changed. What the
    files hold is checked by who opens them, by digest."""
    if isinstance(root, Path):
        return root
    local, remote = cache_folder(root), root / folder
    target = local / folder
    names = list_names(remote) or []
    manifests = {name: (remote / name).read_bytes() for name in names if name.endswith(".json")}
    if all((target / name).is_file() for name in names) and all(
        (target / name).read_bytes() == data for name, data in manifests.items()
    ):
        return local
    fresh = target.with_name(f".{target.name}.{os.getpid()}.incomplete")
    fresh.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in manifests:
            filesystem(root).get_file((remote / name).url, str(fresh / name))
    for name, data in manifests.items():  # last: a copy with manifests is a whole one
        (fresh / name).write_bytes(data)
    target.mkdir(parents=True, exist_ok=True)
    for name in sorted(names, key=lambda name: name in manifests):
        os.replace(fresh / name, target / name)
    shutil.rmtree(fresh)
    return local


# ---------------------------------------------------------------- writing


def make_directory(path: Path) -> Path:
    """Makes a directory, with those above it, in which files can be made; returns it. Raises
    OSError that names it, and what is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        if isinstance(error, FileExistsError | NotADirectoryError):
            blocking = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
            reason = f"{blocking} is there, and is no directory"
        raise OSError(error.errno, f"the directory {path} cannot be made: {reason}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"nothing can be written into the directory {path}")
    return path


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Around the making of `.NAME.*.incomplete` beside `path`: its errors name `path`."""
    try:
        yield
    except OSError as error:
        at = str(error.filename or "")
        if f"/.{path.name}." in f"/{at}" and ".incomplete" in at:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`, whose folder is made; renames it on success, removes
    it on failure: a reader sees the old file or the whole new one. durable: it is on the disk
    before it takes the old one's place."""
    make_directory(path.parent)
    # Hosts that share a disk may write one file at once, and Beam a job twice.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.incomplete")
    try:
        with named(path):
            yield temporary
            if durable:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes a file by `atomic_path`, as UTF-8."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


class LockedError(OSError):
    """Another process is writing the same thing."""


class Lock:
    """Held from its making to `release` (or the end of a `with`). The system frees the lock of a
    process that dies.

    path: of the lock file, beside what is written; its directory is made. what: is written, for
    the message. wait: until it is free; else LockedError is raised where another process, or
    another lock of this one, holds it.
    """

    def __init__(self, path: Path, what: str | Path, *, wait: bool = False):
        self.path = path
        make_directory(path.parent)
        while True:
            self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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

    def release(self, *, keep: bool = False) -> None:
        """keep: the lock file stays."""
        if self._descriptor >= 0:
            if not keep:
                self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
