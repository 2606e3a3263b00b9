"""Learning-rate schedules from config.optimizer."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

Schedule = Callable[[Any], Any]
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
