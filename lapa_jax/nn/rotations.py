"""Rotation matrices of n dimensions: made of any matrices, and composed.

All in float32 with exact products, whatever the compute dtype: in bfloat16, or with the products
that TPUs and GPUs do by default, what comes out is orthogonal to a hundredth only.

Shape suffixes: N rows and columns.
"""

import jax
import jax.numpy as jnp

SQUARINGS, TERMS = 4, 8  # exact to float32 up to a norm of 10
FLOOR = 1e-6  # of the sums of singular values, as a part of the largest


def product(*matrices_NN: jax.Array) -> jax.Array:
    """The matrix product (..., N, N), float32."""
    first, *others = matrices_NN
    for other in others:
        first = jnp.matmul(first, other, precision=jax.lax.Precision.HIGHEST)
    return first


def exponential(matrix_NN: jax.Array) -> jax.Array:
    """exp(A), A the skew part of matrices (..., N, N): a rotation for any, smooth everywhere. A
    Taylor series of A / 2^SQUARINGS, squared so often."""
    skew = 0.5 * (matrix_NN - matrix_NN.swapaxes(-1, -2)).astype(jnp.float32)
    identity = jnp.eye(skew.shape[-1], dtype=jnp.float32)
    skew = skew / 2**SQUARINGS
    total = identity
    for k in range(TERMS, 0, -1):  # Horner's form
        total = identity + product(skew, total) / k
    for _ in range(SQUARINGS):
        total = product(total, total)
    return total


@jax.custom_vjp
def nearest(matrix_NN: jax.Array) -> jax.Array:
    """The rotation nearest to matrices (..., N, N) with singular values: U diag(1, …, det U Vᵀ) Vᵀ
    of M = U S Vᵀ.

    Its gradient is its own: that of the factors divides by differences of singular values, which
    are zero where M is a rotation already; that of the rotation by their sums.
    """
    return _nearest_forward(matrix_NN)[0]


def _nearest_forward(matrix_NN):
    U, s_N, Vt = jnp.linalg.svd(matrix_NN.astype(jnp.float32), full_matrices=False)
    sign = jnp.sign(jnp.linalg.det(product(U, Vt)))[..., None]
    U = jnp.concatenate([U[..., :-1], U[..., -1:] * sign[..., None]], axis=-1)
    s_N = jnp.concatenate([s_N[..., :-1], s_N[..., -1:] * sign], axis=-1)
    return product(U, Vt), (U, s_N, Vt, matrix_NN[..., :0, :0])


def _nearest_backward(saved, g_NN):
    U, s_N, Vt, like = saved
    x = product(U.swapaxes(-1, -2), g_NN.astype(jnp.float32), Vt.swapaxes(-1, -2))
    sums = s_N[..., :, None] + s_N[..., None, :]
    floor = FLOOR * jnp.maximum(s_N[..., :1, None], FLOOR)
    sums = jnp.where(jnp.abs(sums) < floor, jnp.where(sums < 0, -floor, floor), sums)
    return (product(U, (x - x.swapaxes(-1, -2)) / sums, Vt).astype(like.dtype),)


nearest.defvjp(_nearest_forward, _nearest_backward)


def after(second_NN: jax.Array, first_NN: jax.Array, anchor_NN: jax.Array) -> jax.Array:
    """`first`, then `second`, as rotations from an anchor that stands for no motion: z₂ · z_Iᵀ ·
    z₁, in which one anchor is counted instead of two."""
    return product(second_NN, anchor_NN.swapaxes(-1, -2), first_NN)
