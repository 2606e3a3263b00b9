"""Where a run lies: in a directory of a file system, or behind a gs:// URL.

A directory is a `pathlib.Path`. A URL is an `etils.epath.Path`, which has the same methods and
works by gcsfs; Orbax takes it as it is. A bucket has no folders, and nothing in it is appended to;
but an object is there whole or not at all.
"""

import importlib.util
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from data_pipelines import storage

# Else epath would take TensorFlow for gs:// where that is installed: training imports none.
os.environ.setdefault("EPATH_USE_TF", "false")

UPLOAD_SECONDS = 30.0


def directory(place: str | os.PathLike) -> Path:
    """The directory that a path or gs:// URL means.

    Raises ValueError for other URLs, of which a path would make a folder named "s3:", and for gs://
    without gcsfs.
    """
    text = os.fspath(place)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        return Path(place)
    if not re.match(r"gs://[^/]", text):
        raise ValueError(
            f"{text} is a URL: runs and their checkpoints need gs://BUCKET/PATH, where that is "
            f"taken, or a directory of a file system. Mount the bucket (Cloud Storage FUSE, "
            f"Filestore, Lustre) at the same path on all hosts and give that path"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{text} needs the package gcsfs: pip install gcsfs")
    import fsspec
    from etils import epath

    storage.reach("gs")
    # Other processes write there too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text.rstrip("/"))


def absolute(place: str | os.PathLike) -> Path:
    """The same, independent of the working directory."""
    found = directory(place)
    return found if is_remote(found) else found.absolute()


def is_remote(place: Path) -> bool:
    """Whether it is behind a URL."""
    return not isinstance(place, Path)


def make(place: Path) -> None:
    """Makes a directory, with those above it. A bucket has none: they appear with what is in them
    (and gcsfs would make the bucket)."""
    if not is_remote(place):
        storage.make_directory(place)


def replace(path: Path, text: str, *, durable: bool = False) -> None:
    """Writes a file atomically: a reader sees the old one or the new one. `durable`: it is on the
    disk before it takes the old one's place."""
    if is_remote(path):
        path.write_text(text)
    else:
        storage.write_text(path, text, durable=durable)


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """The mapping in a JSON file. Raises FileNotFoundError, or ValueError that says what to do
    `otherwise` where the file is damaged; both name it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {otherwise}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds no mapping): {otherwise}")
    return found


def scratch(workdir: Path) -> Path:
    """Where other libraries write what belongs to a run: its directory. Of a run behind a URL,
    which they do not know, a folder of this machine."""
    if not is_remote(workdir):
        return workdir
    return Path(tempfile.gettempdir()) / "lapa_jax" / str(workdir).removeprefix("gs://")


class Upload:
    """A text behind a URL that grows. The whole of it is written anew, by `flush` if the last time
    is UPLOAD_SECONDS ago, by `sync` and `close` at once."""

    def __init__(self, path: Path):
        self._path = path
        self._text = self._there = path.read_text() if path.exists() else ""
        self._due = time.monotonic()

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        if time.monotonic() >= self._due:
            self.sync()

    def sync(self) -> None:
        if self._text != self._there:
            self._path.write_text(self._text)
            self._there = self._text
        self._due = time.monotonic() + UPLOAD_SECONDS

    close = sync
