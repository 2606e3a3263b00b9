"""The fields of an observation by name: one language for REST, WebSocket and adapters.

A name is a key, or a path of keys: "observation/image" is found in {"observation/image": ...} and
in {"observation": {"image": ...}}. What a policy does not use is not looked at.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

# What a client may say of how it acts: another one than the policy's is refused.
HORIZON, EXECUTED, RATE = "prediction_horizon", "execution_horizon", "control_hz"
# The image of openpi's (LIBERO), OpenVLA's and OpenVLA-OFT's clients; others are named by a flag.
OFT_IMAGE = "full_image"
IMAGES = ("image", "observation/image", OFT_IMAGE)
TEXTS = ("instruction", "prompt", "task")  # OpenVLA's, openpi's, LeRobot's
# The robot's state of openpi's (LIBERO), OpenVLA-OFT's and LeRobot's clients.
STATES = ("observation/state", "state", "observation.state")
_SHOWN = 12  # keys of those that were sent
_MISSING = object()


class NotSent(KeyError):
    """A field that the policy needs is missing, or is there under several names."""

    def __str__(self) -> str:
        return self.args[0]


def find(sent: Mapping[str, Any], names: Sequence[str], what: str) -> Any:
    """The field that has one of `names`. Raises NotSent, with what was sent and what is needed."""
    found = {name: value for name in names if (value := _get(sent, name)) is not _MISSING}
    if len(found) == 1:
        return next(iter(found.values()))
    needed = repr(names[0]) if len(names) == 1 else f"one of {list(names)}"
    given = f"both {list(found)} were sent" if found else f"the keys sent are {_keys(sent)}"
    raise NotSent(f"{what}: the policy needs {needed}, and {given}")


def maybe(sent: Mapping[str, Any], name: str) -> Any:
    """The field of this name; None where it was not sent."""
    found = _get(sent, name)
    return None if found is _MISSING else found


def _get(sent: Any, name: str) -> Any:
    if not isinstance(sent, Mapping):
        return _MISSING
    if name in sent:
        return sent[name]
    first, _, rest = name.partition("/")
    return _get(sent[first], rest) if rest and first in sent else _MISSING


def _keys(sent: Mapping[str, Any]) -> str:
    """The names of what was sent, those in mappings as paths; the first few of many."""
    names = list(itertools.islice(_paths(sent, "", 3), _SHOWN + 1))
    return f"{names[:_SHOWN]}{' and more' if len(names) > _SHOWN else ''}"


def _paths(sent: Mapping[Any, Any], before: str, depth: int):
    for key, value in sent.items():
        name = before + (key[:60] if isinstance(key, str) else f"({type(key).__name__})")
        if isinstance(value, Mapping) and value and depth > 1:
            yield from _paths(value, f"{name}/", depth - 1)
        else:
            yield name
