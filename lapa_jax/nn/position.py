"""Where a token stands: rotary embedding, position-encoding convolution, relative position bias.

Shape suffixes: B batch, T frames or sequence, H grid rows, W grid columns, D width, N = H·W cells,
K attention heads, C head width.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.nn.layers import Dense, truncated_normal
from lapa_jax.nn.module import param


def rope_tables(
    positions_BT: jax.Array, head_dim: int, theta: float, rounded: jnp.dtype = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """cos and sin (B, T, head_dim / 2), float32.

    `rounded`: the dtype that wavelengths, angles and tables are rounded to on the way. The original
    computes them in its compute dtype: in bfloat16 positions beyond 256 share angles.
    """
    wavelengths = theta ** (np.arange(0, head_dim, 2) / head_dim)
    frequencies = 1.0 / wavelengths.astype(rounded).astype(np.float64)
    angles = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    angles = angles.astype(rounded).astype(jnp.float32)
    return tuple(f(angles).astype(rounded).astype(jnp.float32) for f in (jnp.cos, jnp.sin))


def rope(x_BTKC: jax.Array, cos_BTc: jax.Array, sin_BTc: jax.Array) -> jax.Array:
    """Rotates the interleaved pairs (x[2i], x[2i+1])."""
    pairs = x_BTKC.astype(jnp.float32).reshape(*x_BTKC.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos_BTc[:, :, None], sin_BTc[:, :, None]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x_BTKC.shape).astype(x_BTKC.dtype)


class PositionConv(nnx.Module):
    """Depth-wise 3x3x3 convolution over (frames, rows, columns), causal in the frames (PEG).

    Written as shifted multiply-adds: XLA's CPU backend runs grouped 3-D convolutions several times
    slower.
    """

    def __init__(self, dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        kernel = truncated_normal(rngs.params(), (3, 3, 3, dim), 1.0 / math.sqrt(27.0))
        self.kernel = param(kernel, None, None, None, "embed")
        self.bias = param(jnp.zeros(dim), "embed")
        self.dtype = dtype

    def __call__(self, x_BTHWD: jax.Array) -> jax.Array:
        kernel, bias = (p[...].astype(self.dtype) for p in (self.kernel, self.bias))
        return depthwise_conv(x_BTHWD.astype(self.dtype), kernel) + bias

    def alone(self, x_BTHWD: jax.Array) -> jax.Array:
        """Of frames that have none before them."""
        return self(x_BTHWD.reshape(-1, 1, *x_BTHWD.shape[2:])).reshape(x_BTHWD.shape)

    def before(self, x_BTHWD: jax.Array) -> jax.Array:
        """What each frame adds to what `alone` gives of the one after it."""
        kernel = jnp.roll(self.kernel[...].astype(self.dtype), 1, axis=0)
        x = x_BTHWD.astype(self.dtype).reshape(-1, 1, *x_BTHWD.shape[2:])
        return depthwise_conv(x, kernel).reshape(x_BTHWD.shape)


@jax.custom_vjp
def depthwise_conv(x_BTHWD: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depth-wise convolution by a (3, 3, 3, D) kernel, zero-padded to the same size, causal in
    T."""
    T, H, W = x_BTHWD.shape[1:4]
    n = min(T, 3)  # with fewer than three frames the earliest taps meet only padding
    x = _pad(x_BTHWD, before=n - 1)
    y = jnp.zeros((), x.dtype)
    for t, i, j in _taps(n):
        y = y + x[:, t : t + T, i : i + H, j : j + W] * kernel[3 - n + t, i, j]
    return y


def _forward(x, kernel):
    return depthwise_conv(x, kernel), (x, kernel)


def _backward(saved, g_BTHWD):
    x_BTHWD, kernel = saved
    T, H, W = x_BTHWD.shape[1:4]
    n = min(T, 3)
    g = _pad(g_BTHWD, after=n - 1)
    dx = jnp.zeros((), g.dtype)
    for t, i, j in _taps(n):
        back = g[:, n - 1 - t :][:, :T, 2 - i :, 2 - j :][:, :, :H, :W]
        dx = dx + back * kernel[3 - n + t, i, j]
    # One reduction per tap. XLA's CPU backend is four times faster when it goes row by row.
    taps = jax.lax.platform_dependent(
        _pad(x_BTHWD, before=n - 1), g_BTHWD, cpu=_kernel_gradient_by_row, default=_kernel_gradient
    )
    dkernel = jnp.zeros(kernel.shape, jnp.float32).at[3 - n :].set(taps)
    return dx, dkernel.astype(kernel.dtype)


def _kernel_gradient(x, g):
    T, H, W, D = g.shape[1:]
    n = x.shape[1] - T + 1
    sums = [
        jnp.sum(x[:, t : t + T, i : i + H, j : j + W] * g, axis=(0, 1, 2, 3), dtype=jnp.float32)
        for t, i, j in _taps(n)
    ]
    return jnp.stack(sums).reshape(n, 3, 3, D)


def _kernel_gradient_by_row(x, g):
    def add_row(total, row):
        x_rows = jax.lax.dynamic_slice_in_dim(x, row, 3, axis=2)
        return total + _kernel_gradient(
            x_rows, jax.lax.dynamic_slice_in_dim(g, row, 1, axis=2)
        ), None

    n = x.shape[1] - g.shape[1] + 1
    zero = jnp.zeros((n, 3, 3, g.shape[-1]), jnp.float32)
    return jax.lax.scan(add_row, zero, jnp.arange(g.shape[2]))[0]


depthwise_conv.defvjp(_forward, _backward)


def _pad(x: jax.Array, before: int = 0, after: int = 0) -> jax.Array:
    return jnp.pad(x, ((0, 0), (before, after), (1, 1), (1, 1), (0, 0)))


def _taps(n: int) -> list[tuple[int, int, int]]:
    return [(t, i, j) for t in range(n) for i in range(3) for j in range(3)]


class ContinuousPositionBias(nnx.Module):
    """An MLP from log-spaced grid offsets to one bias per head: (K, N, N) for a grid of N cells."""

    def __init__(self, grid: tuple[int, int], dim: int, heads: int, *, rngs: nnx.Rngs):
        self.grid = grid

        def dense(inputs, outputs, axes):
            return Dense((inputs,), (outputs,), axes, bias=True, dtype=jnp.float32, rngs=rngs)

        self.first = dense(2, dim, (None, "embed"))
        self.second = dense(dim, dim, ("embed", "mlp"))
        self.third = dense(dim, heads, ("mlp", "heads"))

    def __call__(self) -> jax.Array:
        # The MLP sees each distinct offset once ((2H-1)(2W-1) of them, not N²), then is gathered.
        H, W = self.grid
        rows, columns = np.meshgrid(np.arange(1 - H, H), np.arange(1 - W, W), indexing="ij")
        offsets = np.stack([rows, columns], axis=-1).reshape(-1, 2).astype(np.float32)
        x = jnp.asarray(np.sign(offsets) * np.log(np.abs(offsets) + 1.0))
        x = jax.nn.leaky_relu(self.first(x), 0.1)
        x = jax.nn.leaky_relu(self.second(x), 0.1)
        table = self.third(x)
        row, column = (axis.reshape(-1) for axis in np.indices((H, W)))
        index = (row[:, None] - row + H - 1) * (2 * W - 1) + (column[:, None] - column + W - 1)
        return jnp.moveaxis(table[index], -1, 0)
