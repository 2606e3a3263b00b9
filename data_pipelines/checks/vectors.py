"""Statistics of a corpus' actions and states as others keep them with a policy: a `Normaliser`,
with what the data tell of grippers. Actions may be relative to the state where a chunk begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.checks.statistics import sketch, statistics_of, valid_action_rows
from data_pipelines.index import CorpusIndex
from data_pipelines.normalise import Gripper, Normaliser

_OF_NORMALISER = ("mean", "std", "min", "max", "q01", "q99")
_BESIDE = ("q10", "q50", "q90")
_NEAR = 0.05  # of the range of values: what is so near to an end is at it
_BINARY = 0.95  # of the values that are at an end
_LEAST = 4  # dimensions: a last one of fewer is none of a gripper, unless it is called so


@dataclass(frozen=True)
class Vectors:
    """Of the actions or the states of one corpus."""

    statistics: Normaliser
    quantiles: dict[str, tuple[float, ...]]  # q10, q50, q90
    episodes: int

    @classmethod
    def of(cls, index: CorpusIndex, found: Mapping[str, Any], mode: str, **said: Any) -> "Vectors":
        """Of what `statistics_of` found. `said`: fields of `Normaliser` beside these."""
        numbers = {name: list(found[name]) for name in _OF_NORMALISER}
        for d, constant in enumerate(found["constant"]):
            if constant:  # the mean of many equal numbers may be rounded
                numbers["mean"][d], numbers["std"][d] = numbers["min"][d], 0.0
        rates = np.unique(index.fps)
        rate = float(rates[0]) if len(rates) == 1 and np.isfinite(rates[0]) else 0.0
        said = {"control_hz": rate, "source": index.hash, "count": found["num_actions"]} | said
        numbers = {name: tuple(values) for name, values in numbers.items()}
        more = {name: tuple(found[name]) for name in _BESIDE}
        return cls(Normaliser(mode, **numbers, **said), more, index.num_episodes)


def state_statistics(index: CorpusIndex, approximate: bool = False) -> dict[str, Any]:
    """`statistics_of` all states of a corpus; `approximate`: by a sketch."""
    if approximate:
        return sketch(index.states, np.arange(index.num_frames)).statistics()
    return statistics_of(index.states[:, d] for d in range(index.state_dim))


def relative_statistics(index: CorpusIndex, delta: Sequence[int], horizon: int) -> dict[str, Any]:
    """`statistics_of` the actions of a corpus, of which the dimensions `delta` are those of each
    frame's chunk of `horizon` actions, as far as its episode goes, less the state of that frame."""
    if index.states is None:
        raise ValueError(
            f"--delta: {index.directory} has no states in its index that actions could be relative "
            "to: `lapa data index --state_key` says where they are"
        )
    delta = [_place(d, index.action_dim, "--delta") for d in delta]
    if bad := [d for d in delta if d >= index.state_dim]:
        raise ValueError(
            f"--delta {bad[0]}: that dimension of actions would be relative to the state's, which "
            f"has {index.state_dim}"
        )
    longest = int(index.episode_length.max()) - 1
    if not 1 <= horizon <= longest:
        raise ValueError(
            f"--horizon {horizon}: the longest episode of {index.directory} has {longest} actions"
        )
    rows = valid_action_rows(index)
    found = statistics_of(
        _relative(index, rows, d, horizon) if d in delta else index.actions[rows, d]
        for d in range(index.action_dim)
    )
    return found | {"num_actions": len(rows)}


def _place(dimension: int, dim: int, flag: str) -> int:
    if not -dim <= dimension < dim:
        raise ValueError(f"{flag} {dimension}: dimensions are 0 to {dim - 1}")
    return dimension % dim


def _relative(index: CorpusIndex, rows: np.ndarray, d: int, horizon: int) -> np.ndarray:
    episode = index.episode_of_rows(rows)
    left = index.episode_start[episode] + index.episode_length[episode] - 1 - rows
    parts = []
    for ahead in range(horizon):
        own = rows[left > ahead]
        parts.append(index.actions[own + ahead, d] - index.states[own, d])
    return np.concatenate(parts)


def grippers(index: CorpusIndex) -> tuple[Gripper, ...]:
    """What the data tell of a gripper in the last dimension of actions: it is one where the last
    field of `action_key` is called so, or where nearly all values are near the least or the
    greatest. It is open at the value that the field's name says, else at that of most episodes'
    first actions."""
    dim, rows = index.action_dim, valid_action_rows(index)
    name = index.action_key.rpartition(",")[2].rpartition("/")[2].lower()
    column = index.actions[rows, dim - 1].astype(np.float64)
    low, high = float(column.min()), float(column.max())
    if low == high:
        return ()
    near = _NEAR * (high - low)
    at_end = (column <= low + near) | (column >= high - near)
    binary = bool(at_end.mean() >= _BINARY)
    if "grip" not in name and not (binary and dim >= _LEAST):
        return ()
    first = index.actions[index.episode_start[index.episode_length > 1], dim - 1]
    begins_high = bool((first > (low + high) / 2).mean() > 0.5)
    opens = "open" in name or ("clos" not in name and begins_high)
    return (Gripper(dim - 1, "binary" if binary else "continuous", high if opens else low),)
