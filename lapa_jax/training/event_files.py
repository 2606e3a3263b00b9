"""Scalars for TensorBoard: a file of TFRecords, each an Event (tensorflow/core/util/event.proto).

Writers of others import what plots and images need, PyTorch where it is there: seconds at the start
of every training.
"""

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from data_pipelines.rlds.tfrecord import delimited, encode_varint, write_record


class EventFile:
    """One file in `folder`, which is made. What earlier files there say of `first_step` and later
    steps no longer counts."""

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._file = open(folder / name, "wb")
        self._write(0, delimited(3, b"brain.Event:2"))  # file_version
        self._write(first_step, delimited(7, b"\x08\x01"))  # session_log.status: START

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """On disk before the call returns."""
        one = (delimited(1, name.encode()) + _float(2, x) for name, x in values.items())
        self._write(step, delimited(5, b"".join(delimited(1, value) for value in one)))

    def _write(self, step: int, what: bytes) -> None:
        told = struct.pack("<Bd", 1 << 3 | 1, time.time())  # wall_time
        write_record(self._file, told + encode_varint(2 << 3) + encode_varint(step) + what)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _float(field: int, value: float) -> bytes:
    return struct.pack("<Bf", field << 3 | 5, value)
