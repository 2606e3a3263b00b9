"""The language in which fields are selected, whatever the source: `path[:N],path,...`.

A path is the names of a field joined by "/", such as "action/world_vector". "[:N]" behind it takes
the first N numbers of each step. Several, joined by commas, stand side by side: numbers as one
vector, cameras as several images; of texts the first that is not blank counts. "" selects nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_PART = re.compile(r"(?P<path>[^\[\],]*[^\[\],\s])(\[:(?P<stop>[1-9]\d*)\])?")
_EXACT = 1 << 24  # float32 holds every integer up to here


class FieldError(ValueError):
    """The data do not hold what a selection says; the message is the reason."""


class Part(NamedTuple):
    """A path, and how many of its numbers: None for all."""

    path: str
    stop: int | None = None


def parts(selection: str) -> list[Part]:
    """Of a selection; "": []."""
    if not selection:
        return []
    found = [_PART.fullmatch(text.strip()) for text in selection.split(",")]
    if None in found:
        raise ValueError(
            f"{selection!r} is not PATH, PATH[:N] or several of these joined by commas"
        )
    return [Part(one["path"], one["stop"] and int(one["stop"])) for one in found]


def paths(selection: str) -> list[str]:
    """Of a selection of what can only be taken whole: texts, cameras."""
    found = parts(selection)
    if any(part.stop for part in found):
        raise ValueError(f"{selection!r}: [:N] is for numbers")
    return [part.path for part in found]


def short_names(cameras: Sequence[str]) -> list[str]:
    """What the second and further cameras of a selection are called in a corpus: the last word of
    each, or all of its words, or these and its number, where that is another's name."""
    if len(set(cameras)) < len(cameras):
        raise ValueError(f"{','.join(cameras)!r}: a camera is selected twice")
    words = [re.split(r"[/.]", path) for path in cameras]
    last = [one[-1] for one in words]
    names = ["image"]
    for number, word in enumerate(words[1:], 2):
        long = "_".join(word)
        choice = [word[-1]] * (last.count(word[-1]) == 1) + [long, f"{long}_{number}"]
        names.append(next(name for name in choice if name not in ("state", *names)))
    return names[1:]


def as_float32(values: np.ndarray, name: str) -> np.ndarray:
    """Numbers of any type as float32: floats rounded, integers and flags exactly. Raises FieldError
    for what float32 cannot hold."""
    if values.dtype.kind not in "fiub":
        raise FieldError(f"{name} holds {values.dtype}, not numbers")
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if values.dtype.kind == "f":
        lost = np.isinf(found) & np.isfinite(values)
    elif values.dtype.kind == "b" or values.dtype.itemsize < 4:
        return found
    else:
        lost = (values > _EXACT) | (values < -_EXACT)
        lost[lost] = [int(np.float32(value)) != int(value) for value in values[lost]]
    if lost.any():
        raise FieldError(f"{name} holds {values[lost][0]}, which float32 cannot hold")
    return found


def check_finite(values: np.ndarray, what: str) -> None:
    """Raises FieldError where numbers (steps, A) are NaN or infinite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, dimension = bad[0]
        number = values[step, dimension]
        raise FieldError(f"the {what} of step {step}, dimension {dimension} is {number}")
