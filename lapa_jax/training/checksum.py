"""Checksums of arrays that are split over devices and hosts, taken where the values are.

Every element, as the integer of its bits and with its position in the whole array, is mixed into
two words of 32 bits; the checksum is their sums, mod 2^32. Sums do not ask for an order, so that it
is the same on every mesh, and no array is gathered. For a fixed position mixing is one-to-one: what
changes a single element changes the checksum, surely; other damage goes unseen once in 2^64.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Up to here NumPy takes less time than compiling the program for one more shape. In elements.
SMALL = 1 << 18
GROUP = 16


def of_arrays(arrays: Sequence[Any]) -> list[str]:
    """16 hexadecimal digits each, whatever the sharding; NumPy or jax, of 8, 16 or 32 bits an
    element.

    Where arrays are split over processes, all of them must call it.
    """
    # Fetched in groups: a device is waited for once for each. The processes of a CPU run lock up
    # with more than 32 programs in the queue.
    found: list[str] = []
    for i in range(0, len(arrays), GROUP):
        sums = jax.device_get([_sums(x) for x in arrays[i : i + GROUP]])
        found += ["".join(f"{int(value):08x}" for value in words) for words in sums]
    return found


def of_array(x: Any) -> str:
    """That of one array."""
    return of_arrays([x])[0]


def of_items(items: Mapping[str, Mapping]) -> dict[str, dict]:
    """{item: {path: checksum}} of {item: {path: array}}."""
    sums = iter(of_arrays([x for arrays in items.values() for x in arrays.values()]))
    return {name: {path: next(sums) for path in arrays} for name, arrays in items.items()}


def _sums(x: Any) -> tuple[Any, Any]:
    whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    if not whole or x.size > SMALL:
        return _device_sums(x)
    return tuple(np.sum(word, dtype=np.uint32) for word in _mixed(np.asarray(x), np))


@jax.jit
def _device_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # One reduction of both: on a CPU it is one pass of vector instructions, two are sixteen times
    # slower.
    words, zero = _mixed(x, jnp), np.uint32(0)
    add = lambda one, other: (one[0] + other[0], one[1] + other[1])  # noqa: E731
    return tuple(jax.lax.reduce(words, (zero, zero), add, range(words[0].ndim)))


def _mixed(x: Any, xp: Any) -> tuple[Any, Any]:
    """The two words of every element. `xp`: numpy or jax.numpy, which give the same."""
    x = x.reshape(x.shape or (1,))  # NumPy warns of scalars that wrap around
    if x.dtype != bool:
        x = x.view(f"uint{8 * x.dtype.itemsize}")
    bits = x.astype(xp.uint32)
    position, stride = xp.zeros((), xp.uint32), 1
    for axis in reversed(range(x.ndim)):
        steps = xp.arange(x.shape[axis], dtype=xp.uint32) * np.uint32(stride % 2**32)
        position = position + xp.expand_dims(steps, tuple(range(1, x.ndim - axis)))
        stride *= x.shape[axis]
    # Odd factors and shifted xors are one-to-one. The constants are those of well-known hashes.
    word = bits ^ (position * np.uint32(0x9E3779B1))
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> np.uint32(15))) * np.uint32(0x846CA68B)
    first = word ^ (word >> np.uint32(16))
    word = first + position * np.uint32(0xC2B2AE3D)
    word = (word ^ (word >> np.uint32(15))) * np.uint32(0x85EBCA77)
    return first, word ^ (word >> np.uint32(13))
