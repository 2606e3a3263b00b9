"""LoRA (Hu et al. 2021, arXiv:2106.09685): low-rank factors beside the kernels of dense layers.

A kernel W (*inputs, *outputs) acts as W + alpha / rank · A B, with A (*inputs, rank) and B (rank,
*outputs). B starts at zero, so a model starts as what it was. Which parameters train is a matter of
config.optimizer.groups, not of this file.
"""

import re

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn import int8
from lapa_jax.nn.layers import Dense
from lapa_jax.nn.module import Tree, flatten, unflatten


def adapt(module: nnx.Module, *, rank: int, alpha: float, pattern: str, rngs: nnx.Rngs) -> None:
    """Gives factors to every `Dense` of a module whose whole path ("attention/q") matches the
    regular expression, in place."""
    layers = {
        "/".join(map(str, path)): node
        for path, node in nnx.iter_graph(module)
        if isinstance(node, Dense)
    }
    chosen = sorted(path for path in layers if re.fullmatch(pattern, path))
    if not chosen:
        raise ValueError(
            f"model.lora_pattern={pattern!r} matches none of the dense layers {sorted(layers)}"
        )
    for path in chosen:
        layers[path].add_factors(rank, alpha / rank, rngs)


def is_adapted(params: Tree) -> bool:
    """Whether a model's parameters have factors."""
    return any(path.endswith("/lora_a") for path in flatten(params))


def merge(params: Tree, alpha: float, dtype: jnp.dtype = jnp.float32) -> Tree:
    """The parameters of the model without factors that computes the same but for rounding: kernels
    keep their dtype, and a base that is held in int8 or, beside wider factors, in bfloat16 becomes
    `dtype`. `alpha` as in the model's config."""
    flat = flatten(params)
    factors = [x for path, x in flat.items() if path.endswith("/lora_a")]
    if any(x.dtype == jnp.float32 for x in factors):
        held = {path: x for path, x in flat.items() if x.dtype == jnp.bfloat16}
        flat |= {path: x.astype(dtype) for path, x in held.items()}
    for path in [path for path in flat if path.endswith("/lora_a")]:
        layer = path.removesuffix("lora_a")
        a, b, kernel = flat.pop(path), flat.pop(layer + "lora_b"), flat[layer + "kernel"]
        kept = kernel.dtype
        if kept == jnp.int8:
            kernel, kept = int8.dequantize(kernel, flat.pop(layer + "kernel_scale")), dtype
        rank = a.shape[-1]
        stacked = kernel.shape[: a.ndim + b.ndim - 2 - kernel.ndim]  # dimensions of a layer stack
        change = jnp.matmul(
            a.reshape(*stacked, -1, rank),
            b.reshape(*stacked, rank, -1),
            precision=jax.lax.Precision.HIGHEST,
        )
        merged = kernel.astype(change.dtype) + (alpha / rank) * change.reshape(kernel.shape)
        flat[layer + "kernel"] = merged.astype(kept)
    return int8.as_floats(unflatten(flat), dtype)
