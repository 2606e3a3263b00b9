"""Image front-ends: what stands between pixels (or image tokens) and the backbone's width.

A front-end maps one image an example, (B, ...), to (B, num_tokens, D). It is chosen by `{name,
...}`; its config says which column of the loader its images are.

Shape suffixes: B batch, I image rows, J image columns, H and W feature rows and columns, N tokens,
D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from lapa_jax.nn.layers import Conv, Dense, LayerNorm, truncated_normal
from lapa_jax.nn.module import freeze, param
from lapa_jax.nn.registry import default_settings, named_config, named_settings, typed_config
from lapa_jax.nn.surgery import Borrowed
from lapa_jax.parallel.sharding import constrain
from lapa_jax.policy.image_tokenizer import ImageEncoder, ImageTokenizerConfig


@dataclass(frozen=True)
class PatchesConfig:
    """One token per `patch_size` x `patch_size` pixels."""

    column: ClassVar[str] = "frames"
    borrowed: ClassVar[tuple[Borrowed, ...]] = ()  # frozen weights, those of other runs

    image_size: tuple[int, int]
    patch_size: Annotated[int, "[1, 8192]", "pixels on a side that a token stands for"] = 16
    stem_channels: Annotated[
        tuple[int, ...],
        "[1, 65536]",
        "of stride-2 convolutions that come first, each of which halves the sides of what is then "
        "cut into patches (slow on CPUs); empty: plain patches",
    ] = ()

    def __post_init__(self) -> None:
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


class TokenizerConfig(ImageTokenizerConfig):
    KEY = "model.front_end.tokenizer"


@dataclass(frozen=True)
class VqganConfig:
    """A frozen image tokenizer, computed while training."""

    column: ClassVar[str] = "frames"

    image_size: tuple[int, int]
    weights: Annotated[
        str,
        'run of stage "image_tokenizer" that a new run takes the weights from; then they are in '
        "its own checkpoints",
    ] = ""
    tokenizer: Annotated[
        Mapping[str, Any] | TokenizerConfig, "the architecture, as that run has it"
    ] = field(default_factory=lambda: default_settings(TokenizerConfig))

    def __post_init__(self) -> None:
        tokenizer = typed_config(TokenizerConfig, self.tokenizer, TokenizerConfig.KEY)
        object.__setattr__(self, "tokenizer", tokenizer)
        tokenizer.grid(self.image_size)

    @property
    def num_tokens(self) -> int:
        rows, columns = self.tokenizer.grid(self.image_size)
        return rows * columns

    @property
    def borrowed(self) -> tuple[Borrowed, ...]:
        tokenizer = Borrowed(
            key="model.front_end.weights",
            run=self.weights,
            hint="an image tokenizer (lapa import --format vqgan_pickle)",
            stage="image_tokenizer",
            settings_key=self.tokenizer.KEY,
            settings=self.tokenizer.settings(),
            theirs="encoder",
            ours="front_end/encoder",
        )
        return (tokenizer,)


@dataclass(frozen=True)
class CachedTokensConfig:
    """Images come as `num_tokens` ids of the image vocabulary, among the tokens of a row."""

    column: ClassVar[str] = "image_tokens"
    borrowed: ClassVar[tuple[Borrowed, ...]] = ()

    num_tokens: Annotated[int, "[1, 1e6]", "of an image"] = 256


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
        _check_size(images_BIJC, self.config.image_size)
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


class ConvStage(Conv):
    """3x3 convolution of stride 2, norm, GELU."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(inputs, outputs, bias=False, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(outputs, axis=None, bias=True)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return jax.nn.gelu(self.norm(super().__call__(x_BHWC, stride=2)))


class Vqgan(nnx.Module):
    """uint8 images through a frozen tokenizer (the encoder's half of it) and the image embedding
    table."""

    def __init__(
        self,
        config: VqganConfig,
        dim: int,
        embed_image: nnx.Module | None,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.config, self.embed = config, _with_table(embed_image, "vqgan")
        if len(embed_image.table[...]) < config.tokenizer.codebook_size:
            raise ValueError(
                f"model.image_vocab={len(embed_image.table[...])} is less than model.front_end."
                f"tokenizer.codebook_size={config.tokenizer.codebook_size}"
            )
        # In float32 whatever the backbone computes in: cached tokens are made so.
        self.encoder = ImageEncoder(config.tokenizer, dtype=jnp.float32, rngs=rngs)
        freeze(self.encoder)

    def tokens(self, images_BIJC: jax.Array) -> jax.Array:
        """Ids int32 (B, num_tokens), row by row of the image."""
        _check_size(images_BIJC, self.config.image_size)
        return self.encoder(images_BIJC).reshape(len(images_BIJC), -1)

    def __call__(self, images_BIJC: jax.Array) -> jax.Array:
        return self.embed(self.tokens(images_BIJC))


def _check_size(images_BIJC: jax.Array, image_size: tuple[int, int]) -> None:
    expected = (*image_size, 3)
    if images_BIJC.shape[1:] != expected:
        raise ValueError(
            f"images of shape {images_BIJC.shape} are not (batch, {expected}): "
            f"model.front_end.image_size is {image_size}"
        )


def _with_table(embed_image: nnx.Module | None, name: str) -> nnx.Module:
    if embed_image is None:
        raise ValueError(f"model.front_end.name={name!r} needs model.image_vocab > 0")
    return embed_image


# name → (config, module; None where there is nothing to compute)
FRONT_ENDS: dict[str, tuple[type, type | None]] = {
    "patches": (PatchesConfig, Patches),
    "vqgan": (VqganConfig, Vqgan),
    "cached_tokens": (CachedTokensConfig, None),
}


def front_end_config(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...}` mapping."""
    return named_config(settings, FRONT_ENDS, "model.front_end")


def front_end_settings(name: str) -> ConfigDict:
    """For a new config."""
    return named_settings(name, FRONT_ENDS, "front_end")


def front_end_column(settings: Mapping[str, Any]) -> str:
    """The column of the loader that the images of a `{name, ...}` are: "frames" or
    "image_tokens"."""
    name = settings.get("name")
    if name not in FRONT_ENDS:
        raise ValueError(f"model.front_end.name={name!r} must be one of {sorted(FRONT_ENDS)}")
    return FRONT_ENDS[name][0].column
