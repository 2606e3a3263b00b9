"""Messages of openpi's protocol: msgpack with NumPy arrays. Loads without JAX: workers that step
simulators send and read them, too."""

from typing import Any

import msgpack
import numpy as np


def pack(value: Any) -> bytes:
    return msgpack.packb(value, default=_from_array)


def unpack(data: bytes) -> Any:
    """Of an answer or of metadata; arrays cannot be written to. ValueError for anything else."""
    try:
        return msgpack.unpackb(data, object_hook=_to_array, strict_map_key=False)
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"{len(data)} bytes that are not msgpack with NumPy arrays") from error


def _from_array(array: np.ndarray) -> dict[bytes, Any]:
    return {
        b"__ndarray__": True,
        b"data": array.tobytes(),
        b"dtype": array.dtype.str,
        b"shape": array.shape,
    }


def _to_array(found: dict) -> Any:
    if b"__ndarray__" in found:
        return np.frombuffer(found[b"data"], np.dtype(found[b"dtype"])).reshape(found[b"shape"])
    if b"__npgeneric__" in found:
        return np.dtype(found[b"dtype"]).type(found[b"data"])
    return found
