"""Trained models as objects: what `lapa_jax.load_quantizer` returns."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax import pairs, runs


class LoadedQuantizer:
    """A trained quantizer; its methods are jitted and take NumPy or JAX arrays.

    Frames are (B, H, W, 3), uint8 or float in [0, 1], of `image_size`.
    """

    def __init__(self, run: runs.Run):
        pairs.require_quantizer(run)
        config = run.stage.model_config
        self.config = run.config
        self.image_size: tuple[int, int] = config.image_size
        self.codebook_size: int = config.codebook_size
        self.code_length: int = config.code_length
        self._params, self._variables = run.params, run.variables
        self._quantize, self._decode = jax.jit(run.stage.quantize), jax.jit(run.stage.decode)

    def encode(self, first: np.ndarray | jax.Array, last: np.ndarray | jax.Array) -> jax.Array:
        """The latent actions z int32 (B, code_length) of frame pairs."""
        first, last = self._frames(first, "first"), self._frames(last, "last")
        return self._quantize(self._params, self._variables, first, last)

    def decode(self, first: np.ndarray | jax.Array, z: np.ndarray | jax.Array) -> jax.Array:
        """The later frames (B, H, W, 3) that z int (B, code_length) predicts, float32, not
        clipped."""
        first, z = self._frames(first, "first"), jnp.asarray(z)
        if not jnp.issubdtype(z.dtype, jnp.integer) or z.shape != (len(first), self.code_length):
            raise ValueError(
                f"z {z.dtype}{list(z.shape)} must be integers of shape "
                f"({len(first)}, {self.code_length})"
            )
        if ((z < 0) | (z >= self.codebook_size)).any():
            raise ValueError(
                f"z holds codes from {z.min()} to {z.max()}, the codebook has {self.codebook_size}"
            )
        return self._decode(self._params, self._variables, first, z.astype(jnp.int32))

    def _frames(self, frames: np.ndarray | jax.Array, name: str) -> jax.Array:
        frames = jnp.asarray(frames)
        if frames.dtype != jnp.uint8 and not jnp.issubdtype(frames.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {frames.dtype}: uint8, or float in [0, 1]")
        if frames.ndim != 4 or frames.shape[1:] != (*self.image_size, 3):
            raise ValueError(
                f"{name} of shape {frames.shape} must be (B, {self.image_size[0]}, "
                f"{self.image_size[1]}, 3)"
            )
        if frames.dtype != jnp.uint8 and ((frames < 0.0) | (frames > 1.0)).any():
            raise ValueError(
                f"{name} holds values from {frames.min()} to {frames.max()}: float frames are in "
                "[0, 1]"
            )
        return frames


def load_quantizer(directory: str | Path) -> LoadedQuantizer:
    """The quantizer of a run directory, trained here or made by `lapa import`."""
    return LoadedQuantizer(runs.load(directory))
