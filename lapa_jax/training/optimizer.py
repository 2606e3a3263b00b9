"""The optimizer of config.optimizer: one of optax's rules for the direction, and around it what
all share: clipping by the global norm, weight decay, the schedule, the groups' scales.

    update = - lr(step) · lr_scale · (direction + weight_decay · decay_scale · parameter)

Weight decay applies to arrays of rank >= 2, not counting the dimension of stacked layers. Frozen
parameters get no gradient, no moments and no moving average. Every key must be present and an
unknown one is an error; `optimizer_settings` makes those of a new config.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lapa_jax.nn.registry import named_config, named_settings
from lapa_jax.parallel.trees import flatten, flatten_names, path_name
from lapa_jax.training import moments
from lapa_jax.training.groups import (
    Group,
    assign,
    group_settings,
    read_groups,
    split,
)
from lapa_jax.training.moments import MOMENTS

Schedule = Callable[[Any], Any]  # step → learning rate
Axes = Mapping[str, tuple[str | None, ...]]  # logical axis names by slash-separated path


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`tx` is of the trained parameters alone, in dicts that hold None for the frozen ones: see
    `split`."""

    tx: optax.GradientTransformation
    schedule: Schedule
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)
    group_of: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by path

    @property
    def frozen(self) -> frozenset[str]:
        """Paths of the parameters that do not train."""
        return frozenset(p for p, name in self.group_of.items() if self.groups[name].frozen)

    def split(self, params: Any) -> tuple[Any, Any]:
        """(trained, frozen), each with None in place of the other."""
        return split(params, self.frozen)

    def init(self, params: Any) -> Any:
        """The optimizer's state for all of a model's parameters."""
        return self.tx.init(self.split(params)[0])

    def table(self, params: Any) -> str:
        """The groups, a line each: parameters, values, scales."""
        lines = [f"{'group':<16}{'arrays':>8}{'values':>16}{'lr_scale':>10}{'decay_scale':>13}"]
        leaves = flatten(params)
        for name, group in self.groups.items():
            sizes = [x.size for path, x in leaves.items() if self.group_of[path] == name]
            scales = (
                f"{'frozen':>10}{'frozen':>13}"
                if group.frozen
                else f"{group.lr_scale:>10g}{group.decay_scale:>13g}"
            )
            lines.append(f"{name:<16}{len(sizes):>8}{sum(sizes):>16,}{scales}")
        return "\n".join(lines)


def make_optimizer(config: Mapping[str, Any], total_steps: int, axes: Any) -> Optimizer:
    """`axes`: the logical axis names of every parameter, as a stage gives them."""
    name, _ = named_config(config, OPTIMIZERS, "optimizer")
    direction = OPTIMIZERS[name][1]
    schedule = make_schedule(config, total_steps)
    axes = flatten_names(axes)
    groups = read_groups(config["groups"])
    group_of = assign(groups, axes)
    if all(groups[group].frozen for group in group_of.values()):
        raise ValueError(f"every group of optimizer.groups is frozen: {sorted(groups)}")
    decay = {
        path: config["weight_decay"] * groups[group_of[path]].decay_scale * _is_matrix(names)
        for path, names in axes.items()
    }
    lr_scale = {path: groups[group_of[path]].lr_scale for path in axes}
    tx = optax.chain(
        *([_clip(config["clip_norm"])] if config["clip_norm"] else []),
        direction(config, axes),
        _leafwise(lambda path, u, p: u + decay[path] * p if decay[path] else u),
        optax.scale_by_learning_rate(schedule),
        _leafwise(lambda path, u, p: u if lr_scale[path] == 1.0 else u * lr_scale[path]),
    )
    return Optimizer(tx, schedule, groups, group_of)


def _clip(most: float) -> optax.GradientTransformation:
    """As optax.clip_by_global_norm, by one factor: its division of every gradient is an array of
    its own on a CPU, written and read once more."""

    def clip(updates: Any, _: Any) -> Any:
        norm = optax.global_norm(updates)
        factor = jnp.where(norm < most, 1.0, most / norm)
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates)

    return optax.stateless(clip)


def _is_matrix(names: tuple[str | None, ...]) -> bool:
    return len(names) - ("layers" in names) >= 2


def _leafwise(function: Callable[[str, Any, Any], Any]) -> optax.GradientTransformation:
    """function(path, update, parameter) on every leaf."""
    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(
            lambda path, u, p: function(path_name(path), u, p), updates, params
        )
    )


# --- Directions ---


def _adamw(config: Mapping[str, Any], axes: Axes) -> optax.GradientTransformation:
    """Loshchilov and Hutter 2019."""
    del axes
    tx = optax.scale_by_adam(b1=config["b1"], b2=config["b2"], eps=config["eps"])
    return moments.held(tx, config["moments"])


def _lion(config: Mapping[str, Any], axes: Axes) -> optax.GradientTransformation:
    """Chen et al. 2023, arXiv:2302.06675: the sign of a momentum."""
    del axes
    return moments.held(optax.scale_by_lion(b1=config["b1"], b2=config["b2"]), config["moments"])


def _adafactor(config: Mapping[str, Any], axes: Axes) -> optax.GradientTransformation:
    """Shazeer and Stern 2018 with absolute steps, and a bound on the decay of the second moment
    (Zhai et al. 2022, arXiv:2106.04560). What the paper scales and clips by the norm of a whole
    array would mix the layers of a stack, and is left out.

    The two largest dimensions of an array are factored if both have `min_factored_size`, so that
    heads and layers keep statistics of their own.
    """
    del axes
    exponent, most = config["decay_exponent"], config["max_decay"]

    def decay(step: Any, exponent: Any) -> Any:
        return jnp.minimum(1.0 - (step + 1.0) ** -exponent, most)

    return optax.scale_by_factored_rms(
        decay_rate=exponent,
        min_dim_size_to_factor=config["min_factored_size"],
        epsilon=config["eps"],
        decay_rate_fn=decay,
    )


def _muon(config: Mapping[str, Any], axes: Axes) -> optax.GradientTransformation:
    """Jordan et al. 2024: an orthogonalised momentum for the matrices inside of the network; AdamW
    for everything else, embeddings and heads among it. Scaled to the RMS of AdamW's updates, so
    that its learning rates and decay carry over (Liu et al. 2025, arXiv:2502.16982).
    """
    matrices = {path: matrix_dims(names) for path, names in axes.items()}
    rms = config["update_rms"]

    def dims_of(updates: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: matrices[path_name(path)], updates)

    def rescale(path: str, update: jax.Array, _: Any) -> jax.Array:
        sides = (matrices[path].reduction_axis, matrices[path].output_axis)
        longest = max(math.prod(update.shape[axis] for axis in side) for side in sides)
        return update * (rms * longest**0.5)

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "adamw" if matrices[path_name(path)] is None else "muon", params
        )

    muon = optax.chain(
        moments.held(
            optax.contrib.scale_by_muon(
                ns_steps=config["newton_schulz_steps"],
                beta=config["momentum"],
                weight_dimension_numbers=dims_of,
            ),
            config["moments"],
        ),
        _leafwise(rescale),
    )
    return optax.partition({"muon": muon, "adamw": _adamw(config, axes)}, labels)


# Dimensions of the matrices inside of a network, by the side of the matrix that they are on. A
# dimension without a name counts matrices, as the layers of a stack do (value and gate of a
# feed-forward); a vocabulary, the pixels of a patch and a codebook are at the network's ends.
_SIDES = {"embed": "embed", "mlp": "mlp", "heads": "heads", "kv": "heads", "head_dim": "heads"}


def matrix_dims(names: tuple[str | None, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """The two sides of a parameter that is a stack of matrices, from its logical axis names; None
    for vectors, embeddings, heads and whatever else is no matrix."""
    sides: dict[str, list[int]] = {}
    for axis, name in enumerate(names):
        if name in ("layers", None):
            continue
        if name not in _SIDES:
            return None
        sides.setdefault(_SIDES[name], []).append(axis)
    if len(sides) != 2:
        return None
    return optax.contrib.MuonDimensionNumbers(*(tuple(axes) for axes in sides.values()))


# --- Schedules ---

WSD_DECAY_FRACTION = 0.1  # the last part of a warmup-stable-decay run


def _constant(config: Mapping[str, Any], steps: int) -> Schedule:
    del steps
    return optax.constant_schedule(config["peak_lr"])


def _cosine(config: Mapping[str, Any], steps: int) -> Schedule:
    return optax.cosine_decay_schedule(
        config["peak_lr"], steps, alpha=config["end_lr"] / config["peak_lr"]
    )


def _warmup(config: Mapping[str, Any]) -> Schedule:
    # Counts from one: step 0 must not be spent on a learning rate of zero.
    warmup, peak = config["warmup_steps"], config["peak_lr"]
    return lambda step: peak * (step + 1) / warmup


def _warmup_constant(config: Mapping[str, Any], steps: int) -> Schedule:
    return optax.join_schedules(
        [_warmup(config), _constant(config, steps)], [config["warmup_steps"]]
    )


def _warmup_cosine(config: Mapping[str, Any], steps: int) -> Schedule:
    warmup = config["warmup_steps"]
    return optax.join_schedules([_warmup(config), _cosine(config, steps - warmup)], [warmup])


def _wsd(config: Mapping[str, Any], steps: int) -> Schedule:
    warmup = config["warmup_steps"]
    decay = max(1, round(steps * WSD_DECAY_FRACTION))
    if warmup + decay > steps:
        raise ValueError(
            f"optimizer.warmup_steps={warmup} and a decay of {decay} steps exceed {steps} steps"
        )
    return optax.join_schedules(
        [
            _warmup(config),
            optax.constant_schedule(config["peak_lr"]),
            optax.linear_schedule(config["peak_lr"], config["end_lr"], decay),
        ],
        [warmup, steps - decay],
    )


# name -> (builder, whether warmup_steps counts)
SCHEDULES: dict[str, tuple[Callable[[Mapping[str, Any], int], Schedule], bool]] = {
    "constant": (_constant, False),
    "cosine": (_cosine, False),
    "warmup_constant": (_warmup_constant, True),
    "warmup_cosine": (_warmup_cosine, True),
    "wsd": (_wsd, True),
}


def make_schedule(config: Mapping[str, Any], total_steps: int) -> Schedule:
    """Learning rate as a function of the step (0 is the first update)."""
    build, warms_up = SCHEDULES[config["schedule"]]
    warmup = config["warmup_steps"]
    if warms_up and not 0 < warmup < total_steps or not warms_up and warmup != 0:
        need = f"between 1 and {total_steps - 1}" if warms_up else "0"
        raise ValueError(
            f"optimizer.warmup_steps={warmup} must be {need} with "
            f"optimizer.schedule={config['schedule']!r} and {total_steps} steps"
        )
    if config["end_lr"] > config["peak_lr"]:
        raise ValueError(
            f"optimizer.end_lr={config['end_lr']} must be at most "
            f"optimizer.peak_lr={config['peak_lr']}"
        )
    return build(config, total_steps)


# --- Settings ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Those of every optimizer."""

    schedule: Annotated[str, SCHEDULES, "of the learning rate"] = "warmup_cosine"
    peak_lr: Annotated[float, "(0, 100]", "the highest learning rate"] = 1e-3
    end_lr: Annotated[float, "[0, 100]", "the last one, at most peak_lr"] = 0.0
    warmup_steps: Annotated[
        int, "[0, 1e9]", "until peak_lr; 0 with schedules that do not warm up"
    ] = 100
    weight_decay: Annotated[float, "[0, 1e3]", "of matrices, times the learning rate"] = 0.0
    clip_norm: Annotated[
        float, "[0, 1e9]", "of all gradients together at most; 0.0: no clipping"
    ] = 1.0
    ema_decay: Annotated[
        float, "[0, 1)", "per step, of a moving average of the parameters; 0.0: none"
    ] = 0.0
    groups: Annotated[Mapping[str, Any], "of parameters, by name"] = dataclasses.field(
        default_factory=lambda: {"all": group_settings(".*")}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentsConfig(OptimizerConfig):
    """Those of every optimizer with moments of the size of the parameters."""

    moments: Annotated[str, MOMENTS, "how they are held between the steps"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(MomentsConfig):
    b1: Annotated[float, "[0, 1)", "decay of the first moment"] = 0.9
    b2: Annotated[float, "[0, 1)", "decay of the second moment"] = 0.95
    eps: Annotated[float, "(0, 1]", "added to the root of the second moment"] = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorConfig(OptimizerConfig):
    """No first moment, and the second one factored where both dimensions are large enough."""

    decay_exponent: Annotated[
        float, "(0, 1]", "the second moment decays by 1 - step^-decay_exponent"
    ] = 0.8
    max_decay: Annotated[float, "[0, 1)", "of the second moment at most"] = 0.999
    min_factored_size: Annotated[int, "[1, 1e9]", "of both dimensions that are factored"] = 128
    eps: Annotated[float, "(0, 1]", "added to squared gradients"] = 1e-30


@dataclasses.dataclass(frozen=True, kw_only=True)
class LionConfig(MomentsConfig):
    """Every update has an RMS of 1."""

    b1: Annotated[float, "[0, 1)", "how much of the momentum is in an update"] = 0.9
    b2: Annotated[float, "[0, 1)", "decay of the momentum"] = 0.99
    peak_lr: Annotated[float, "(0, 100]", "the highest learning rate"] = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonConfig(AdamWConfig):
    """b1, b2 and eps are of the AdamW that trains what is no matrix."""

    momentum: Annotated[float, "[0, 1)", "decay of the momentum of matrices"] = 0.95
    newton_schulz_steps: Annotated[int, "[1, 100]", "that make a momentum orthogonal"] = 5
    update_rms: Annotated[
        float, "(0, 100]", "AdamW's, so that its peak_lr and weight_decay carry over"
    ] = 0.2


# name → (dataclass of its settings, direction(config, axes))
OPTIMIZERS: dict[str, tuple[type, Callable[..., optax.GradientTransformation]]] = {
    "adamw": (AdamWConfig, _adamw),
    "adafactor": (AdafactorConfig, _adafactor),
    "lion": (LionConfig, _lion),
    "muon": (MuonConfig, _muon),
}


def optimizer_settings(name: str = "adamw") -> ConfigDict:
    """config.optimizer of a new config: every parameter in one group."""
    return named_settings(name, OPTIMIZERS, "optimizer")
