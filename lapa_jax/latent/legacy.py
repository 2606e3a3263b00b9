"""What released weights of the original implementation depend on (`model.legacy`).

Q1: in the temporal transformer the position convolution reads rows that lie as (row, column, frame)
as if they lay as (frame, row, column). Q2: self-attention takes keys and values from the input
before its norm. Q3: the temporal attention is not causal. Q4: the code vectors of a pair are
reshaped, not transposed, before they are projected. Beside them: convolutions make the code slots
of the cells, the decoder's context has no slot embedding, and the later frame itself is
predicted.

Shape suffixes: as in parts.py; Q latent width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.layers import Dense, convolve, truncated_normal
from lapa_jax.nn.module import param

# code_length: (patch grid side, then kernel (rows, columns), stride and padding of the
# convolutions).
CONVOLUTIONS: dict[int, tuple[int, tuple[tuple[tuple[int, int], int, int], ...]]] = {
    1: (8, (((3, 3), 2, 1), ((4, 4), 1, 0))),
    2: (8, (((3, 3), 2, 1), ((3, 4), 1, 0))),
    4: (8, (((3, 3), 2, 1), ((3, 3), 1, 0))),
    16: (16, (((3, 3), 2, 1), ((3, 3), 2, 1))),
    64: (16, (((3, 3), 2, 1),)),
    256: (32, (((3, 3), 2, 1),)),
}


def check_shapes(code_length: int, grid: tuple[int, int], predict: str, num_frames: int) -> None:
    """Raises ValueError for a config that the original cannot have."""
    if code_length not in CONVOLUTIONS:
        raise ValueError(
            f"model.code_length={code_length} must be one of {sorted(CONVOLUTIONS)} under "
            "model.legacy"
        )
    side = CONVOLUTIONS[code_length][0]
    if grid != (side, side):
        raise ValueError(
            f"model.code_length={code_length} needs a {side}x{side} patch grid under model.legacy, "
            f"model.image_size and model.patch_size give {grid[0]}x{grid[1]}"
        )
    if predict != "frame":
        raise ValueError(f"model.predict={predict!r} must be 'frame' under model.legacy")
    if num_frames != 2:
        raise ValueError(f"data.num_frames={num_frames} must be 2 under model.legacy")


def scrambled(conv: Callable[[jax.Array], jax.Array], x_BTHWD: jax.Array) -> jax.Array:
    """`conv` over rows in (row, column, frame) order taken for (frame, row, column) (Q1)."""
    B, T, H, W, D = x_BTHWD.shape
    x = jnp.moveaxis(x_BTHWD, 1, 3).reshape(B, T, H, W, D)
    return jnp.moveaxis(conv(x).reshape(B, H, W, T, D), 3, 1)


def mix_channels(z_BLQ: jax.Array) -> jax.Array:
    """Each pair's (L, Q) block read as (Q, L) and transposed (Q4)."""
    B, L, Q = z_BLQ.shape
    return z_BLQ.reshape(B, Q, L).swapaxes(1, 2)


class ConvCodeProjection(nnx.Module):
    """The cells → code slots, by a linear map and strided convolutions with a ReLU between."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):  # a QuantizerConfig, which checks by us
        quant_dim = config.quant_dim

        def dense(inputs, outputs):
            return Dense(
                (inputs,), (outputs,), ("embed", None), bias=True, dtype=jnp.float32, rngs=rngs
            )

        self.project = dense(config.dim, quant_dim)
        self.layers = CONVOLUTIONS[config.code_length][1]
        kernels, biases = {}, {}
        for i, (size, _, _) in enumerate(self.layers):
            std = (size[0] * size[1] * quant_dim) ** -0.5
            kernel = truncated_normal(rngs.params(), (*size, quant_dim, quant_dim), std)
            kernels[f"{i}"] = param(kernel, None, None, None, None)
            biases[f"{i}"] = param(jnp.zeros(quant_dim), None)
        self.kernels, self.biases = nnx.data(kernels), nnx.data(biases)

    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        x = self.project(x_BHWD)
        for i, (_, stride, padding) in enumerate(self.layers):
            x = x if i == 0 else jax.nn.relu(x)
            x = convolve(x, self.kernels[f"{i}"][...], stride, [(padding, padding)] * 2)
            x = x + self.biases[f"{i}"][...]
        return x.reshape(x.shape[0], -1, x.shape[-1])
