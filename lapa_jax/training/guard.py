"""The loss guard: what happens to a step that is not finite, or whose loss leaps.

The step itself tells (step.py), so that `skip` can leave the state as it was: a step later is too
late. The other actions are the host's, when it has fetched the metrics. What was done is in
`WORKDIR/guard.jsonl`, a line for each step; `lapa data batch --workdir WORKDIR --step BATCH` shows
its examples.

stop      the run ends; nothing of that step is saved
skip      the step changes nothing; training goes on with the next batch
rollback  the run goes back to its newest checkpoint and, when it comes to that step again, leaves
          its batch out (as PaLM's training did, arXiv:2204.02311, section 5.1)
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
from absl import logging

from data_pipelines.storage import places
from lapa_jax.training.run_files import GUARD_FILE

ACTIONS = ("stop", "skip", "rollback")


class NonFiniteError(FloatingPointError):
    """The loss, the gradients or the update of a step hold a NaN or an infinity."""


class LossSpikeError(FloatingPointError):
    """The loss of a step is far above those before it."""


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """The keys of `config.guard`."""

    action: Annotated[str, ACTIONS, "what happens to a step that is not finite or a spike"] = "stop"
    spike_sigmas: Annotated[
        float, "[0, 1e6]", "of the loss above its mean; 0.0: no loss is a spike"
    ] = 0.0
    memory_steps: Annotated[
        int, "[1, 1e9]", "of mean and deviation; before so many steps none is a spike"
    ] = 100
    max_events: Annotated[
        int, "[0, 1e9]", "steps skipped or rolled back; one more stops the run"
    ] = 20


OFF = GuardConfig(action="stop", spike_sigmas=0.0, memory_steps=1, max_events=0)


# --- In the step: running statistics of the loss, float32 (3,): count, mean, variance ---


def is_spike(stats: jax.Array, loss: jax.Array, guard: GuardConfig) -> jax.Array:
    """Whether `loss` is more than `spike_sigmas` deviations above the mean of `memory_steps`."""
    count, mean, variance = stats
    above = loss > mean + guard.spike_sigmas * jnp.sqrt(variance)
    return above & (count >= guard.memory_steps)


def remember(stats: jax.Array, loss: jax.Array, memory_steps: int) -> jax.Array:
    """The statistics with one more loss: of all so far, later with weights that decay."""
    count, mean, variance = stats
    new = jnp.maximum(1.0 / (count + 1.0), 1.0 / memory_steps)
    away = loss - mean
    variance = (1.0 - new) * (variance + new * away * away)
    return jnp.stack([count + 1.0, mean + new * away, variance])


# --- On the host ---


class Guard:
    """Acts on what steps tell, the same in every process; process 0 keeps the file."""

    def __init__(
        self, config: GuardConfig, workdir: Path, step: int, lines: list[dict], *, first: bool
    ):
        """`step`: where the run starts; `lines`: of the file so far. Those of skipped steps after
        it are dropped: they are met again."""
        self._config, self._path, self._first = config, workdir / GUARD_FILE, first
        self._lines = [x for x in lines if x["action"] != "skip" or x["step"] <= step]
        self.left_out = {x["step"] for x in self._lines if x["action"] == "rollback"}
        self.goes_back = False
        if first and self._path.exists():
            self._write()

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises where the run must end; else notes what the step was spared, or `goes_back`."""
        if not (metrics["nonfinite"] or metrics["spike"]):
            return
        action = self._config.action
        kind = "is not finite" if metrics["nonfinite"] else "leaps"
        told = {k: float(metrics[k]) for k in ("loss", "grad_norm", "update_norm")}
        text = f"step {step} {kind}: " + ", ".join(f"{k}={x:.6g}" for k, x in told.items())
        error = NonFiniteError if metrics["nonfinite"] else LossSpikeError
        if action == "stop":
            raise error(
                f"{text}. `lapa data batch --step {step - 1}` shows its examples. Lower "
                f"optimizer.peak_lr, set optimizer.clip_norm, or go on without such steps: "
                f"guard.action='skip' or 'rollback'"
            )
        told = {k: x if math.isfinite(x) else str(x) for k, x in told.items()}
        line = {"step": step, "batch": step - 1, "action": action, "reason": kind, **told}
        self._lines.append(line)
        if len(self._lines) > self._config.max_events:
            raise error(
                f"{text}. It is step number {len(self._lines)} of this kind, and "
                f"guard.max_events={self._config.max_events}: see {self._path}"
            )
        logging.warning("%s: %s. Its examples: lapa data batch --step %d", text, action, step - 1)
        self.goes_back = action == "rollback"
        if self._first:
            self._write()

    def _write(self) -> None:
        places.replace(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))


def read(workdir: str | Path) -> list[dict]:
    """The lines of a run's guard.jsonl, oldest first. Raises ValueError where it is damaged."""
    path = places.directory(workdir) / GUARD_FILE
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if any(x["action"] not in ACTIONS or not isinstance(x["step"], int) for x in lines):
            raise ValueError("a line is of no step")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): it says which batches are left "
            f"out. Restore it; or remove it, and those that the guard rolled back are met again"
        ) from error
    return lines
