"""A vision transformer that learns by itself: a masked autoencoder (He et al. 2022).

The encoder sees a few patches of an image; a light decoder draws the others. What is wanted is the
encoder. Its width is not bound to the decoder's, and both learn their positions.

Shape suffixes: as in vit.py; S patches that are seen, E decoder width, P pixel values of a patch.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.layers import Dense, LayerNorm, dtype_of, truncated_normal
from lapa_jax.nn.module import param
from lapa_jax.nn.patches import to_patches
from lapa_jax.nn.stack import REMAT, Stack
from lapa_jax.nn.vit import Block, ViT, ViTConfig

# Added to the variance by which the pixels of a patch are divided: 8 grey levels, squared. The
# paper's 1e-6 blows the compression noise of a flat patch up to the size of what others show.
VARIANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoderConfig(ViTConfig):
    """The encoder's keys are those of ViTConfig."""

    image_size: tuple[int, int]
    compute_dtype: str
    mask_fraction: Annotated[float, "[0, 1)", "of the patches, which the encoder does not see"] = (
        0.75
    )
    decoder_dim: Annotated[int, "[1, 65536]", "width of the decoder"] = 32
    decoder_depth: Annotated[
        int, "[0, 1024]", "its layers; 0 is an encoder alone, which cannot be trained"
    ] = 2
    decoder_heads: Annotated[int, "[1, 4096]", "its heads, which divide decoder_dim"] = 2
    remat: Annotated[str, REMAT, "what the backward pass keeps, see docs/training.md"] = "none"
    unroll: Annotated[int, "[0, 1024]", "layers per scan step; 0: all"] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "image_size", tuple(self.image_size))
        dtype_of(self.compute_dtype)
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"data.image_size={self.image_size} must be a multiple of "
                f"model.patch_size={self.patch_size} on both sides"
            )
        if self.decoder_dim % self.decoder_heads:
            raise ValueError(
                f"model.decoder_dim={self.decoder_dim} must be a multiple of "
                f"model.decoder_heads={self.decoder_heads}"
            )
        if not 0 < self.seen < self.patches:
            raise ValueError(
                f"model.mask_fraction={self.mask_fraction} of {self.patches} patches must leave at "
                "least one to see and one to draw"
            )

    @property
    def image_grid(self) -> tuple[int, int]:
        """Patch rows and columns of the images."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        return math.prod(self.image_grid)

    @property
    def seen(self) -> int:
        return round((1.0 - self.mask_fraction) * self.patches)

    @property
    def decoder(self) -> ViTConfig:
        """The blocks of the decoder."""
        return ViTConfig(
            grid=self.image_grid,
            patch_size=self.patch_size,
            dim=self.decoder_dim,
            depth=self.decoder_depth,
            heads=self.decoder_heads,
            head_dim=self.decoder_dim // self.decoder_heads,
            mlp_dim=4 * self.decoder_dim,
            registers=0,
            swiglu=False,
            norm_eps=self.norm_eps,
        )


class MaskedAutoencoder(nnx.Module):
    def __init__(self, config: MaskedAutoencoderConfig, *, rngs: nnx.Rngs):
        dtype = dtype_of(config.compute_dtype)
        common = dict(remat=config.remat, unroll=config.unroll, rngs=rngs)
        self.config = config
        self.encoder = ViT(config, dtype=dtype, **common)
        if config.decoder_depth == 0:
            return

        def dense(inputs, outputs, axes):
            return Dense((inputs,), (outputs,), axes, bias=True, dtype=dtype, rngs=rngs)

        def tokens(count):
            return param(
                truncated_normal(rngs.params(), (count, config.decoder_dim), 0.02), None, "embed"
            )

        self.narrow = dense(config.dim, config.decoder_dim, ("embed", None))
        self.unseen, self.positions = tokens(1), tokens(config.patches)
        self.decoder = Stack(
            lambda rngs: Block(config.decoder, dtype=dtype, rngs=rngs),
            config.decoder_depth,
            **common,
        )
        self.norm = LayerNorm(config.decoder_dim, bias=True, eps=config.norm_eps)
        self.pixels = dense(config.decoder_dim, 3 * config.patch_size**2, ("embed", "patch"))

    def __call__(
        self, images_BIJC: jax.Array, *, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, metrics) of drawing the patches that `rng` hides."""
        drawn_BNP, hidden_BN = self.draw(images_BIJC, rng=rng)
        wanted_BNP = normalized_patches(images_BIJC, self.config.patch_size)
        loss = hidden_error(drawn_BNP, wanted_BNP, hidden_BN)
        flat = hidden_error(jnp.zeros_like(wanted_BNP), wanted_BNP, hidden_BN)
        return loss, {"drawing_skill": jax.lax.stop_gradient(1.0 - loss / (flat + 1e-12))}

    def draw(self, images_BIJC: jax.Array, *, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(normalised pixels of every patch (B, N, P) float32, which were hidden bool (B, N))."""
        if self.config.decoder_depth == 0:
            raise ValueError(
                "model.decoder_depth=0: an encoder alone, as imported ones are, cannot be trained"
            )
        patches = self.encoder.embed(images_BIJC)
        B, N, S = len(patches), self.config.patches, self.config.seen
        order_BN = jnp.argsort(jax.random.uniform(rng, (B, N)), axis=1)  # those seen come first
        place_BN = jnp.argsort(order_BN, axis=1)
        patches = patches.reshape(B, N, -1)
        seen_BSD = jnp.take_along_axis(patches, order_BN[:, :S, None], axis=1)
        tokens = self.encoder.encode(seen_BSD)[:, -S:]
        tokens_BSE = self.narrow(tokens)
        unseen = self.unseen[...].astype(tokens_BSE.dtype)
        x = jnp.concatenate(
            [tokens_BSE, jnp.broadcast_to(unseen, (B, N - S, unseen.shape[-1]))], axis=1
        )
        x = jnp.take_along_axis(x, place_BN[..., None], axis=1)
        x, _ = self.decoder(x + self.positions[...].astype(x.dtype))
        return self.pixels(self.norm(x)).astype(jnp.float32), place_BN >= S

    def features(self, images_BIJC: jax.Array) -> jax.Array:
        """The encoder's (B, H, W, D), of all patches."""
        return self.encoder.features(images_BIJC)


def normalized_patches(images_BIJC: jax.Array, patch: int) -> jax.Array:
    """The pixels of each patch less their mean and over their deviation, float32 (B, N, P)."""
    x = images_BIJC.astype(jnp.float32)
    x = x / 255.0 if images_BIJC.dtype == jnp.uint8 else x
    x = to_patches(x, patch).reshape(len(x), -1, 3 * patch**2)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + VARIANCE)


def hidden_error(drawn_BNP: jax.Array, wanted_BNP: jax.Array, hidden_BN: jax.Array) -> jax.Array:
    """Mean squared error over the hidden patches."""
    error_BN = jnp.mean(jnp.square(drawn_BNP - wanted_BNP), axis=-1)
    return jnp.sum(error_BN * hidden_BN) / jnp.sum(hidden_BN)
