"""Tensors of a foreign format ↔ our parameters, by a table of rules.

A rule names a tensor on both sides and gives the rearrangement from theirs to ours in einops
notation; the way back is the same pattern read from right to left. Every tensor on either side
must be met by exactly one rule.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import einops
import numpy as np

from lapa_jax.models.module import Tree, flatten, unflatten


@dataclass(frozen=True)
class Rule:
    """`theirs` may hold "{i}", the layer: then ours has a leading axis of `layers` layers."""

    theirs: str
    ours: str
    pattern: str = ""  # "their axes -> our axes" of one layer; empty: equal
    layers: int = 0

    def to_ours(self, arrays: list[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
        found = [self._rearrange(x, self.pattern, sizes) for x in arrays]
        shapes = {x.shape for x in arrays}
        if len(shapes) > 1:
            raise ValueError(f"tensors {self.theirs!r} have several shapes: {sorted(shapes)}")
        return np.stack(found) if self.layers else found[0]

    def to_theirs(self, array: np.ndarray, sizes: Mapping[str, int]) -> list[np.ndarray]:
        back = " -> ".join(reversed(self.pattern.split(" -> ")))
        parts = list(array) if self.layers else [array]
        return [self._rearrange(x, back, sizes) for x in parts]

    def _rearrange(self, x: np.ndarray, pattern: str, sizes: Mapping[str, int]) -> np.ndarray:
        if not pattern:
            return np.ascontiguousarray(x)
        used = set(pattern.replace("(", " ").replace(")", " ").split())
        try:
            y = einops.rearrange(x, pattern, **{k: v for k, v in sizes.items() if k in used})
        except einops.EinopsError as error:
            raise ValueError(
                f"tensor {self.theirs!r} of shape {x.shape} does not fit {pattern!r} with "
                f"{dict(sizes)}"
            ) from error
        return np.ascontiguousarray(y)


@dataclass(frozen=True)
class Constant:
    """A tensor that only the foreign format has. `check`: whether a found one may be dropped."""

    theirs: str
    value: np.ndarray
    check: Callable[[np.ndarray], bool]
    layers: int = 0


Rules = Iterable[Rule | Constant]


def names(rule: Rule | Constant) -> list[str]:
    """What the foreign format calls the tensors of a rule, one a layer."""
    return [rule.theirs.format(i=i) for i in range(rule.layers)] or [rule.theirs]


def to_ours(
    theirs: Mapping[str, np.ndarray], rules: Rules, sizes: Mapping[str, int], expected: Tree
) -> Tree:
    """Our parameters, shaped as `expected` (abstract); dtypes must agree, too.

    A missing, additional or mis-shaped tensor is a ValueError that names it.
    """
    rules = list(rules)
    known = {name for rule in rules for name in names(rule)}
    missing, extra = sorted(known - set(theirs)), sorted(set(theirs) - known)
    if missing or extra:
        raise ValueError(
            f"tensors missing: {missing[:8]} ({len(missing)}), not known: {extra[:8]} "
            f"({len(extra)})"
        )
    found: dict[str, np.ndarray] = {}
    for rule in rules:
        arrays = [np.asarray(theirs[name]) for name in names(rule)]
        if isinstance(rule, Constant):
            for name, array in zip(names(rule), arrays, strict=True):
                if array.shape != rule.value.shape or not rule.check(array):
                    raise ValueError(
                        f"tensor {name!r} of shape {array.shape} should be a constant of shape "
                        f"{rule.value.shape}; the file is of another model"
                    )
        else:
            found[rule.ours] = rule.to_ours(arrays, sizes)
    _check_shapes(found, flatten(expected), {r.ours: r for r in rules if isinstance(r, Rule)})
    return unflatten(found)


def to_theirs(params: Tree, rules: Rules, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Their tensors in the order of the rules, layer by layer where rules have layers."""
    flat = {path: np.asarray(x) for path, x in flatten(params).items()}
    rules = list(rules)
    known = {rule.ours for rule in rules if isinstance(rule, Rule)}
    if known != set(flat):
        raise ValueError(
            f"parameters without a rule: {sorted(set(flat) - known)}, without a parameter: "
            f"{sorted(known - set(flat))}"
        )
    found: dict[str, np.ndarray] = {}
    for rule in rules:
        if isinstance(rule, Constant):
            found |= {name: rule.value for name in names(rule)}
        else:
            parts = rule.to_theirs(flat[rule.ours], sizes)
            found |= dict(zip(names(rule), parts, strict=True))
    return found


def _check_shapes(
    found: Mapping[str, np.ndarray], expected: Mapping, rules: Mapping[str, Rule]
) -> None:
    if set(found) != set(expected):
        raise ValueError(
            f"the rules give {sorted(set(found) - set(expected))} that the model lacks, and not "
            f"{sorted(set(expected) - set(found))}"
        )
    for path, array in found.items():
        wanted = expected[path]
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            raise ValueError(
                f"tensor {rules[path].theirs!r} gives {path} {array.dtype}{list(array.shape)}, the "
                f"model has {wanted.dtype}{list(wanted.shape)}"
            )
