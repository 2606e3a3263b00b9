"""How many bytes a run holds between and during its steps, counted from shapes.

Not counted: activations, copies in the compute dtype (a layer's at a time, in a scan), what the
compiler needs besides. Gradients are counted once; with microbatches there is a sum of them beside.
"""

from typing import Any

import jax

from lapa_jax.training.optimizer import Optimizer


def held_bytes(params: Any, optimizer: Optimizer, *, ema: bool) -> dict[str, int]:
    """Bytes over all devices, of arrays or `jax.ShapeDtypeStruct`s: parameters, gradients,
    optimizer state, moving average."""
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
