"""The files that this project derives from shards, with their checksums.

A sidecar is an array file plus a JSON manifest that holds its digests. What exists is whole.
"""

import hashlib
import json
import os
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_pipelines import storage
from data_pipelines.storage import atomic_path

# What np.load makes of a damaged header, which it reads as a Python literal and believes.
UNREADABLE = (
    ValueError,
    EOFError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
    MemoryError,
    OverflowError,
)
_LARGE_BYTES = 2**26  # arrays from this size on keep their file for `take`
_FEW_ROWS = 2**14


class SidecarError(ValueError):
    """A sidecar is missing, incomplete, damaged, or belongs to other data."""


def write_json(path: Path, value: Any) -> None:
    """Writes a manifest, {content, digest}: a flipped letter in an instruction is noticed, too."""
    text = json.dumps(
        {"content": value, "digest": value_hash(value)}, indent=1, sort_keys=True, allow_nan=False
    )
    storage.write_text(path, text + "\n")


def read_json(path: storage.Location) -> Any:
    """What write_json wrote; a manifest from before there were digests, or a file of another
    program, as it is."""
    try:
        value = json.loads(path.read_bytes().decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SidecarError(
            f"{path} is not readable JSON ({error}); delete it and run the command "
            "that wrote it again"
        ) from error
    if not isinstance(value, dict) or not value.keys() & {"content", "digest"}:
        return value
    if value.keys() != {"content", "digest"} or value_hash(value["content"]) != value["digest"]:
        raise SidecarError(
            f"{path} is damaged (its digest is not that of its content); delete it and run the "
            "command that wrote it again"
        )
    return value["content"]


def write_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def join_arrays(path: Path, parts: list[np.ndarray]) -> None:
    """Writes arrays that differ in their first axis alone as one, a part at a time. Not all may be
    empty."""
    rows = sum(len(part) for part in parts)
    with atomic_path(path) as temporary:
        joined = np.lib.format.open_memmap(
            temporary, "w+", parts[0].dtype, (rows, *parts[0].shape[1:])
        )
        np.concatenate(parts, out=joined)
        joined.flush()


def map_array(path: Path) -> np.ndarray:
    """An .npy file, memory-mapped read-only."""
    try:
        size = path.stat().st_size
        if size < 2**16:
            return np.load(path, allow_pickle=False)  # also the only way for empty arrays
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if size >= _LARGE_BYTES:
            array.file = open(path, "rb")  # closed with the array; `take` reads from it
        return array
    except FileNotFoundError:
        raise SidecarError(f"{path} is missing: delete {path.parent} and write it again") from None
    except UNREADABLE as error:
        raise SidecarError(
            f"{path} is damaged ({error}): delete {path.parent} and write it again"
        ) from error


def take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """array[rows] of any rows (...), without its pages becoming resident where these are few. A row
    that is looked at through a map may make 2 MiB so: a file system with large folios maps them
    whole."""
    file = getattr(array, "file", None)
    if file is None or rows.size > _FEW_ROWS:
        return array[rows]
    size = array.dtype.itemsize * int(np.prod(array.shape[1:]))
    starts = (array.offset + rows.reshape(-1) * size).tolist()
    data = b"".join([os.pread(file.fileno(), size, start) for start in starts])
    return np.frombuffer(data, array.dtype).reshape(*rows.shape, *array.shape[1:])


def file_digest(path: Path) -> str:
    """`array_digest` of an .npy file, without its pages becoming resident as those of a map do."""
    array = map_array(path)
    digest = _begin(array)
    with open(path, "rb") as file:
        file.seek(path.stat().st_size - array.nbytes)
        buffer = bytearray(2**22)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def _begin(array: np.ndarray) -> xxhash.xxh3_128:
    return xxhash.xxh3_128(f"{array.dtype.str}{array.shape}".encode())


def array_digest(array: np.ndarray) -> str:
    """Digest of dtype, shape and content."""
    digest = _begin(array)
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, 2**26):
        digest.update(np.ascontiguousarray(flat[start : start + 2**26]))
    return digest.hexdigest()


def value_hash(value: Any) -> str:
    """A short stable hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
