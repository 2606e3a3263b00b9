"""Arrays of a streaming-msgpack checkpoint as views of the file: none is read before its use.

The file is a sequence of two-element arrays: a key path (array of strings) and a byte string that
is itself flax's msgpack form of one array: extension type 1 around (shape, dtype name, bytes), or,
above 2^30 bytes, a map of such pieces. The msgpack library would copy every array twice; this walks
the headers (msgpack specification, "Formats") and slices.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)} | {
    name: np.dtype(name)
    for name in ("float16", "float32", "float64", "int32", "int64", "uint32", "uint8", "bool")
}
_ARRAY = 1  # flax's extension type
_CHUNKED = "__msgpack_chunked_array__"
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {0xCC + i: f">{form}" for i, form in enumerate("BHIQbhiq")}
_STRINGS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_ARRAYS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}


class _Extension(NamedTuple):
    kind: int
    data: memoryview


class _Reader:
    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def take(self, count: int) -> memoryview:
        if self.at + count > len(self.data):
            raise ValueError(f"ends within a value at byte {self.at}: {count} bytes are missing")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self) -> Any:
        """The next value; byte strings and extensions are views."""
        head = self.number(">B")
        if head < 0x80 or head >= 0xE0:
            return head if head < 0x80 else head - 0x100
        if head < 0x90:
            return {self.value(): self.value() for _ in range(head & 0x0F)}
        if head < 0xA0:
            return [self.value() for _ in range(head & 0x0F)]
        if head < 0xC0:
            return bytes(self.take(head & 0x1F)).decode()
        if head in _CONSTANTS:
            return _CONSTANTS[head]
        if head in _NUMBERS:
            return self.number(_NUMBERS[head])
        if head in _STRINGS:
            return bytes(self.take(self.number(_STRINGS[head]))).decode()
        if head in _BYTES:
            return self.take(self.number(_BYTES[head]))
        if head in _ARRAYS:
            return [self.value() for _ in range(self.number(_ARRAYS[head]))]
        if head in _MAPS:
            return {self.value(): self.value() for _ in range(self.number(_MAPS[head]))}
        if head in _EXTENSIONS or 0xD4 <= head <= 0xD8:
            size = self.number(_EXTENSIONS[head]) if head in _EXTENSIONS else 1 << (head - 0xD4)
            return _Extension(self.number(">b"), self.take(size))
        raise ValueError(f"byte {self.at - 1} is {head:#x}: no msgpack value of a checkpoint")


class Pieces(NamedTuple):
    """One array in flat pieces; `shape` and `dtype` as of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: list[np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, self.dtype)
        np.concatenate(self.parts, out=whole.reshape(-1))
        return whole


def read(path: str | Path) -> dict[str, np.ndarray | Pieces]:
    """{slash-separated key path: array}, as read-only views of the file.

    Raises ValueError for anything that is not such a file, naming the place.
    """
    with open(path, "rb") as file:
        try:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError as error:
            raise ValueError(f"{path} is empty") from error
    arrays: dict[str, np.ndarray | Pieces] = {}
    try:
        for name, data in _entries(_Reader(view)):
            if name in arrays:
                raise ValueError(f"{name!r} occurs twice")
            arrays[name] = _array(name, data)
    except (ValueError, struct.error, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no streaming msgpack checkpoint: {error}") from error
    return arrays


def _entries(reader: _Reader) -> Iterator[tuple[str, memoryview]]:
    while reader.at < len(reader.data):
        start = reader.at
        match reader.value():
            case [[*keys], memoryview() as data] if all(isinstance(k, str) for k in keys):
                yield "/".join(keys), data
            case _:
                raise ValueError(f"byte {start} begins no pair of a key path and an array")


def _array(name: str, data: memoryview) -> np.ndarray | Pieces:
    match _Reader(data).value():
        case _Extension() as whole:
            return _plain(name, whole)
        case {"__msgpack_chunked_array__": True, "shape": dict(shape), "chunks": dict(chunks)}:
            parts = [_plain(name, chunks[str(i)]) for i in range(len(chunks))]
            sizes = tuple(int(shape[str(i)]) for i in range(len(shape)))
            if sum(p.size for p in parts) != np.prod(sizes) or len({p.dtype for p in parts}) != 1:
                raise ValueError(f"the pieces of {name!r} do not make an array of shape {sizes}")
            return Pieces(sizes, parts[0].dtype, [p.reshape(-1) for p in parts])
    raise ValueError(f"{name!r} is not an array")


def _plain(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, _Extension) or value.kind != _ARRAY:
        raise ValueError(f"{name!r} holds something else than arrays")
    match _Reader(value.data).value():
        case [[*shape], str(dtype), memoryview() as data] if dtype in _DTYPES:
            return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
        case [_, str(dtype), _]:
            raise ValueError(f"{name!r} is of dtype {dtype}: one of {sorted(_DTYPES)} is expected")
    raise ValueError(f"{name!r} is not an array")
