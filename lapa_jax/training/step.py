"""The update step: gradients of a stage's loss, accumulated over microbatches, one optimizer step.

`train_step(state, batch) -> (state, metrics)` is pure: randomness is a function of (seed, step).
The loss is averaged over microbatches, so a loss that is a mean over examples gives the same
update for any number of microbatches.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lapa_jax.parallel.sharding import constrain
from lapa_jax.training.optimizer import Schedule, trainable_mask
from lapa_jax.training.state import TrainState

# (params, variables, batch, rng) -> (loss, metrics, variables)
LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array], Any]]
# (params, variables, step, rng) -> (params, variables)
AfterUpdate = Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, Any]]

STEP_METRICS = ("loss", "grad_norm", "param_norm", "update_norm", "learning_rate", "nonfinite")


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    schedule: Schedule,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    after_update: AfterUpdate | None = None,
    trainable: Callable[[tuple[str, ...]], bool] = lambda path: True,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step. Give it the same `trainable` as `make_optimizer`: frozen parameters are not
    differentiated, and `grad_norm` does not count them.

    metrics["nonfinite"] is 1 if the loss, the gradients or the update hold a NaN or an infinity.
    The update is applied all the same: the loop stops, and must not save that state.
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
        mask = trainable_mask(state.params, trainable)
        trained, frozen = _select(state.params, mask, True), _select(state.params, mask, False)

        # --- Gradients ---
        def grads_of(variables: Any, rows: Any, rng: jax.Array) -> tuple[Any, tuple]:
            def loss_of(trained: Any) -> tuple[jax.Array, tuple]:
                params = _merge(trained, frozen)
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
        zeros = jax.tree.map(jnp.zeros_like, frozen)
        updates, opt_state = tx.update(_merge(grads, zeros), state.opt_state, state.params)
        update_norm = optax.global_norm(updates)
        params = optax.apply_updates(state.params, updates)
        if after_update is not None:
            params, variables = after_update(params, variables, state.step, after_rng)
        ema = state.ema
        if ema is not None:
            # Frozen parameters stay as they are: averaging equal values would still round them.
            ema = jax.tree.map(
                lambda e, p, m: ema_decay * e + (1.0 - ema_decay) * p if m else e,
                ema,
                params,
                mask,
            )

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
        metrics = {
            **metrics,
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": optax.global_norm(params),
            "update_norm": update_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "nonfinite": 1.0 - finite.astype(jnp.float32),
        }
        state = state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, ema=ema, variables=variables
        )
        return state, metrics

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
    """Means over microbatches, in the dtype of the gradients; `variables` pass through in order."""
    count = jax.tree.leaves(batches)[0].shape[0]

    def one(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        variables, total = carry
        rows, index = inputs
        variables, new = grads_of(variables, rows, jax.random.fold_in(rng, index))
        return (variables, jax.tree.map(jnp.add, total, new)), None

    first = jax.tree.map(lambda x: x[0], batches)
    shapes = jax.eval_shape(grads_of, variables, first, rng)[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (variables, total), _ = jax.lax.scan(one, (variables, zeros), (batches, jnp.arange(count)))
    return variables, jax.tree.map(lambda x: x / count, total)


def _select(params: Any, mask: Any, keep: bool) -> Any:
    """`params` with None in place of the leaves whose mask differs from `keep`."""
    return jax.tree.map(lambda p, m: p if m == keep else None, params, mask)


def _merge(left: Any, right: Any) -> Any:
    """Undoes `_select`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, left, right, is_leaf=lambda x: x is None
    )
