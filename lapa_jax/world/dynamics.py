"""A model of how frames follow: the tokens of the next frame, of those before and a latent action.

Two stacks. The first sees the past: attention over the cells of a frame and, at each cell, over the
frames up to it; the latent action that follows a frame is added to all of its cells. What it says
of the last frame, cell by cell, is all that the second sees, which draws the next frame: so a frame
is drawn in several passes at the cost of the second alone. In training all frames of a clip are
drawn at once, each from its own past.

Genie (Bruce et al. 2024) hides tokens of all frames of one stack; here the past is seen as it is,
but for the share that is replaced by chance, which the model is told, so that it learns not to
trust its own frames more than they deserve (as in Valevski et al. 2024).

Tokens tell what changes. Where a cell has the token that it had in a frame which is known, and the
tokenizer makes it of that cell's pixels alone, the pixels are those of that frame.

Shape suffixes: B clips, T frames, N cells of a frame, D width, V values of a token, L codes or
vectors of a z, S frames that are imagined, I image rows, J image columns.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.layers import Dense, RMSNorm, dtype_of, truncated_normal
from lapa_jax.nn.module import freeze, param
from lapa_jax.nn.stack import Stack
from lapa_jax.policy.heads.base import Embedding, readout
from lapa_jax.world.blocks import Block, Tables
from lapa_jax.world.config import DynamicsConfig
from lapa_jax.world.tokenizers import tokenizer_of


class Past(NamedTuple):
    """What the next frame is drawn of: `count` frames, in arrays that have room for all it sees."""

    tokens_BTN: jax.Array
    z_BTL: jax.Array  # what follows each frame; of the last one it is not known yet
    count: jax.Array  # int32


class Scene(NamedTuple):
    """What frames are imagined in: the past, and the last frame that was given, uint8."""

    past: Past
    frame_BIJC: jax.Array
    tokens_BN: jax.Array  # of that frame


class Dynamics(nnx.Module):
    def __init__(self, config: DynamicsConfig, *, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype_of(config.compute_dtype)
        rows, columns = config.grid

        def learned(*shape):
            return truncated_normal(rngs.params(), (*shape, config.dim), config.init_std)

        self.tokens = Embedding(config.vocab, config, "vocab", rngs)
        self.blank = param(learned(), "embed")  # where a token is not known
        self.rows = param(learned(rows, 1), None, None, "embed")
        self.columns = param(learned(1, columns), None, None, "embed")
        self.noise = param(learned(config.noise_levels), None, "embed")
        if config.latent_dim:
            shape, names = (config.latent_length, config.latent_dim), (None, None)
            self.latents = Dense(
                shape, (config.dim,), (*names, "embed"), dtype=self.dtype, bias=True, rngs=rngs
            )
        else:
            codes = learned(config.latent_length, config.latent_codes)
            self.latents = param(codes, None, None, "embed")
        common = dict(remat=config.remat, unroll=config.unroll, rngs=rngs)
        self.past = Stack(
            lambda rngs: Block(config, past=True, causal=False, rngs=rngs), config.depth, **common
        )
        self.past_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.context = readout(config.dim, config, None, rngs)
        causal = config.form == "next_token"
        self.drawing = Stack(
            lambda rngs: Block(config, past=False, causal=causal, rngs=rngs),
            config.draw_depth,
            **common,
        )
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.head = readout(config.vocab, config, "vocab", rngs)
        kind = tokenizer_of(config.image_tokenizer)[1]
        self.tokenizer = kind(config.tokenizer, dtype=jnp.float32, rngs=rngs)
        freeze(self.tokenizer)

    # --- Frames and tokens ---

    def encode(self, frames_BTIJC: jax.Array) -> jax.Array:
        """Tokens int32 (B, T, N) of uint8 frames."""
        B, T = frames_BTIJC.shape[:2]
        return self.tokenizer.encode(frames_BTIJC.reshape(B * T, *frames_BTIJC.shape[2:])).reshape(
            B, T, -1
        )

    def decode(self, tokens_BTN: jax.Array) -> jax.Array:
        """Frames float32 (B, T, I, J, 3) in [0, 1] of tokens."""
        B, T = tokens_BTN.shape[:2]
        images = self.tokenizer.decode(tokens_BTN.reshape(B * T, *self.config.grid))
        return 0.5 * (images + 1.0).reshape(B, T, *images.shape[1:])

    def draw_pixels(
        self, tokens_BTN: jax.Array, given_BTIJC: jax.Array, given_BTN: jax.Array
    ) -> jax.Array:
        """As `decode`, but the pixels of a given frame, uint8, where a cell has the token that it
        has there. T of what is given may be 1. Of a tokenizer whose codes see more than their own
        cell all is decoded: there the pixels may differ where the token does not."""
        decoded = self.decode(tokens_BTN)
        tokenizer = self.config.tokenizer
        if not tokenizer.own_patch:
            return decoded
        same_BTHW = (tokens_BTN == given_BTN).reshape(*tokens_BTN.shape[:2], *self.config.grid)
        side = tokenizer.factor
        same_BTIJ = jnp.repeat(jnp.repeat(same_BTHW, side, axis=2), side, axis=3)
        return jnp.where(same_BTIJ[..., None], given_BTIJC.astype(jnp.float32) / 255.0, decoded)

    # --- The two stacks ---

    def after(self, tokens_BTN: jax.Array, z_BTL: jax.Array, level_BT: jax.Array) -> jax.Array:
        """What is said of each frame's next, (B, T, N, D): of tokens of which a share was replaced
        (`level_BT`: int32, the level of that), and the z that follows each, codes int32 (B, T, L)
        or vectors (B, T, L, latent_dim)."""
        x = self.tokens(tokens_BTN) + self._places()
        told = self.noise[...][level_BT].astype(self.dtype) + self._of_latents(z_BTL)
        x, _ = self.past(x + told[:, :, None], self._tables(x))
        return self.context(self.past_norm(x))

    def logits(self, context_BTND: jax.Array, given_BTN: jax.Array, known: jax.Array) -> jax.Array:
        """Of the tokens of each frame's next, float32 (B, T, N, V), of what `after` says and of the
        tokens that are `known`, bool like `given_BTN`; of next_token those before each cell."""
        if self.config.form == "next_token":
            given_BTN = jnp.roll(given_BTN, 1, axis=-1)
            known = jnp.roll(known, 1, axis=-1).at[..., 0].set(False)
        known_BTN1 = jnp.broadcast_to(known, given_BTN.shape)[..., None]
        x = jnp.where(known_BTN1, self.tokens(given_BTN), self.blank[...].astype(self.dtype))
        x = x + context_BTND + self._places()
        x, _ = self.drawing(x, self._tables(x))
        return self.head(self.norm(x)).astype(jnp.float32)

    def _tables(self, x_BTND: jax.Array) -> Tables:
        return Tables.of(self.config, x_BTND.shape[2], x_BTND.shape[1])

    def _places(self) -> jax.Array:
        """(N, D)."""
        return (self.rows[...] + self.columns[...]).reshape(-1, self.config.dim).astype(self.dtype)

    def _of_latents(self, z_BTL: jax.Array) -> jax.Array:
        """(B, T, D)."""
        if self.config.latent_dim:
            return self.latents(z_BTL)
        slots = jnp.arange(self.config.latent_length)
        return self.latents[...][slots, z_BTL].sum(axis=-2).astype(self.dtype)

    # --- Training ---

    def noised(self, tokens_BTN: jax.Array, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(tokens of which in each frame another share is replaced by others, the level of that
        int32 (B, T))."""
        config, keys = self.config, jax.random.split(rng, 3)
        level_BT = jax.random.randint(keys[0], tokens_BTN.shape[:2], 0, config.noise_levels)
        share_BT1 = config.noise * level_BT[..., None] / (config.noise_levels - 1)
        replaced = jax.random.uniform(keys[1], tokens_BTN.shape) < share_BT1
        others = jax.random.randint(keys[2], tokens_BTN.shape, 0, config.vocab)
        return jnp.where(replaced, others, tokens_BTN), level_BT

    def known(self, next_BTN: jax.Array, rng: jax.Array) -> jax.Array:
        """Bool (B, T, N): which tokens of each next frame training shows. Of maskgit cos(πu/2) of
        them are hidden, one or more, u even in [0, 1); of next_token none are, since each is drawn
        of those before it."""
        shape = next_BTN.shape
        if self.config.form == "next_token":
            return jnp.ones(shape, bool)
        keys, N = jax.random.split(rng), shape[-1]
        hidden = jnp.cos(0.5 * math.pi * jax.random.uniform(keys[0], (*shape[:-1], 1)))
        hidden = jnp.maximum(jnp.round(hidden * N), 1.0)
        order = jnp.argsort(jnp.argsort(jax.random.uniform(keys[1], shape), axis=-1), axis=-1)
        return order >= hidden

    def __call__(
        self, frames_BTIJC: jax.Array, z_BTL: jax.Array, *, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, metrics) of drawing every frame of clips but the first."""
        tokens = jax.lax.stop_gradient(self.encode(frames_BTIJC))
        noise_key, hide_key = jax.random.split(rng)
        past, level = self.noised(tokens[:, :-1], noise_key)
        wanted, known = tokens[:, 1:], self.known(tokens[:, 1:], hide_key)
        logits = self.logits(self.after(past, z_BTL, level), wanted, known)
        asked = ~known if self.config.form == "maskgit" else known
        return self._compared(logits, wanted, tokens[:, :-1], asked)

    def _compared(
        self, logits: jax.Array, wanted_BTN: jax.Array, before_BTN: jax.Array, asked: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, metrics): of each frame the mean over its tokens that are `asked`."""

        def mean(values_BTN):
            asked_BTN = asked.astype(jnp.float32)
            return jnp.mean((values_BTN * asked_BTN).sum(-1) / asked_BTN.sum(-1))

        log_BTNV = jax.nn.log_softmax(logits)
        loss = mean(-jnp.take_along_axis(log_BTNV, wanted_BTN[..., None], axis=-1)[..., 0])
        return loss, {
            "token_accuracy": mean(jnp.argmax(logits, axis=-1) == wanted_BTN),
            "copy_accuracy": mean(before_BTN == wanted_BTN),
        }

    # --- Evaluation ---

    def evaluate(self, frames_BTIJC: jax.Array, z_BTL: jax.Array) -> dict[str, jax.Array]:
        """Metrics of clips, without randomness, with z as they are known.

        Teacher-forced, each frame from the true ones before: `loss` and accuracies of all tokens,
        none of them known at first; `mse` of the frames that are drawn, `copy_mse` of copying the
        frame before, `skill` 1 − their ratio, and `tokens_mse` of the true tokens' frames, which
        bounds it. Free-running, from the first frame alone: `free_loss`, and of k = 1, 2, ... steps
        `free_skill_k`, against copying that first frame.
        """
        tokens = self.encode(frames_BTIJC)
        frames = frames_BTIJC.astype(jnp.float32) / 255.0
        wanted, none = tokens[:, 1:], jnp.zeros(tokens[:, 1:].shape[:2], jnp.int32)
        known = jnp.full(wanted.shape, self.config.form == "next_token")
        everywhere = jnp.ones(wanted.shape, bool)

        def forced(past_BTN):
            context = self.after(past_BTN, z_BTL, none)
            logits = self.logits(context, wanted, known)
            return context, *self._compared(logits, wanted, past_BTN, everywhere)

        def error(drawn, true):
            return jnp.square(drawn - true).mean(axis=(0, 2, 3, 4))  # of each frame

        context, loss, metrics = forced(tokens[:, :-1])
        before = frames_BTIJC[:, :-1], tokens[:, :-1]
        drawn = self.draw_pixels(self.draw(context, jax.random.key(0), 0.0), *before)
        free = self.imagined(tokens[:, :1], z_BTL, jax.random.key(0), 0.0)
        _, free_loss, _ = forced(jnp.concatenate([tokens[:, :1], free[:, :-1]], axis=1))
        mse = error(drawn, frames[:, 1:]).mean()
        copy = error(frames[:, :-1], frames[:, 1:]).mean()
        free_T = error(self.draw_pixels(free, frames_BTIJC[:, :1], tokens[:, :1]), frames[:, 1:])
        standing_T = error(frames[:, :1], frames[:, 1:])
        metrics |= {
            "loss": loss,
            "mse": mse,
            "copy_mse": copy,
            "skill": _skill(mse, copy),
            "tokens_mse": error(self.draw_pixels(wanted, *before), frames[:, 1:]).mean(),
            "free_loss": free_loss,
        }
        skills = _skill(free_T, standing_T)
        return metrics | {f"free_skill_{k + 1}": skills[k] for k in range(len(skills))}

    # --- Drawing ---

    def draw(self, context_BTND: jax.Array, rng: jax.Array, temperature: float) -> jax.Array:
        """Tokens int32 (B, T, N) of each frame's next, of what `after` says. Temperature 0: the
        likeliest."""
        if self.config.form == "next_token":
            return self._draw_in_order(context_BTND, rng, temperature)
        return self._draw_surest(context_BTND, rng, temperature)

    def _draw_surest(self, context_BTND, rng, temperature):
        """In each of `decode_steps` passes the surest of those that are not known yet are kept;
        cos(πk/2K) of all are not known after pass k of K (Chang et al. 2022)."""
        passes, shape = self.config.decode_steps, context_BTND.shape[:-1]

        def one(number, carry):
            tokens, known = carry
            logits = self.logits(context_BTND, tokens, known)
            drawn = _sampled(logits, jax.random.fold_in(rng, number), temperature)
            tokens = jnp.where(known, tokens, drawn)
            sure = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
            sure = jnp.where(known, jnp.inf, sure[..., 0])
            left = jnp.floor(shape[-1] * jnp.cos(0.5 * math.pi * (number + 1) / passes))
            place = jnp.argsort(jnp.argsort(-sure, axis=-1), axis=-1)
            return tokens, place < shape[-1] - left

        start = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
        return jax.lax.fori_loop(0, passes, one, start)[0]

    def _draw_in_order(self, context_BTND, rng, temperature):
        """One cell after the other; keys and values of those before are kept."""
        config, (B, T, N, D) = self.config, context_BTND.shape
        context_MND = context_BTND.reshape(B * T, N, D) + self._places()
        kept = jnp.zeros((config.draw_depth, B * T, N, config.heads, config.head_dim), self.dtype)
        tables = Tables.of(config, N, 1)
        blank = jnp.broadcast_to(self.blank[...].astype(self.dtype), (B * T, 1, D))

        def one(carry, cell):
            x_M1D, cache = carry
            x = x_M1D + jax.lax.dynamic_slice_in_dim(context_MND, cell, 1, axis=1)
            x, cache = self.drawing(x, cell, tables, per_layer=cache, method="step")
            logits = self.head(self.norm(x)).astype(jnp.float32)
            drawn_M1 = _sampled(logits, jax.random.fold_in(rng, cell), temperature)
            return (self.tokens(drawn_M1), cache), drawn_M1[:, 0]

        _, drawn_NM = jax.lax.scan(one, (blank, (kept, kept)), jnp.arange(N))
        return drawn_NM.T.reshape(B, T, N)

    def imagined(
        self, tokens_BTN: jax.Array, z_BTL: jax.Array, rng: jax.Array, temperature: float
    ) -> jax.Array:
        """Tokens int32 (B, S, N) of the S frames after T first ones, of the z that follow each but
        the last of all: T − 1 + S of them. It sees the last `seen` frames, its own included."""
        count = min(tokens_BTN.shape[1], self.config.seen)

        def one(past, given):
            z_next, key = given
            return self.step(past, z_next, rng=key, temperature=temperature)

        before, follows = jnp.split(z_BTL, [tokens_BTN.shape[1] - 1], axis=1)
        past = self.remembered(tokens_BTN[:, -count:], before[:, before.shape[1] + 1 - count :])
        follows = jnp.moveaxis(follows, 1, 0)
        keys = jax.random.split(rng, len(follows))
        _, drawn_SBN = jax.lax.scan(one, past, (follows, keys))
        return jnp.moveaxis(drawn_SBN, 0, 1)

    def remembered(self, tokens_BTN: jax.Array, z_BTL: jax.Array) -> Past:
        """T ≤ `seen` frames, and the T − 1 z that lie between them, as `step` takes them."""
        count = tokens_BTN.shape[1]
        room = self.config.seen - count
        tokens, z = (
            jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2))
            for x, more in ((tokens_BTN, room), (z_BTL, room + 1))
        )
        return Past(tokens, z, jnp.asarray(count, jnp.int32))

    def step(
        self, past: Past, z_BL: jax.Array, *, rng: jax.Array, temperature: float
    ) -> tuple[Past, jax.Array]:
        """(the past with it, tokens int32 (B, N) of the next frame), of the z that leads to it."""
        tokens, z, count = past
        z = z.at[:, count - 1].set(z_BL)
        level = jnp.zeros(tokens.shape[:2], jnp.int32)
        last = jax.lax.dynamic_slice_in_dim(self.after(tokens, z, level), count - 1, 1, axis=1)
        drawn = self.draw(last, rng, temperature)[:, 0]
        # The oldest leaves when there is no room.
        full = count == self.config.seen
        tokens, z = (jnp.where(full, jnp.roll(x, -1, axis=1), x) for x in (tokens, z))
        at = jnp.minimum(count, self.config.seen - 1)
        return Past(tokens.at[:, at].set(drawn), z, at + 1), drawn

    def begin(self, frames_BIJC: jax.Array, z_BTL: jax.Array) -> Scene:
        """The scene of one frame each, uint8; z_BTL: none, (B, 0, ...), of the dtype of z."""
        tokens = self.encode(frames_BIJC[:, None])
        return Scene(self.remembered(tokens, z_BTL), frames_BIJC, tokens[:, 0])

    def step_frame(
        self, scene: Scene, z_BL: jax.Array, *, rng: jax.Array, temperature: float
    ) -> tuple[Scene, jax.Array]:
        """As `step`, the frame itself: float32 (B, I, J, 3) in [0, 1]."""
        past, drawn_BN = self.step(scene.past, z_BL, rng=rng, temperature=temperature)
        given = scene.frame_BIJC[:, None], scene.tokens_BN[:, None]
        return scene._replace(past=past), self.draw_pixels(drawn_BN[:, None], *given)[:, 0]

    def imagine(
        self, frames_BTIJC: jax.Array, z_BTL: jax.Array, *, rng: jax.Array, temperature: float
    ) -> jax.Array:
        """The frames float32 (B, S, I, J, 3) in [0, 1] that follow uint8 ones: see `imagined`."""
        tokens = self.encode(frames_BTIJC)
        drawn = self.imagined(tokens, z_BTL, rng, temperature)
        return self.draw_pixels(drawn, frames_BTIJC[:, -1:], tokens[:, -1:])


def _skill(mse: jax.Array, copy_mse: jax.Array) -> jax.Array:
    return 1.0 - mse / jnp.maximum(copy_mse, 1e-12)


def _sampled(logits: jax.Array, rng: jax.Array, temperature: float) -> jax.Array:
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(rng, logits / temperature, axis=-1).astype(jnp.int32)
