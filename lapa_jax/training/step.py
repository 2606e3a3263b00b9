"""The update step: gradients of a stage's loss, accumulated over microbatches, one optimizer step.

`train_step(state, batch) -> (state, metrics)` is pure: randomness is a function of (seed, step).

The update is the same for any number of microbatches if the loss is a mean over examples. A loss
whose examples count differently, sum(w · l) / sum(w), says how much there was: with
metrics["loss_weight"] = sum(w), microbatches are averaged by that weight (loss, gradients and all
other metrics), and the metric becomes their sum. A microbatch of weight zero must have a finite
loss.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lapa_jax.parallel.sharding import constrain
from lapa_jax.training import guard as guards
from lapa_jax.training.groups import merge
from lapa_jax.training.optimizer import Optimizer
from lapa_jax.training.state import TrainState

# (params, variables, batch, rng) -> (loss, metrics, variables)
LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array], Any]]
# (params, variables, step, rng) -> (params, variables)
AfterUpdate = Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, Any]]

LOSS_WEIGHT = "loss_weight"
STEP_METRICS = (
    *("loss", "grad_norm", "param_norm", "update_norm", "learning_rate"),
    *("nonfinite", "spike"),
)


def make_train_step(
    loss_fn: LossFn,
    optimizer: Optimizer,
    *,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    after_update: AfterUpdate | None = None,
    guard: guards.GuardConfig = guards.OFF,
    gather: Callable[[Any], Any] = lambda params: params,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step. Frozen parameters are not differentiated, and `grad_norm` does not count
    them. `gather` makes of the parameters as they are stored those that the loss is given.

    metrics["nonfinite"] is 1 if the loss, the gradients or the update hold a NaN or an infinity,
    metrics["spike"] if the loss is one (guard.py). With guard.action "skip" such a step changes
    nothing but its number; with the others the update is applied, and the loop must not save it.
    """
    if microbatches < 1:
        raise ValueError(f"microbatches={microbatches} must be at least 1")
    if not 0.0 <= ema_decay < 1.0:
        raise ValueError(f"optimizer.ema_decay={ema_decay} must be in [0, 1); 0: no EMA")

    def train_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict]:
        if (state.ema is None) != (ema_decay == 0.0):
            raise ValueError(
                f"optimizer.ema_decay={ema_decay}, but the state has "
                f"{'no' if state.ema is None else 'an'} EMA"
            )
        step_rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
        loss_rng, after_rng = jax.random.split(step_rng)
        trained, frozen = optimizer.split(state.params)

        # --- Gradients ---
        def grads_of(variables: Any, rows: Any, rng: jax.Array) -> tuple[Any, tuple]:
            def loss_of(trained: Any) -> tuple[jax.Array, tuple]:
                params = gather(merge(trained, frozen))
                loss, metrics, new_variables = loss_fn(params, variables, rows, rng)
                return loss.astype(jnp.float32), (metrics, new_variables)

            (loss, (metrics, variables)), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
            return variables, (grads, loss, metrics)

        if microbatches == 1:
            variables, (grads, loss, metrics) = grads_of(state.variables, batch, loss_rng)
        else:
            variables, (grads, loss, metrics) = _accumulate(
                grads_of, state.variables, split_batch(batch, microbatches), loss_rng
            )
        taken = sorted(set(metrics) & set(STEP_METRICS))
        if taken:
            raise ValueError(f"the stage's metrics {taken} are names of the step; rename them")

        # --- Update ---
        grad_norm = optax.global_norm(grads)
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, trained)
        update_norm = optax.global_norm(updates)
        params = merge(optax.apply_updates(trained, updates), frozen)
        if after_update is not None:
            params, variables = after_update(params, variables, state.step, after_rng)
        ema = state.ema
        if ema is not None:
            ema = jax.tree.map(
                lambda e, p: ema_decay * e + (1.0 - ema_decay) * p, ema, optimizer.split(params)[0]
            )

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
        metrics = {
            **metrics,
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": optax.global_norm(params),
            "update_norm": update_norm,
            "learning_rate": jnp.asarray(optimizer.schedule(state.step), jnp.float32),
            "nonfinite": 1.0 - finite.astype(jnp.float32),
        }
        spike = jnp.zeros((), bool)
        if guard.spike_sigmas:
            spike = finite & guards.is_spike(state.loss_stats, loss, guard)
        metrics["spike"] = spike.astype(jnp.float32)
        good = finite & ~spike
        new = state.replace(
            params=params,
            opt_state=opt_state,
            ema=ema,
            variables=variables,
            loss_stats=guards.remember(state.loss_stats, loss, guard.memory_steps),
        )
        if guard.action == "skip":
            new = jax.tree.map(lambda old, new: jnp.where(good, new, old), state, new)
        return new.replace(step=state.step + 1), metrics

    return train_step


def split_batch(batch: Any, microbatches: int) -> Any:
    """(B, ...) -> (microbatches, B / microbatches, ...), each spread over all data shards.

    Microbatch m takes rows m, m + microbatches, ...: rows that lie on a device stay there.
    """

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % microbatches:
            raise ValueError(
                f"a batch of {x.shape[0]} does not split into microbatches={microbatches}"
            )
        rows = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
        rows = rows.swapaxes(0, 1)
        return constrain(rows, None, "batch", *(None,) * (x.ndim - 1))

    return jax.tree.map(split, batch)


def _accumulate(grads_of: Callable, variables: Any, batches: Any, rng: jax.Array) -> tuple:
    """Weighted means over microbatches, in at least float32; `variables` pass through in order."""
    count = jax.tree.leaves(batches)[0].shape[0]

    def one(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        variables, total, total_weight = carry
        rows, index = inputs
        variables, new = grads_of(variables, rows, jax.random.fold_in(rng, index))
        weight = jnp.asarray(new[2].get(LOSS_WEIGHT, 1.0), jnp.float32)
        total = jax.tree.map(lambda t, x: t + weight * x, total, new)
        return (variables, total, total_weight + weight), None

    first = jax.tree.map(lambda x: x[0], batches)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
        jax.eval_shape(grads_of, variables, first, rng)[1],
    )
    carry = (variables, zeros, jnp.zeros((), jnp.float32))
    (variables, total, weight), _ = jax.lax.scan(one, carry, (batches, jnp.arange(count)))
    grads, loss, metrics = jax.tree.map(lambda x: x / weight, total)
    if LOSS_WEIGHT in metrics:
        metrics = metrics | {LOSS_WEIGHT: weight}
    return variables, (grads, loss, metrics)
