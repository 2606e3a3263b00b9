"""The interface of objectives.

An objective owns the forward pass of training: it reads its columns of a batch, uses the quantizer
as its toolbox (quantizer.py names the tools) and says what is compared with what. It may have
parameters, further bottlenecks, decoders and encoders of its own, and frozen weights. Where it is
not about pixels, the pixel head still learns to draw, from tokens that carry no gradient:
reconstructions stay comparable.

Shape suffixes of all objectives: B clips, T frames, M = B·(T−1) pairs of neighbouring frames, I
image rows, J image columns, H and W grid rows and columns, D width, L code slots, Q latent width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.latent.bottlenecks.base import Bottleneck
from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.encoder import Pairs
from lapa_jax.nn.surgery import Borrowed


class Tools(Protocol):
    """The quantizer as an objective uses it; quantizer.py and encoder.py say what each does."""

    config: QuantizerConfig
    bottleneck: Bottleneck
    pairs: Callable[..., Pairs]
    latents: Callable[..., jax.Array]
    patches: Callable[..., jax.Array]
    encode: Callable[..., jax.Array]
    encode_frame: Callable[..., jax.Array]
    tokens: Callable[..., jax.Array]
    draw: Callable[..., jax.Array]
    outcome: Callable[..., dict[str, Any]]


class Reader:
    """What training reads of a batch, asked before there is a model: of the settings alone."""

    @classmethod
    def views(cls, settings: Any) -> bool:
        """Whether it is of clips by several cameras, whose batch["frames"] is (B, T·V, I, J, C), by
        time, then by camera."""
        return False

    @classmethod
    def columns(cls, settings: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The columns of a batch that it reads beside "frames", each as it is of one example:
        {"action": float32 (D,), "action_known": bool ()}."""
        return {}

    @classmethod
    def fields(cls, settings: Any) -> tuple[str, ...]:
        """The loader's columns that `prepare` makes them of."""
        return tuple(cls.columns(settings))

    @classmethod
    def prepare(cls, settings: Any, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`columns` of the loader's (`fields`), which may be strings; NumPy, on the host."""
        return {name: batch[name] for name in cls.columns(settings)}

    @classmethod
    def unusable(cls, settings: Any, instructions: Sequence[str]) -> tuple[np.ndarray, str, str]:
        """Which instructions `prepare` would refuse, bool (n,), what is said of the episodes that
        have them, and what to do."""
        return np.zeros(len(instructions), bool), "", ""

    @classmethod
    def window_steps(cls, settings: Any) -> int | None:
        """How many steps the windows of a corpus with actions must have, where it reads those of a
        window."""
        return None

    @classmethod
    def borrowed(cls, settings: Any) -> tuple[Borrowed, ...]:
        """Which of its variables ("objective/teacher") are weights that other runs trained."""
        return ()


class Objective(Reader, nnx.Module):
    """Built last, after the model's own parts. `num_frames`: of a clip, that it needs at least."""

    num_frames: ClassVar[int] = 2

    def __init__(self, settings: Any, config: QuantizerConfig, *, rngs: nnx.Rngs):
        del settings, config, rngs

    @classmethod
    def reads_patches(cls, settings: Any) -> bool:
        """Whether latents are read off the model's own patches, as `seen` says here."""
        return True

    def compose(
        self, model: Tools, first_MLQ: jax.Array, second_MLQ: jax.Array, still_NLQ: jax.Array
    ) -> jax.Array:
        """What the decoder receives of two motions in a row, of their latents before the bottleneck
        and of latents of no motion: of the sum, counted from the mean of those."""
        z_MLQ = first_MLQ + second_MLQ - jnp.mean(still_NLQ, axis=0)
        return self.received(model.bottleneck(z_MLQ, train=False).z_q_BLD)

    def received(self, z_MLQ: jax.Array) -> jax.Array:
        """What the decoder receives of what the bottleneck gives, of the same shape; labels of
        continuous latents are of it."""
        return z_MLQ

    def __call__(
        self,
        model: Tools,
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        rng: jax.Array | None = None,
    ) -> dict[str, Any]:
        """What `model.outcome` gives, of clips batch["frames"], float32 (B, T, I, J, C) in [0, 1],
        and of the other columns. Without `train` there is no `rng`, and nothing changes."""
        raise NotImplementedError

    def seen(self, frames_BTIJC: jax.Array, embedded_BTHWD: jax.Array) -> jax.Array:
        """What the model's latents are read off, in training and after it, (B, T, H, W, D): the
        patches of the frames, or what an encoder of the objective's own says of them there."""
        del frames_BTIJC
        return embedded_BTHWD

    def after_update(self, model: Tools, step: jax.Array, rng: jax.Array) -> None:
        """What follows optimizer step `step` (from 0) without a gradient: targets that are moving
        averages (`nn.module.follow`), codes of further bottlenecks that are replaced. The model's
        own bottleneck draws from `rng`: what else draws folds a number into it."""


def by_view(frames: jax.Array, num_frames: int) -> jax.Array:
    """Clips by several cameras (B, T·V, ...) as clips of each (B, V, T, ...)."""
    V = frames.shape[1] // num_frames
    if V < 2:
        raise ValueError(
            "the objective needs clips by several cameras: name them in "
            "data.corpora.<name>.extra_image_keys"
        )
    return frames.reshape(len(frames), num_frames, V, *frames.shape[2:]).swapaxes(1, 2)


def mean_squared_error(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(a - b))


def standardised(features: jax.Array) -> jax.Array:
    """Features (..., D), each vector scaled to mean 0 and variance 1."""
    x = features - features.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6)
