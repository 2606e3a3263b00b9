"""Tensors of a foreign format ↔ our parameters, by a table of rules.

A rule names a tensor on both sides and gives the rearrangement from theirs to ours in einops
notation; the way back is the same pattern read from right to left. Every tensor on either side
must be met by exactly one rule.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import einops
import jax
import numpy as np
from absl import logging

from lapa_jax.nn.module import Functional, Tree, flatten, unflatten


@dataclass(frozen=True)
class Rule:
    """`theirs` may hold "{i}", the layer: then ours has a leading axis of `layers` layers."""

    theirs: str
    ours: str
    pattern: str = ""  # "their axes -> our axes" of one layer; empty: equal
    layers: int = 0

    def to_ours(
        self, arrays: Iterable[np.ndarray], sizes: Mapping[str, int], dtype: np.dtype
    ) -> np.ndarray:
        """In `dtype`. Takes arrays one by one, so that no more than the result and one of them is
        held."""
        if not self.layers:
            (array,) = arrays
            found = self._rearrange(array, self.pattern, sizes).astype(dtype, copy=False)
            return self._finite(found)
        stacked = None
        for i, array in enumerate(arrays):
            found = self._rearrange(array, self.pattern, sizes)
            if stacked is None:
                stacked = np.empty((self.layers, *found.shape), dtype)
            if found.shape != stacked.shape[1:]:
                raise ValueError(
                    f"tensors {self.theirs!r} differ: layer {i} is of shape {list(found.shape)}, "
                    f"layer 0 of {list(stacked.shape[1:])}"
                )
            stacked[i] = found
            self._finite(stacked[i])
        return stacked

    def _finite(self, array: np.ndarray) -> np.ndarray:
        if jax.dtypes.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError(
                f"tensor {self.theirs!r} holds values that are infinite or not numbers in "
                f"{array.dtype}"
            )
        return array

    def to_theirs(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
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
    """A tensor that only the foreign format has. `any_value`: a found one may hold others."""

    theirs: str
    value: np.ndarray
    layers: int = 0
    any_value: bool = False


Rules = Iterable[Rule | Constant]


def linear(
    theirs: str, ours: str, weight: str = "o d -> d o", bias: str = "", layers: int = 0
) -> list[Rule]:
    """PyTorch's weight and bias ↔ a kernel and a bias."""
    return [
        Rule(f"{theirs}.weight", f"{ours}/kernel", weight, layers),
        Rule(f"{theirs}.bias", f"{ours}/bias", bias, layers),
    ]


def norm(theirs: str, ours: str, layers: int = 0) -> list[Rule]:
    """PyTorch's weight and bias ↔ a scale and a bias."""
    return [
        Rule(f"{theirs}.weight", f"{ours}/scale", layers=layers),
        Rule(f"{theirs}.bias", f"{ours}/bias", layers=layers),
    ]


def functional(kind: type, config: Any, **options: Any) -> Functional:
    """The module `kind(config, rngs=..., **options)`."""
    return Functional(lambda rngs: kind(config, rngs=rngs, **options))


class Shapes:
    """What the shapes of foreign tensors tell of a config. `what`: should be in the file."""

    def __init__(self, tensors: Mapping[str, Any], what: str):
        self._tensors, self._what = tensors, what

    def __call__(self, name: str, *sizes: int | None) -> tuple[int, ...]:
        """The shape of a tensor, which must be `sizes`; None is any size."""
        if name not in self._tensors:
            raise ValueError(f"tensor {name!r} is missing: not {self._what}")
        found = tuple(self._tensors[name].shape)
        if len(found) != len(sizes) or any(
            size not in (None, n) for n, size in zip(found, sizes, strict=True)
        ):
            wanted = ", ".join("?" if size is None else str(size) for size in sizes)
            raise ValueError(
                f"tensor {name!r} of shape {found} should have {len(sizes)} dimensions: ({wanted})"
            )
        return found

    def count(self, numbered: str) -> int:
        """How many modules there are: `numbered` is how names begin, {i} the number."""
        pattern = re.compile(re.escape(numbered).replace(r"\{i\}", r"(\d+)"))
        found = {int(m[1]) for name in self._tensors if (m := pattern.match(name))}
        if found != set(range(len(found))) or not found:
            raise ValueError(f"modules {numbered!r} are numbered {sorted(found)}: not 0, 1, ...")
        return len(found)


# What PyTorch puts into names where it compiles, shards or recomputes a module.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrapped(tensors: Mapping[str, Any], anchor: str, what: str, sep: str = ".") -> dict[str, Any]:
    """The tensors of one model under its own names, of a file that a trainer wrote: whatever they
    are kept in (state_dict, model, module, ...). `anchor`: a name that every such model has.

    Of several models the moving average is taken. What else is there is left out, and told. Raises
    ValueError for several models without an average; without the anchor everything is returned.
    """
    plain: dict[str, Any] = {}
    for name, tensor in tensors.items():
        short = sep.join(part for part in name.split(sep) if part not in _WRAPPED)
        if short in plain:
            raise ValueError(f"tensor {short!r} is there twice, once as {name!r}")
        plain[short] = tensor
    found = [
        name.removesuffix(anchor)
        for name in plain
        if (sep + name).endswith(sep + anchor)
        and not any(part.startswith("opt") for part in name.split(sep))  # moments of an optimizer
    ]
    averages = [prefix for prefix in found if _is_average(plain, prefix, sep)]
    if len(found) > 1:
        # An average that was never updated is of the first parameters.
        found = averages or [p for p in found if not _names_average(p, sep)] or found
    if len(found) > 1:
        raise ValueError(
            f"holds several models, {', '.join(repr(prefix) for prefix in found)}: write the "
            f"state dict of one of them, {what}, to a file of its own"
        )
    if not found:
        return plain
    (prefix,) = found
    own = {name.removeprefix(prefix): x for name, x in plain.items() if name.startswith(prefix)}
    if prefix:
        rest = dict.fromkeys(x.split(sep)[0] for x in plain if not x.startswith(prefix))
        logging.info("taken: %s* (%d tensors); left out: %s", prefix, len(own), [*rest] or "none")
    return own


def _names_average(prefix: str, sep: str) -> bool:
    return any("ema" in part.lower().split("_") for part in prefix.split(sep))


def _is_average(tensors: Mapping[str, Any], prefix: str, sep: str) -> bool:
    """ema_pytorch keeps the model itself beside its average (`online_model`), and whether that has
    begun (`initted`)."""
    if not _names_average(prefix, sep) or "online_model" in prefix.split(sep):
        return False
    begun = tensors.get(f"{prefix.partition('ema_model' + sep)[0]}initted")
    return begun is None or bool(np.asarray(begun).all())


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
    """Our parameters, shaped as `expected` (abstract), in its dtypes: of floats any is taken, and
    what that does is told; other numbers must be of the same.

    Goes tensor by tensor: `theirs` may read a tensor when it is asked for it, and `place(path,
    array)` gives the leaf to keep. A missing, additional or mis-shaped tensor, or one that is not
    finite, is a ValueError that names it.
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
    cast: dict[tuple[str, str], int] = {}
    for rule in rules:
        if isinstance(rule, Constant):
            for name in names(rule):
                array = np.asarray(theirs[name])
                same = rule.any_value or np.array_equal(array, rule.value)
                if array.shape != rule.value.shape or not same:
                    raise ValueError(
                        f"tensor {name!r} of shape {array.shape} should be a constant of shape "
                        f"{rule.value.shape}; the file is of another model"
                    )
            continue
        want = wanted[rule.ours]
        for name in names(rule):
            dtypes = theirs[name].dtype, want.dtype
            if dtypes[0] != dtypes[1]:
                if not all(jax.dtypes.issubdtype(x, np.floating) for x in dtypes):
                    raise ValueError(f"tensor {name!r} is {dtypes[0]}, {rule.ours} {dtypes[1]}")
                key = str(dtypes[0]), str(dtypes[1])
                cast[key] = cast.get(key, 0) + 1
        given = (np.asarray(theirs[name]) for name in names(rule))
        with np.errstate(over="ignore"):  # what is too large is refused by name
            array = rule.to_ours(given, sizes, want.dtype)
        if array.shape != want.shape:
            raise ValueError(
                f"tensor {rule.theirs!r} gives {rule.ours} {array.dtype}{list(array.shape)}, the "
                f"model has {want.dtype}{list(want.shape)}"
            )
        found[rule.ours] = place(rule.ours, array)
    for (before, after), count in cast.items():
        how = "widened" if _bits(before) < _bits(after) else "rounded"
        logging.info("%d tensors %s from %s to %s", count, how, before, after)
    return unflatten(found)


def float_dtype(tensors: Iterable[Any]) -> str:
    """Of parameters that hold all of these: bfloat16 where all are, else float32."""
    return "bfloat16" if {str(x.dtype) for x in tensors} == {"bfloat16"} else "float32"


def _bits(dtype: str) -> int:
    return jax.dtypes.finfo(dtype).bits


class Tensor(NamedTuple):
    """One that is made when it is asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.make()

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def to_theirs(
    params: Tree,
    rules: Rules,
    sizes: Mapping[str, int],
    variables: Tree | None = None,
    dtype: np.dtype | None = None,
) -> dict[str, Tensor]:
    """Their tensors in the order of the rules, layer by layer where rules have layers; parameters
    in `dtype` (None: as they are), variables as they are."""
    flat, frozen, rules = flatten(params), flatten(variables or {}), list(rules)
    known = {rule.ours for rule in rules if isinstance(rule, Rule)}
    if known != flat.keys() | frozen.keys():
        odd = sorted(known ^ (flat.keys() | frozen.keys()))
        raise ValueError(f"the model and the rules differ in {odd}")
    found: dict[str, Tensor] = {}
    for rule in rules:
        if isinstance(rule, Constant):
            value = rule.value
            found |= {x: Tensor(value.shape, value.dtype, lambda x=value: x) for x in names(rule)}
            continue
        array = frozen.get(rule.ours, flat.get(rule.ours))
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{rule.ours} is a random key: the format has only numbers")
        out = np.dtype(array.dtype if dtype is None or rule.ours in frozen else dtype)
        one = array.shape[1:] if rule.layers else array.shape
        shape = rule.to_theirs(np.broadcast_to(np.False_, one), sizes).shape
        for i, name in enumerate(names(rule)):

            def make(rule=rule, array=array, i=i, out=out) -> np.ndarray:
                part = np.asarray(array[i] if rule.layers else array)
                return rule.to_theirs(part, sizes).astype(out, copy=False)

            found[name] = Tensor(shape, out, make)
    return found


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """All of them, made."""
    return {name: one.make() for name, one in tensors.items()}
