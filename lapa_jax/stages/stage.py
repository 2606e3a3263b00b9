"""What a training task is: the protocol that the loop, the evaluator and the labeller know."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.nn import flops
from lapa_jax.nn.attention import plain_attention
from lapa_jax.nn.module import Functional
from lapa_jax.policy.heads import Sources

Params = dict[str, Any]
Variables = dict[str, Any]
Metrics = dict[str, jax.Array]
Batch = dict[str, jax.Array]
Assets = Mapping[str, bytes]


def require_source(config: ConfigDict, stage: str, key: str, wanted: Mapping[str, Any]) -> None:
    """Whether frozen weights may come from a run of this config: of that stage, its model with the
    settings `wanted` (JSON values), which stand under `key`. Raises ValueError."""
    if config.stage != stage:
        raise ValueError(f"it is of stage {config.stage!r}, not {stage!r}")
    differing = [
        f"{key}.{name}={value!r}, which is {config.model[name]!r} there"
        for name, value in wanted.items()
        if config.model[name] != value
    ]
    if differing:
        raise ValueError("; ".join(differing))


class Stage(Protocol):
    """A stage is built from (config, assets) and holds no arrays; its methods are pure. Methods
    with a body are what most stages do.

    `fields` are the columns that the loader must give (`fields_of`: of a config). `assets` are the
    small files that belong to every checkpoint (tokenizer, action bins), by name.
    """

    fields: tuple[str, ...]
    image_column: str  # of the device batch: what data.augment changes
    # metric that is 1 while something is wrong → what to tell the user
    alarms: Mapping[str, str] = {}
    model: Functional  # the module as pure functions
    config: ConfigDict
    assets: Assets

    def __init__(self, config: ConfigDict, assets: Assets): ...

    @classmethod
    def fields_of(cls, config: ConfigDict) -> tuple[str, ...]:
        del config
        return cls.fields

    @staticmethod
    def make_assets(config: ConfigDict, sources: Sources) -> dict[str, bytes]:
        """The assets of a new run, from the run it starts from and from its data."""
        del config, sources
        return {}

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Loader columns → the device batch; NumPy, on the host."""
        ...

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Global shapes and dtypes of the device batch."""
        ...

    def init(self, key: jax.Array) -> tuple[Params, Variables]:
        return self.model.init(key)

    def axes(self) -> dict[str, Any]:
        """Logical axis names, a tuple per parameter, in the structure of the parameters."""
        return self.model.axes()

    def frozen_from(self) -> tuple[str, str] | None:
        """(config key, workdir in it) of the run that gives this one's frozen weights."""
        return None

    def adopt(self, variables: Variables, config: ConfigDict, params: Params) -> Variables:
        """Fresh `variables` with the frozen weights of that run, given its config and parameters.

        Raises ValueError for a run that does not fit, with the keys that differ.
        """
        raise TypeError(f"{type(self).__name__} has no frozen weights")

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        """(loss, metrics, variables). The loss is a mean over examples; where examples count
        differently, metrics["loss_weight"] is the sum of what they count."""
        ...

    def eval_metrics(self, params: Params, variables: Variables, batch: Batch) -> Metrics: ...

    def after_update(
        self, params: Params, variables: Variables, step: jax.Array, rng: jax.Array
    ) -> tuple[Params, Variables]:
        """What changes parameters outside the gradient (codes that are replaced)."""
        del step, rng
        return params, variables

    def model_flops(self) -> float:
        """FLOPs of one example's forward and backward pass, recomputation not counted: those of the
        gradient of all parameters, traced with plain attention. Takes a second or more."""
        config = self.config.copy_and_resolve_references()
        config.model.update(remat="none", unroll=1)
        stage = type(self)(config, self.assets)

        def loss(*given: Any) -> jax.Array:
            return stage.loss(*given)[0]

        key = jax.eval_shape(lambda: jax.random.key(0))
        with plain_attention():
            inputs = (*stage.model.abstract(), stage.batch_spec(), key)
            return flops.counted(jax.grad(loss), *inputs) / config.global_batch
