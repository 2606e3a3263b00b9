"""Actions as OpenVLA's tokens: even bins of [-1, 1]."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.normalise import Normaliser
from lapa_jax.policy.codecs.codec import ActionCodec, check_actions


class Uniform(ActionCodec):
    """Of each dimension `size` - 1 bins of equal width, from the 1 % to the 99 % quantile of the
    data; values beyond belong to the outer ones (Kim et al. 2024).

    Bin i is id i. The greatest value itself and those beyond are the last id, which stands for the
    last bin, too. OpenVLA's token is its vocabulary's size less 1 less the id.
    """

    kind, token = "uniform", "dimension"

    def __init__(self, size: int, normaliser: Normaliser | Mapping[str, Any]):
        if size < 2:
            raise ValueError(f"uniform bins of {size} ids: at least 2 are needed")
        if not isinstance(normaliser, Normaliser):
            normaliser = Normaliser.from_json(json.dumps(normaliser).encode())
        self.size, self.normaliser = size, normaliser
        self.action_dim = normaliser.dim
        self.sizes = np.full(self.action_dim, size, np.int32)
        self.edges = np.linspace(-1.0, 1.0, size)
        centres = 0.5 * (self.edges[:-1] + self.edges[1:])
        centres = np.append(centres, centres[-1])[:, None]
        restored = normaliser.restore(np.broadcast_to(centres, (size, self.action_dim)))
        self.centres = restored.T.astype(np.float32)  # (action_dim, size)

    @classmethod
    def fit(cls, actions: np.ndarray, size: int) -> "Uniform":
        """`size` ids of each dimension of actions (N, action_dim)."""
        return cls(size, Normaliser.fit(actions, "q01_q99"))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Actions float (..., action_dim) → ids int32 (..., action_dim). NaN and infinities raise
        ValueError."""
        values = check_actions(values, self.action_dim).astype(np.float64)
        inside = np.clip(self.normaliser.normalise(values), -1.0, 1.0)
        return (np.digitize(inside, self.edges) - 1).astype(np.int32)

    def values(self, ids: Any, xp: Any = np) -> Any:
        return xp.asarray(self.centres)[xp.arange(self.action_dim), ids]

    def describe(self) -> dict[str, Any]:
        return self._described(list(self.centres))

    def settings(self) -> dict[str, Any]:
        edges = np.broadcast_to(self.edges[:, None], (self.size, self.action_dim))
        return {
            "size": self.size,
            "normaliser": json.loads(self.normaliser.to_json()),
            # In units of the data, for readers without a normaliser (the exported policy):
            "edges": self.normaliser.restore(edges).T.tolist(),
            "centres": self.centres.tolist(),
        }
