"""The vision transformer of DINOv2 (Oquab et al. 2023), whose features quantizers may predict;
with other settings that of masked autoencoders and of SigLIP.

Images are uint8 or float in [0, 1], channels last, of any size that the patches divide. With their
weights it computes what Hugging Face's Dinov2Model, Dinov2WithRegistersModel, ViTMAEModel (of all
patches, in their order) and SiglipVisionModel do.

Shape suffixes: B batch, I image rows, J image columns, H and W patch rows and columns, N = H·W
patches, R registers, T tokens, K heads, C head width, D width.
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lapa_jax.nn.attention import attention
from lapa_jax.nn.layers import Dense, LayerNorm, truncated_normal
from lapa_jax.nn.module import param
from lapa_jax.nn.patches import to_patches
from lapa_jax.nn.registry import default_settings
from lapa_jax.nn.stack import Stack
from lapa_jax.parallel.sharding import constrain

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
# What pixels in [0, 1] are made of first: (mean, deviation) of each colour.
PIXELS = {"imagenet": (MEAN, STD), "centred": ((0.5,) * 3, (0.5,) * 3)}
ACTIVATIONS = {"gelu": False, "gelu_tanh": True}  # approximate


@dataclass(frozen=True)
class ViTConfig:
    """The defaults: a small one for images of 64 pixels a side."""

    KEY: ClassVar[str] = "model"  # where a config has these

    grid: Annotated[
        tuple[int, int],
        "[1, 8192]",
        "patch rows and columns of the learned positions; images of another grid take "
        "interpolated ones",
    ] = (8, 8)
    patch_size: Annotated[int, "[1, 8192]", "pixels"] = 8
    dim: Annotated[int, "[1, 65536]", "width of the layers"] = 64
    depth: Annotated[int, "[1, 1024]", "layers"] = 4
    heads: Annotated[int, "[1, 4096]", "of an attention"] = 4
    head_dim: Annotated[int, "[1, 4096]", "width of a head"] = 16
    mlp_dim: Annotated[int, "[1, 1e6]", "width inside of a feed-forward"] = 256
    registers: Annotated[
        int, "[0, 4096]", "tokens that stand for no patch (Darcet et al. 2023)"
    ] = 0
    swiglu: Annotated[bool, "the gated feed-forward of the largest DINOv2"] = False
    class_token: Annotated[bool, "one more token, for the whole image; SigLIP has none"] = True
    layer_scale: Annotated[bool, "factors on what each layer adds; DINOv2's"] = True
    activation: Annotated[str, ACTIVATIONS, "gelu_tanh: SigLIP's approximation"] = "gelu"
    norm_eps: Annotated[float, "(0, 1)", "added to the variance in norms"] = 1e-6
    pixels: Annotated[
        str, PIXELS, "by which mean and deviation they are normalised; centred: to [-1, 1]"
    ] = "imagenet"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))

    def architecture(self) -> dict[str, object]:
        """The settings that weights depend on, those of a subclass left out."""
        return {field.name: getattr(self, field.name) for field in fields(ViTConfig)}


def _dinov2(dim: int, depth: int, **changes: object) -> dict[str, object]:
    sizes = dict(dim=dim, depth=depth, heads=dim // 64, head_dim=64, mlp_dim=4 * dim)
    return dict(grid=(37, 37), patch_size=14) | sizes | changes


def _mae(dim: int, depth: int) -> dict[str, object]:
    sizes = dict(dim=dim, depth=depth, heads=dim // 64, head_dim=64, mlp_dim=4 * dim)
    return dict(grid=(14, 14), patch_size=16, layer_scale=False, norm_eps=1e-12) | sizes


def _siglip(side: int, patch_size: int, **sizes: object) -> dict[str, object]:
    same = dict(class_token=False, layer_scale=False, activation="gelu_tanh", pixels="centred")
    return dict(grid=(side, side), patch_size=patch_size) | same | sizes


# name → its settings that differ from ViTConfig's. DINOv2's have registers=0 or 4.
ENCODERS: dict[str, dict[str, object]] = {
    "tabletop": {},
    "dinov2_small": _dinov2(384, 12),
    "dinov2_base": _dinov2(768, 12),
    "dinov2_large": _dinov2(1024, 24),
    "dinov2_giant": _dinov2(1536, 40, mlp_dim=4096, swiglu=True),
    "mae_base": _mae(768, 12),
    "mae_large": _mae(1024, 24),
    "siglip_base": _siglip(14, 16, dim=768, depth=12, heads=12, head_dim=64, mlp_dim=3072),
    "siglip_so400m": _siglip(16, 14, dim=1152, depth=27, heads=16, head_dim=72, mlp_dim=4304),
}


def vit_settings(encoder: str = "tabletop", **changes: object) -> ConfigDict:
    """For a new config: the architecture of one of ENCODERS, with these changes."""
    if encoder not in ENCODERS:
        raise ValueError(f"encoder={encoder!r} must be one of {sorted(ENCODERS)}")
    return default_settings(ViTConfig, **(ENCODERS[encoder] | changes))


class ViT(nnx.Module):
    def __init__(
        self,
        config: ViTConfig,
        *,
        dtype: jnp.dtype,
        remat: str = "none",
        unroll: int = 1,
        rngs: nnx.Rngs,
    ):
        self.config, self.dtype = config, dtype

        def tokens(*shape):
            return truncated_normal(rngs.params(), (*shape, config.dim), 0.02)

        self.project = Dense(
            (3 * config.patch_size**2,),
            (config.dim,),
            ("patch", "embed"),
            bias=True,
            dtype=dtype,
            rngs=rngs,
        )
        self.cls = param(tokens(), "embed") if config.class_token else None
        # The first is that of the cls token.
        count = config.class_token + math.prod(config.grid)
        self.positions = param(tokens(count), None, "embed")
        count = config.registers
        self.registers = param(tokens(count), None, "embed") if count else None
        self.blocks = Stack(
            lambda rngs: Block(config, dtype=dtype, rngs=rngs),
            config.depth,
            remat=remat,
            unroll=unroll,
            rngs=rngs,
        )
        self.norm = LayerNorm(config.dim, bias=True, eps=config.norm_eps)

    def __call__(self, images_BIJC: jax.Array) -> jax.Array:
        """Normed tokens (B, 1 + R + N, D), float32: cls (not without class_token), registers,
        patches row by row."""
        patches_BHWD = self.embed(images_BIJC)
        return self.encode(patches_BHWD.reshape(len(patches_BHWD), -1, self.config.dim))

    def features(self, images_BIJC: jax.Array) -> jax.Array:
        """Normed tokens of the patches (B, H, W, D), float32."""
        patches_BHWD = self.embed(images_BIJC)
        B, H, W, D = patches_BHWD.shape
        x = self.encode(patches_BHWD.reshape(B, H * W, D))
        return x[:, -H * W :].reshape(B, H, W, D)

    def embed(self, images_BIJC: jax.Array) -> jax.Array:
        """Patches (B, H, W, D) with their positions."""
        mean, deviation = PIXELS[self.config.pixels]
        x = images_BIJC.astype(jnp.float32)
        x = x / 255.0 if images_BIJC.dtype == jnp.uint8 else x
        return self.embed_pixels((x - jnp.array(mean)) / jnp.array(deviation))

    def embed_pixels(self, images_BIJC: jax.Array) -> jax.Array:
        """`embed` of images that are normalised, float32."""
        patch = self.config.patch_size
        if images_BIJC.shape[1] % patch or images_BIJC.shape[2] % patch:
            raise ValueError(
                f"images of {images_BIJC.shape[1]}x{images_BIJC.shape[2]} are not a multiple of "
                f"the ViT's patch_size={patch}"
            )
        x = self.project(to_patches(images_BIJC, patch))
        return x + self._positions(x.shape[1:3]).astype(self.dtype)

    def encode(self, patches_BND: jax.Array) -> jax.Array:
        """Normed tokens (B, 1 + R + N, D), float32, of embedded patches: all, or any of them."""
        first = []
        if self.cls is not None:
            first.append((self.cls[...] + self.positions[0])[None])
        if self.registers is not None:
            first.append(self.registers[...])
        x = patches_BND
        if first:
            first_TD = jnp.concatenate(first).astype(self.dtype)
            first_BTD = jnp.broadcast_to(first_TD, (len(x), *first_TD.shape))
            x = jnp.concatenate([first_BTD, x], axis=1)
        x, _ = self.blocks(x)
        return self.norm(x.astype(jnp.float32))

    def _positions(self, grid: tuple[int, int]) -> jax.Array:
        learned = self.positions[self.config.class_token :].reshape(*self.config.grid, -1)
        if grid == self.config.grid:
            return learned
        # As DINOv2 does: only the models with registers smooth before they thin out.
        rows, columns = (
            jnp.asarray(bicubic(old, new, antialias=self.config.registers > 0), jnp.float32)
            for old, new in zip(self.config.grid, grid, strict=True)
        )
        precise = jax.lax.Precision.HIGHEST
        return jnp.einsum("hi,wj,ijd->hwd", rows, columns, learned, precision=precise)


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each output scaled by learned factors (LayerScale) where
    config.layer_scale says so."""

    def __init__(self, config: ViTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        def factors():
            return param(jnp.ones(config.dim), "embed") if config.layer_scale else None

        self.attention_norm = LayerNorm(config.dim, bias=True, eps=config.norm_eps)
        self.attention = SelfAttention(config, dtype=dtype, rngs=rngs)
        self.attention_scale = factors()
        self.mlp_norm = LayerNorm(config.dim, bias=True, eps=config.norm_eps)
        self.mlp = FeedForward(config, dtype=dtype, rngs=rngs)
        self.mlp_scale = factors()

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        def scaled(y_BTD, scale):
            return y_BTD if scale is None else y_BTD * scale[...].astype(y_BTD.dtype)

        x = x_BTD + scaled(self.attention(self.attention_norm(x_BTD)), self.attention_scale)
        x = x + scaled(self.mlp(self.mlp_norm(x)), self.mlp_scale)
        return constrain(x, "batch", None, "embed")


class SelfAttention(nnx.Module):
    def __init__(self, config: ViTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape, names = (config.heads, config.head_dim), ("heads", "head_dim")

        def dense(inputs, outputs, axes):
            return Dense(inputs, outputs, axes, bias=True, dtype=dtype, rngs=rngs)

        self.q = dense((config.dim,), shape, ("embed", *names))
        self.k = dense((config.dim,), shape, ("embed", *names))
        self.v = dense((config.dim,), shape, ("embed", *names))
        self.out = dense(shape, (config.dim,), (*names, "embed"))
        self.scale = config.head_dim**-0.5

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.out(attention(self.q(x_BTD), self.k(x_BTD), self.v(x_BTD), scale=self.scale))


class FeedForward(nnx.Module):
    """wo gelu(wi x), or wo (silu(wi₀ x) * wi₁ x); the norm is the block's."""

    def __init__(self, config: ViTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        hidden = (2, config.mlp_dim) if config.swiglu else (config.mlp_dim,)
        axes = ("embed", None, "mlp") if config.swiglu else ("embed", "mlp")
        self.wi = Dense((config.dim,), hidden, axes, bias=True, dtype=dtype, rngs=rngs)
        self.wo = Dense(
            (config.mlp_dim,), (config.dim,), ("mlp", "embed"), bias=True, dtype=dtype, rngs=rngs
        )
        self.swiglu, self.approximate = config.swiglu, ACTIVATIONS[config.activation]

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        h = self.wi(x_BTD)
        if self.swiglu:
            return self.wo(jax.nn.silu(h[..., 0, :]) * h[..., 1, :])
        return self.wo(jax.nn.gelu(h, approximate=self.approximate))


def bicubic(inputs: int, outputs: int, *, antialias: bool) -> np.ndarray:
    """Weights (outputs, inputs) that resize a row of samples as torch's bicubic `interpolate` does
    without `align_corners`; its two modes differ in the kernel, too (Keys 1981: a = -3/4, -1/2)."""
    ratio = inputs / outputs
    centres = (np.arange(outputs) + 0.5) * ratio - 0.5
    if antialias:
        distance = np.abs(np.arange(inputs) - centres[:, None]) / max(ratio, 1.0)
        weights = _cubic(distance, -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    weights, below = np.zeros((outputs, inputs)), np.floor(centres).astype(int)
    for tap in (below - 1, below, below + 1, below + 2):
        edge = np.clip(tap, 0, inputs - 1)
        np.add.at(weights, (np.arange(outputs), edge), _cubic(np.abs(centres - tap), -0.75))
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
