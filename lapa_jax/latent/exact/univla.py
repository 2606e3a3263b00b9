"""UniVLA's latent action model (Bu et al. 2025, arXiv 2505.06111): features of a frozen DINOv2 in,
features of the later frame out.

In its first phase the encoder and the decoder also see an instruction, and codes are left with what
it does not tell. In the second there is no instruction: these queries and their codebook, frozen,
stand for what is irrelevant to the task, and further queries with a codebook of their own for the
rest, which labels.

Shape suffixes: as in blocks.py; N patches, F width of their features, W words, E their width; U
what is irrelevant, as L.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.latent.bottlenecks.base import BottleneckState
from lapa_jax.latent.exact.base import CodesConfig, ExactQuantizer
from lapa_jax.latent.exact.blocks import Codebook, Transformer, check_width, queries, weighed
from lapa_jax.latent.quantizer import Reading
from lapa_jax.nn.layers import Dense, dtype_of
from lapa_jax.nn.module import freeze, param
from lapa_jax.nn.registry import typed_config
from lapa_jax.nn.vit import ViT, ViTConfig, vit_settings


class FeaturesConfig(ViTConfig):
    KEY = "model.encoder"


@dataclass(frozen=True, kw_only=True)
class UniVLAConfig(CodesConfig):
    """The defaults: the released second phase's, for images of 224 pixels a side."""

    predicts: ClassVar[str] = "features"

    architecture: Annotated[str, ("univla",), "that of UniVLA"] = "univla"
    phase: Annotated[int, "1 or 2", "1: with instructions; 2: what labels"] = 2
    encoder: Annotated[
        Mapping[str, Any] | FeaturesConfig, "the frozen ViT whose features are seen and predicted"
    ] = field(default_factory=lambda: vit_settings("dinov2_base", registers=4))
    dim: Annotated[int, "[2, 65536]", "width of the layers"] = 768
    heads: Annotated[int, "[1, 4096]", "of an attention"] = 12
    encoder_depth: Annotated[int, "[1, 1024]", "layers of the encoder"] = 12
    decoder_depth: Annotated[int, "[1, 1024]", "layers of the decoder"] = 12
    quant_dim: Annotated[int, "[1, 65536]", "width of a latent and of a code"] = 128
    codebook_size: Annotated[int, "[2, 1e7]", "values of a code"] = 16
    code_length: Annotated[int, "[1, 4096]", "codes of a latent action"] = 4
    irrelevant_codebook_size: Annotated[
        int, "[2, 1e7]", "values of a code of the first phase, in the second"
    ] = 16
    irrelevant_length: Annotated[int, "[1, 4096]", "and how many of them"] = 4
    text_dim: Annotated[int, "[1, 65536]", "width of the words' features, in the first phase"] = 768
    tiled_mask: Annotated[
        bool,
        "in the first phase, as the original: of a batch, examples take each other's mask of words",
    ] = False
    codebook_weight: Annotated[
        float, "[0, 1e6]", "on the squared distance that moves codes towards latents"
    ] = 1.0
    commitment_weight: Annotated[
        float, "[0, 1e6]", "on the squared distance that moves latents towards codes"
    ] = 0.25
    restart_every_steps: Annotated[
        int,
        "[0, 1e9]",
        "codes of the first phase that were not used since are overwritten by others, in the "
        "second phase too; 0: never, as in the released first phase",
    ] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        encoder = typed_config(FeaturesConfig, self.encoder, FeaturesConfig.KEY)
        object.__setattr__(self, "encoder", encoder)
        self.check_patches(encoder.patch_size, "model.encoder.patch_size")
        check_width(self.dim, self.heads)
        if self.num_frames != 2:
            raise ValueError(
                f"data.num_frames={self.num_frames} must be 2 under model.architecture='univla'"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return tuple(side // self.encoder.patch_size for side in self.image_size)


class Words(NamedTuple):
    """Of an instruction, for the first phase."""

    features_BWE: jax.Array  # what T5's encoder gives
    seen_BW: jax.Array  # int32: 0 for padding


class Latents(NamedTuple):
    """Before quantisation; of the second phase both."""

    task_BLQ: jax.Array
    irrelevant_BUQ: jax.Array | None


class UniVLA(ExactQuantizer):
    def __init__(self, config: UniVLAConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        dim, width, Q = config.dim, config.encoder.dim, config.quant_dim
        dtype, second = dtype_of(config.compute_dtype), config.phase == 2

        def dense(inputs, outputs, axes, dtype=dtype):
            return Dense((inputs,), (outputs,), axes, bias=True, dtype=dtype, rngs=rngs)

        def tokens(count):
            shape = (count, width)
            return param(
                jax.random.uniform(rngs.params(), shape, minval=-1.0, maxval=1.0), None, None
            )

        def to_latent():
            return dense(dim, Q, ("embed", None), jnp.float32)

        self.features = ViT(config.encoder, dtype=dtype, unroll=config.unroll, rngs=rngs)
        freeze(self.features)
        self.queries = tokens(config.code_length)
        self.encoder = Transformer(
            *(config, width, dim, config.encoder_depth), time="causal", rngs=rngs
        )
        self.to_latent = to_latent()
        self.codebook = Codebook(config.codebook_size, Q, rngs=rngs)
        self.patch_up = dense(width, dim, (None, "embed"))
        self.action_up = dense(Q, dim, (None, "embed"))
        self.decoder = Transformer(
            *(config, dim, dim, config.decoder_depth), outputs=width, rngs=rngs
        )
        self.usage = BottleneckState(jnp.zeros(config.codebook_size, jnp.float32))
        self.language = None if second else dense(config.text_dim, dim, (None, "embed"))
        self.irrelevant = Irrelevant(config, tokens, to_latent, dense, rngs) if second else None

    def __call__(self, frames_BTIJC, *, train, rng=None, words: Words | None = None):
        return self.of_features(self._features(self.frames(frames_BTIJC)), words, train=train)

    def of_features(
        self, features_BTNF: jax.Array, words: Words | None = None, *, train: bool
    ) -> dict[str, Any]:
        """As the call, of what the frozen encoder gives of both frames."""
        config = self.config
        latents = self.latents(features_BTNF, words)
        received_BLQ, codes_BL, metrics = self.codebook(latents.task_BLQ)
        terms = weighed(config, metrics)
        self._count(self.usage, codes_BL, train)
        metrics["code_usage"] = jnp.mean(self.usage[...] > 0)
        if self.irrelevant is not None:
            book = self.irrelevant.codebook
            received_BUQ, codes_BU, losses = book(latents.irrelevant_BUQ)
            received_BLQ = jnp.concatenate([received_BLQ, received_BUQ], axis=1)
            terms = terms + weighed(config, losses)
            self._count(self.irrelevant.usage, codes_BU, train)
            losses["code_usage"] = jnp.mean(self.irrelevant.usage[...] > 0)
            metrics |= {f"{name}_irrelevant": value for name, value in losses.items()}
        first, last = (self._grid(features_BTNF[:, i]) for i in (0, 1))
        predicted = self._predict(features_BTNF[:, 0], received_BLQ, words)
        loss = jnp.mean(jnp.square(last - predicted)) + terms
        return self.outcome(
            *(first, last, predicted),
            loss=loss,
            codes_BL=codes_BL,
            train=train,
            metrics=metrics,
        )

    def _features(self, frames: jax.Array) -> jax.Array:
        """(..., N, F) of frames (..., I, J, C)."""
        *lead, I, J, C = frames.shape  # noqa: E741
        x = self.features.features(frames.reshape(-1, I, J, C))
        return x.reshape(*lead, -1, x.shape[-1])

    def _grid(self, x_BNF: jax.Array) -> jax.Array:
        return x_BNF.reshape(len(x_BNF), *self.config.grid, -1)

    def tokens(self, features_BTNF: jax.Array, words: Words | None) -> jax.Array:
        """What the encoder gives, (B, T, S, D): queries, patches, words."""
        x = queries(self.queries, features_BTNF)
        if self.irrelevant is not None:
            x = queries(self.queries, queries(self.irrelevant.queries, features_BTNF))
        return self.encoder(x, *self._words(words, *x.shape[:3], tiled=self.config.tiled_mask))

    def _words(self, words: Words | None, B: int, T: int, S: int, *, tiled: bool = False):
        """The words as tokens of every frame (B, T, W, D), and which of all tokens are seen."""
        if self.language is None:
            return None, None
        if words is None:
            raise ValueError(
                "model.phase=1 of UniVLA reads what T5 makes of instructions, which is not at hand "
                "here: a run of its second phase (lam-stage-2.ckpt) needs none"
            )
        x_BWD = self.language(words.features_BWE)
        x_BTWD = jnp.broadcast_to(x_BWD[:, None], (B, T, *x_BWD.shape[1:]))
        seen_BTW = mask_of_frames(words.seen_BW.astype(jnp.int32), T, tiled=tiled)
        return x_BTWD, jnp.concatenate([jnp.ones((B, T, S), jnp.int32), seen_BTW], axis=2)

    def latents(self, features_BTNF: jax.Array, words: Words | None = None) -> Latents:
        last_BSD, n = self.tokens(features_BTNF, words)[:, 1], self.config.code_length
        task_BLQ = self.to_latent(last_BSD[:, :n])
        if self.irrelevant is None:
            return Latents(task_BLQ, None)
        own = slice(n, n + self.config.irrelevant_length)
        return Latents(task_BLQ, self.irrelevant.to_latent(last_BSD[:, own]))

    def encode(self, first_BIJC, last_BIJC, words=None):
        return self._pair(first_BIJC, last_BIJC, words).task_BLQ

    def _pair(self, first: jax.Array, last: jax.Array, words: Words | None) -> Latents:
        pair = jnp.stack([self.frames(first), self.frames(last)], axis=1)
        return self.latents(self._features(pair), words)

    def read(self, first_BIJC, last_BIJC, words=None):
        """What the decoder receives is also the codes of what is irrelevant, (B, L + U, Q)."""
        latents = self._pair(first_BIJC, last_BIJC, words)
        z_BL = self.codebook.nearest(latents.task_BLQ)
        received = self.lookup(z_BL)
        if self.irrelevant is not None:
            received = jnp.concatenate([received, self.irrelevant.nearest(latents)], axis=1)
        return Reading(z_BL, latents.task_BLQ, received)

    def decode_latent(self, first_BIJC, z_BLQ, words=None):
        """Features of the later frame (B, H, W, F). Of the codes of the task alone: with those of
        the irrelevant that a pair of equal frames has."""
        first_BNF = self._features(self.frames(first_BIJC))
        if self.irrelevant is not None and z_BLQ.shape[1] == self.config.code_length:
            still = self.latents(jnp.stack([first_BNF, first_BNF], axis=1), words)
            z_BLQ = jnp.concatenate([z_BLQ, self.irrelevant.nearest(still)], axis=1)
        return self._predict(first_BNF, z_BLQ, words)

    def _predict(self, first_BNF: jax.Array, z_BLQ: jax.Array, words: Words | None) -> jax.Array:
        n = self.config.code_length
        actions = [self.action_up(z_BLQ[:, :n])]
        if self.irrelevant is not None:
            actions.append(self.irrelevant.up(z_BLQ[:, n:]))
        x_B1SD = jnp.concatenate([*actions, self.patch_up(first_BNF)], axis=1)[:, None]
        B, T, S, _ = x_B1SD.shape
        y_BSF = self.decoder(x_B1SD, *self._words(words, B, T, S))[:, 0]
        N = first_BNF.shape[1]
        return self._grid(y_BSF[:, S - N : S].astype(jnp.float32))

    def target(self, frames_BIJC):
        return self._grid(self._features(self.frames(frames_BIJC)))

    def _count(self, usage: BottleneckState, codes_BL: jax.Array, train: bool) -> None:
        """Adds, for each code, the number of examples that have it."""
        if train:
            chosen_BLK = jax.nn.one_hot(codes_BL, len(usage[...]))
            usage[...] = usage[...] + jnp.sum(jnp.max(chosen_BLK, axis=1), axis=0)

    def after_update(self, step: jax.Array, rng: jax.Array) -> None:
        every = self.config.restart_every_steps
        if not every:
            return
        part = self if self.irrelevant is None else self.irrelevant
        due = (step + 1) % every == 0
        order = jax.random.permutation(rng, len(part.usage[...]))
        codes = part.codebook.codes
        codes[...] = jnp.where(due, restarted(codes[...], part.usage[...], order), codes[...])
        usages = [self.usage] if self.irrelevant is None else [self.usage, self.irrelevant.usage]
        for usage in usages:
            usage[...] = jnp.where(due, 0.0, usage[...])


class Irrelevant(nnx.Module):
    """What the second phase has of the first, and what else stands for the irrelevant."""

    def __init__(self, config: UniVLAConfig, tokens, to_latent, dense, rngs: nnx.Rngs):
        self.queries = tokens(config.irrelevant_length)
        self.to_latent = to_latent()
        self.codebook = Codebook(config.irrelevant_codebook_size, config.quant_dim, rngs=rngs)
        freeze(self.codebook)
        self.up = dense(config.quant_dim, config.dim, (None, "embed"))
        self.usage = BottleneckState(jnp.zeros(config.irrelevant_codebook_size, jnp.float32))

    def nearest(self, latents: Latents) -> jax.Array:
        """The nearest codes, (B, U, Q)."""
        return self.codebook.codes[...][self.codebook.nearest(latents.irrelevant_BUQ)]


def mask_of_frames(seen_BW: jax.Array, T: int, *, tiled: bool) -> jax.Array:
    """(B, T, W). `tiled`, as the original: its rows one after the other are those of the batch, and
    those of the batch again."""
    B, W = seen_BW.shape
    rows = jnp.tile(seen_BW, (T, 1)) if tiled else jnp.repeat(seen_BW, T, axis=0)
    return rows.reshape(B, T, W)


def restarted(codes_KQ: jax.Array, usage_K: jax.Array, order_K: jax.Array) -> jax.Array:
    """Codes without use are overwritten by those at the first places of `order_K`, a permutation:
    by any, those without use among them."""
    dead_K = usage_K == 0
    rank_K = jnp.maximum(jnp.cumsum(dead_K) - 1, 0)
    return jnp.where(dead_K[:, None], codes_KQ[order_K[rank_K]], codes_KQ)
