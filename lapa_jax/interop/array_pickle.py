"""Pickles of nested dicts of arrays, read without running anything that they name.

A pickle is a program that may call whatever it imports. This reader knows the few names that NumPy,
JAX and Flax write for arrays and dicts, and puts functions of its own in their place: they keep the
bytes, and plain NumPy arrays are made of them. Any other name is an error.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_KINDS = "biuf"  # booleans, integers and floats
_BFLOAT16 = "ml_dtypes.bfloat16"
_BROKEN = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
)


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """{slash-separated path: array} of a pickled nested dict; the arrays are read-only.

    Raises ValueError for a pickle that holds, or names, anything but dicts of arrays.
    """
    with open(path, "rb") as file:
        try:
            return _flatten(_ArrayUnpickler(file).load())
        except _NotArrays as error:
            raise ValueError(f"{path} holds more than dicts of NumPy arrays: {error}") from None
        except _BROKEN as error:
            raise ValueError(f"{path} is no pickle of NumPy arrays: {error!r}") from error


class _NotArrays(Exception):
    """What a pickle holds that it must not."""


class _Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, name: str, align: bool = False, copy: bool = True):
        if name == _BFLOAT16:
            self.dtype = np.dtype(ml_dtypes.bfloat16)
            return
        self.dtype = np.dtype(name) if isinstance(name, str) else None
        if self.dtype is None or self.dtype.kind not in _KINDS:
            raise _NotArrays(f"an array of dtype {name!r}")

    def __setstate__(self, state: tuple) -> None:
        if self.dtype.kind in _KINDS:
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray: made empty, then given its state."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, columns_first, data = state
        self.value = _from_bytes(data, dtype, shape, "F" if columns_first else "C")


def _reconstruct(kind: type, *_: Any) -> _Array:
    if kind is not _Array:
        raise _NotArrays(f"an array of class {kind!r}")
    return _Array()


def _frombuffer(data: Any, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    array = _Array()
    array.value = _from_bytes(data, dtype, shape, order)
    return array


def _jax_array(function: Any, arguments: tuple, state: tuple, aval: Any) -> _Array:
    """A JAX array is pickled as the NumPy array of its values, with what JAX knows beside."""
    if function is not _reconstruct:
        raise _NotArrays(f"an array that {function!r} makes")
    array = _reconstruct(*arguments)
    array.__setstate__(state)
    return array


def _from_bytes(data: Any, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise _NotArrays(f"an array whose contents are of {type(data).__name__}")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise _NotArrays(f"an array of shape {shape} in {len(data)} bytes")
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    array.flags.writeable = False
    return array


def _encode(text: str, encoding: str) -> bytes:
    """How protocols before 3 write bytes."""
    if encoding != "latin1":
        raise _NotArrays(f"bytes as text in {encoding!r}")
    return text.encode("latin1")


_KNOWN = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
    "jax._src.array._reconstruct_array": _jax_array,
    "jax._src.device_array.reconstruct_device_array": _jax_array,  # JAX before 0.4
    "flax.core.frozen_dict.FrozenDict": dict,
    "collections.OrderedDict": dict,
    "_codecs.encode": _encode,
    _BFLOAT16: _BFLOAT16,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _KNOWN:
            raise _NotArrays(f"it names {module}.{name}")
        return _KNOWN[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        raise _NotArrays(f"it refers to {pid!r}, outside of the file")


def _flatten(tree: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    left, seen = [("", tree)], set()
    while left:
        path, value = left.pop()
        if isinstance(value, _Array) and path and value.value is not None:
            found[path] = value.value
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))  # a dict within itself has no end
            for key, inner in value.items():
                if not isinstance(key, str) or not key or "/" in key:
                    raise _NotArrays(f"the key {key!r} in {path or 'the outermost dict'}")
                left.append((f"{path}/{key}" if path else key, inner))
        else:
            what = "a dict twice" if isinstance(value, dict) else f"a {type(value).__name__}"
            raise _NotArrays(f"{what} at {path or 'the top'}")
    return found
