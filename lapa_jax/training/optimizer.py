"""Optimizer and learning-rate schedule from config.optimizer.

Weight decay applies to arrays of rank >= 2, not counting the dimension of stacked layers. Frozen
parameters get no update and no moments. Every key must be present (defaults live with the
experiments) and an unknown one is an error.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[Any], Any]
KEYS = (
    "name",
    "peak_lr",
    "end_lr",
    "warmup_steps",
    "schedule",
    "weight_decay",
    "clip_norm",  # 0: no clipping
    "b1",
    "b2",
    "eps",
    "pretrained_lr_scale",  # of the updates of parameters that init_from gives; 0: frozen
    "ema_decay",  # 0: no EMA; read by the loop
)
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
    if config["schedule"] not in SCHEDULES:
        raise ValueError(
            f"optimizer.schedule={config['schedule']!r} is unknown; known: {sorted(SCHEDULES)}"
        )
    build, warms_up = SCHEDULES[config["schedule"]]
    warmup = config["warmup_steps"]
    if warms_up and not 0 < warmup < total_steps or not warms_up and warmup != 0:
        need = f"between 1 and {total_steps - 1}" if warms_up else "0"
        raise ValueError(
            f"optimizer.warmup_steps={warmup} must be {need} with "
            f"optimizer.schedule={config['schedule']!r} and {total_steps} steps"
        )
    if not config["peak_lr"] > 0 or not 0 <= config["end_lr"] <= config["peak_lr"]:
        raise ValueError(
            f"optimizer.peak_lr={config['peak_lr']}, optimizer.end_lr={config['end_lr']}: need "
            f"0 < peak_lr and 0 <= end_lr <= peak_lr"
        )
    return build(config, total_steps)


def _adamw(
    config: Mapping[str, Any], schedule: Schedule, decayed: Callable[[Any], Any]
) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=config["b1"],
        b2=config["b2"],
        eps=config["eps"],
        weight_decay=config["weight_decay"],
        mask=decayed,
    )


# name -> builder(config, schedule, mask of the parameters that decay)
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": _adamw}


def trainable_mask(params: Any, trainable: Callable[[tuple[str, ...]], bool]) -> Any:
    """True for the parameters that train. `trainable` sees a path: ("blocks", "mlp", "kernel")."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(trainable(tuple(entry.key for entry in path))), params
    )


def _decay_mask(axes: Any) -> Callable[[Any], Any]:
    """The arrays that decay: matrices and above, where a stack of vectors is no matrix."""
    stacked = {
        path
        for path, names in jax.tree_util.tree_flatten_with_path(
            axes, is_leaf=lambda x: isinstance(x, tuple)
        )[0]
        if "layers" in names
    }
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.ndim(p) - (path in stacked) >= 2, params
    )


def make_optimizer(
    config: Mapping[str, Any],
    total_steps: int,
    trainable: Callable[[tuple[str, ...]], bool] = lambda path: True,
    *,
    axes: Any = None,
    pretrained: Collection[str] = (),
) -> tuple[optax.GradientTransformation, Schedule]:
    """The transformation and its schedule. Clipping sees the norm of the trained gradients only.

    `axes`: the logical axis names of the parameters, needed where layers are stacked.
    `pretrained`: slash-separated paths of parameters that another run has trained; their updates
    are multiplied by `pretrained_lr_scale` (Howard and Ruder 2018, section 3.2).
    """
    unknown, missing = sorted(set(config) - set(KEYS)), sorted(set(KEYS) - set(config))
    if unknown or missing:
        raise ValueError(
            f"config.optimizer has unknown keys {unknown} and lacks {missing}; known: {KEYS}"
        )
    if config["name"] not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name={config['name']!r} is unknown; known: {sorted(OPTIMIZERS)}"
        )
    if config["clip_norm"] < 0:
        raise ValueError(f"optimizer.clip_norm={config['clip_norm']} must be positive, or 0: none")
    schedule = make_schedule(config, total_steps)
    inner = OPTIMIZERS[config["name"]](config, schedule, _decay_mask(axes))
    if config["clip_norm"]:
        inner = optax.chain(optax.clip_by_global_norm(config["clip_norm"]), inner)
    scale = config["pretrained_lr_scale"]
    if not 0.0 <= scale <= 1.0:
        raise ValueError(f"optimizer.pretrained_lr_scale={scale} must be in [0, 1]")
    if pretrained and scale != 1.0:
        taken = frozenset(pretrained)
        inner = optax.chain(
            inner,
            optax.masked(
                optax.scale(scale),
                lambda params: trainable_mask(params, lambda path: "/".join(path) in taken),
            ),
        )

    def labels(params: Any) -> Any:
        mask = trainable_mask(params, trainable)
        if not any(jax.tree.leaves(mask)):
            raise ValueError("no parameter is trainable: check the stage's trainable(path)")
        return jax.tree.map(lambda trains: "trained" if trains else "frozen", mask)

    tx = optax.multi_transform({"trained": inner, "frozen": optax.set_to_zero()}, labels)
    return tx, schedule
