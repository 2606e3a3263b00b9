"""Files of statistics that others keep with their policies and data sets, written and read.

openpi's norm_stats.json, OpenVLA's dataset_statistics.json and LeRobot's meta/stats.json, and our
own: the assets of runs, and what `lapa data stats --json` writes. The numbers of ours are exact;
openpi's quantiles are of a histogram, and LeRobot's are merged from those of episodes: their mean
(releases 0.4.0 to 0.4.4) or the widest of them (later code).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import storage
from data_pipelines.checks.vectors import Vectors
from data_pipelines.normalise import Normaliser, OtherDataError

FORMATS = ("openpi", "openvla", "lerobot")
_OURS = {"action", "state"}
_NAMES = {  # of ours, what they are called
    "openpi": {"state": "state", "action": "actions"},
    "openvla": {"action": "action", "state": "proprio"},
    "lerobot": {"action": "action", "state": "observation.state"},
}
_NUMBERS = ("mean", "std", "min", "max", "q01", "q99")
_KEPT = {
    "openpi": ("mean", "std", "q01", "q99"),
    "openvla": ("mean", "std", "max", "min", "q01", "q99"),
    "lerobot": ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99"),
}
_CLOSE = 0.05  # of the standard deviation or the range
_QUANTILES = ("q01", "q99")
_COARSE = 0.25  # of the range: openpi's quantiles are of actions counted once for every chunk
_ROUNDED = 3e-4  # of a value: what float32 makes of the deviation of a constant


def write(form: str, path: str | Path, name: str, found: Mapping[str, Vectors]) -> None:
    """`found`: "action", and "state" where there is one; `name`: of the data set."""
    if form not in FORMATS:
        raise ValueError(f"--write {form}: one of {', '.join(FORMATS)}")
    groups: dict[str, dict[str, Any]] = {}
    for ours, theirs in _NAMES[form].items():
        if ours not in found:
            continue
        one = found[ours]
        numbers = {n: getattr(one.statistics, n) for n in _NUMBERS} | one.quantiles
        group: dict[str, Any] = {key: list(numbers[key]) for key in _KEPT[form]}
        if form == "openvla" and ours == "action":
            group["mask"] = normalised(one.statistics)
        if form == "lerobot":
            group["count"] = [one.statistics.count]
        groups[theirs] = group
    content: dict[str, Any] = groups
    if form == "openpi":
        content = {"norm_stats": groups}
    if form == "openvla":
        of = found["action"]
        counts = {"num_transitions": of.statistics.count, "num_trajectories": of.episodes}
        content = {name: groups | counts}
    storage.write_text(Path(path), json.dumps(content, indent=2, allow_nan=False) + "\n")


def normalised(actions: Normaliser) -> list[bool]:
    """OpenVLA's mask of action dimensions: grippers are left as they are."""
    closes = {gripper.dimension for gripper in actions.grippers}
    return [used and d not in closes for d, used in enumerate(actions.mask)]


def read(path: str | Path, name: str = "") -> tuple[str, dict[str, Normaliser]]:
    """(format, statistics of "action", "state" or both). `name`: of several data sets in a file of
    OpenVLA's. ValueError for what is no such file, with what it holds."""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"--read {path}: it cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"--read {path}: it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"--read {path}: it holds a {type(content).__name__}, not statistics")
    try:
        return _read(content, str(path), name)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith("--read") else f"--read {path}: {text}") from error


def _read(content: dict[str, Any], path: str, name: str) -> tuple[str, dict[str, Normaliser]]:
    if isinstance(content.get("statistics"), dict):
        found = {k: Normaliser.from_dict(v) for k, v in content["statistics"].items() if k in _OURS}
        return "lapa", found
    if "floor" in content:  # an asset of a run
        what = "state" if "state" in Path(path).name else "action"
        return "lapa", {what: Normaliser.from_dict(content)}
    if isinstance(content.get("norm_stats"), dict):
        return "openpi", _groups("openpi", content["norm_stats"], path)
    if any(key in content for key in _NAMES["lerobot"].values()):
        return "lerobot", _groups("lerobot", content, path)
    sets = [key for key, of in content.items() if isinstance(of, dict) and "action" in of]
    if not sets:
        raise ValueError(
            f"--read {path}: it holds {sorted(content)[:8]}; known are norm_stats (openpi), a data "
            "set with action (OpenVLA), action or observation.state (LeRobot), and our own"
        )
    if name and name not in sets or not name and len(sets) > 1:
        raise ValueError(f"--read {path}: it is of the data sets {sorted(sets)}: name one (--name)")
    return "openvla", _groups("openvla", content[name or sets[0]], path)


def _groups(form: str, groups: Mapping[str, Any], path: str) -> dict[str, Normaliser]:
    found = {
        ours: _statistics(groups[theirs], f"{path}, {theirs}")
        for ours, theirs in _NAMES[form].items()
        if theirs in groups
    }
    if not found:
        raise ValueError(
            f"--read {path}: it is of {sorted(groups)[:8]}, not of {list(_NAMES[form].values())}"
        )
    return found


def _statistics(group: Any, where: str) -> Normaliser:
    if not isinstance(group, dict):
        raise ValueError(f"--read {where}: it holds a {type(group).__name__}, not statistics")
    known = {n: group[n] for n in _NUMBERS if group.get(n) is not None}
    for key, values in known.items():
        numbers = isinstance(values, list) and all(type(x) in (int, float) for x in values)
        if not numbers:
            raise ValueError(f"--read {where}: {key} is {str(values)[:60]}, not a list of numbers")
    made = {key: tuple(map(float, values)) for key, values in known.items()}
    mask = group.get("mask")
    if mask is not None and not (isinstance(mask, list) and all(type(x) is bool for x in mask)):
        raise ValueError(f"--read {where}: mask is {str(mask)[:60]}, not a list of true and false")
    mode = "q01_q99" if {"q01", "q99"} <= set(made) else "mean_std"
    try:
        return Normaliser(mode, mask=tuple(mask or ()), **made)
    except ValueError as error:
        raise ValueError(f"--read {where}: {error}") from error


def compare(ours: Normaliser, theirs: Normaliser, path: str, what: str, form: str) -> float:
    """How far statistics that were read are from those of the corpus, at most, as a share of the
    standard deviation (mean, std) or the range (the others) of a dimension; of LeRobot's without
    the quantiles. Raises OtherDataError where that is more than approximations explain, or they are
    of another number of dimensions."""
    if ours.dim != theirs.dim:
        raise OtherDataError(
            f"--read {path}: its {what} has {theirs.dim} dimensions, that of the corpus {ours.dim}"
        )
    theirs.check_source(ours.source, path)
    names = [name for name in _NUMBERS if form != "lerobot" or name not in _QUANTILES]
    worst, told = _apart(ours, theirs, names, _COARSE)
    if told:
        raise OtherDataError(f"--read {path}: it is not of this {what}: {told}")
    return worst


def merged_quantiles(ours: Normaliser, theirs: Normaliser) -> str:
    """What is off in LeRobot's quantiles; empty where nothing is."""
    return _apart(ours, theirs, _QUANTILES, _CLOSE)[1]


def _apart(
    ours: Normaliser, theirs: Normaliser, names: Sequence[str], of_quantiles: float
) -> tuple[float, str]:
    """The largest distance of those that theirs has, and the first three that are not close, of
    quantiles not within `of_quantiles`."""
    worst, told = 0.0, []
    for name in names:
        values = getattr(theirs, name)
        if values is None:
            continue
        a, b = np.array(getattr(ours, name)), np.array(values)
        spread = np.array(ours.std) if name in ("mean", "std") else np.subtract(ours.max, ours.min)
        least = _ROUNDED * np.maximum(1.0, np.abs(ours.mean))
        share = np.abs(a - b) / np.maximum(spread, least / _CLOSE)
        close = of_quantiles if name in _QUANTILES else _CLOSE
        worst = max(worst, float(share.max()))
        told += [
            f"{name} of dimension {d} is {b[d]:.4g}, not {a[d]:.4g}"
            for d in np.flatnonzero(share > close)
        ]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return worst, "; ".join(told[:3]) + more
