"""What a codec is: values of a loader column as tokens, and back. NumPy alone."""

import json
from typing import Any

import numpy as np


class Codec:
    """A value is `len(sizes)` tokens; the ids of token i run from 0 to sizes[i] - 1."""

    kind: str  # its name in configs and in its JSON
    token = "token"  # what one is of, in messages
    sizes: np.ndarray  # int32 (tokens,)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values (..., dimensions) → ids int32 (..., tokens). ValueError for what has none."""
        raise NotImplementedError

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids int (..., tokens) → the values that they stand for. ValueError for an id out of
        range."""
        ids = np.asarray(ids)
        check_last(ids, len(self.sizes), "ids of")
        bad = np.argwhere((ids < 0) | (ids >= self.sizes))
        if len(bad):
            at, token = tuple(bad[0]), int(bad[0][-1])
            raise ValueError(
                f"of the ids {ids[at[:-1]].tolist()}, id {ids[at]} of {self.token} {token} is out "
                f"of range: one of {self.sizes[token]} {self.kind}"
            )
        return self.values(ids)

    def values(self, ids: Any, xp: Any = np) -> Any:
        """As `decode`, for ids in range; `xp` may be jax.numpy."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Plain values, for clients of a server."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What its class makes it of again, as plain values."""
        raise NotImplementedError

    def to_json(self) -> bytes:
        return json.dumps({"kind": self.kind} | self.settings()).encode()


class ActionCodec(Codec):
    """Of real actions, which have `action_dim` dimensions in the units of the data."""

    action_dim: int

    @classmethod
    def fit(cls, actions: np.ndarray, size: int) -> "ActionCodec":
        """The codec of actions (N, action_dim), with at most `size` ids a token."""
        raise NotImplementedError

    def peculiarities(self, actions: np.ndarray) -> list[str]:
        """What of actions (N, action_dim) is easily lost in tokens, and how exactly these say
        them."""
        from data_pipelines.checks import statistics

        errors = np.zeros(self.action_dim)
        for start in range(0, len(actions), 2**18):
            part = actions[start : start + 2**18]
            np.maximum(errors, np.abs(part - self.decode(self.encode(part))).max(0), out=errors)
        found = statistics.statistics_of(actions.T)
        return statistics.peculiarities(found, errors.tolist(), f"{self.sizes.max()} {self.kind}")

    def _described(self, centres: list[np.ndarray]) -> dict[str, Any]:
        """`centres`: of each dimension, float (ids,)."""
        return {
            "dim": self.action_dim,
            "tokens": self.kind,
            "num_bins": self.sizes.tolist(),
            "low": [float(row.min()) for row in centres],
            "high": [float(row.max()) for row in centres],
            "centres": [row.tolist() for row in centres],
        }


def check_last(array: np.ndarray, size: int, what: str = "actions of") -> None:
    if array.ndim < 1 or array.shape[-1] != size:
        raise ValueError(f"{what} shape {array.shape}: the last dimension must be {size}")


def check_actions(actions: np.ndarray, action_dim: int) -> np.ndarray:
    """Actions as an array, finite and of this dimension."""
    actions = np.asarray(actions)
    check_last(actions, action_dim)
    bad = np.argwhere(~np.isfinite(actions))
    if len(bad):
        raise ValueError(
            f"action value {actions[tuple(bad[0])]} of dimension {int(bad[0][-1])} is not "
            f"finite ({len(bad)} such values): mend or drop those steps of the corpus"
        )
    return actions
