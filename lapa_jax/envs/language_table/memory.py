"""What the planner of Language Table remembers, as JSON, with the types that it computes in."""

from __future__ import annotations

import collections
import json
from typing import Any

import numpy as np

# The same in all states.
_LEFT_OUT = ("_env", "_np_random_state", "_pid_spheres")


def kept(thing: Any) -> str:
    """Its attributes as JSON. TypeError for what is neither plain nor an array."""
    plain = {k: _plain(v) for k, v in vars(thing).items() if k not in _LEFT_OUT}
    return json.dumps(plain, sort_keys=True)


def bring_back(thing: Any, text: str) -> None:
    """Sets the attributes that `kept` gave."""
    for name, value in json.loads(text).items():
        setattr(thing, name, _back(value))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return str(value)  # of NumPy, too
    if value is None or isinstance(value, (bool, int)) or type(value) is float:
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return {"dtype": value.dtype.str, "array": value.tolist()}
    if isinstance(value, (list, tuple, collections.deque)):
        return {type(value).__name__: [_plain(item) for item in value]}
    raise TypeError(f"{value!r} is nothing that a state of language_table can hold")


def _back(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "dtype" in value:
        return np.array(value["array"], value["dtype"])[()]
    ((kind, items),) = value.items()
    kinds = {"list": list, "tuple": tuple, "deque": collections.deque}
    return kinds[kind](_back(item) for item in items)
