"""What every bottleneck gives, and what those with a codebook share.

Whatever a bottleneck keeps beside its parameters is a `BottleneckState` variable: part of the train
state, never of the gradient, and computed from the global batch, so that every replica holds the
same.

Shape suffixes: B batch, L code slots, M = B·L vectors, D latent width, K codes, R recent vectors
kept, G dimensions in which codes are compared.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.module import param


class BottleneckState(nnx.Variable):
    """State that training mutates without a gradient."""


class BottleneckOutput(NamedTuple):
    z_q_BLD: jax.Array  # what the decoder receives
    codes_BL: jax.Array | None  # int32; None for a continuous bottleneck
    loss: jax.Array  # scalar added to the training loss
    metrics: dict[str, jax.Array]


class Bottleneck(nnx.Module):
    """Built as `(config, codebook_size, dim, rngs=...)`. One that is of another form than a
    `codebook` (K, D) says so, and what `lookup` and `nearness` are."""

    # "codebook", "continuous" (no codes), or that of a grid: what torch_files' modeling_laq.py
    # needs to know to compute with exported weights
    form: ClassVar[str] = "codebook"

    @classmethod
    def defaults(cls, codebook_size: int) -> dict[str, Any]:
        """Settings of a new config that depend on the codebook's size."""
        return {}

    @classmethod
    def grid(cls, config: Any, codebook_size: int) -> tuple[int, ...]:
        """Levels of each dimension of a grid whose cells are the codes; () without one."""
        return ()

    def __call__(
        self, z_e_BLD: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> BottleneckOutput:
        """`rng`: in training."""
        raise NotImplementedError

    def lookup(self, codes_BL: jax.Array) -> jax.Array:
        """What the decoder receives, float32 (B, L, D), for codes in range (checked where they
        enter from outside)."""
        return self.codebook[...][codes_BL]

    def nearness(self, z_BLD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(where latents are (B, L, G), where codes are (K, G)): the nearest code is chosen."""
        return z_BLD, self.codebook[...]

    def after_update(self, step: jax.Array, rng: jax.Array) -> None:
        """What follows optimizer step `step` (from 0) without a gradient."""


@dataclass(frozen=True)
class CodebookConfig:
    """Every `replace_every_steps` (0: never) dead codes are drawn anew from the last `recent_size`
    latents, with noise of `replace_noise` times their standard deviation. Dead is a code that is
    the nearest of less of them than `dead_fraction` of what the fullest code has. The decoder
    receives the latent itself for `continuous_steps`, then over `ramp_steps` more and more of its
    quantised form."""

    continuous_steps: Annotated[int, "[0, 1e9]", "at first without quantisation"] = 0
    ramp_steps: Annotated[int, "[0, 1e9]", "then, until all is quantised"] = 0
    dead_fraction: Annotated[
        float, "[0, 1)", "of what the fullest code has; one with less is dead"
    ] = 0.125
    replace_every_steps: Annotated[int, "[0, 1e9]", "dead codes are drawn anew; 0: never"] = 10
    # With 16 latents a code or more, chance calls few codes dead; with many steps' worth, old ones
    # tell little of the codes' use.
    recent_size: Annotated[
        int, "[1, 1e8]", "last latents that are kept: codebook_size of them or more"
    ] = 1024
    replace_noise: Annotated[
        float, "[0, 1e6]", "of a code drawn anew, in standard deviations of the latents"
    ] = 0.01


class CodebookBottleneck(Bottleneck):
    """A codebook that serves all slots. A subclass has `train_output(z_BLD, hard_BLD, error_BL,
    rng)`, of the latents, their nearest codes and the squared distances between them: (what the
    decoder receives in training (B, L, D), loss).

    In evaluation the decoder receives the nearest code. The codebook is initialised from the
    latents of the first batch, and dead codes are replaced from recent latents, both in
    `after_update`. Quantising late lets the latents find out what there is to say before they must
    say it in few codes: from the start, the first thing found takes all codes (docs/trials.md).
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
        metrics = {
            "quantization_error": jnp.mean(error_BL) / (spread + 1e-12),
            "dead_codes": jnp.sum(self._dead()).astype(jnp.float32),
        }
        return BottleneckOutput(z_q_BLD, codes_BL, loss, jax.lax.stop_gradient(metrics))

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

    def _dead(self) -> jax.Array:
        """Bool (K,): the codes that a replacement would begin with."""
        recent_RD, codebook_KD = self.recent[...], self.codebook[...]
        distance_KR = squared_distances(codebook_KD, recent_RD)
        held_K = latents_held(distance_KR, written(recent_RD, self.recent_count[...]))[0]
        return dead_codes(held_K, self.config.dead_fraction)

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


def squared_distances(codes_KD: jax.Array, recent_RD: jax.Array) -> jax.Array:
    """(K, R), code by code: recent latents may be many, and a product would round."""
    return jax.lax.map(lambda code_D: jnp.sum(jnp.square(recent_RD - code_D), axis=-1), codes_KD)


def written(recent_RD: jax.Array, count: jax.Array) -> jax.Array:
    """Float32 (R,): 1 for the recent latents there are, when `count` have been written."""
    return (jnp.arange(len(recent_RD)) < count).astype(jnp.float32)


def latents_held(distance_KR: jax.Array, written_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many recent latents each code is the nearest of, float32 (K,), and which code (R,)."""
    nearest_R = jnp.argmin(distance_KR, axis=0)
    return jnp.bincount(nearest_R, weights=written_R, length=len(distance_KR)), nearest_R


def dead_codes(held_K: jax.Array, dead_fraction: float) -> jax.Array:
    """Bool (K,): codes that hold less than `dead_fraction` of what the fullest holds.

    Where no code is dead at 1/8, the perplexity is at least six tenths of the codebook, however the
    others share. A bound on the share alone lets one code hold most of all.
    """
    return held_K < dead_fraction * jnp.max(held_K)


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

    While there are dead codes, the one that holds the least and the fullest are drawn anew, both
    from the latents of the fullest: what is said in one code too often is split. (Drawn by the
    distance to the nearest code, as k-means++ does, codes run to outliers, and most latents share
    one.) A code whose latents are all the same cannot be split: then the next is the fullest. Ends
    after twice as many splits as there are codes.
    """
    size, rows = len(codebook_KD), len(recent_RD)
    written_R = written(recent_RD, count)
    total = jnp.maximum(written_R.sum(), 1.0)
    mean_D = jnp.sum(written_R[:, None] * recent_RD, axis=0) / total
    deviation_RD = written_R[:, None] * (recent_RD - mean_D)
    spread = jnp.sqrt(jnp.sum(jnp.square(deviation_RD)) / (total * recent_RD.shape[1]))

    def unequal(carry):
        splits, _, distance_KR, whole_K = carry
        held_K, _ = latents_held(distance_KR, written_R)
        most = jnp.max(jnp.where(whole_K, 0.0, held_K))
        return (jnp.min(held_K) < dead_fraction * most) & (splits < 2 * size)

    def split(carry):
        splits, codebook_KD, distance_KR, whole_K = carry
        draw_key, noise_key = jax.random.split(jax.random.fold_in(key, splits))
        held_K, nearest_R = latents_held(distance_KR, written_R)
        least, fullest = jnp.argmin(held_K), jnp.argmax(jnp.where(whole_K, 0.0, held_K))
        theirs_R = (nearest_R == fullest) & (written_R > 0)
        order_R = jnp.where(theirs_R, jax.random.uniform(draw_key, (rows,)), -1.0)
        first = jnp.argmax(order_R)
        others_R = theirs_R & jnp.any(recent_RD != recent_RD[first], axis=-1)
        second = jnp.argmax(jnp.where(others_R, order_R, -1.0))
        drawn_2D = recent_RD[jnp.stack([first, second])]
        drawn_2D = drawn_2D + noise * spread * jax.random.normal(noise_key, drawn_2D.shape)
        both, possible = jnp.stack([fullest, least]), jnp.any(others_R)
        moved = (
            splits + 1,
            codebook_KD.at[both].set(drawn_2D),
            distance_KR.at[both].set(squared_distances(drawn_2D, recent_RD)),
            whole_K,
        )
        kept = (splits + 1, codebook_KD, distance_KR, whole_K.at[fullest].set(True))
        return jax.tree.map(lambda a, b: jnp.where(possible, a, b), moved, kept)

    distance_KR = squared_distances(codebook_KD, recent_RD)
    distance_KR = jnp.where(all_dead, jnp.inf, distance_KR)
    start = (0, codebook_KD, distance_KR, jnp.zeros(size, bool))
    return jax.lax.while_loop(unequal, split, start)[1]
