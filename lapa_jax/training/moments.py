"""Moments of an optimizer in fewer bits between the steps: config.optimizer.moments.

`bfloat16` is two bytes. `float8` is one, and a float32 scale for each row (the last dimension) of
an array: x / max |x| of its row, of which the leading bit and three behind it are held, in
sixteen powers of two below 1; of second moments the square root, which has no sign, and four
bits. After Dettmers et al. 2022, arXiv:2110.02861: blocks with scales of their own, and codes
that are closer where values are small. Here blocks are rows, so that they are split over devices
as their array is.

A value is rounded up or down at random, by how near it is to both: to the nearest, an average
that a step changes by less than half a code would stand still. The random bits are a function of
the step alone. A second moment above zero is not rounded to zero: what it divides would explode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MOMENTS = ("float32", "bfloat16", "float8")
SHORTEST_ROW = 16  # of values: what has shorter rows, or is one, stays as it is


class Rows(NamedTuple):
    """A tree of arrays in 8 bits."""

    codes: Any  # int8, or uint8 of squares; float32 of what stays as it is
    scales: Any  # float32, one for each row, under the path of its codes


def held(tx: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """`tx`, whose state has `count`, `mu` and perhaps `nu`, of squares, with these two in `dtype`;
    at first they are zero."""
    if dtype == "float32":
        return tx
    coarse, fine = (_to_bfloat16, _from_bfloat16) if dtype == "bfloat16" else (_to_rows, _from_rows)

    def stored(state: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), state.count)
        return _replaced(state, lambda x, name: coarse(x, key, name == "nu"))

    def init(params: Any) -> Any:
        state = tx.init(params)
        shapes = jax.eval_shape(stored, state)
        zeros = lambda x: jnp.zeros(x.shape, x.dtype)  # noqa: E731
        return _replaced(state, lambda _, name: jax.tree.map(zeros, getattr(shapes, name)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        whole = _replaced(state, lambda x, name: fine(x, name == "nu"))
        updates, state = tx.update(updates, whole, params)
        return updates, stored(state)

    return optax.GradientTransformation(init, update)


def _replaced(state: Any, function: Callable[[Any, str], Any]) -> Any:
    """The state with function(moments, their name) in the place of its moments."""
    names = [name for name in ("mu", "nu") if hasattr(state, name)]
    return state._replace(**{name: function(getattr(state, name), name) for name in names})


def _rounded_down(bits: jax.Array, dropped: int, key: jax.Array, squares: bool) -> jax.Array:
    """uint32 without its last bits, `dropped` of them, or one more: the likelier, the larger these
    are. The two moments share random numbers, of which each has a half."""
    drawn = jax.random.bits(key, bits.shape, jnp.uint32)
    part = drawn & 0xFFFF if squares else drawn >> 16
    return (bits + (part << (dropped - 16))) >> dropped


def _each(function: Callable[..., Any], key: jax.Array, *trees: Any) -> Any:
    """function(key, *leaves), with a key for each."""
    leaves, structure = jax.tree.flatten(trees[0])
    keys = jax.tree.unflatten(structure, [jax.random.fold_in(key, i) for i in range(len(leaves))])
    return jax.tree.map(function, keys, *trees)


# --- bfloat16 ---


def _to_bfloat16(tree: Any, key: jax.Array, squares: bool) -> Any:
    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        bits = _rounded_down(jax.lax.bitcast_convert_type(x, jnp.uint32), 16, key, squares)
        return jax.lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)

    return _each(one, key, tree)


def _from_bfloat16(tree: Any, squares: bool) -> Any:
    del squares
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


# --- 8 bits ---


def _to_rows(tree: Any, key: jax.Array, squares: bool) -> Rows:
    if squares:
        tree = jax.tree.map(lambda x: jnp.sqrt(x) if _has_rows(x) else x, tree)
    scales = jax.tree.map(lambda x: jnp.abs(x).max(-1) if _has_rows(x) else None, tree)

    def one(key: jax.Array, x: jax.Array, scale: jax.Array | None) -> jax.Array:
        return x if scale is None else _encode(x, scale, key, squares)

    return Rows(_each(one, key, tree, scales), scales)


def _from_rows(tree: Rows, squares: bool) -> Any:
    def one(codes: jax.Array, scale: jax.Array | None) -> jax.Array:
        if scale is None:
            return codes
        x = _decode(codes, scale, squares)
        return x * x if squares else x

    return jax.tree.map(one, *tree)


def _has_rows(x: jax.Array) -> bool:
    return x.ndim > 1 and x.shape[-1] >= SHORTEST_ROW


# A code is the number of a float32 of [0, 1] without its last bits, counted from below so that 1.0
# has the largest one.
_ONE = 127 << 23  # 1.0


def _format(squares: bool) -> tuple[int, int, int]:
    """(bits that are dropped, the largest code, what is taken from a number to have its code)."""
    dropped, largest = (19, 255) if squares else (20, 127)
    return dropped, largest, (_ONE >> dropped) - largest


def _encode(x: jax.Array, scale: jax.Array, key: jax.Array, squares: bool) -> jax.Array:
    dropped, largest, offset = _format(squares)
    part = jnp.abs(x) / jnp.where(scale > 0.0, scale, 1.0)[..., None]
    bits = _rounded_down(jax.lax.bitcast_convert_type(part, jnp.uint32), dropped, key, squares)
    code = jnp.clip(bits.astype(jnp.int32) - offset, 0, largest)
    if squares:
        return jnp.where(x > 0.0, jnp.maximum(code, 1), 0).astype(jnp.uint8)
    return jnp.where(x < 0.0, -code, code).astype(jnp.int8)


def _decode(codes: jax.Array, scale: jax.Array, squares: bool) -> jax.Array:
    dropped, _, offset = _format(squares)
    code = jnp.abs(codes.astype(jnp.int32))
    part = jax.lax.bitcast_convert_type((code + offset) << dropped, jnp.float32)
    return jnp.where(code > 0, jnp.sign(codes).astype(jnp.float32) * part, 0.0) * scale[..., None]
