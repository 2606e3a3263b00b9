"""Image front-ends: what stands between pixels (or image token ids) and the backbone's width.

A front-end has `num_tokens` and maps its images to (B, num_tokens, D). It is chosen by `{name,
...}`.

Shape suffixes: B batch, I image rows, J image columns, H and W feature rows and columns, N tokens,
D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.models.layers import Dense, LayerNorm, truncated_normal
from lapa_jax.models.module import param
from lapa_jax.models.registry import named_config
from lapa_jax.parallel.sharding import constrain


@dataclass(frozen=True)
class PatchesConfig:
    """One token per `patch_size` x `patch_size` pixels. `stem_channels` are stride-2 convolutions
    that come first (each halves the sides of what is then cut into patches); empty for plain
    patches."""

    image_size: tuple[int, int]
    patch_size: int
    stem_channels: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "stem_channels", tuple(self.stem_channels))
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"model.front_end.image_size={self.image_size} must be a multiple of "
                f"model.front_end.patch_size={self.patch_size} on both sides"
            )
        if self.patch_size % 2 ** len(self.stem_channels):
            raise ValueError(
                f"model.front_end.patch_size={self.patch_size} must be a multiple of "
                f"2^{len(self.stem_channels)}: model.front_end.stem_channels has "
                f"{len(self.stem_channels)} stride-2 stages"
            )

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def flops(self, dim: int) -> int:
        """Forward floating-point operations per image."""
        total, channels, area = 0, 3, self.image_size[0] * self.image_size[1]
        for width in self.stem_channels:
            area //= 4
            total += 2 * area * 9 * channels * width
            channels = width
        return total + 2 * area * channels * dim


@dataclass(frozen=True)
class IdsConfig:
    """Images that are already `num_tokens` ids of the image vocabulary."""

    num_tokens: int

    def flops(self, dim: int) -> int:
        return 0


class Patches(nnx.Module):
    """Trained patches: uint8 or float [0, 1] images, row-major tokens, learned 2-D positions."""

    def __init__(
        self,
        config: PatchesConfig,
        dim: int,
        embed_image: nnx.Module | None,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.config, self.dtype = config, dtype
        channels, stages = 3, {}
        for i, width in enumerate(config.stem_channels):
            stages[f"stage_{i}"] = ConvStage(channels, width, dtype=dtype, rngs=rngs)
            channels = width
        self.stem = nnx.data(stages)
        self.cut = config.patch_size // 2 ** len(config.stem_channels)
        self.project = Dense(
            (channels * self.cut**2,),
            (dim,),
            ("patch", "embed"),
            bias=True,
            dtype=dtype,
            rngs=rngs,
        )
        rows, columns = config.grid
        # As loud as what a patch shows: at the usual 0.02 a policy takes long to find out where
        # things are.
        self.rows = param(truncated_normal(rngs.params(), (rows, 1, dim), 0.5), None, None, "embed")
        self.columns = param(
            truncated_normal(rngs.params(), (1, columns, dim), 0.5), None, None, "embed"
        )

    def __call__(self, images_BIJC: jax.Array) -> jax.Array:
        expected = (*self.config.image_size, 3)
        if images_BIJC.shape[1:] != expected:
            raise ValueError(
                f"images of shape {images_BIJC.shape} are not (batch, {expected}): "
                f"model.front_end.image_size is {self.config.image_size}"
            )
        x = images_BIJC.astype(jnp.float32)
        x = standardize(x / 255.0 if images_BIJC.dtype == jnp.uint8 else x)
        for name in sorted(self.stem):
            x = self.stem[name](x)
        B, H, W, C = x.shape
        p = self.cut
        x = x.reshape(B, H // p, p, W // p, p, C).transpose(0, 1, 3, 2, 4, 5)
        x = self.project(x.reshape(B, H // p, W // p, -1))
        x = x + (self.rows[...] + self.columns[...]).astype(self.dtype)
        # Left to choose, the partitioner splits the stem by rows where the sequence is split, and
        # doubles the gradients of its kernels.
        return constrain(x.reshape(B, -1, x.shape[-1]), "batch", None, None)


def standardize(images_BIJC: jax.Array) -> jax.Array:
    """Each image with a mean of zero per channel and a variance of one: what stands out from the
    background is not a small difference between large numbers. A flat image becomes zero."""
    x = images_BIJC - images_BIJC.mean(axis=(1, 2), keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=(1, 2, 3), keepdims=True) + 1e-4)


class ConvStage(nnx.Module):
    """3x3 convolution of stride 2, norm, GELU."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        kernel = truncated_normal(rngs.params(), (3, 3, inputs, outputs), (9 * inputs) ** -0.5)
        self.kernel = param(kernel, None, None, None, None)
        self.norm = LayerNorm(outputs, axis=None, bias=True)
        self.dtype = dtype

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = jax.lax.conv_general_dilated(
            x_BHWC.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.gelu(self.norm(x))


class Ids(nnx.Module):
    """Image token ids (B, num_tokens) through the image embedding table."""

    def __init__(
        self,
        config: IdsConfig,
        dim: int,
        embed_image: nnx.Module | None,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if embed_image is None:
            raise ValueError("model.front_end.name='cached_tokens' needs model.image_vocab > 0")
        self.config, self.embed = config, embed_image

    def __call__(self, images_BN: jax.Array) -> jax.Array:
        if images_BN.shape[1:] != (self.config.num_tokens,):
            raise ValueError(
                f"image ids of shape {images_BN.shape} are not (batch, {self.config.num_tokens}): "
                f"model.front_end.num_tokens"
            )
        return self.embed(images_BN)


FRONT_ENDS: dict[str, tuple[type, type]] = {
    "patches": (PatchesConfig, Patches),
    "cached_tokens": (IdsConfig, Ids),
}


def front_end_config(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...}` mapping."""
    return named_config(settings, FRONT_ENDS, "model.front_end")
