"""What the stage and its users ask of a quantizer, for models that are not ours.

Shape suffixes: B pairs, I image rows, J image columns, C channels, L code slots, Q latent width; Y
what the decoder predicts: image rows, columns and colours, or patch rows, columns and features.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.config import require_codes
from lapa_jax.latent.encoder import unit_frames
from lapa_jax.latent.health import CodeHealth
from lapa_jax.latent.objectives.base import Reader
from lapa_jax.latent.quantizer import Reading
from lapa_jax.nn.attention import ATTENTIONS
from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.stack import REMAT


@dataclass(frozen=True, kw_only=True)
class ExactConfig:
    """What all have. A subclass has a key `architecture`, its own name, and says `code_length`,
    `codebook_size` and `quant_dim`."""

    predicts: ClassVar[str] = "pixels"  # or "features": what its decoder gives
    has_codes: ClassVar[bool] = True

    image_size: tuple[int, int]
    num_frames: int
    compute_dtype: str
    attention: Annotated[str, ATTENTIONS, "kernel of attention, see docs/sharding.md"] = "auto"
    remat: Annotated[str, REMAT, "what the backward pass keeps, see docs/training.md"] = "none"
    unroll: Annotated[int, "[0, 1024]", "layers per scan step; 0: all"] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        dtype_of(self.compute_dtype)
        if self.num_frames < 2:
            raise ValueError(
                f"data.num_frames={self.num_frames} must be at least 2: the quantizer sees pairs"
            )

    def check_patches(self, patch_size: int, key: str = "model.patch_size") -> None:
        """Raises ValueError for an image size that these patches do not divide."""
        if any(side % patch_size for side in self.image_size):
            raise ValueError(
                f"data.image_size={self.image_size} must be a multiple of {key}={patch_size} on "
                "both sides"
            )

    @property
    def continuous(self) -> str:
        """The key that says so where there are no codes."""
        return f"model.architecture={self.architecture!r}"

    def require_codes(self) -> None:
        require_codes(self)


@dataclass(frozen=True, kw_only=True)
class CodesConfig(ExactConfig):
    """Of those that have a codebook."""

    collapse_fraction: Annotated[
        float, "[0, 1)", "of codebook_size: training warns while perplexity stays under it"
    ] = 0.25


class ExactQuantizer(Reader, nnx.Module):
    """A subclass has `__call__` as `Quantizer`'s, `encode` and `decode_latent`, with codes a
    `codebook`; where it predicts features, `target`. What it reads of a batch is asked of
    config.model."""

    def __init__(self, config: ExactConfig):
        self.config = config
        self.health = health_of(config) if config.has_codes else None

    def frames(self, frames: jax.Array) -> jax.Array:
        """Float32 in [0, 1], of such or uint8 frames (..., I, J, 3)."""
        return unit_frames(frames, self.config.image_size)

    def encode(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """The continuous latent, float32 (B, L, Q), before any codebook."""
        raise NotImplementedError

    def read(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> Reading:
        """Codes (None without), the latent, and what `decode_latent` takes."""
        latent_BLQ = self.encode(first_BIJC, last_BIJC)
        if not self.config.has_codes:
            return Reading(None, latent_BLQ, latent_BLQ)
        z_BL = self.codebook.nearest(latent_BLQ)
        return Reading(z_BL, latent_BLQ, self.lookup(z_BL))

    def lookup(self, z_BL: jax.Array) -> jax.Array:
        """What `decode_latent` takes of codes, float32 (B, L, Q)."""
        return self.codebook.codes[...][z_BL]

    def decode_latent(self, first_BIJC: jax.Array, z_BLQ: jax.Array) -> jax.Array:
        """What is predicted of the later frame, float32 (B, *Y)."""
        raise NotImplementedError

    def target(self, frames_BIJC: jax.Array) -> jax.Array:
        """What a frame is where predictions are compared, float32 (B, *Y)."""
        return self.frames(frames_BIJC)

    def quantize(self, first_BIJC: jax.Array, last_BIJC: jax.Array) -> jax.Array:
        """The latent action z, int32 (B, L)."""
        self.config.require_codes()
        return self.read(first_BIJC, last_BIJC).z_BL

    def decode(self, first_BIJC: jax.Array, z_BL: jax.Array) -> jax.Array:
        self.config.require_codes()
        return self.decode_latent(first_BIJC, self.lookup(z_BL))

    def outcome(
        self,
        first: jax.Array,
        last: jax.Array,
        predicted: jax.Array,
        *,
        loss: jax.Array,
        codes_BL: jax.Array | None,
        train: bool,
        metrics: dict[str, jax.Array],
    ) -> dict[str, Any]:
        """{loss, recon, z, metrics} as of `Quantizer`, of targets (B, *Y) and what is predicted of
        the last. `metrics`: the original's own, which the loss is made of."""
        metrics = {**metrics, "mse": _mse(predicted, last), "copy_mse": _mse(first, last)}
        if self.health is not None:
            metrics |= self.health(codes_BL, train=train)
        metrics = jax.lax.stop_gradient(metrics)
        return {"loss": loss, "recon": predicted, "z": codes_BL, "metrics": metrics}


def health_of(config: ExactConfig) -> CodeHealth:
    return CodeHealth(config.code_length, config.codebook_size, config.collapse_fraction)


def _mse(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(a - b))
