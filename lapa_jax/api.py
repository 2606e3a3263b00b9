"""Trained models as objects: what the `load_...` functions of lapa_jax return."""

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
        z = _in_codebook(z, "z", self.codebook_size)
        return self._decode(self._params, self._variables, first, z)

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


class LoadedImageTokenizer:
    """An image tokenizer; its methods are jitted and take NumPy or JAX arrays.

    A code stands for `factor` x `factor` pixels; images may have any size that it divides.
    """

    def __init__(self, run: runs.Run):
        pairs.require_image_tokenizer(run)
        config = run.stage.model_config
        self.config = run.config
        self.codebook_size: int = config.codebook_size
        self.factor: int = config.factor
        self._params, self._variables = run.params, run.variables
        self._encode, self._decode = jax.jit(run.stage.encode), jax.jit(run.stage.decode)

    def encode(self, images: np.ndarray | jax.Array) -> jax.Array:
        """The codes int32 (B, h, w) of images uint8 (B, H, W, 3), row by row."""
        return self._encode(self._params, self._variables, jnp.asarray(images))

    def decode(self, codes: np.ndarray | jax.Array) -> jax.Array:
        """The images float32 (B, H, W, 3) of codes int (B, h, w), in [-1, 1]: black is -1, white
        1."""
        codes = jnp.asarray(codes)
        if not jnp.issubdtype(codes.dtype, jnp.integer) or codes.ndim != 3 or not codes.size:
            raise ValueError(
                f"codes {codes.dtype}{list(codes.shape)} must be integers of shape (B, h, w)"
            )
        codes = _in_codebook(codes, "codes", self.codebook_size)
        return self._decode(self._params, self._variables, codes)


def _in_codebook(codes: jax.Array, name: str, size: int) -> jax.Array:
    if ((codes < 0) | (codes >= size)).any():
        raise ValueError(
            f"{name} holds codes from {codes.min()} to {codes.max()}, the codebook has {size}"
        )
    return codes.astype(jnp.int32)


def load_quantizer(directory: str | Path) -> LoadedQuantizer:
    """The quantizer of a run directory, trained here or made by `lapa import`."""
    return LoadedQuantizer(runs.load(directory))


def load_image_tokenizer(directory: str | Path) -> LoadedImageTokenizer:
    """The image tokenizer of a run directory that `lapa import` made."""
    return LoadedImageTokenizer(runs.load(directory))
