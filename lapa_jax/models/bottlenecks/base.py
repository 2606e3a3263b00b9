"""What every bottleneck gives, and what those with a codebook share.

A bottleneck is called as `bottleneck(z_e, rng=..., train=...)` and returns a `BottleneckOutput`.
Whatever it keeps beside its parameters is a `BottleneckState` variable: part of the train state,
never of the gradient, and computed from the global batch, so that every replica holds the same.

Shape suffixes: B batch, L code slots, M = B·L vectors, D latent width, K codes, R recent vectors
kept.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.models.module import param


class BottleneckState(nnx.Variable):
    """State that training mutates without a gradient."""


class BottleneckOutput(NamedTuple):
    z_q_BLD: jax.Array  # what the decoder receives
    codes_BL: jax.Array | None  # int32; None for a continuous bottleneck
    loss: jax.Array  # scalar added to the training loss
    metrics: dict[str, jax.Array]


@dataclass(frozen=True)
class CodebookConfig:
    """Every `replace_every_steps` (0: never) codes that hold less than `dead_fraction` of a uniform
    share of the last `recent_size` latents are drawn anew from those, with noise of
    `replace_noise` times their standard deviation. The decoder receives the latent itself for
    `continuous_steps`, then over `ramp_steps` more and more of its quantised form."""

    continuous_steps: int
    ramp_steps: int
    dead_fraction: float
    replace_every_steps: int
    recent_size: int
    replace_noise: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.dead_fraction < 1.0:
            raise ValueError(
                f"model.bottleneck.dead_fraction={self.dead_fraction} must be in [0, 1)"
            )
        for name in ("continuous_steps", "ramp_steps"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"model.bottleneck.{name}={getattr(self, name)} must not be negative"
                )


class CodebookBottleneck(nnx.Module):
    """A codebook that serves all slots. A subclass has `train_output(z_BLD, hard_BLD, error_BL,
    rng)`, of the latents, their nearest codes and the squared distances between them: (what the
    decoder receives in training (B, L, D), loss).

    In evaluation the decoder receives the nearest code. The codebook is initialised from the
    latents of the first batch, and dead codes are replaced from recent latents, both in
    `after_update`. Quantising late lets the latents find out what there is to say before they must
    say it in few codes: from the start, the first thing found takes all codes (docs/evidence.md).
    """

    trained_codebook = True  # by gradient; False: the subclass updates it

    def __init__(self, config: CodebookConfig, codebook_size: int, dim: int, *, rngs: nnx.Rngs):
        if config.recent_size < codebook_size:
            raise ValueError(
                f"model.bottleneck.recent_size={config.recent_size} must be at least "
                f"model.codebook_size={codebook_size}: codes are drawn from it"
            )
        codebook = jax.random.normal(rngs.params(), (codebook_size, dim))
        if self.trained_codebook:
            self.codebook = param(codebook, "code", None)
        else:
            self.codebook = BottleneckState(codebook)
        self.recent = BottleneckState(jnp.zeros((config.recent_size, dim), jnp.float32))
        self.recent_count = BottleneckState(jnp.zeros((), jnp.int32))
        self.step = BottleneckState(jnp.zeros((), jnp.int32))
        self.config = config

    def update_codebook(self, z_BLD: jax.Array, codes_BL: jax.Array) -> None:
        """Called in training with the latents, without gradient; a codebook that is trained by
        gradient needs nothing here."""

    def __call__(
        self, z_e_BLD: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> BottleneckOutput:
        if train and rng is None:
            raise ValueError(f"{type(self).__name__} needs an rng in training")
        z_BLD = z_e_BLD.astype(jnp.float32)
        codes_BL = nearest_code(z_BLD, self.codebook[...])
        hard_BLD = self.codebook[...][codes_BL]
        error_BL = jnp.sum(jnp.square(z_BLD - hard_BLD), axis=-1)
        loss, z_q_BLD = jnp.zeros(()), hard_BLD
        if train:
            noise_rng, recent_rng = jax.random.split(rng)
            z_q_BLD, loss = self.train_output(z_BLD, hard_BLD, error_BL, noise_rng)
            z_q_BLD = z_BLD + self._quantised_share() * (z_q_BLD - z_BLD)
            still_BLD = jax.lax.stop_gradient(z_BLD)
            self.update_codebook(still_BLD, codes_BL)
            self._remember(still_BLD, recent_rng)
        spread = jnp.sum(jnp.var(z_BLD, axis=(0, 1)))
        metrics = {"quantization_error": jnp.mean(error_BL) / (spread + 1e-12)}
        return BottleneckOutput(z_q_BLD, codes_BL, loss, jax.lax.stop_gradient(metrics))

    def lookup(self, codes_BL: jax.Array) -> jax.Array:
        """The vectors of `codes`, which must be in range (checked where they enter from
        outside)."""
        return self.codebook[...][codes_BL]

    def after_update(self, step: jax.Array, rng: jax.Array) -> None:
        """Initialises the codebook after step 0, replaces dead codes every
        `replace_every_steps`."""
        config = self.config
        self.step[...] = (step + 1).astype(jnp.int32)
        every = config.replace_every_steps
        first = step == 0
        due = first | (step % every == 0) if every else first

        def replace(codebook):
            return replace_dead_codes(
                codebook,
                self.recent[...],
                self.recent_count[...],
                rng,
                dead_fraction=config.dead_fraction,
                noise=config.replace_noise,
                all_dead=first,
            )

        self.codebook[...] = jax.lax.cond(due, replace, lambda same: same, self.codebook[...])

    def _quantised_share(self) -> jax.Array:
        """From 0 (continuous) to 1."""
        beyond = self.step[...] - self.config.continuous_steps + 1
        return jnp.clip(beyond / (self.config.ramp_steps + 1), 0.0, 1.0)

    def _remember(self, z_BLD: jax.Array, rng: jax.Array) -> None:
        size = self.config.recent_size
        z_MD = z_BLD.reshape(-1, z_BLD.shape[-1])
        if z_MD.shape[0] > size:
            z_MD = z_MD[jax.random.randint(rng, (size,), 0, z_MD.shape[0])]
        slots = (self.recent_count[...] + jnp.arange(z_MD.shape[0])) % size
        self.recent[...] = self.recent[...].at[slots].set(z_MD)
        # kept in [0, 2·size), where it still tells "full" from "filling", so that it never
        # overflows
        count = self.recent_count[...] + z_MD.shape[0]
        self.recent_count[...] = jnp.where(count >= 2 * size, size + count % size, count)


def nearest_code(z_BLD: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """Index of the nearest code (the first of equals), int32."""
    return jnp.argmin(code_distances(z_BLD, codebook_KD), axis=-1).astype(jnp.int32)


def code_distances(z_BLD: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """Squared distances (B, L, K) less ‖z‖², which no comparison of codes needs.

    At full precision whatever the backend's default: labels must not depend on it.
    """
    product = jnp.einsum("bld,kd->blk", z_BLD, codebook_KD, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(jnp.square(codebook_KD), axis=-1) - 2.0 * product


def replace_dead_codes(
    codebook_KD: jax.Array,
    recent_RD: jax.Array,
    count: jax.Array,
    key: jax.Array,
    *,
    dead_fraction: float,
    noise: float,
    all_dead: jax.Array | bool = False,
) -> jax.Array:
    """The codebook with dead codes redrawn from recent latents (of which `count` have been
    written).

    Dead is a code that is the nearest of less than `dead_fraction` of its uniform share of them.
    Each is drawn, one after the other, from the latents of the code that then has the most: it
    splits what is said in one code too often. (Drawn by the distance to the nearest code, as
    k-means++ does, codes run to outliers, and most latents share one.)
    """
    (size, rows) = codebook_KD.shape[0], recent_RD.shape[0]
    written_R = (jnp.arange(rows) < count).astype(jnp.float32)
    total = jnp.maximum(written_R.sum(), 1.0)
    mean_D = jnp.sum(written_R[:, None] * recent_RD, axis=0) / total
    deviation_RD = written_R[:, None] * (recent_RD - mean_D)
    spread = jnp.sqrt(jnp.sum(jnp.square(deviation_RD)) / (total * recent_RD.shape[1]))

    def squared_distance(code_D):
        return jnp.sum(jnp.square(recent_RD - code_D), axis=-1)

    def latents_of_codes(distance_KR):
        nearest_R = jnp.argmin(distance_KR, axis=0)
        return nearest_R, jnp.bincount(nearest_R, weights=written_R, length=size)

    distance_KR = jax.lax.map(squared_distance, codebook_KD)
    dead_K = latents_of_codes(distance_KR)[1] < dead_fraction * total / size
    dead_K = dead_K | all_dead
    distance_KR = jnp.where(dead_K[:, None], jnp.inf, distance_KR)

    def redraw(k, carry):
        codebook_KD, distance_KR = carry
        draw_key, noise_key = jax.random.split(jax.random.fold_in(key, k))
        nearest_R, count_K = latents_of_codes(distance_KR)
        theirs_R = (nearest_R == jnp.argmax(count_K)) & (written_R > 0)
        logits_R = jnp.where(theirs_R, 0.0, -jnp.inf)
        code_D = recent_RD[jax.random.categorical(draw_key, logits_R)]
        code_D = code_D + noise * spread * jax.random.normal(noise_key, code_D.shape)
        return codebook_KD.at[k].set(code_D), distance_KR.at[k].set(squared_distance(code_D))

    def visit(k, carry):
        return jax.lax.cond(dead_K[k], lambda c: redraw(k, c), lambda c: c, carry)

    codebook, _ = jax.lax.fori_loop(0, size, visit, (codebook_KD, distance_KR))
    return jnp.where(count > 0, codebook, codebook_KD)
