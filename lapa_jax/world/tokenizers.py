"""Image tokenizers by architecture: one that is trained here, and LWM's, which is imported.

Shape suffixes: B images, I image rows, J image columns, H and W code rows and columns, N = H·W
codes, D width, Q latent width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.bottlenecks import bottleneck_config, bottleneck_settings
from lapa_jax.latent.health import perplexity
from lapa_jax.nn.layers import Dense, LayerNorm, dtype_of, truncated_normal
from lapa_jax.nn.module import param
from lapa_jax.nn.patches import from_patches, to_patches
from lapa_jax.nn.stack import REMAT, Stack
from lapa_jax.nn.vit import Block, FeedForward, ViTConfig
from lapa_jax.policy.image_tokenizer import (
    ImageTokenizer,
    ImageTokenizerConfig,
    check_images,
)


@dataclass(frozen=True)
class ImportedTokenizerConfig(ImageTokenizerConfig):
    """LWM's, as a run has it."""

    own_patch: ClassVar[bool] = False
    architecture: Annotated[str, ("vqgan",), "imported: it is not trained"] = "vqgan"
    image_size: tuple[int, int] | None = None  # any that the levels halve evenly
    compute_dtype: str = "float32"


@dataclass(frozen=True)
class PatchTokenizerConfig:
    """The defaults: for images of 64 pixels a side, 64 codes each. Every code is made of its own
    patch alone, so that what stands still keeps its codes; what is drawn of them sees them all."""

    own_patch: ClassVar[bool] = True  # that a code is made of
    image_size: tuple[int, int]
    compute_dtype: str
    architecture: Annotated[str, ("patches",), "trained here"] = "patches"
    patch_size: Annotated[int, "[1, 8192]", "pixels on a side that a code stands for"] = 8
    dim: Annotated[int, "[1, 65536]", "width of the layers"] = 96
    depth: Annotated[int, "[1, 1024]", "layers before the codes"] = 2
    decoder_depth: Annotated[int, "[1, 1024]", "layers after the codes"] = 2
    heads: Annotated[int, "[1, 4096]", "of an attention"] = 4
    head_dim: Annotated[int, "[1, 4096]", "width of a head"] = 24
    mlp_dim: Annotated[int, "[1, 1e6]", "width inside of a feed-forward"] = 192
    code_dim: Annotated[int, "[1, 65536]", "width of a latent and of a code"] = 16
    codebook_size: Annotated[int, "[2, 1e7]", "values of a code"] = 1024
    bottleneck: Annotated[Mapping[str, Any], "from latents to codes, by name"] = field(
        default_factory=lambda: bottleneck_settings("fsq", 1024)
    )
    remat: Annotated[str, REMAT, "what the backward pass keeps, see docs/training.md"] = "none"
    unroll: Annotated[int, "[0, 1024]", "layers per scan step; 0: all"] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "bottleneck", dict(self.bottleneck))
        dtype_of(self.compute_dtype)
        kind, settings = bottleneck_config(self.bottleneck)
        if kind.form == "continuous":
            name = self.bottleneck["name"]
            raise ValueError(f"model.bottleneck.name={name!r} has no codes: a tokenizer makes them")
        kind.grid(settings, self.codebook_size)
        self.grid(self.image_size)

    @property
    def factor(self) -> int:
        """Pixels on a side that one code stands for."""
        return self.patch_size

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the codes; of images of other sizes there are none."""
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"data.image_size={self.image_size} must be a multiple of "
                f"model.patch_size={self.patch_size} on both sides"
            )
        if tuple(image_size) != self.image_size:
            raise ValueError(
                f"images of {image_size[0]}x{image_size[1]} are not of {self.image_size[0]}x"
                f"{self.image_size[1]}, which this tokenizer was trained on"
            )
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def layers(self) -> ViTConfig:
        """Those that draw; of those before the codes the feed-forward."""
        return ViTConfig(
            grid=self.grid(self.image_size),
            depth=self.decoder_depth,
            class_token=False,
            layer_scale=False,
            **{key: getattr(self, key) for key in ("patch_size", "dim", "heads", "head_dim")},
            mlp_dim=self.mlp_dim,
        )


class PatchLayer(nnx.Module):
    """Pre-norm feed-forward: a patch sees no other."""

    def __init__(self, config: ViTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm(config.dim, bias=True)
        self.mlp = FeedForward(config, dtype=dtype, rngs=rngs)

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        return x_BND + self.mlp(self.norm(x_BND))


class PatchTokenizer(nnx.Module):
    def __init__(self, config: PatchTokenizerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(remat=config.remat, unroll=config.unroll, rngs=rngs)
        self.config, self.dtype, layers = config, dtype, config.layers
        self.from_pixels = Dense(
            (3 * config.patch_size**2,),
            (config.dim,),
            ("patch", "embed"),
            bias=True,
            dtype=dtype,
            rngs=rngs,
        )
        self.encoder = Stack(
            lambda rngs: PatchLayer(layers, dtype=dtype, rngs=rngs), config.depth, **common
        )
        self.encoder_norm = LayerNorm(config.dim, bias=True)
        # What is rounded is in float32.
        self.to_code = Dense(
            (config.dim,), (config.code_dim,), ("embed", None), dtype=jnp.float32, rngs=rngs
        )
        bottleneck, settings = bottleneck_config(config.bottleneck)
        self.bottleneck = bottleneck(settings, config.codebook_size, config.code_dim, rngs=rngs)
        self.from_code = Dense(
            (config.code_dim,), (config.dim,), (None, "embed"), bias=True, dtype=dtype, rngs=rngs
        )
        cells = math.prod(config.grid(config.image_size))
        positions = truncated_normal(rngs.params(), (cells, config.dim), 0.02)
        self.positions = param(positions, None, "embed")
        self.decoder = Stack(
            lambda rngs: Block(layers, dtype=dtype, rngs=rngs), config.decoder_depth, **common
        )
        self.norm = LayerNorm(config.dim, bias=True)
        self.pixels = Dense(
            (config.dim,),
            (3 * config.patch_size**2,),
            ("embed", "patch"),
            bias=True,
            dtype=dtype,
            std=0.0,
            rngs=rngs,
        )

    def __call__(
        self, images_BIJC: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(drawn float32 (B, I, J, 3) in [0, 1] and, in training, beyond; the bottleneck's loss;
        metrics) of uint8 images."""
        latent_BNQ = self.latents(images_BIJC)
        latent_BNQ = latent_BNQ.reshape(len(latent_BNQ), -1, latent_BNQ.shape[-1])
        out = self.bottleneck(latent_BNQ, train=train, rng=rng)
        codes = out.codes_BL.reshape(-1)
        used = perplexity(jnp.bincount(codes, length=self.config.codebook_size) / len(codes))
        return self._draw(out.z_q_BLD), out.loss, {**out.metrics, "perplexity": used}

    def latents(self, images_BIJC: jax.Array) -> jax.Array:
        """What is quantised, float32 (B, H, W, code_dim), of uint8 images."""
        check_images(images_BIJC)
        self.config.grid(images_BIJC.shape[1:3])
        pixels = images_BIJC.astype(jnp.float32) / 127.5 - 1.0
        patches_BHWP = to_patches(pixels, self.config.patch_size)
        B, H, W, P = patches_BHWP.shape
        x, _ = self.encoder(self.from_pixels(patches_BHWP.reshape(B, H * W, P)))
        return self.to_code(self.encoder_norm(x)).reshape(B, H, W, -1)

    def encode(self, images_BIJC: jax.Array) -> jax.Array:
        """Codes int32 (B, H, W) of uint8 images."""
        latent = self.latents(images_BIJC)
        B, H, W, Q = latent.shape
        return self.bottleneck(latent.reshape(B, H * W, Q), train=False).codes_BL.reshape(B, H, W)

    def decode(self, codes_BHW: jax.Array) -> jax.Array:
        """Images float32 (B, I, J, 3) in [-1, 1] (black is -1) of codes, clipped."""
        grid = self.config.grid(self.config.image_size)
        if codes_BHW.shape[1:] != grid:
            raise ValueError(f"codes of {list(codes_BHW.shape[1:])} are not of {list(grid)}")
        drawn = self._draw(self.bottleneck.lookup(codes_BHW.reshape(len(codes_BHW), -1)))
        return jnp.clip(2.0 * drawn - 1.0, -1.0, 1.0)

    def after_update(self, step: jax.Array, rng: jax.Array) -> None:
        self.bottleneck.after_update(step, rng)

    def _draw(self, codes_BNQ: jax.Array) -> jax.Array:
        x = self.from_code(codes_BNQ) + self.positions[...].astype(self.dtype)
        x, _ = self.decoder(x)
        pixels = self.pixels(self.norm(x)).astype(jnp.float32)
        grid = self.config.grid(self.config.image_size)
        return 0.5 + from_patches(pixels.reshape(-1, *grid, pixels.shape[-1]), self.config.factor)


TOKENIZERS: dict[str, tuple[type, type[nnx.Module]]] = {
    "patches": (PatchTokenizerConfig, PatchTokenizer),
    "vqgan": (ImportedTokenizerConfig, ImageTokenizer),
}


def tokenizer_of(model: Mapping[str, Any], key: str = "model") -> tuple[type, type[nnx.Module]]:
    """(config class, module class) of an image tokenizer's settings, which stand under `key`."""
    name = model.get("architecture")
    if not isinstance(name, str) or name not in TOKENIZERS:
        raise ValueError(f"{key}.architecture={name!r} must be one of {sorted(TOKENIZERS)}")
    return TOKENIZERS[name]
