"""Keys of configs: the type, the range and the meaning of each stand once, at its default.

    @dataclass(frozen=True)
    class Corpus:
        weight: Annotated[float, "(0, 1e6]", "share of the mixture"] = 1.0
        order: Annotated[str, ("by_time", "by_name"), "of its files"] = "by_time"
        path: Annotated[str, "not empty", "directory of the files"]
        note: Annotated[str, "what people should know"] = ""

The range of a number is an interval, several of them or single numbers joined by " or "; that of a
text its choices, or "not empty"; that of a tuple is of each of its items, and `tuple[int,
*tuple[int, ...]]` has one or more. A field with neither annotation nor default is no key: who reads
the settings fills it in.
"""

import functools
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

_KINDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    Mapping: "a mapping of keys",
}

_CONTROL = set(map(chr, range(32)))
_NONE = (MISSING, MISSING)


@dataclass(frozen=True)
class Key:
    """`kind`: bool, int, float, str or Mapping. `items`: None of a plain value; of a tuple how many
    there are, 0: any number, -1: one or more. `range`: "", an interval, or choices."""

    name: str
    kind: type
    items: int | None
    range: str | tuple[str, ...]
    doc: str

    def __str__(self) -> str:
        """What a value must be, to follow "must be"."""
        if isinstance(self.range, tuple):
            one = f"one of {list(self.range)}"
        elif self.kind is str:
            one = f"{_KINDS[str]} that is not empty" if self.range else _KINDS[str]
        else:
            one = f"{_KINDS[self.kind]} in {self.range}" if self.range else _KINDS[self.kind]
        if self.items is None:
            return one
        many = {0: "any number of values", -1: "one or more values"}
        return f"{many.get(self.items, f'{self.items} values')}, each {one}"

    def allows(self, value: Any) -> bool:
        """Whether a config may have this value."""
        if self.items is None:
            return self._allows(value)
        if not isinstance(value, (tuple, list)) or not value and self.items:
            return False
        return self.items in (0, -1, len(value)) and all(map(self._allows, value))

    def _allows(self, value: Any) -> bool:
        if isinstance(self.range, tuple):
            return isinstance(value, self.kind) and value in self.range
        if self.kind is Mapping:
            return hasattr(value, "items")  # ConfigDict is no Mapping
        if self.kind is str:
            plain = isinstance(value, str) and not _CONTROL & set(value)
            return plain and (value != "" or not self.range)
        wanted = (int, float) if self.kind is float else self.kind
        if not isinstance(value, wanted) or isinstance(value, bool) != (self.kind is bool):
            return False
        return self.kind is bool or any(_inside(value, one) for one in self.range.split(" or "))


def _inside(value: float, interval: str) -> bool:
    """Never of what is not finite."""
    if interval[0] not in "[(":
        return value == float(interval)
    low, high = map(float, interval[1:-1].split(","))
    above = low < value if interval[0] == "(" else low <= value
    return above and (value < high if interval[-1] == ")" else value <= high)


@functools.cache
def of(kind: type) -> tuple[Key, ...]:
    """The keys of a dataclass of settings."""
    return tuple(_of(kind))


def _of(kind: type) -> Iterator[Key]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if typing.get_origin(hints[field.name]) is not typing.Annotated:
            continue
        hint, *allowed, doc = typing.get_args(hints[field.name])
        allowed, items = allowed[0] if allowed else "", None
        if typing.get_origin(hint) is tuple:
            each = typing.get_args(hint)
            hint, items = each[0], 0 if each[-1] is ... else len(each)
            items = -1 if typing.get_origin(each[-1]) is typing.Unpack else items
        if isinstance(hint, types.UnionType):
            hint = typing.get_args(hint)[0]
        hint = typing.get_origin(hint) or hint
        if hint not in _KINDS or hint in (int, float) and not allowed:
            raise TypeError(f"{kind.__name__}.{field.name}: {hint} with the range {allowed!r}")
        if isinstance(allowed, Collection) and not isinstance(allowed, str):
            allowed = tuple(allowed)
        yield Key(field.name, hint, items, allowed, doc)


def names(kind: type) -> set[str]:
    """Of its keys, and of fields that have a default but say no more."""
    said = {one.name for one in of(kind)}
    return said | {f.name for f in fields(kind) if (f.default, f.default_factory) != _NONE}


def check(kinds: type | tuple[type, ...], settings: Mapping[str, Any], key: str) -> None:
    """Raises ValueError, which names it below `key`, for a value that its key cannot have, and for
    keys that are unknown or missing. `kinds`: dataclasses whose keys stand side by side."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    known = {one.name: one for kind in kinds for one in of(kind)}
    wanted = set().union(*map(names, kinds))
    unknown, missing = sorted(set(settings) - wanted), sorted(wanted - set(settings))
    if unknown or missing:
        raise ValueError(f"{key or 'config'}: unknown keys {unknown}, missing keys {missing}")
    for name, value in settings.items():
        if name in known and not known[name].allows(value):
            where = f"{key}.{name}" if key else name
            control = isinstance(value, str) and _CONTROL & set(value)
            also = " without control characters" if control else ""
            raise ValueError(f"{where}={value!r} must be {known[name]}{also}")
