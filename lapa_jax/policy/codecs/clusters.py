"""Real actions as tokens, one for a whole action: the nearest of some centres."""

from typing import Any

import numpy as np

from lapa_jax.policy.codecs.codec import ActionCodec, check_actions


class Clusters(ActionCodec):
    """One token for a whole action: the nearest of `centres` (K, action_dim), each dimension in
    units of `scale` (action_dim,).

    For few dimensions and little data: nothing has to be learnt about slots beyond the first.
    """

    kind = "clusters"

    def __init__(self, centres: np.ndarray, scale: np.ndarray):
        self.centres = np.asarray(centres, np.float32)
        self.scale = np.asarray(scale, np.float32)
        if self.centres.ndim != 2 or self.scale.shape != self.centres.shape[1:]:
            raise ValueError(
                f"centres {self.centres.shape} and scale {self.scale.shape} are not (clusters, "
                "action_dim) and (action_dim,)"
            )
        if not np.isfinite(self.centres).all() or not (self.scale > 0).all():
            raise ValueError("centres must be finite and scales positive")
        self.action_dim = self.centres.shape[1]
        self.sizes = np.array([len(self.centres)], np.int32)

    @classmethod
    def fit(cls, actions: np.ndarray, size: int) -> "Clusters":
        """`size` clusters of actions (N, action_dim)."""
        from data_pipelines.checks.statistics import action_clusters

        return cls(*action_clusters(actions, size))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Actions float (..., action_dim) → ids int32 (..., 1). NaN and infinities raise
        ValueError."""
        values = check_actions(values, self.action_dim)
        away = (values[..., None, :] - self.centres) / self.scale
        return np.square(away).sum(-1).argmin(-1).astype(np.int32)[..., None]

    def values(self, ids: Any, xp: Any = np) -> Any:
        return xp.asarray(self.centres)[ids[..., 0]]

    def describe(self) -> dict[str, Any]:
        return self._described(list(self.centres.T))

    def settings(self) -> dict[str, Any]:
        return {"centres": self.centres.tolist(), "scale": self.scale.tolist()}
