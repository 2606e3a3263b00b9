"""The latent motion tokenizer of Moto (Chen et al. 2024, arXiv 2412.04445): features of a frozen
masked autoencoder in, motion tokens, pixels out.

Frames are normalised by ImageNet's mean and deviation + 1e-6. The encoder gives its patches in
their order. The original's come in another order at every call, as transformers' ViTMAEModel
shuffles them even where it masks none, so that its tokens are not a function of the frames: tokens
here agree with its in distribution alone. Its perceptual term has no gradient, and is not computed.

Shape suffixes: B clips, T frames, M = B·(T−1) pairs of neighbours, I image rows, J image columns, N
patches, S tokens of the encoder (class and patches), E its width, D width, L code slots, Q latent
width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.encoder import flat
from lapa_jax.latent.exact.base import CodesConfig, ExactQuantizer
from lapa_jax.latent.exact.blocks import Codebook, weighed
from lapa_jax.nn.layers import Dense, LayerNorm, dtype_of, truncated_normal
from lapa_jax.nn.module import freeze, param
from lapa_jax.nn.patches import from_patches, to_patches
from lapa_jax.nn.registry import typed_config
from lapa_jax.nn.stack import Stack
from lapa_jax.nn.surgery import Borrowed
from lapa_jax.nn.vit import MEAN, STD, Block, ViT, ViTConfig, vit_settings

STD_ADDED = 1e-6


class EncoderConfig(ViTConfig):
    KEY = "model.encoder"


@dataclass(frozen=True, kw_only=True)
class MotoConfig(CodesConfig):
    """The defaults are those of the released tokenizers."""

    architecture: Annotated[str, ("moto",), "Moto's latent motion tokenizer"] = "moto"
    encoder: Annotated[Mapping[str, Any] | EncoderConfig, "of frames, frozen: a vit_mae"] = field(
        default_factory=lambda: vit_settings("mae_large")
    )
    encoder_weights: Annotated[
        str,
        'run of stage "teacher" that a new run takes the encoder\'s weights from; then they are in '
        "its own checkpoints",
    ] = ""
    dim: Annotated[int, "[1, 65536]", "width of what reads the features"] = 768
    depth: Annotated[int, "[1, 1024]", "its layers"] = 4
    heads: Annotated[int, "[1, 4096]", "its heads"] = 12
    mlp_dim: Annotated[int, "[1, 1e6]", "width inside of its feed-forward"] = 3072
    quant_dim: Annotated[int, "[1, 65536]", "width of a latent and of a code"] = 32
    codebook_size: Annotated[int, "[2, 1e7]", "values of a code"] = 128
    code_length: Annotated[int, "[1, 4096]", "codes of a latent action"] = 8
    decoder_dim: Annotated[int, "[1, 65536]", "width of the decoder"] = 768
    decoder_depth: Annotated[int, "[1, 1024]", "its layers"] = 12
    decoder_heads: Annotated[int, "[1, 4096]", "its heads"] = 12
    decoder_mlp_dim: Annotated[int, "[1, 1e6]", "width inside of its feed-forward"] = 3072
    decoder_patch_size: Annotated[int, "[1, 8192]", "pixels"] = 16
    norm_eps: Annotated[float, "(0, 1)", "added to the variance in norms"] = 1e-12
    second_type: Annotated[
        bool, "the later frame's features are told apart by an embedding of their own"
    ] = False
    recon_weight: Annotated[float, "[0, 1e6]", "on the squared error of pixels"] = 1.0
    codebook_weight: Annotated[float, "[0, 1e6]", "on the distance that moves codes"] = 0.25
    commitment_weight: Annotated[float, "[0, 1e6]", "on the distance that moves latents"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        encoder = typed_config(EncoderConfig, self.encoder, EncoderConfig.KEY)
        object.__setattr__(self, "encoder", encoder)
        self.check_patches(encoder.patch_size, "model.encoder.patch_size")
        self.check_patches(self.decoder_patch_size, "model.decoder_patch_size")
        for name, key in (("dim", "heads"), ("decoder_dim", "decoder_heads")):
            width, heads = getattr(self, name), getattr(self, key)
            if width % heads:
                raise ValueError(f"model.{name}={width} must be a multiple of model.{key}={heads}")

    def tokens(self) -> int:
        """Of the encoder, of one frame."""
        rows, columns = (side // self.encoder.patch_size for side in self.image_size)
        return self.encoder.class_token + self.encoder.registers + rows * columns

    def patches(self) -> int:
        """Of the decoder, of one frame."""
        return math.prod(side // self.decoder_patch_size for side in self.image_size)


class Moto(ExactQuantizer):
    def __init__(self, config: MotoConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        dtype = dtype_of(config.compute_dtype)
        self.encoder = ViT(config.encoder, dtype=dtype, unroll=config.unroll, rngs=rngs)
        freeze(self.encoder)
        self.former = Former(config, rngs=rngs)
        # The latent feeds an argmin: its last steps are in float32.
        inner, sizes = config.decoder_dim, (config.dim, config.decoder_dim, config.quant_dim)
        self.down = Resampler(*sizes, jnp.float32, rngs)
        self.codebook = Codebook(config.codebook_size, config.quant_dim, rngs=rngs)
        self.up = Resampler(config.quant_dim, config.quant_dim, inner, dtype, rngs)
        self.decoder = Decoder(config, rngs=rngs)

    @classmethod
    def borrowed(cls, model: Mapping[str, Any]) -> tuple[Borrowed, ...]:
        encoder = typed_config(EncoderConfig, model["encoder"], EncoderConfig.KEY)
        frozen = Borrowed(
            key="model.encoder_weights",
            run=model["encoder_weights"],
            hint="a masked autoencoder (lapa import --format vit_mae)",
            stage="teacher",
            settings_key=EncoderConfig.KEY,
            settings=encoder.architecture(),
            theirs="encoder",
            ours="encoder",
        )
        return (frozen,)

    def __call__(
        self, frames_BTIJC: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> dict[str, Any]:
        frames = self.frames(frames_BTIJC)
        states_BTSE = self.states(frames)
        first, last = flat(frames[:, :-1]), flat(frames[:, 1:])
        states = flat(states_BTSE[:, :-1]), flat(states_BTSE[:, 1:])
        drawn, codes, loss, metrics = self.learn(*states, normalized(first), normalized(last))
        return self.outcome(
            first,
            last,
            pixels_of(drawn),
            loss=loss,
            codes_BL=codes,
            train=train,
            metrics=metrics,
        )

    def states(self, frames_BTIJC: jax.Array) -> jax.Array:
        """The encoder's normed tokens (B, T, S, E), float32, of frames in [0, 1]."""
        patches = self.encoder.embed_pixels(normalized(flat(frames_BTIJC)))
        x = self.encoder.encode(patches.reshape(len(patches), -1, patches.shape[-1]))
        return jax.lax.stop_gradient(x.reshape(*frames_BTIJC.shape[:2], *x.shape[1:]))

    def learn(
        self, first_MSE: jax.Array, last_MSE: jax.Array, first: jax.Array, last: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
        """(the later frames that are drawn, codes, loss, its terms), of the tokens of pairs and
        their normalised pixels."""
        received, codes, losses = self.codebook(self.latent(first_MSE, last_MSE))
        drawn = self.draw(first, received)
        error = jnp.mean(jnp.square(drawn - last))
        loss = self.config.recon_weight * error + weighed(self.config, losses)
        return drawn, codes, loss, {"recon_loss": error, **losses}

    def latent(self, first_MSE: jax.Array, last_MSE: jax.Array) -> jax.Array:
        """float32 (M, L, Q) of the encoder's tokens of pairs."""
        return self.down(self.former(first_MSE, last_MSE))

    def draw(self, first: jax.Array, z_MLQ: jax.Array) -> jax.Array:
        """The later frames (M, I, J, 3), float32, of first frames, both in normalised pixels."""
        return self.decoder(first, self.up(z_MLQ))

    def encode(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        pair = jnp.stack([self.frames(first_BIJC), self.frames(last_BIJC)], axis=1)
        states = self.states(pair)
        return self.latent(states[:, 0], states[:, 1])

    def decode_latent(self, first_BIJC: jax.Array, z_BLQ: jax.Array) -> jax.Array:
        """The later frame, in [0, 1] but not clipped."""
        return pixels_of(self.draw(normalized(self.frames(first_BIJC)), z_BLQ))


class Former(nnx.Module):
    """Learned queries, the features of the first frame, a separator and those of the later one in
    one transformer; what becomes of the queries."""

    def __init__(self, config: MotoConfig, *, rngs: nnx.Rngs):
        dtype, D, count = dtype_of(config.compute_dtype), config.dim, config.tokens()
        self.queries = tokens(config.code_length, D, rngs)
        self.separator = tokens(1, D, rngs)
        self.positions = tokens(config.code_length + 2 * count + 1, D, rngs)
        self.types = tokens(2, D, rngs)
        self.project = dense((config.encoder.dim,), (D,), (None, "embed"), dtype, rngs)
        sizes = (D, config.depth, config.heads, config.mlp_dim)
        self.blocks = blocks(config, *sizes, rngs)
        self.norm = LayerNorm(D, bias=True, eps=config.norm_eps)
        self.second_type = config.second_type

    def __call__(self, first_MSE: jax.Array, last_MSE: jax.Array) -> jax.Array:
        """(M, L, D)."""
        M, S = first_MSE.shape[:2]
        features = self.project(jnp.concatenate([first_MSE, last_MSE], axis=1))

        def shared(x):
            return jnp.broadcast_to(x[...].astype(features.dtype), (M, *x.shape))

        parts = [shared(self.queries), features[:, :S], shared(self.separator), features[:, S:]]
        x = jnp.concatenate(parts, axis=1) + self.positions[...].astype(features.dtype)
        kinds = jnp.where(jnp.arange(x.shape[1]) >= x.shape[1] - S, int(self.second_type), 0)
        x, _ = self.blocks(x + self.types[...][kinds].astype(x.dtype))
        return self.norm(x[:, : self.queries.shape[0]])


class Resampler(nnx.Module):
    """Linear, tanh, linear."""

    def __init__(self, inputs: int, inner: int, outputs: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.into = dense((inputs,), (inner,), ("embed", None), dtype, rngs)
        self.out = dense((inner,), (outputs,), (None, "embed"), dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jnp.tanh(self.into(x)))


class Decoder(nnx.Module):
    """Patches of the first frame, to each of which the same vector of all code slots is added."""

    def __init__(self, config: MotoConfig, *, rngs: nnx.Rngs):
        dtype, D, L = dtype_of(config.compute_dtype), config.decoder_dim, config.code_length
        self.patch_size = config.decoder_patch_size
        pixels = 3 * self.patch_size**2
        self.patches = dense((pixels,), (D,), ("patch", "embed"), dtype, rngs)
        self.pool = dense((L, D), (D,), (None, None, "embed"), dtype, rngs)
        self.positions = tokens(config.patches(), D, rngs)
        sizes = (D, config.decoder_depth, config.decoder_heads, config.decoder_mlp_dim)
        self.blocks = blocks(config, *sizes, rngs)
        self.norm = LayerNorm(D, bias=True, eps=config.norm_eps)
        self.pixels = dense((D,), (pixels,), ("embed", "patch"), dtype, rngs)

    def __call__(self, first_MIJC: jax.Array, motion_MLD: jax.Array) -> jax.Array:
        x = self.patches(to_patches(first_MIJC, self.patch_size))
        M, H, W, D = x.shape
        x = x.reshape(M, H * W, D) + self.pool(motion_MLD)[:, None]
        x, _ = self.blocks(x + self.positions[...].astype(x.dtype))
        x = self.pixels(self.norm(x)).astype(jnp.float32)
        return from_patches(x.reshape(M, H, W, -1), self.patch_size)


def blocks(config: MotoConfig, dim: int, depth: int, heads: int, mlp_dim: int, rngs) -> Stack:
    shape = ViTConfig(
        dim=dim,
        heads=heads,
        head_dim=dim // heads,
        mlp_dim=mlp_dim,
        layer_scale=False,
        norm_eps=config.norm_eps,
    )
    dtype = dtype_of(config.compute_dtype)
    return Stack(
        lambda rngs: Block(shape, dtype=dtype, rngs=rngs),
        depth,
        remat=config.remat,
        unroll=config.unroll,
        rngs=rngs,
    )


def dense(inputs, outputs, axes, dtype, rngs) -> Dense:
    return Dense(inputs, outputs, axes, bias=True, std=0.02, dtype=dtype, rngs=rngs)


def tokens(count: int, dim: int, rngs: nnx.Rngs) -> nnx.Param:
    return param(truncated_normal(rngs.params(), (count, dim), 0.02), None, "embed")


def normalized(frames: jax.Array) -> jax.Array:
    return (frames - jnp.array(MEAN)) / (jnp.array(STD) + STD_ADDED)


def pixels_of(frames: jax.Array) -> jax.Array:
    """The inverse of `normalized`."""
    return frames * (jnp.array(STD) + STD_ADDED) + jnp.array(MEAN)
