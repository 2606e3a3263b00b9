"""Parameters that are held in fewer bits than they would train in, and computed with as floats.

int8 is for weights alone, symmetric and to the nearest: a block of weights w is held as
q = round(w / s), int8, and its scale s = max |w| / 127, float32. A block is all that one output of
a matrix sums over, or a group of `group` inputs of it. Zero stays zero, and no value is off by more
than s / 2. What is computed with is q · s.

The scale has the rank of what it scales, with one value for each block along every dimension: of a
kernel (*inputs, *outputs) it is (1, ..., 1, *outputs), or (*inputs[:-1], inputs[-1] / group,
*outputs). It stands beside its values, under their name and SCALE.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.module import AXES, Held, Tree, flatten, unflatten

SCALE = "_scale"
HELD = ("bfloat16", "int8")


def scale_shape(shape: Sequence[int], inputs: Sequence[int], group: int = 0) -> tuple[int, ...]:
    """The shape of the scale of values of this shape, which are summed over the dimensions
    `inputs`. `group`: of values along the last of them that share a scale; 0: all share it.

    Raises ValueError where the group does not divide that dimension.
    """
    found = [1 if axis in inputs else size for axis, size in enumerate(shape)]
    if group:
        *others, last = inputs
        if shape[last] % group:
            raise ValueError(f"groups of {group} do not divide the {shape[last]} inputs of {shape}")
        for axis in others:
            found[axis] = shape[axis]
        found[last] = shape[last] // group
    return tuple(found)


def quantize(x: jax.Array, shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """(values int8, scale float32 of this shape); `x` may lead with dimensions of a stack, which
    then `shape` has, too."""
    blocks = _blocks(x.astype(jnp.float32), shape)
    inside = tuple(range(1, blocks.ndim, 2))
    scale = jnp.abs(blocks).max(inside, keepdims=True) / 127.0
    values = jnp.round(blocks / jnp.where(scale > 0.0, scale, 1.0))
    return values.astype(jnp.int8).reshape(x.shape), scale.reshape(shape)


def dequantize(values: jax.Array, scale: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """What `quantize` was given, but for rounding."""
    if all(s in (1, n) for s, n in zip(scale.shape, values.shape, strict=True)):
        return (values.astype(jnp.float32) * scale).astype(dtype)
    wide = scale.reshape([n for s in scale.shape for n in (s, 1)])
    whole = _blocks(values.astype(jnp.float32), scale.shape) * wide
    return whole.reshape(values.shape).astype(dtype)


def relative_error(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    """Root mean square of what quantising changed, as a part of that of `x`; float32."""
    x = x.astype(jnp.float32)
    error = jnp.square(dequantize(values, scale) - x).mean()
    return jnp.sqrt(error / jnp.maximum(jnp.square(x).mean(), jnp.finfo(jnp.float32).tiny))


def _blocks(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Every dimension as two: blocks, and inside of one."""
    if any(n % s for n, s in zip(x.shape, shape, strict=True)):
        raise ValueError(f"a scale of shape {tuple(shape)} does not divide {x.shape}")
    return x.reshape([m for n, s in zip(x.shape, shape, strict=True) for m in (s, n // s)])


# --- In modules ---


def hold(module: nnx.Module, name: str, dtype: str, inputs: Sequence[int]) -> None:
    """Holds a parameter of a module as `dtype`, of HELD, in place; `inputs` as of `scale_shape`."""
    parameter = getattr(module, name)
    x, axes = parameter[...], parameter.get_metadata()[AXES]
    if dtype != "int8":
        setattr(module, name, Held(x.astype(dtype), **{AXES: axes}))
        return
    shape = scale_shape(x.shape, inputs)
    values, scale = quantize(x, shape)
    setattr(module, name, Held(values, **{AXES: axes}))
    of_scale = tuple(None if n == 1 else axis for n, axis in zip(shape, axes, strict=True))
    setattr(module, name + SCALE, nnx.data(Held(scale, **{AXES: of_scale})))


def hold_all(node: Any, dtype: str) -> None:
    """Calls `hold(dtype)` of every module in there that has it: dense layers, tables."""
    for _, module in list(nnx.iter_graph(node)):
        if hasattr(module, "hold"):
            module.hold(dtype)


# --- In trees of parameters ---


def scales(params: Tree) -> dict[str, str]:
    """{path of values in int8: path of their scale}."""
    flat = flatten(params)
    return {p: p + SCALE for p, x in flat.items() if x.dtype == jnp.int8 and p + SCALE in flat}


def as_floats(params: Tree, dtype: jnp.dtype) -> Tree:
    """The parameters of the model that holds nothing in int8 and computes the same."""
    flat = flatten(params)
    for path, scale in scales(params).items():
        flat[path] = dequantize(flat[path], flat.pop(scale), dtype)
    return unflatten(flat)
