"""Parameter groups: which parameters train, how fast, and what decays.

`config.optimizer.groups` is {name: {pattern, lr_scale, decay_scale, frozen}}. A pattern is a
regular expression for whole slash-separated paths ("backbone/layers/mlp/up/kernel"), and every
parameter must match exactly one: nothing is trained, or left alone, by an oversight.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import jax

from data_pipelines import keys
from lapa_jax.parallel.trees import path_name

LISTED = 8  # parameters that an error names


@dataclasses.dataclass(frozen=True)
class Group:
    pattern: Annotated[str, "not empty", "regular expression of whole paths of parameters"]
    lr_scale: Annotated[float, "[0, 1e6]", "of the whole update, weight decay included"] = 1.0
    decay_scale: Annotated[
        float, "[0, 1e6]", "of optimizer.weight_decay, which only matrices have"
    ] = 1.0
    frozen: Annotated[bool, "no gradient, no moments, no moving average"] = False


def group_settings(pattern: str, **changes: Any) -> dict[str, Any]:
    """For a new config: the parameters whose whole path matches a regular expression."""
    return dataclasses.asdict(Group(pattern)) | changes


def read_groups(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Group]:
    """Groups of `config.optimizer.groups`; raises ValueError naming the key that is wrong."""
    groups = {}
    for name, settings in config.items():
        where = f"optimizer.groups.{name}"
        keys.check(Group, settings, where)
        group = groups[name] = Group(**settings)
        try:
            re.compile(group.pattern)
        except re.error as error:
            raise ValueError(f"{where}.pattern={group.pattern!r}: {error}") from None
    return groups


def assign(groups: Mapping[str, Group], paths: Collection[str]) -> dict[str, str]:
    """{path: name of its group}. Raises ValueError if a parameter matches no group or several, or
    a group no parameter."""
    matches = {
        path: [name for name, group in groups.items() if re.fullmatch(group.pattern, path)]
        for path in paths
    }
    patterns = ", ".join(f"{name}: {group.pattern!r}" for name, group in groups.items())
    for what, wrong in (
        ("no group of optimizer.groups", [p for p, names in matches.items() if not names]),
        (
            "several groups of optimizer.groups",
            [f"{p} ({' and '.join(names)})" for p, names in matches.items() if len(names) > 1],
        ),
    ):
        if wrong:
            raise ValueError(
                f"{len(wrong)} parameters match {what}: {sorted(wrong)[:LISTED]}; each must match "
                f"exactly one of {patterns}"
            )
    group_of = {path: names[0] for path, names in matches.items()}
    empty = sorted(set(groups) - set(group_of.values()))
    if empty:
        raise ValueError(f"groups {empty} of optimizer.groups match no parameter; {patterns}")
    return group_of


def split(params: Any, frozen: Collection[str]) -> tuple[Any, Any]:
    """(trained, frozen): two trees of the same dicts, each with None for what the other holds."""

    def part(keep: bool) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if (path_name(path) in frozen) == keep else None, params
        )

    return part(False), part(True)


def merge(trained: Any, frozen: Any) -> Any:
    """Undoes `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None
    )
