"""Actions and robot states in units of their spread, and back: the statistics of each dimension,
and how numbers are normalised by them.

    q01_q99    2 (x - q01) / (q99 - q01) - 1
    min_max    2 (x - min) / (max - min) - 1
    mean_std   (x - mean) / std
    none       x

There is no epsilon in the denominators: both ways are exact inverses. Instead a dimension whose
spread is below a floor is not divided by it. Where q01 and q99 are that close, or a thousand times
closer than least and greatest value (a gripper that seldom closes), these are used; where they are
unknown, mean and standard deviation; where nothing is spread the dimension is constant, all its
values become 0, and 0 becomes the constant again. What is not a number is refused; nothing is
clipped unless `clip` says so.

What the originals do otherwise: openpi, OpenVLA-OFT and LeRobot add 1e-6 or 1e-8 to denominators,
so that one outlier of a dimension with equal quantiles becomes 2e6 to 2e8; OpenVLA sets dimensions
that are constant in the data to 0, also those that it does not normalise; openpi takes statistics
of another width. Elsewhere results are theirs to within their epsilon.

NumPy alone; what runs on devices gives `xp=jax.numpy`.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

MODES = ("q01_q99", "min_max", "mean_std", "none")
KINDS = ("continuous", "binary")  # of grippers
FLOOR = 1e-6  # in units of the data; of values above 1 relative to the greatest
CONSTANT = "constant"
_CLOSE = 1e-3  # q01 to q99, as a share of the range: closer values are not what is to be resolved
_FALLBACKS = {
    "q01_q99": ("q01_q99", "min_max", "mean_std"),
    "min_max": ("min_max",),
    "mean_std": ("mean_std",),
}
_NUMBERS = ("mean", "std", "min", "max", "q01", "q99")
_NEEDED = {"q01_q99": ("q01", "q99"), "min_max": ("min", "max"), "mean_std": ("mean", "std")}
_STDS = 5.0  # away from the mean is out of range, where least and greatest value are unknown


class OtherDataError(ValueError):
    """Statistics of other data than those they are used for."""


@dataclass(frozen=True)
class Gripper:
    """One dimension of actions; `open`: its value where the gripper is open, None: unknown."""

    dimension: int
    kind: str
    open: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"gripper kind {self.kind!r} must be one of {list(KINDS)}")
        if self.open is not None and not math.isfinite(self.open):
            raise ValueError(f"the value of an open gripper is {self.open}: it must be finite")


@dataclass(frozen=True)
class Normaliser:
    """Of vectors of D numbers. Statistics are None where a file does not have them."""

    mode: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None  # of the population
    min: tuple[float, ...] | None = None
    max: tuple[float, ...] | None = None
    q01: tuple[float, ...] | None = None
    q99: tuple[float, ...] | None = None
    mask: tuple[bool, ...] = ()  # which dimensions are normalised; the others are left as they are
    names: tuple[str, ...] = ()  # of dimensions; (): unknown
    units: tuple[str, ...] = ()
    grippers: tuple[Gripper, ...] = ()
    delta: tuple[int, ...] = ()  # dimensions that are relative to the state where a chunk begins
    control_hz: float = 0.0  # 0.0: unknown
    clip: bool = False  # normalised values to [-1, 1]: those beyond are lost
    floor: float = FLOOR
    count: int = 0  # vectors that these are the statistics of; 0: unknown
    source: str = ""  # hash of the data; "": unknown

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"normalisation {self.mode!r} must be one of {list(MODES)}")
        given = {name: getattr(self, name) for name in _NUMBERS if getattr(self, name) is not None}
        if missing := [name for name in _NEEDED.get(self.mode, ()) if name not in given]:
            raise ValueError(
                f"normalisation {self.mode!r} needs {' and '.join(missing)} of each dimension, "
                f"these statistics have {sorted(given) or 'none'}"
            )
        lengths = {name: len(values) for name, values in given.items()}
        for name in ("mask", "names", "units"):
            if getattr(self, name):
                lengths[name] = len(getattr(self, name))
        if not lengths or len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise ValueError(f"statistics must be of one number of dimensions, not {lengths}")
        if not self.mask:
            object.__setattr__(self, "mask", (True,) * next(iter(lengths.values())))
        for name, values in given.items():
            if bad := [d for d, value in enumerate(values) if not math.isfinite(value)]:
                raise ValueError(f"{name} of dimension {bad[0]} is {values[bad[0]]}: not finite")
        if self.std and (bad := [d for d, value in enumerate(self.std) if value < 0]):
            raise ValueError(f"std of dimension {bad[0]} is {self.std[bad[0]]}: below 0")
        for low, high in (("min", "max"), ("q01", "q99")):
            if low not in given or high not in given:
                continue
            for d, (a, b) in enumerate(zip(given[low], given[high], strict=True)):
                if a > b:
                    raise ValueError(f"{low} of dimension {d} is {a}, above its {high} {b}")
        places = [gripper.dimension for gripper in self.grippers]
        for what, dimensions in (("grippers", places), ("delta", self.delta)):
            if not all(0 <= d < self.dim for d in dimensions):
                raise ValueError(f"{what} {list(dimensions)}: dimensions are 0 to {self.dim - 1}")
        if not (math.isfinite(self.floor) and self.floor > 0):
            raise ValueError(f"floor is {self.floor}: it must be positive")
        if not (math.isfinite(self.control_hz) and self.control_hz >= 0):
            raise ValueError(f"control_hz is {self.control_hz}: it must be positive, or 0: unknown")
        if self.clip and self.mode not in ("q01_q99", "min_max"):
            raise ValueError(f"clip is of 'q01_q99' and 'min_max', not of {self.mode!r}")

    @classmethod
    def fit(cls, values: np.ndarray, mode: str = "q01_q99", **said: Any) -> "Normaliser":
        """The exact statistics of values (N, D); `said`: fields that numbers do not tell. Quantiles
        are interpolated linearly."""
        values = np.asarray(values)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"statistics of values of shape {values.shape}: it must be (N, D)")
        _check_finite(values)
        found: dict[str, list[float]] = {name: [] for name in _NUMBERS}
        for column in values.T:  # one in float64 at a time
            column = column.astype(np.float64)
            least, greatest = float(column.min()), float(column.max())
            q01, q99 = np.quantile(column, [0.01, 0.99]).tolist()
            constant = least == greatest  # the mean of many equal numbers may be rounded
            mean, std = (least, 0.0) if constant else (float(column.mean()), float(column.std()))
            row = dict(mean=mean, std=std, min=least, max=greatest, q01=q01, q99=q99)
            for name, value in row.items():
                found[name].append(value)
        numbers = {name: tuple(column) for name, column in found.items()}
        return cls(mode=mode, **numbers, count=len(values), **said)

    @property
    def dim(self) -> int:
        return len(self.mask)

    # ------------------------------------------------------------ how each dimension is normalised

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """Of each dimension: the mode, another one where its spread is below the floor, "constant",
        or "none" where it is left as it is."""
        return tuple(form for form, *_ in self._rules)

    def peculiarities(self, what: str = "action") -> list[str]:
        """A line for each dimension that is not normalised as the mode says."""
        lines = []
        for d, (form, centre, *_) in enumerate(self._rules):
            name = f"{what} dimension {d}" + (f" ({self.names[d]})" if self.names else "")
            if form == CONSTANT:
                lines.append(f"{name} is constant, {centre:g}: it is normalised to 0")
            elif form not in ("none", self.mode):
                lines.append(
                    f"{name} has nearly equal {' and '.join(_NEEDED[self.mode])}: it is normalised "
                    f"by {' and '.join(_NEEDED[form])}"
                )
        return lines

    @cached_property
    def _rules(self) -> list[tuple[str, float, float, float, float]]:
        """(form, centre, scale, least, greatest) of each dimension: what is beyond the last two is
        out of range."""
        return [self._rule(d) for d in range(self.dim)]

    def _rule(self, d: int) -> tuple[str, float, float, float, float]:
        numbers = {n: getattr(self, n)[d] for n in _NUMBERS if getattr(self, n) is not None}
        seen = (numbers.get("min", -math.inf), numbers.get("max", math.inf))
        reach = numbers["max"] - numbers["min"] if {"min", "max"} <= set(numbers) else 0.0
        if not self.mask[d] or self.mode == "none":
            return "none", 0.0, 1.0, *seen
        places = [abs(value) for name, value in numbers.items() if name != "std"]
        floor = self.floor * max(1.0, *places)
        value = None
        for form in _FALLBACKS[self.mode]:
            low, high = (numbers.get(name) for name in _NEEDED[form])
            if low is None or high is None:
                continue
            if form == "mean_std":
                centre, scale, spread = low, high, high
                if not math.isfinite(seen[0]):
                    seen = low - _STDS * high, low + _STDS * high
            else:
                centre, scale, spread = low + (high - low) / 2, (high - low) / 2, high - low
                seen = low, high
            value = centre if value is None else value
            if form == "q01_q99" and spread < _CLOSE * reach:
                continue
            if spread > floor:
                return form, centre, scale, *seen
        return CONSTANT, value, 1.0, value - floor, value + floor

    @cached_property
    def columns(self) -> tuple[np.ndarray, ...]:
        """centre, scale, whether it is not constant, least, greatest: float64 (D,) each."""
        _, centre, scale, least, greatest = (np.array(x) for x in zip(*self._rules, strict=True))
        live = np.array([form != CONSTANT for form in self.forms], np.float64)
        return centre, scale, live, least, greatest

    # ------------------------------------------------------------ values

    def normalise(self, x: Any, xp: Any = np) -> Any:
        """x (..., D) in units of the data → normalised, float32 (float64 of NumPy's float64).
        ValueError for another D; of NumPy arrays also for what is not finite."""
        x, out = self._given(x, xp)
        centre, scale, live, *_ = self._constants(xp)
        y = (x - centre) / scale * live
        if self.clip:
            y = xp.where(self._constants(xp, masked=True), xp.clip(y, -1, 1), y)
        return y.astype(out)

    def restore(self, y: Any, xp: Any = np) -> Any:
        """The inverse of `normalise`, with the same errors."""
        y, out = self._given(y, xp)
        centre, scale, live, *_ = self._constants(xp)
        return (y * (scale * live) + centre).astype(out)

    def beyond(self, x: Any, xp: Any = np) -> Any:
        """bool (..., D): which values x (..., D), in units of the data, are out of range: beyond
        those that become -1 and 1; by "mean_std" and of dimensions that are left as they are beyond
        the least and greatest of the data; of a constant dimension those that differ from it."""
        x, _ = self._given(x, xp, finite=False)
        *_, least, greatest = self._constants(xp)
        size = xp.maximum(xp.where(xp.isfinite(least), xp.abs(least), 0), xp.abs(x))
        slack = 1e-6 * size  # float32 may have moved the limits themselves
        return ~((x >= least - slack) & (x <= greatest + slack))

    def out_of_range(self, x: Any, xp: Any = np, where: Any = None) -> Any:
        """The share of `beyond` in each dimension, float (D,); `where`: bool (...) of the vectors
        that count, all if None. 0 where none does."""
        found = self.beyond(x, xp).reshape(-1, self.dim)
        counted = xp.ones(len(found), bool) if where is None else where.reshape(-1)
        return (found & counted[:, None]).sum(axis=0) / xp.maximum(counted.sum(), 1)

    def _given(self, x: Any, xp: Any, finite: bool = True) -> tuple[Any, Any]:
        """(x to compute with, the dtype of the answer)."""
        x = xp.asarray(x)
        if x.ndim < 1 or x.shape[-1] != self.dim:
            width = x.shape[-1] if x.ndim else 0
            raise ValueError(
                f"vectors of {width} numbers (shape {tuple(x.shape)}), but the statistics are of "
                f"{self.dim} dimensions"
            )
        if xp is not np:
            return x.astype(xp.float32), xp.float32
        if finite:
            _check_finite(x)
        return x.astype(np.float64), np.float64 if x.dtype == np.float64 else np.float32

    def _constants(self, xp: Any, masked: bool = False) -> Any:
        if masked:
            return xp.asarray(self.mask)
        if xp is np:
            return self.columns
        return tuple(xp.asarray(x, xp.float32) for x in self.columns)

    # ------------------------------------------------------------ files

    def check_source(self, source: str, path: str) -> None:
        """Raises OtherDataError unless these are the statistics of the data with this hash."""
        if self.source and source and self.source != source:
            raise OtherDataError(
                f"{path} are the statistics of other data ({self.source}, these are {source}): "
                "make them anew with `lapa data stats`"
            )

    def to_json(self) -> bytes:
        return (json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n").encode()

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: bytes) -> "Normaliser":
        """What `to_json` gave. ValueError for a field that is missing, unknown or of another
        type."""
        return cls.from_dict(json.loads(data))

    @classmethod
    def from_dict(cls, values: Any) -> "Normaliser":
        """As `from_json`, of plain values."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or sorted(values) != sorted(names):
            held = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"statistics hold {held}; they must hold {sorted(names)}")
        made: dict[str, Any] = {}
        for name in _NUMBERS:
            made[name] = None if values[name] is None else _all(values[name], float, name)
        for name, kind in (("mask", bool), ("names", str), ("units", str), ("delta", int)):
            made[name] = _all(values[name], kind, name)
        for name, kind in (
            *(("mode", str), ("source", str), ("clip", bool), ("count", int)),
            *(("control_hz", float), ("floor", float)),
        ):
            made[name] = _all([values[name]], kind, name)[0]
        made["grippers"] = tuple(map(_gripper, _all(values["grippers"], dict, "grippers")))
        return cls(**made)


def _gripper(values: dict[str, Any]) -> Gripper:
    if sorted(values) != ["dimension", "kind", "open"]:
        raise ValueError(f"a gripper holds {sorted(values)}, not dimension, kind and open")
    (dimension,) = _all([values["dimension"]], int, "gripper dimension")
    is_open = values["open"]
    if is_open is not None:
        (is_open,) = _all([is_open], float, "gripper open")
    return Gripper(dimension, *_all([values["kind"]], str, "gripper kind"), is_open)


def _all(values: Any, kind: type, name: str) -> tuple:
    """The values, all of this type (integers are numbers)."""
    wanted = (int, float) if kind is float else kind
    for value in values if isinstance(values, list) else [None]:
        if not isinstance(value, wanted) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"statistics: {name} is {str(values)[:80]}, not of {kind.__name__}")
    return tuple(map(kind, values))


def _check_finite(x: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        raise ValueError(
            f"value {x[tuple(bad[0])]} of dimension {int(bad[0][-1])} is not finite ({len(bad)} "
            "such values)"
        )


# ---------------------------------------------------------------- relative actions


def relative(actions: Any, state: Any, dimensions: Sequence[int], xp: Any = np) -> Any:
    """Chunks (..., horizon, A) with these dimensions less those of the state (..., S) where the
    chunk begins: the same state for all of its steps. A new array, in units of the data."""
    return actions - _shift(actions, state, dimensions, xp)


def absolute(actions: Any, state: Any, dimensions: Sequence[int], xp: Any = np) -> Any:
    """The inverse of `relative`."""
    return actions + _shift(actions, state, dimensions, xp)


def _shift(actions: Any, state: Any, dimensions: Sequence[int], xp: Any) -> Any:
    dim, width = actions.shape[-1], state.shape[-1]
    if bad := [d for d in dimensions if not 0 <= d < min(dim, width)]:
        raise ValueError(
            f"delta dimension {bad[0]}: actions have {dim} dimensions, the state that they would "
            f"be relative to has {width}"
        )
    used = np.isin(np.arange(dim), list(dimensions))
    widened = xp.pad(state[..., :dim], [(0, 0)] * (state.ndim - 1) + [(0, max(0, dim - width))])
    return xp.where(used, widened, 0)[..., None, :]
