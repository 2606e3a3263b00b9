"""The robot's state as an input of a policy: one token at the end of the prompt.

Its embedding is made of the state, normalised by the statistics of the run's own data. In training
noise can be added to it, and a part of the examples can go without it: what stands for a state that
is not shown is learned.

Shape suffixes: B examples, R rows, k examples of a row, S numbers of a state, n what is fed of it
(S + 1: the state, and 1 where it is shown), D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.normalise import MODES, Normaliser
from lapa_jax.nn.layers import Dense, dtype_of
from lapa_jax.nn.module import param
from lapa_jax.policy.attention import Backbone

STATISTICS = "state_statistics.json"  # the asset
OUT_OF_RANGE = "state_out_of_range"


@dataclass(frozen=True)
class StateConfig:
    enabled: Annotated[
        bool, "the policy sees the robot's state, which data.corpora.*.state_key names"
    ] = False
    normalisation: Annotated[str, MODES, "of each number of it, by the data's statistics"] = (
        "q01_q99"
    )
    noise_std: Annotated[float, "[0, 100]", "of the noise that training adds to it, normalised"] = (
        0.0
    )
    dropout: Annotated[float, "[0, 1]", "of the examples of training that it is hidden from"] = 0.0


class StateInput:
    """Holds no arrays; what runs on devices is pure."""

    def __init__(self, settings: StateConfig, data: bytes):
        self.settings, self.statistics = settings, Normaliser.from_json(data)

    @property
    def dim(self) -> int:
        return self.statistics.dim

    def rows(self, states_BS: np.ndarray) -> dict[str, np.ndarray]:
        """Of a batch: what the model is fed of the states, float32 (B, 1, S + 1), of those that are
        NaN that there is none; and of how many of their numbers each is beyond the data, as a
        share, float32 (B, 1)."""
        known = ~np.isnan(states_BS).all(axis=-1)
        states_BS = np.where(known[:, None], states_BS, np.float32(0))
        self.check(states_BS)
        beyond = self.statistics.beyond(states_BS).mean(axis=1, dtype=np.float32)
        states = self.statistics.normalise(states_BS)[:, None]
        return {
            "state": _shown(states, known[:, None], np),
            OUT_OF_RANGE: np.where(known, beyond, np.float32(0))[:, None],
        }

    def check(self, states_BS: np.ndarray) -> None:
        """Raises ValueError for states of another width, and for what is no number."""
        if states_BS.ndim != 2 or states_BS.shape[1] != self.dim:
            raise ValueError(
                f"states of shape {list(states_BS.shape)}: this policy was trained with states of "
                f"{self.dim} numbers (data.corpora.*.state_key)"
            )
        bad = np.argwhere(~np.isfinite(states_BS))
        if len(bad):
            value = states_BS[tuple(bad[0])]
            raise ValueError(f"number {bad[0][1]} of the robot's state is {value}")

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of one example: what `rows` gives."""
        return {
            "state": jax.ShapeDtypeStruct((1, self.dim + 1), jnp.float32),
            OUT_OF_RANGE: jax.ShapeDtypeStruct((1,), jnp.float32),
        }

    def fed(self, states_BS: Any, xp: Any = np) -> Any:
        """What prompts hold under "state", (B, 1, S + 1), of states in the units of the data."""
        states = self.statistics.normalise(states_BS, xp)[:, None].astype(xp.float32)
        return _shown(states, xp.ones(states.shape[:2], bool), xp)

    def trained_on(self, fed_Rkn: jax.Array, rng: jax.Array | None) -> jax.Array:
        """What the model is fed in training, (R, k, n), of what `rows` gives; None: the same."""
        settings = self.settings
        if rng is None or not (settings.noise_std or settings.dropout):
            return fed_Rkn
        states, shown = fed_Rkn[..., :-1], fed_Rkn[..., -1] > 0
        of_noise, of_dropout = jax.random.split(rng)
        if settings.noise_std:
            states = states + settings.noise_std * jax.random.normal(of_noise, states.shape)
        if settings.dropout:
            shown &= jax.random.uniform(of_dropout, shown.shape) >= settings.dropout
        return _shown(states, shown, jnp)

    def out_of_range(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The share of numbers that are beyond the data, among the states that there are."""
        known = batch["state"][..., -1].sum()
        return batch[OUT_OF_RANGE].sum() / jnp.maximum(known, 1.0)

    def embedding(self, model: Backbone, rngs: nnx.Rngs) -> nnx.Module:
        return StateEmbedding(self.dim, model, rngs=rngs)

    def describe(self, names: list[str]) -> dict[str, Any]:
        """Plain values, for clients of a server."""
        said = self.statistics
        return {
            "names": names,
            "dim": self.dim,
            "dimensions": list(said.names) or None,
            "units": list(said.units) or None,
            "low": None if said.min is None else list(said.min),  # of the training data
            "high": None if said.max is None else list(said.max),
        }


def _shown(states: Any, shown: Any, xp: Any) -> Any:
    shown = shown[..., None].astype(xp.float32)
    return xp.concatenate([states * shown, shown], axis=-1).astype(xp.float32)


class StateEmbedding(nnx.Module):
    def __init__(self, dim: int, model: Backbone, *, rngs: nnx.Rngs):
        self.dim, self.dtype = model.dim, dtype_of(model.compute_dtype)
        common = dict(dtype=self.dtype, bias=True, rngs=rngs)
        self.into = Dense((dim,), (model.dim,), (None, "mlp"), **common)
        out = {"std": model.init_std} | common
        self.out = Dense((model.dim,), (model.dim,), ("mlp", "embed"), **out)
        hidden = model.init_std * jax.random.normal(rngs.params(), (model.dim,))
        self.hidden = param(hidden, "embed")  # stands for a state that is not shown

    def __call__(self, fed: jax.Array) -> jax.Array:
        """(..., S + 1) → (..., D): a state, and 1 where it is shown."""
        if jnp.issubdtype(fed.dtype, jnp.integer):  # ids of other tokens
            return jnp.zeros((*fed.shape, self.dim), self.dtype)
        states, shown = fed[..., :-1], fed[..., -1:] > 0
        seen = self.out(jax.nn.gelu(self.into(states.astype(self.dtype))))
        return jnp.where(shown, seen, self.hidden[...].astype(self.dtype))
