"""What a training task is: the protocol that the loop, the evaluator and the labeller know."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.nn import flops
from lapa_jax.nn.attention import plain_attention
from lapa_jax.nn.module import Functional, flatten, unflatten
from lapa_jax.nn.surgery import Borrowed, plan_swap
from lapa_jax.policy.heads import Sources

Params = dict[str, Any]
Variables = dict[str, Any]
Metrics = dict[str, jax.Array]
Batch = dict[str, jax.Array]
Assets = Mapping[str, bytes]


def frozen_source(borrowed: Borrowed) -> tuple[str, str]:
    """(config key, workdir in it) of the run that has these weights."""
    if not borrowed.run:
        raise ValueError(f"{borrowed.key} is empty: name the run of {borrowed.hint}")
    return borrowed.key, borrowed.run


def with_borrowed(
    borrowed: Borrowed,
    variables: Variables,
    config: ConfigDict,
    params: Params,
    others: Variables | None = None,
) -> Variables:
    """Fresh `variables` with the weights of that run, given its config, its parameters and, where
    all of it is taken, its other variables.

    Raises ValueError for a run that does not fit, with the keys that differ.
    """
    if config.stage != borrowed.stage:
        raise ValueError(f"it is of stage {config.stage!r}, not {borrowed.stage!r}")
    model = config.model.to_dict()
    differing = [
        f"{borrowed.settings_key}.{name}={value!r}, which is {there!r} there"
        for name, value in borrowed.settings.items()
        if (there := _setting(model, name)) != value
    ]
    if differing:
        raise ValueError("; ".join(differing))
    if borrowed.theirs and borrowed.theirs not in params:
        raise ValueError(f"it trained nothing called {borrowed.theirs!r}")
    flat, branch = flatten(variables), f"{borrowed.ours}/"
    if borrowed.theirs:
        theirs = params[borrowed.theirs]
    else:
        theirs = unflatten(flatten(params) | flatten(others or {}))
    here = {path.removeprefix(branch): flat[path] for path in flat if path.startswith(branch)}
    plan_swap(theirs, unflatten(here), may_change=())
    return unflatten(flat | {branch + path: leaf for path, leaf in flatten(theirs).items()})


def _setting(model: Any, name: str) -> Any:
    """What stands under a dotted name, None where nothing does."""
    for key in name.split("."):
        model = model.get(key) if isinstance(model, ConfigDict | Mapping) else None
    return model


class Unusable(NamedTuple):
    """Of things that are checked before training: which are not usable, what is said of the
    episodes that have them, and what to do."""

    which: np.ndarray  # bool (n,)
    why: str
    remedy: str


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
    acts = False  # whether it says what a robot does
    model: Functional  # the module as pure functions
    borrowed: tuple[Borrowed, ...] = ()  # frozen weights, those of other runs
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

    def unusable(self, instructions: Sequence[str]) -> Unusable:
        """Which instructions `prepare` would refuse."""
        return Unusable(np.zeros(len(instructions), bool), "", "")

    def window_steps(self) -> int | None:
        """How many steps the windows of a corpus with actions must have; None: any."""
        return None

    def check(self, batch: dict[str, np.ndarray]) -> None:
        """Raises ValueError for loader columns, but frames, that `prepare` would refuse."""

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Loader columns → the device batch; NumPy, on the host."""
        ...

    def watch(self) -> list[tuple[int, str]]:
        """(step, what to look at then) of a training, for `lapa plan`."""
        return []

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Global shapes and dtypes of the device batch."""
        ...

    def init(self, key: jax.Array) -> tuple[Params, Variables]:
        return self.model.init(key)

    def axes(self) -> dict[str, Any]:
        """Logical axis names, a tuple per parameter, in the structure of the parameters."""
        return self.model.axes()

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        """(loss, metrics, variables). The loss is a mean over examples; where examples count
        differently, metrics["loss_weight"] is the sum of what they count."""
        ...

    def eval_metrics(self, params: Params, variables: Variables, batch: Batch) -> Metrics:
        """The metrics and the loss, without randomness."""
        loss, metrics, _ = self.loss(params, variables, batch, jax.random.key(0))
        return metrics | {"loss": loss}

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
        if "base_dtype" in config.model:
            config.model.base_dtype = "param_dtype"  # int8 has no gradient
        stage = type(self)(config, self.assets)

        def loss(*given: Any) -> jax.Array:
            return stage.loss(*given)[0]

        key = jax.eval_shape(lambda: jax.random.key(0))
        with plain_attention():
            inputs = (*stage.model.abstract(), stage.batch_spec(), key)
            return flops.counted(jax.grad(loss), *inputs) / config.global_batch
