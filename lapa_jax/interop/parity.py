"""What an export was compared in, and whether it passed."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.loader import DataSettings, Loader

LIMIT = 1e-4  # of differences in float32, relative to the largest value


@dataclasses.dataclass
class Parity:
    """Measures with limits, and statements that are only told."""

    checks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    stated: dict[str, Any] = dataclasses.field(default_factory=dict)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """A measure that must not exceed its limit; NaN does."""
        value = value if isinstance(value, int) else float(value)
        self.checks[name] = {"value": value, "limit": limit, "passed": bool(value <= limit)}

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(one["passed"] for one in self.checks.values())

    def failures(self) -> str:
        return (
            ", ".join(
                f"{name}={one['value']} (at most {one['limit']})"
                for name, one in self.checks.items()
                if not one["passed"]
            )
            or "nothing was checked"
        )

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": self.checks, "stated": self.stated}


def difference(found: np.ndarray, ours: np.ndarray, at_least: float = 0.0) -> float:
    """The largest, relative to the largest of ours (or to `at_least`)."""
    return float(np.abs(found - ours).max() / max(np.abs(ours).max(), at_least))


def differing(found: Mapping[str, Any], ours: Mapping[str, Any]) -> int:
    """Names that one side alone has, or that have other bits. A Tensor is made only for its
    comparison."""

    def same(name: str) -> bool:
        a, b = found[name], ours[name]
        return (a.shape, a.dtype) == (b.shape, b.dtype) and (
            np.asarray(a).tobytes() == np.asarray(b).tobytes()
        )

    names = set(found), set(ours)
    return len(names[0] ^ names[1]) + sum(not same(name) for name in names[0] & names[1])


def clearly_different(
    found: np.ndarray, ours: np.ndarray, place_BLG: np.ndarray, points_KG: np.ndarray
) -> int:
    """Codes (B, L) that differ and are not as near as ours."""

    def distance(codes: np.ndarray) -> np.ndarray:
        return np.square(place_BLG - points_KG[codes]).sum(-1)

    near, limit = distance(ours), LIMIT * np.square(place_BLG).sum(-1).max()
    return int(((found != ours) & ~(distance(found) - near <= limit)).sum())


def real_examples(
    data: ConfigDict, fields: Sequence[str], count: int
) -> tuple[dict[str, np.ndarray] | None, Any]:
    """`count` examples of a run's own corpora where they are at hand, and what to tell of them:
    where they are from, or why there are none."""
    settings = DataSettings.of(data).draw_any()
    places = [(corpus, storage.locate(corpus.path)) for corpus in settings.corpora]
    here = tuple(corpus for corpus, at in places if not isinstance(at, Path) or at.exists())
    settings = dataclasses.replace(settings, corpora=here)
    if not here:
        return None, "none: no corpus of the run is at hand"
    try:
        with Loader(settings, fields=fields, global_batch=count, seed=0) as loader:
            found = loader.batch(0)
            told = [
                {key: one[key] for key in ("corpus", "episode", "steps")}
                for one in loader.describe(0)
            ]
    except (OSError, ValueError) as error:  # moved, changed: no fault of the weights
        return None, f"none: {error}"
    return found, told
