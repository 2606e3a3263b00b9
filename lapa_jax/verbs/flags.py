"""Flags of verbs: a parser in the one form, and a flag for each field of a dataclass.

@dataclass(frozen=True)
class Limits:
    \"""Of one request.

    waiting: requests that may wait for the model
    \"""

    waiting: int = 256

flags.add(parser, Limits)  # --waiting N  "requests that may wait ... (default: 256)"
limits = flags.read(parser.parse_args(argv), Limits)
"""

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines import keys

# Of a field's metadata, what goes to argparse as it is; "help" and "positional" are known too.
_PASSED = ("choices", "metavar", "type", "nargs", "const")


def parser(
    prog: str,
    description: str | None,
    example: str = "",
    make: Callable = argparse.ArgumentParser,
    **more: Any,
) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of `description`, with an example below the flags. make,
    more: `add_parser` of subparsers, and what it takes."""
    return make(
        prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  {example}" if example else None,
        **more,
    )


def add(to: argparse.ArgumentParser, options: type, defaults: Any = None) -> None:
    """A flag for each field of a dataclass: its name, type and default, required without one.

    Types: str, int, float, bool (a switch), tuple[T, ...] (joined by commas), each also `| None`,
    and list[str] (a flag that may be given several times).
    Help is `help` of the field's metadata, or what its annotation says, as of a key of a config
    (data_pipelines/keys.py), with the range of a number; or what the docstring of the class says
    after `name:`. Further metadata: `positional` (no flag), and choices, metavar, type, nargs and
    const as argparse has them. A field with `flag` False in it is left to the caller. defaults: an
    instance with other ones than the dataclass has.
    """
    texts, hints = _texts(options), typing.get_type_hints(options)
    known = {key.name: key for key in keys.of(options)}
    for field in dataclasses.fields(options):
        if not field.metadata.get("flag", True):
            continue
        how = {key: field.metadata[key] for key in _PASSED if key in field.metadata}
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if defaults is not None:
            default = getattr(defaults, field.name)
        required = default is dataclasses.MISSING
        text = field.metadata.get("help", texts.get(field.name, ""))
        if "default" not in text and not required and default not in (None, "", (), [], False):
            text += f" (default: {_shown(default)})"
        how["help"] = text.replace("%", "%%").strip()
        if not required:
            how["default"] = default
        if hints[field.name] is bool:
            how["action"] = argparse.BooleanOptionalAction if default is True else "store_true"
        elif hints[field.name] == list[str]:
            how["action"] = "append"
        else:
            allowed = known[field.name].range if field.name in known else ""
            how["type"] = how.get("type") or _reader(hints[field.name], field.name, allowed)
        if field.metadata.get("positional"):
            to.add_argument(field.name, **how)
        else:
            to.add_argument(f"--{field.name}", required=required, **how)


def number(
    of: type[int] | type[float], allowed: str = "(-inf, inf)"
) -> Callable[[str], int | float]:
    """For argparse's `type`: a number in that range (data_pipelines/keys.py), never NaN or
    infinity."""
    key = keys.Key("", of, None, allowed, "")

    def read(text: str) -> int | float:
        value = of(text)
        if not key.allows(value):
            raise argparse.ArgumentTypeError(f"{text} must be {key}")
        return value

    read.__name__ = of.__name__  # argparse names it where `text` is no number
    return read


def option(default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """A field with metadata for its flag; a list as default is made anew each time."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(of: argparse.ArgumentParser, argv: list[str] | None, options: type) -> Any:
    """The dataclass, by flags of its fields alone."""
    add(of, options)
    return read(of.parse_args(argv), options)


def read(args: argparse.Namespace, options: type) -> Any:
    """The dataclass of what was given. Raises what its own checks raise, and ValueError for a
    selection of fields (NAME_key, camera) that is none."""
    names = [field.name for field in dataclasses.fields(options) if hasattr(args, field.name)]
    given = {name: getattr(args, name) for name in names}
    for name, value in given.items():
        if isinstance(value, str) and (name.endswith("_key") or name == "camera"):
            from data_pipelines.rlds import selection  # with NumPy

            numbers = name in ("action_key", "state_key")
            try:
                (selection.parts if numbers else selection.paths)(value)
            except ValueError as error:
                raise ValueError(f"--{name} {error}") from error
    return options(**given)


def add_choice(
    to: argparse.ArgumentParser, name: str, choices: Mapping[str, tuple[str, type]]
) -> None:
    """--NAME, one of `choices` (name → what it is, a dataclass of its options), and a flag for each
    field of all these dataclasses, whose help says which choices take it."""
    what = "; ".join(f"{choice}: {text}" for choice, (text, _) in choices.items())
    to.add_argument(f"--{name}", required=True, choices=sorted(choices), help=what)
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    takers: dict[str, list[str]] = {}
    for choice, (_, options) in choices.items():
        texts, hints = _texts(options), typing.get_type_hints(options)
        for field in dataclasses.fields(options):
            metadata = {"help": texts.get(field.name, ""), **field.metadata}
            found.setdefault(field.name, (hints[field.name], metadata))
            takers.setdefault(field.name, []).append(choice)
    for flag, (_, metadata) in found.items():
        metadata["help"] += f" ({', '.join(takers[flag])})"
    union = [
        (flag, hint, dataclasses.field(default=None, metadata=metadata))
        for flag, (hint, metadata) in found.items()
    ]
    add(to, dataclasses.make_dataclass("Options", union))


def read_choice(
    args: argparse.Namespace, name: str, choices: Mapping[str, tuple[str, type]]
) -> Any:
    """The options of the choice. ValueError for one that is missing, with the `why` of its field's
    metadata, or that is of another choice."""
    choice = getattr(args, name)
    options = choices[choice][1]
    fields = {field.name: field for field in dataclasses.fields(options)}
    flags = [field.name for _, one in choices.values() for field in dataclasses.fields(one)]
    given = {flag: getattr(args, flag) for flag in flags if getattr(args, flag) is not None}
    for flag in given:
        if flag not in fields:
            raise ValueError(f"--{name} {choice} does not take --{flag}")
    for flag, field in fields.items():
        if field.default is dataclasses.MISSING and flag not in given:
            raise ValueError(f"--{name} {choice} needs --{flag}: {field.metadata['why']}")
    return options(**given)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _reader(hint: Any, name: str, allowed: str) -> Callable[[str], Any]:
    """From a flag's text to a value of a type."""
    if isinstance(hint, types.UnionType):  # of several types the first
        hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        of = _reader(typing.get_args(hint)[0], name, allowed)

        def several(text: str) -> tuple:
            return tuple(of(word.strip()) for word in text.split(","))

        return several
    if hint not in (str, int, float):
        raise TypeError(f"{name}: a flag cannot be of type {hint}; give `type` in its metadata")
    return hint if hint is str else number(hint, allowed or "(-inf, inf)")


def _texts(options: type) -> dict[str, str]:
    """field → what its annotation or docstrings say of it, those of base classes included."""
    names = "|".join(field.name for field in dataclasses.fields(options))
    found = {key.name: key.doc for key in keys.of(options)}
    for one in reversed(options.__mro__):
        text = inspect.cleandoc(one.__dict__.get("__doc__") or "")
        for part in re.split(rf"\n(?=(?:{names}): )|\n\n", text):
            if said := re.match(rf"({names}): (.*)", part, re.DOTALL):
                found[said[1]] = " ".join(said[2].split())
    return found
