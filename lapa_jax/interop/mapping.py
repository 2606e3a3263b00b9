"""Tensors of a foreign format ↔ our parameters, by a table of rules.

A rule names a tensor on both sides and gives the rearrangement from theirs to ours in einops
notation; the way back is the same pattern read from right to left. Every tensor on either side
must be met by exactly one rule.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np

from lapa_jax.nn.module import Tree, flatten, unflatten


@dataclass(frozen=True)
class Rule:
    """`theirs` may hold "{i}", the layer: then ours has a leading axis of `layers` layers."""

    theirs: str
    ours: str
    pattern: str = ""  # "their axes -> our axes" of one layer; empty: equal
    layers: int = 0

    def to_ours(self, arrays: Iterable[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
        """Takes arrays one by one, so that no more than the result and one of them is held."""
        if not self.layers:
            (array,) = arrays
            return self._rearrange(array, self.pattern, sizes)
        stacked = None
        for i, array in enumerate(arrays):
            found = self._rearrange(array, self.pattern, sizes)
            if stacked is None:
                stacked = np.empty((self.layers, *found.shape), found.dtype)
            if (found.shape, found.dtype) != (stacked.shape[1:], stacked.dtype):
                raise ValueError(
                    f"tensors {self.theirs!r} differ: layer {i} is {found.dtype}"
                    f"{list(found.shape)}, layer 0 {stacked.dtype}{list(stacked.shape[1:])}"
                )
            stacked[i] = found
        return stacked

    def to_theirs(self, array: np.ndarray, sizes: Mapping[str, int]) -> list[np.ndarray]:
        parts = list(array) if self.layers else [array]
        return [self.one_to_theirs(x, sizes) for x in parts]

    def one_to_theirs(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Of one layer, where the rule has layers."""
        back = " -> ".join(reversed(self.pattern.split(" -> ")))
        return np.asarray(self._rearrange(array, back, sizes), order="C")

    def _rearrange(self, x: np.ndarray, pattern: str, sizes: Mapping[str, int]) -> np.ndarray:
        if not pattern:
            return x
        used = set(pattern.replace("(", " ").replace(")", " ").split())
        try:
            return einops.rearrange(x, pattern, **{k: v for k, v in sizes.items() if k in used})
        except einops.EinopsError as error:
            raise ValueError(
                f"tensor {self.theirs!r} of shape {x.shape} does not fit {pattern!r} with "
                f"{dict(sizes)}"
            ) from error


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
    theirs: Mapping[str, Any],
    rules: Rules,
    sizes: Mapping[str, int],
    expected: Tree,
    place: Callable[[str, np.ndarray], Any] = lambda path, array: np.asarray(array, order="C"),
) -> Tree:
    """Our parameters, shaped as `expected` (abstract); dtypes must agree, too.

    Goes tensor by tensor: `theirs` may read a tensor when it is asked for it, and `place(path,
    array)` gives the leaf to keep. A missing, additional or mis-shaped tensor is a ValueError that
    names it.
    """
    rules, wanted = list(rules), flatten(expected)
    known = {name for rule in rules for name in names(rule)}
    missing, extra = sorted(known - set(theirs)), sorted(set(theirs) - known)
    if missing or extra:
        raise ValueError(
            f"tensors missing: {missing[:8]} ({len(missing)}), not known: {extra[:8]} "
            f"({len(extra)})"
        )
    ours = {rule.ours for rule in rules if isinstance(rule, Rule)}
    if ours != set(wanted):
        raise ValueError(
            f"the rules give {sorted(ours - set(wanted))} that the model lacks, and not "
            f"{sorted(set(wanted) - ours)}"
        )
    found: dict[str, Any] = {}
    for rule in rules:
        if isinstance(rule, Constant):
            for name in names(rule):
                _check_constant(name, np.asarray(theirs[name]), rule)
            continue
        array = rule.to_ours((np.asarray(theirs[name]) for name in names(rule)), sizes)
        want = wanted[rule.ours]
        if array.shape != want.shape or array.dtype != want.dtype:
            raise ValueError(
                f"tensor {rule.theirs!r} gives {rule.ours} {array.dtype}{list(array.shape)}, the "
                f"model has {want.dtype}{list(want.shape)}"
            )
        found[rule.ours] = place(rule.ours, array)
    return unflatten(found)


def _check_constant(name: str, array: np.ndarray, rule: Constant) -> None:
    if array.shape != rule.value.shape or not rule.check(array):
        raise ValueError(
            f"tensor {name!r} of shape {array.shape} should be a constant of shape "
            f"{rule.value.shape}; the file is of another model"
        )


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
