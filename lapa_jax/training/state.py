"""TrainState: one pytree with everything that training mutates.

Nothing that matters lives outside of it: codebook statistics are in `variables`, randomness is a
function of (seed, step). Shardings of the optimizer state and of the EMA follow the parameters'.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lapa_jax.parallel.sharding import ShardingError, replicated
from lapa_jax.parallel.trees import flatten, path_name
from lapa_jax.training.optimizer import Optimizer


@flax.struct.dataclass
class TrainState:
    """State after `step` updates."""

    step: jax.Array  # int32
    params: Any  # nested dict of arrays
    opt_state: Any
    ema: Any  # of the trained parameters (None in place of the others), or None
    variables: Any  # nested dict of arrays that no gradient trains
    seed: jax.Array  # uint32
    loss_stats: jax.Array  # float32 (3,), of guard.py


def create(
    params: Any, variables: Any, optimizer: Optimizer | None, seed: int, *, ema: bool
) -> TrainState:
    """The state before the first step; works under jit and eval_shape. Without an optimizer: of a
    model that is not trained here."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={} if optimizer is None else optimizer.init(params),
        ema=first_average(params, optimizer) if ema else None,
        variables=variables,
        seed=jnp.asarray(seed, jnp.uint32),
        loss_stats=jnp.zeros(3),
    )


def first_average(params: Any, optimizer: Optimizer) -> Any:
    """The moving average before the first step: the trained parameters.

    A copy: donating a state whose EMA shares the buffers of its parameters is an error.
    """
    return jax.tree.map(jnp.copy, optimizer.split(params)[0])


def held_bytes(params: Any, optimizer: Optimizer, *, ema: bool) -> dict[str, int]:
    """Bytes that a run holds between and during its steps, over all devices, of arrays or
    `jax.ShapeDtypeStruct`s: parameters, gradients, optimizer state, moving average.

    Not counted: activations, copies in the compute dtype (a layer's at a time, in a scan), what the
    compiler needs besides. Gradients are counted once; with microbatches there is a sum of them
    beside.
    """
    trained, _ = optimizer.split(params)
    return {
        "parameters": tree_bytes(params),
        "gradients": tree_bytes(trained),
        "optimizer": tree_bytes(jax.eval_shape(optimizer.tx.init, trained)),
        "average": tree_bytes(trained) if ema else 0,
    }


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_shardings(abstract_state: TrainState, param_shardings: Any, mesh: Mesh) -> TrainState:
    """Shardings of a whole state, given those of its parameters.

    A leaf of the optimizer state belongs to the parameter whose path ends its own path. It has that
    parameter's shape, or lacks one of its dimensions (a factored moment), or is a single value.
    Single values and what belongs to no parameter are replicated.
    """
    everywhere = replicated(mesh)
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_state.params).items()}
    sharding_of = flatten(param_shardings)
    if set(shapes) != set(sharding_of):
        raise ShardingError(
            f"parameters and their shardings differ in {sorted(set(shapes) ^ set(sharding_of))}"
        )

    def of_optimizer(path: tuple, leaf: Any) -> NamedSharding:
        name = _parameter(path)
        if not name or leaf.size == 1:
            return everywhere
        if name in shapes:
            found = _reduced(leaf.shape, shapes[name], sharding_of[name])
            if found is not None:
                return found
        raise ShardingError(
            f"optimizer state {jax.tree_util.keystr(path)} of shape {leaf.shape} is neither a "
            f"scalar nor shaped as a parameter: teach lapa_jax/training/state.py its sharding"
        )

    return TrainState(
        step=everywhere,
        params=param_shardings,
        opt_state=jax.tree_util.tree_map_with_path(of_optimizer, abstract_state.opt_state),
        ema=jax.tree_util.tree_map_with_path(
            lambda path, _: sharding_of[_parameter(path)], abstract_state.ema
        ),
        variables=jax.tree.map(lambda _: everywhere, abstract_state.variables),
        seed=everywhere,
        loss_stats=everywhere,
    )


def with_shardings(abstract_state: Any, shardings: Any) -> Any:
    """Abstract arrays that carry shardings: what a checkpoint is restored to."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract_state, shardings
    )


def _reduced(
    shape: tuple[int, ...], of: tuple[int, ...], sharding: NamedSharding
) -> NamedSharding | None:
    """The sharding of an array shaped as the parameter, or as it without one dimension; where two
    dimensions would do and are split differently, it is whole on every device."""
    if shape == of:
        return sharding
    spec = (*sharding.spec, *[None] * (len(of) - len(sharding.spec)))
    specs = {
        (*spec[:axis], *spec[axis + 1 :])
        for axis in range(len(of))
        if (*of[:axis], *of[axis + 1 :]) == shape
    }
    if not specs:
        return None
    mesh = sharding.mesh
    return NamedSharding(mesh, PartitionSpec(*specs.pop())) if len(specs) == 1 else replicated(mesh)


def _parameter(path: tuple) -> str:
    """The dict keys that end a path: the path of the parameter inside an optimizer's state."""
    first = len(path)
    while first and isinstance(path[first - 1], jax.tree_util.DictKey):
        first -= 1
    return path_name(path[first:])
