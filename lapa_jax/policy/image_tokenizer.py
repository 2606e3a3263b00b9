"""LWM's image tokenizer, the VQGAN behind LAPA's policy (Esser et al. 2021): images ↔ codes.

It is not trained here (world/tokenizers.py has one that is): its weights are imported. With them it
computes what the public LWM code does. Images are uint8 on the way in and float32 in [-1, 1] on the
way out, of any size that the levels halve evenly; the released weights are for 256 x 256 pixels.

Shape suffixes: B batch, I image rows, J image columns, H and W rows and columns of a feature map or
of the codes, C channels, N = B·H·W, K codes.
"""

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.layers import Conv, truncated_normal
from lapa_jax.nn.module import param
from lapa_jax.parallel.sharding import constrain

GROUPS, EPS = 32, 1e-6  # of the norms


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """The defaults: LWM's, for images of 256 pixels a side and 16 x 16 tokens."""

    KEY: ClassVar[str] = "model"  # where a config has these

    dim: Annotated[int, "[1, 65536]", "times its multiplier is the width of a level"] = 128
    multipliers: Annotated[
        tuple[int, *tuple[int, ...]],
        "[1, 1024]",
        "of the levels; each but the last halves the sides",
    ] = (1, 2, 2, 4, 6)
    blocks: Annotated[
        int, "[1, 1024]", "residual blocks of a level; the decoder's have one more"
    ] = 2
    latent_dim: Annotated[int, "[1, 65536]", "channels between the levels and the codes"] = 64
    code_dim: Annotated[int, "[1, 65536]", "channels of a code"] = 64
    codebook_size: Annotated[int, "[1, 1e7]", "values of a code"] = 8192

    def __post_init__(self) -> None:
        if self.dim % GROUPS:
            raise ValueError(
                f"{self.KEY}.dim={self.dim} must be a multiple of {GROUPS}, the groups of the norms"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the levels, from the image down."""
        return tuple(self.dim * factor for factor in self.multipliers)

    @property
    def factor(self) -> int:
        """Pixels on a side that one code stands for."""
        return 2 ** (len(self.multipliers) - 1)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the codes of an image."""
        if any(side < 1 or side % self.factor for side in image_size):
            raise ValueError(
                f"images of {image_size[0]}x{image_size[1]} are not a multiple of {self.factor} "
                f"on both sides: {self.KEY}.multipliers has {len(self.multipliers)} levels"
            )
        return image_size[0] // self.factor, image_size[1] // self.factor

    def settings(self) -> dict[str, object]:
        """By name, those of a subclass left out."""
        return {field.name: getattr(self, field.name) for field in fields(ImageTokenizerConfig)}


class ImageTokenizer(nnx.Module):
    def __init__(self, config: ImageTokenizerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.encoder = ImageEncoder(config, dtype=dtype, rngs=rngs)
        self.decoder = ImageDecoder(config, dtype=dtype, rngs=rngs)

    def latents(self, images_BIJC: jax.Array) -> jax.Array:
        """What is quantised, float32 (B, H, W, code_dim), of uint8 images."""
        return self.encoder.latents(images_BIJC)

    def encode(self, images_BIJC: jax.Array) -> jax.Array:
        """Codes int32 (B, H, W) of uint8 images."""
        return self.encoder(images_BIJC)

    def decode(self, codes_BHW: jax.Array) -> jax.Array:
        """Images float32 (B, I, J, 3) in [-1, 1] (black is -1) of codes, clipped."""
        return self.decoder(jnp.asarray(self.encoder.codebook[...])[codes_BHW])


class ImageEncoder(nnx.Module):
    """The half that a policy needs: uint8 images → codes."""

    def __init__(self, config: ImageTokenizerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        inputs = (config.dim, *config.widths)
        last = len(config.widths) - 1
        self.stem = Conv(3, config.dim, dtype=dtype, rngs=rngs)
        resize = ["halve"] * last + [None]
        self.levels = _numbered(
            Level(*of_level, config.blocks, how, dtype=dtype, rngs=rngs)
            for *of_level, how in zip(inputs[:-1], config.widths, resize, strict=True)
        )
        self.middle = Level(inputs[-1], inputs[-1], 2, None, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(inputs[-1])
        self.out = Conv(inputs[-1], config.latent_dim, dtype=dtype, rngs=rngs)
        self.to_code = Conv(config.latent_dim, config.code_dim, size=1, dtype=dtype, rngs=rngs)
        codes = truncated_normal(
            rngs.params(), (config.codebook_size, config.code_dim), config.code_dim**-0.5
        )
        self.codebook = param(codes, None, None)

    def __call__(self, images_BIJC: jax.Array) -> jax.Array:
        """Codes int32 (B, H, W): the nearest ones, of equally near ones the first."""
        z_BHWC = self.latents(images_BIJC)
        codes_N = nearest(z_BHWC.reshape(-1, z_BHWC.shape[-1]), self.codebook[...])
        return codes_N.reshape(z_BHWC.shape[:3])

    def latents(self, images_BIJC: jax.Array) -> jax.Array:
        """What is quantised, float32 (B, H, W, code_dim)."""
        check_images(images_BIJC)
        self.config.grid(images_BIJC.shape[1:3])
        x = self.stem((images_BIJC.astype(jnp.float32) / 127.5 - 1.0).astype(self.dtype))
        for i in range(len(self.levels)):
            x = self.levels[f"{i}"](x)
        x = self.out(jax.nn.silu(self.norm(self.middle(x))))
        return self.to_code(x).astype(jnp.float32)


def check_images(images_BIJC: jax.Array) -> None:
    """Raises ValueError for what are not images of one byte a channel."""
    if images_BIJC.dtype != jnp.uint8 or images_BIJC.ndim != 4 or images_BIJC.shape[3] != 3:
        raise ValueError(
            f"images {images_BIJC.dtype}{list(images_BIJC.shape)} must be uint8 of shape "
            "(B, height, width, 3)"
        )


class ImageDecoder(nnx.Module):
    """Code vectors (B, H, W, code_dim) → images (B, I, J, 3)."""

    def __init__(self, config: ImageTokenizerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        widths = config.widths[::-1]  # the first level is that of the codes
        inputs, last = (widths[0], *widths), len(widths) - 1
        self.from_code = Conv(config.code_dim, config.latent_dim, size=1, dtype=dtype, rngs=rngs)
        self.stem = Conv(config.latent_dim, widths[0], dtype=dtype, rngs=rngs)
        self.middle = Level(widths[0], widths[0], 2, None, dtype=dtype, rngs=rngs)
        resize = ["double"] * last + [None]
        self.levels = _numbered(
            Level(*of_level, config.blocks + 1, how, dtype=dtype, rngs=rngs)
            for *of_level, how in zip(inputs[:-1], widths, resize, strict=True)
        )
        self.norm = GroupNorm(widths[-1])
        self.out = Conv(widths[-1], 3, dtype=dtype, rngs=rngs)

    def __call__(self, codes_BHWC: jax.Array) -> jax.Array:
        x = self.middle(self.stem(self.from_code(codes_BHWC.astype(self.dtype))))
        for i in range(len(self.levels)):
            x = self.levels[f"{i}"](x)
        x = self.out(jax.nn.silu(self.norm(x)))
        return jnp.clip(x.astype(jnp.float32), -1.0, 1.0)


class Level(nnx.Module):
    """Residual blocks, then a change of the sides: "halve", "double" or none."""

    def __init__(
        self,
        inputs: int,
        width: int,
        blocks: int,
        resize: str | None,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.blocks = _numbered(
            ResidualBlock(width if i else inputs, width, dtype=dtype, rngs=rngs)
            for i in range(blocks)
        )
        self.resize_to = resize
        self.resize = Conv(width, width, dtype=dtype, rngs=rngs) if resize else None

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = constrain(x_BHWC, "batch", None, None, None)
        for i in range(len(self.blocks)):
            x = self.blocks[f"{i}"](x)
        if self.resize_to == "halve":
            return self.resize(x, stride=2, padding=[(0, 1), (0, 1)])  # below and right only
        if self.resize_to == "double":
            return self.resize(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
        return x


class ResidualBlock(nnx.Module):
    """Twice norm, SiLU and convolution, added to the input (through a 1x1 convolution where the
    width changes)."""

    def __init__(self, inputs: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm_0, self.norm_1 = GroupNorm(inputs), GroupNorm(width)
        self.conv_0 = Conv(inputs, width, dtype=dtype, rngs=rngs)
        self.conv_1 = Conv(width, width, dtype=dtype, rngs=rngs)
        changes = inputs != width
        self.shortcut = Conv(inputs, width, size=1, dtype=dtype, rngs=rngs) if changes else None

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        y = self.conv_0(jax.nn.silu(self.norm_0(x_BHWC)))
        y = self.conv_1(jax.nn.silu(self.norm_1(y)))
        return y + (x_BHWC if self.shortcut is None else self.shortcut(x_BHWC))


class GroupNorm(nnx.Module):
    """Mean 0 and variance 1 of each of 32 groups of channels over an image, in float32."""

    def __init__(self, width: int):
        self.scale, self.bias = param(jnp.ones(width), None), param(jnp.zeros(width), None)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        B, H, W, C = x_BHWC.shape
        y = x_BHWC.astype(jnp.float32).reshape(B, H, W, GROUPS, C // GROUPS)
        y = y - y.mean(axis=(1, 2, 4), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=(1, 2, 4), keepdims=True) + EPS)
        y = y.reshape(B, H, W, C) * self.scale[...] + self.bias[...]
        return y.astype(x_BHWC.dtype)


def nearest(z_NC: jax.Array, codebook_KC: jax.Array) -> jax.Array:
    """Index int32 (N,) of the code at the least squared distance, of equals the first.

    |z|² is the same for all codes and left out; the differences (N, K, C) are never formed.
    """
    product_NK = jax.lax.dot_general(
        z_NC, codebook_KC, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    )
    distance_NK = jnp.square(codebook_KC).sum(axis=1) - 2.0 * product_NK
    return jnp.argmin(distance_NK, axis=1).astype(jnp.int32)


def _numbered(modules) -> dict[str, nnx.Module]:
    return nnx.data({f"{i}": module for i, module in enumerate(modules)})
