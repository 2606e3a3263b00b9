"""villa-X's latent action model (Chen et al. 2025), as its public code has it: several frames, a
transformer over space and time, attention pooling, a codebook, and a forward dynamics model that
draws the later frame of a pair.

Its training, and the part that predicts robot states, are not public: what is trained here is the
composition of its parts, squared error of normalised pixels and quantisation. The image size is the
resolution to which the original resizes every frame, bilinear with antialiasing.

Shape suffixes: B clips, T frames, M = B·(T−1) pairs of neighbours, I image rows, J image columns, N
patches, K heads, C head width, D width, L code slots, Q latent width, P values of a patch.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.latent.attention import frame_attention
from lapa_jax.latent.encoder import flat
from lapa_jax.latent.exact.base import CodesConfig, ExactQuantizer
from lapa_jax.latent.exact.blocks import Codebook, image_of, weighed
from lapa_jax.nn.attention import attention
from lapa_jax.nn.layers import Dense, LayerNorm, RMSNorm, dtype_of
from lapa_jax.nn.module import param
from lapa_jax.nn.patches import to_patches
from lapa_jax.nn.stack import Stack
from lapa_jax.nn.vit import MEAN, STD
from lapa_jax.parallel.sharding import constrain

TEMPERATURE, OFFSET = 0.01, 1e-5  # of the entropy term


@dataclass(frozen=True, kw_only=True)
class VillaXConfig(CodesConfig):
    """The defaults are those of the public code, but for `decoder_depth`, which is what the size of
    the released file tells."""

    architecture: Annotated[str, ("villax",), "villa-X's latent action model"] = "villax"
    patch_size: Annotated[int, "[1, 8192]", "pixels"] = 14
    max_frames: Annotated[int, "[2, 1024]", "frames that the encoder sees at once"] = 8
    dim: Annotated[int, "[4, 65536]", "width of the encoder"] = 768
    depth: Annotated[int, "[1, 1024]", "layers of the encoder"] = 12
    heads: Annotated[int, "[1, 4096]", "of the encoder's attention"] = 8
    mlp_dim: Annotated[int, "[1, 1e6]", "width inside of its feed-forward"] = 3072
    qk_norm: Annotated[bool, "norms of its queries and keys"] = True
    pool_heads: Annotated[int, "[1, 4096]", "of the attention that pools patches"] = 24
    quant_dim: Annotated[int, "[1, 65536]", "width of a latent and of a code"] = 128
    codebook_size: Annotated[int, "[2, 1e7]", "values of a code"] = 32
    code_length: Annotated[int, "[1, 4096]", "codes of a latent action"] = 4
    decoder_dim: Annotated[int, "[4, 65536]", "width of the decoder"] = 768
    decoder_depth: Annotated[int, "[1, 1024]", "layers of the decoder"] = 12
    decoder_heads: Annotated[int, "[1, 4096]", "of the decoder's attention"] = 16
    decoder_mlp_dim: Annotated[int, "[1, 1e6]", "width inside of its feed-forward"] = 3072
    decoder_qk_norm: Annotated[bool, "norms of its queries and keys"] = True
    codebook_weight: Annotated[float, "[0, 1e6]", "on the distance that moves codes"] = 1.0
    commitment_weight: Annotated[float, "[0, 1e6]", "on the distance that moves latents"] = 0.25
    entropy_weight: Annotated[
        float, "[0, 1e6]", "on sharp choices of codes that differ between latents; the code has 0.1"
    ] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_patches(self.patch_size)
        for name, key in (
            ("dim", "heads"),
            ("dim", "pool_heads"),
            ("decoder_dim", "decoder_heads"),
        ):
            width, heads = getattr(self, name), getattr(self, key)
            if width % heads or width % 4:
                raise ValueError(
                    f"model.{name}={width} must be a multiple of 4 and of model.{key}={heads}"
                )
        if self.num_frames > self.max_frames:
            raise ValueError(
                f"data.num_frames={self.num_frames} must be at most model.max_frames="
                f"{self.max_frames}: what the encoder sees at once"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


class VillaX(ExactQuantizer):
    def __init__(self, config: VillaXConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        dtype = dtype_of(config.compute_dtype)
        pixels, stack = 3 * config.patch_size**2, (config.remat, config.unroll)
        self.patches = Linear((pixels,), (config.dim,), ("patch", "embed"), dtype, rngs)
        self.encoder = _stack(
            lambda rngs: EncoderBlock(config, rngs=rngs), config.depth, *stack, rngs
        )
        self.norm = RMS(config.dim)
        self.pool = Pool(config, rngs=rngs)
        self.codebook = Codebook(config.codebook_size, config.quant_dim, rngs=rngs)

        D = config.decoder_dim
        self.decoder_patches = Linear((pixels,), (D,), ("patch", "embed"), dtype, rngs)
        latent = config.code_length, config.quant_dim
        self.action = Linear(latent, (D,), (None, None, "embed"), dtype, rngs)
        make = lambda rngs: DecoderBlock(config, rngs=rngs)  # noqa: E731
        self.decoder = _stack(make, config.decoder_depth, *stack, rngs)
        self.decoder_norm = RMS(D)
        self.pixels = Linear((D,), (pixels,), ("embed", "patch"), dtype, rngs)

    def __call__(
        self, frames_BTIJC: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> dict[str, Any]:
        frames = self.frames(frames_BTIJC)
        first, last = flat(frames[:, :-1]), flat(frames[:, 1:])
        latent_MLQ = flat(self.latents(frames))
        received, codes, losses = self.codebook(latent_MLQ)
        drawn = self.draw(first, received)
        error = jnp.mean(jnp.square(drawn - normalized(last)))
        if self.config.entropy_weight:
            losses["entropy_loss"] = entropy_loss(latent_MLQ, self.codebook.codes[...])
        loss = error + weighed(self.config, losses)
        loss = loss + self.config.entropy_weight * losses.get("entropy_loss", 0.0)
        return self.outcome(
            first,
            last,
            pixels_of(drawn),
            loss=loss,
            codes_BL=codes,
            train=train,
            metrics={"recon_loss": error, **losses},
        )

    def latents(self, frames_BTIJC: jax.Array) -> jax.Array:
        """Of neighbouring frames, float32 (B, T−1, L, Q), in [0, 1]. Of more frames than the
        encoder sees at once a window slides over them: the first gives all of its latents, each
        later one its last."""
        B, T = frames_BTIJC.shape[:2]
        width = min(T, self.config.max_frames)
        windows = [frames_BTIJC[:, i : i + width] for i in range(T - width + 1)]
        found = self._window(flat(jnp.stack(windows, axis=1)))
        found = found.reshape(B, len(windows), *found.shape[1:])
        return jnp.concatenate([found[:, 0], found[:, 1:, -1]], axis=1)

    def _window(self, frames_BTIJC: jax.Array) -> jax.Array:
        config, dtype = self.config, self.patches.dtype
        B, T = frames_BTIJC.shape[:2]
        x = self.patches(to_patches(normalized(frames_BTIJC), config.patch_size))
        x = x.reshape(B, T, -1, config.dim) + places(config.grid, config.dim).astype(dtype)
        time_TD = jnp.asarray(waves(np.arange(T), config.dim), dtype)[:, None]
        # Only the first layer is told the time.
        told = jnp.zeros(config.depth, dtype).at[0].set(1)
        x, _ = self.encoder(x, time_TD, per_layer=told)
        x = self.norm(x)
        x = (x[:, :-1] + x[:, 1:]) / 2
        slots = self.pool(flat(x)).astype(jnp.float32)
        return slots.reshape(B, T - 1, *slots.shape[1:])

    def draw(self, first_MIJC: jax.Array, z_MLQ: jax.Array) -> jax.Array:
        """The later frames (M, I, J, 3) in normalised pixels, float32, of frames in [0, 1]."""
        config, dtype = self.config, self.decoder_patches.dtype
        x = self.decoder_patches(to_patches(normalized(first_MIJC), config.patch_size))
        x = x.reshape(len(x), -1, config.decoder_dim)
        x = x + places(config.grid, config.decoder_dim).astype(dtype)
        x = jnp.concatenate([self.action(z_MLQ)[:, None], x], axis=1)
        x, _ = self.decoder(x)
        patches = self.pixels(self.decoder_norm(x)[:, 1:]).astype(jnp.float32)
        return image_of(patches, config.patch_size, config.image_size)

    def encode(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        pair = jnp.stack([self.frames(first_BIJC), self.frames(last_BIJC)], axis=1)
        return self.latents(pair)[:, 0]

    def decode_latent(self, first_BIJC: jax.Array, z_BLQ: jax.Array) -> jax.Array:
        """The later frame, in [0, 1] but not clipped. The original clips, and rounds down to
        uint8."""
        return pixels_of(self.draw(self.frames(first_BIJC), z_BLQ))


class Linear(Dense):
    """Uniform weights by Glorot and Bengio (2010), biases of zero."""

    def __init__(self, inputs, outputs, axes, dtype, rngs):
        super().__init__(inputs, outputs, axes, bias=True, std=0.0, dtype=dtype, rngs=rngs)
        bound = math.sqrt(6.0 / (math.prod(inputs) + math.prod(outputs)))
        shape = (*inputs, *outputs)
        kernel = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        self.kernel = param(kernel, *axes)


def RMS(width: int) -> RMSNorm:
    return RMSNorm(width, eps=1e-16)


def _stack(make, depth, remat, unroll, rngs):
    return Stack(make, depth, remat=remat, unroll=unroll, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention with biases; queries, keys and values of one map where nothing else is
    attended to (`packed`)."""

    def __init__(self, config, dim, heads, *, packed=False, norm, rngs):
        dtype, C = dtype_of(config.compute_dtype), dim // heads
        names = ("heads", "head_dim")

        def dense(*outputs):
            axes = ("embed", *[None] * (len(outputs) - 2), *names)
            return Linear((dim,), outputs, axes, dtype, rngs)

        self.qkv = dense(3, heads, C) if packed else None
        self.q = None if packed else dense(heads, C)
        self.kv = None if packed else dense(2, heads, C)
        self.q_norm = LayerNorm(C, axis="head_dim", bias=True) if norm else None
        self.k_norm = LayerNorm(C, axis="head_dim", bias=True) if norm else None
        self.out = Linear((heads, C), (dim,), (*names, "embed"), dtype, rngs)
        self.scale, self.implementation = C**-0.5, config.attention

    def __call__(self, x_BTD: jax.Array, context_BSD: jax.Array | None = None) -> jax.Array:
        q, k, v = self._heads(x_BTD, x_BTD if context_BSD is None else context_BSD)
        return self.out(attention(q, k, v, scale=self.scale, implementation=self.implementation))

    def over_frames(self, x_BTND: jax.Array) -> jax.Array:
        """Each frame sees those before it, at every patch."""
        q, k, v = self._heads(x_BTND, x_BTND)
        seen = [range(t + 1) for t in range(x_BTND.shape[1])]
        return self.out(frame_attention(q * self.scale, k, v, seen=seen))

    def _heads(self, x, context):
        if self.qkv is not None:
            qkv = self.qkv(x)
            q, k, v = (qkv[..., i, :, :] for i in range(3))
        else:
            q, kv = self.q(x), self.kv(context)
            k, v = kv[..., 0, :, :], kv[..., 1, :, :]
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class EncoderBlock(nnx.Module):
    """Attention over patches, attention over frames and a feed-forward, with learned shifts, scales
    and gates. What goes into the attention over frames is not normed, and its gate is that of the
    attention over patches."""

    def __init__(self, config: VillaXConfig, *, rngs: nnx.Rngs):
        dtype, D = dtype_of(config.compute_dtype), config.dim
        table = jax.random.normal(rngs.params(), (6, D)) / math.sqrt(D)
        self.table = param(table, None, "embed")

        def attend():
            return Attention(config, D, config.heads, packed=True, norm=config.qk_norm, rngs=rngs)

        self.spatial, self.temporal = attend(), attend()
        self.wi = Linear((D,), (config.mlp_dim,), ("embed", "mlp"), dtype, rngs)
        self.wo = Linear((config.mlp_dim,), (D,), ("mlp", "embed"), dtype, rngs)

    def __call__(
        self, x_BTND: jax.Array, time_TD: jax.Array, told: jax.Array
    ) -> tuple[jax.Array, None]:
        B, T, N, D = x_BTND.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.table[...].astype(x_BTND.dtype)
        h = standard(x_BTND) * (1 + scale1) + shift1
        x = x_BTND + gate1 * self.spatial(h.reshape(B * T, N, D)).reshape(B, T, N, D)
        x = x + gate1 * self.temporal.over_frames(x + told * time_TD)
        h = standard(x) * (1 + scale2) + shift2
        x = x + gate2 * self.wo(jax.nn.gelu(self.wi(h), approximate=True))
        return constrain(x, "batch", None, None, "embed"), None


class Gated(nnx.Module):
    """wo (value · silu(gate)) of one map to both."""

    def __init__(self, config, dim, mlp_dim, *, rngs):
        dtype = dtype_of(config.compute_dtype)
        self.wi = Linear((dim,), (2, mlp_dim), ("embed", None, "mlp"), dtype, rngs)
        self.wo = Linear((mlp_dim,), (dim,), ("mlp", "embed"), dtype, rngs)

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        h = self.wi(x_BND)
        return self.wo(h[..., 0, :] * jax.nn.silu(h[..., 1, :]))


class Pool(nnx.Module):
    """A latent per code slot: learned queries attend to the patches."""

    def __init__(self, config: VillaXConfig, *, rngs: nnx.Rngs):
        dtype, D = dtype_of(config.compute_dtype), config.dim
        queries = 0.02 * jax.random.normal(rngs.params(), (config.code_length, D))
        self.queries = param(queries, None, "embed")
        self.before = Linear((D,), (D,), ("embed", None), dtype, rngs)
        self.attention = Attention(config, D, config.pool_heads, norm=False, rngs=rngs)
        self.attention_norm, self.mlp_norm = RMS(D), RMS(D)
        self.mlp = Gated(config, D, config.mlp_dim, rngs=rngs)
        # The latent feeds an argmin: its last step is in float32.
        self.out = Linear((D,), (config.quant_dim,), ("embed", None), jnp.float32, rngs)

    def __call__(self, x_MND: jax.Array) -> jax.Array:
        queries = self.queries[...].astype(x_MND.dtype)
        h = jnp.broadcast_to(queries, (len(x_MND), *queries.shape))
        h = self.attention_norm(h + self.attention(h, self.before(x_MND)))
        return self.out(self.mlp_norm(h + self.mlp(h)))


class DecoderBlock(nnx.Module):
    """Pre-norm attention and feed-forward, each scaled by learned factors."""

    def __init__(self, config: VillaXConfig, *, rngs: nnx.Rngs):
        D = config.decoder_dim
        self.attention_norm, self.mlp_norm = RMS(D), RMS(D)
        norm = config.decoder_qk_norm
        self.attention = Attention(config, D, config.decoder_heads, norm=norm, rngs=rngs)
        self.mlp = Gated(config, D, config.decoder_mlp_dim, rngs=rngs)
        self.attention_scale = param(jnp.full(D, 0.1), "embed")
        self.mlp_scale = param(jnp.full(D, 0.1), "embed")

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        def scaled(scale, y):
            return scale[...].astype(y.dtype) * y

        x = x_BTD + scaled(self.attention_scale, self.attention(self.attention_norm(x_BTD)))
        x = x + scaled(self.mlp_scale, self.mlp(self.mlp_norm(x)))
        return constrain(x, "batch", None, "embed")


def normalized(frames: jax.Array) -> jax.Array:
    return (frames - jnp.array(MEAN)) / jnp.array(STD)


def pixels_of(frames: jax.Array) -> jax.Array:
    """The inverse of `normalized`."""
    return frames * jnp.array(STD) + jnp.array(MEAN)


def standard(x: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the last axis, without learned factors."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def waves(positions: np.ndarray, dim: int) -> np.ndarray:
    """float32 (n, dim): sines of p·10000^(−2j/dim), then their cosines."""
    angles = positions[:, None] * 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def places(grid: tuple[int, int], dim: int) -> np.ndarray:
    """float32 (N, dim): waves of the column, then of the row, of every patch."""
    rows, columns = np.divmod(np.arange(math.prod(grid)), grid[1])
    return np.concatenate([waves(x, dim // 2) for x in (columns, rows)], axis=1)


def entropy_loss(latent_MLQ: jax.Array, codes_KQ: jax.Array) -> jax.Array:
    """Mean entropy of soft choices, less the entropy of their mean."""
    z = latent_MLQ.reshape(-1, 1, latent_MLQ.shape[-1])
    distance_MK = jnp.sum(jnp.square(z - codes_KQ), axis=-1)
    chosen = jax.nn.softmax(-distance_MK / TEMPERATURE, axis=-1)
    log = jax.nn.log_softmax(-distance_MK / TEMPERATURE, axis=-1)
    mean = chosen.mean(axis=0)
    return -jnp.mean(jnp.sum(chosen * log, -1)) + jnp.sum(mean * jnp.log(mean + OFFSET))
