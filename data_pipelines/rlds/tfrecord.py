"""TFRecord framing and the tf.train.Example wire format, without TensorFlow or protobuf.

Reading is zero-copy: a record is located in its shard and a feature is located in its record, so an
index can keep byte ranges and a loader can read one JPEG without touching its episode. Everything
that TensorFlow writes is accepted (packed and unpacked lists); anything damaged raises
`RecordError`, which names the file, the record and the byte offset.
"""

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

# A record is: length u64 | masked crc of the length u32 | payload | masked crc of the payload u32.
HEADER_BYTES = 12
FOOTER_BYTES = 4

BYTES, FLOAT, INT64, EMPTY = "bytes", "float", "int64", "empty"
_KIND_OF_FIELD = {1: BYTES, 2: FLOAT, 3: INT64}
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5

Buffer = bytes | memoryview | np.ndarray
FeatureValue = bytes | str | Sequence[bytes] | Sequence[str] | float | int | bool | np.ndarray


class RecordError(ValueError):
    """A TFRecord file or a tf.train.Example in it is damaged or truncated."""

    def __init__(
        self,
        reason: str,
        *,
        path: str | PathLike = "",
        record: int | None = None,
        offset: int | None = None,
    ):
        where = [str(path) or "TFRecord data"]
        if record is not None:
            where.append(f"record {record}")
        if offset is not None:
            where.append(f"byte offset {offset}")
        super().__init__(f"{', '.join(where)}: {reason}")
        self.reason, self.path, self.record, self.offset = reason, str(path), record, offset


def masked_crc32c(data: Buffer) -> int:
    """The checksum that TFRecord stores: CRC32C, rotated by 15 bits plus a constant."""
    if not isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8)  # google_crc32c takes no memoryview
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


# ---------------------------------------------------------------- framing


def write_record(file: BinaryIO, payload: bytes) -> int:
    """Appends one record; returns the number of bytes it takes in the file."""
    length = struct.pack("<Q", len(payload))
    file.write(length + struct.pack("<I", masked_crc32c(length)))
    file.write(payload)
    file.write(struct.pack("<I", masked_crc32c(payload)))
    return HEADER_BYTES + len(payload) + FOOTER_BYTES


def read_record(
    data: Buffer,
    position: int,
    *,
    path: str | PathLike = "",
    record: int | None = None,
    verify: bool = True,
) -> tuple[int, int]:
    """(offset, length) of the payload of the record that starts at byte `position` of `data`.

    The next record starts at offset + length + FOOTER_BYTES.
    """
    data = memoryview(data)
    size = len(data)

    def fail(reason: str) -> RecordError:
        return RecordError(reason, path=path, record=record, offset=position)

    if position + HEADER_BYTES > size:
        raise fail(
            f"truncated: the record header needs {HEADER_BYTES} bytes, {size - position} are left"
        )
    length, length_crc = struct.unpack_from("<QI", data, position)
    if masked_crc32c(bytes(data[position : position + 8])) != length_crc:
        raise fail(
            "the checksum of the record's length does not match (damaged file, compressed "
            "file, or not a TFRecord)"
        )
    offset = position + HEADER_BYTES
    if offset + length + FOOTER_BYTES > size:
        raise fail(
            f"truncated: the record needs {length + FOOTER_BYTES} bytes after its header, "
            f"{size - offset} are left"
        )
    if verify:
        (payload_crc,) = struct.unpack_from("<I", data, offset + length)
        if masked_crc32c(data[offset : offset + length]) != payload_crc:
            raise fail(f"the checksum of the record's {length} bytes does not match")
    return offset, length


def iterate_records(
    data: Buffer, *, path: str | PathLike = "", verify: bool = True
) -> Iterator[tuple[int, int, int]]:
    """(record number, payload offset, payload length) of every record of a whole shard."""
    position, number, size = 0, 0, len(data)
    while position < size:
        offset, length = read_record(data, position, path=path, record=number, verify=verify)
        yield number, offset, length
        position = offset + length + FOOTER_BYTES
        number += 1


def read_payload(path: str | PathLike, number: int, offset: int) -> bytes:
    """The payload of one record, by its place; its checksum is verified."""
    data = map_file(path)
    offset, length = read_record(data, offset - HEADER_BYTES, path=path, record=number)
    return bytes(data[offset : offset + length])


def map_file(path: str | PathLike) -> memoryview:
    """The bytes of a file, memory-mapped read-only (empty files are allowed)."""
    path = Path(path)
    if path.stat().st_size == 0:
        return memoryview(b"")
    return memoryview(np.memmap(path, np.uint8, mode="r"))


def read_payloads(path: str | PathLike) -> Iterator[bytes]:
    """The payload of every record of a file, checksums verified."""
    data = map_file(path)
    for _, offset, length in iterate_records(data, path=path):
        yield bytes(data[offset : offset + length])


# ---------------------------------------------------------------- encoding


def encode_varint(value: int) -> bytes:
    """Of a number that is not negative."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(field: int, payload: bytes) -> bytes:
    """A field of bytes, a text or a message."""
    return encode_varint(field << 3 | _DELIMITED) + encode_varint(len(payload)) + payload


def _encode_int64(values: np.ndarray) -> bytes:
    if values.size == 0 or (values.min() >= 0 and values.max() < 0x80):
        return values.astype(np.uint8).tobytes()  # one byte each, the usual case: flags
    return b"".join(encode_varint(value & 0xFFFFFFFFFFFFFFFF) for value in values.tolist())


def _encode_feature(key: str, value: FeatureValue) -> bytes:
    if isinstance(value, bytes | str):
        value = [value]
    if isinstance(value, list | tuple) and all(isinstance(item, bytes | str) for item in value):
        items = [item.encode() if isinstance(item, str) else item for item in value]
        return delimited(1, b"".join(delimited(1, item) for item in items))
    array = np.asarray(value)
    if array.dtype == np.float64 and not isinstance(value, np.ndarray | np.generic):
        array = array.astype(np.float32)  # Python floats; a float64 array is refused below
    if array.dtype == np.float32:
        packed, field = array.astype("<f4").tobytes(), 2
    elif array.dtype.kind in "bi" or (array.dtype.kind == "u" and array.dtype.itemsize < 8):
        packed, field = _encode_int64(array.ravel().astype(np.int64)), 3
    else:
        raise ValueError(
            f"feature {key!r} has dtype {array.dtype}; tf.train.Example holds bytes, "
            "float32 and integers: convert it explicitly"
        )
    return delimited(field, delimited(1, packed) if array.size else b"")


def encode_example(features: Mapping[str, FeatureValue]) -> bytes:
    """A serialised tf.train.Example; equal features give equal bytes (keys are sorted).

    Values: bytes, str or lists of them → bytes_list; float32 arrays and Python floats → float_list
    (flattened); bool and integer arrays or scalars → int64_list.
    """
    entries = (
        delimited(1, delimited(1, key.encode()) + delimited(2, _encode_feature(key, features[key])))
        for key in sorted(features)
    )
    return delimited(1, b"".join(entries))


# ---------------------------------------------------------------- parsing


@dataclass(frozen=True, slots=True)
class Feature:
    """Where one feature lies in its record.

    spans: (offset, length) relative to the record's payload. kind "bytes": one span per item;
    "float" and "int64": runs of packed little-endian float32 / varints. kind "empty": an unset
    feature (no list at all).
    """

    kind: str
    spans: list[tuple[int, int]]

    def byte_items(self, record: Buffer) -> list[bytes]:
        return self._items(record, BYTES)

    def floats(self, record: Buffer) -> np.ndarray:
        packed = b"".join(self._items(record, FLOAT))
        return np.frombuffer(packed, "<f4").astype(np.float32, copy=False)

    def ints(self, record: Buffer) -> np.ndarray:
        return _decode_varints(b"".join(self._items(record, INT64)))

    def values(self, record: Buffer) -> list[bytes] | np.ndarray:
        """Of whatever kind they are."""
        if self.kind == INT64:
            return self.ints(record)
        return self.floats(record) if self.kind == FLOAT else self.byte_items(record)

    def _items(self, record: Buffer, kind: str) -> list[bytes]:
        if self.kind not in (kind, EMPTY):
            raise ValueError(f"a {self.kind} feature was read as {kind}")
        record = memoryview(record)
        return [bytes(record[offset : offset + length]) for offset, length in self.spans]


def _decode_varints(raw: bytes) -> np.ndarray:
    """int64 values of consecutive varints; `raw` was checked by `parse_example` to be whole."""
    data = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if len(ends) == len(data):
        return data.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    values = np.zeros(len(ends), np.uint64)
    for place in range(int(lengths.max())):
        has = lengths > place
        values[has] |= (data[starts[has] + place] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(
            7 * place
        )
    return values.view(np.int64)


class _Parser:
    """A cursor over one record; errors name file, record and the offset in the file."""

    def __init__(self, data: memoryview, path: str | PathLike, record: int | None, base: int):
        self.data, self.path, self.record, self.base = data, path, record, base

    def fail(self, reason: str, at: int) -> RecordError:
        return RecordError(
            f"not a valid tf.train.Example: {reason}",
            path=self.path,
            record=self.record,
            offset=self.base + at,
        )

    def varint(self, at: int, end: int) -> tuple[int, int]:
        data = self.data
        if at < end and data[at] < 0x80:
            return data[at], at + 1
        value, shift, start = 0, 0, at
        while True:
            if at >= end:
                raise self.fail("a varint runs over the end of its message", start)
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
            if shift >= 70:
                raise self.fail("a varint is longer than 10 bytes", start)

    def fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(field number, wire type, offset, end) of each field of the message [at, end)."""
        while at < end:
            start = at
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise self.fail("field number 0", start)
            if wire == _DELIMITED:
                length, at = self.varint(at, end)
            elif wire == _VARINT:
                length = self.varint(at, end)[1] - at
            elif wire == _FIXED32:
                length = 4
            elif wire == _FIXED64:
                length = 8
            else:
                raise self.fail(f"unsupported wire type {wire}", start)
            if length > end - at:
                raise self.fail(
                    f"a field of {length} bytes runs over the end of its message, "
                    f"{end - at} bytes are left",
                    start,
                )
            yield number, wire, at, at + length
            at += length

    def submessages(self, at: int, end: int, number: int, what: str) -> Iterator[tuple[int, int]]:
        for field, wire, start, stop in self.fields(at, end):
            if field != number:
                continue  # a field that this format does not know: readers skip it
            if wire != _DELIMITED:
                raise self.fail(f"{what} has wire type {wire}", start)
            yield start, stop

    def entry(self, at: int, end: int) -> tuple[str, Feature]:
        key, feature = "", Feature(EMPTY, [])
        for field, wire, start, stop in self.fields(at, end):
            if wire != _DELIMITED:
                raise self.fail(f"a map entry holds wire type {wire}", start)
            if field == 1:
                try:
                    key = str(self.data[start:stop], "utf-8")
                except UnicodeDecodeError as error:
                    raise self.fail("a feature's key is not UTF-8", start) from error
            elif field == 2:
                feature = self.feature(start, stop)
        return key, feature

    def feature(self, at: int, end: int) -> Feature:
        kind, spans = EMPTY, []
        for field, wire, start, stop in self.fields(at, end):
            if field not in _KIND_OF_FIELD:
                continue
            if wire != _DELIMITED:
                raise self.fail(f"a feature list has wire type {wire}", start)
            if kind != _KIND_OF_FIELD[field]:  # a oneof: the last kind wins
                kind, spans = _KIND_OF_FIELD[field], []
            spans += self.spans(kind, start, stop)
        return Feature(kind, spans)

    def spans(self, kind: str, at: int, end: int) -> Iterator[tuple[int, int]]:
        for field, wire, start, stop in self.fields(at, end):
            if field != 1:
                continue
            if kind == BYTES and wire == _DELIMITED:
                pass
            elif kind == FLOAT and wire in (_DELIMITED, _FIXED32):
                if (stop - start) % 4:
                    raise self.fail(
                        f"a packed float list has {stop - start} bytes, not a multiple of 4", start
                    )
            elif kind == INT64 and wire in (_DELIMITED, _VARINT):
                if wire == _DELIMITED:
                    self.check_varints(start, stop)
            else:
                raise self.fail(f"a {kind} list holds wire type {wire}", start)
            yield start, stop - start

    def check_varints(self, at: int, end: int) -> None:
        ends = np.flatnonzero(np.frombuffer(self.data[at:end], np.uint8) < 0x80)
        if end > at and (len(ends) == 0 or ends[-1] != end - at - 1):
            raise self.fail("a packed int64 list ends inside a varint", at)
        if len(ends) and np.diff(ends, prepend=-1).max() > 10:
            raise self.fail("a varint is longer than 10 bytes", at)


def parse_example(
    record: Buffer, *, path: str | PathLike = "", number: int | None = None, offset: int = 0
) -> dict[str, Feature]:
    """Locates every feature of a serialised tf.train.Example.

    path, number and offset (of the record's payload in its file) only serve the error's text.
    """
    data = memoryview(record)
    parser = _Parser(data, path, number, offset)
    features: dict[str, Feature] = {}
    for start, stop in parser.submessages(0, len(data), 1, "Example.features"):
        for entry in parser.submessages(start, stop, 1, "Features.feature"):
            key, feature = parser.entry(*entry)
            if key in features:
                raise parser.fail(f"feature {key!r} occurs twice", entry[0])
            features[key] = feature
    return features


def first_example(
    paths: Iterable[Path], like: Callable[[dict[str, Feature]], bool] = bool
) -> tuple[Path, int, bytes, dict[str, Feature]] | None:
    """(file, record number, payload, features) of the first record that is whole, and is so."""
    for path in paths:
        # Behind a damaged header no other record of its file can be found.
        with contextlib.suppress(RecordError):
            for number, offset, _ in iterate_records(map_file(path), path=path, verify=False):
                with contextlib.suppress(RecordError):
                    payload = read_payload(path, number, offset)
                    features = parse_example(payload)
                    if like(features):
                        return path, number, payload, features
    return None
