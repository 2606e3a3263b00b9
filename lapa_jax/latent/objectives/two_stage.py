"""Language explains what is not the task's, then a second codebook explains the rest (UniVLA, Bu et
al. 2025, arXiv 2505.06111).

Shape suffixes: see base.py; S words, U code slots of the first stage.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.latent.attention import CosineAttention
from lapa_jax.latent.bottlenecks.base import nearest_code
from lapa_jax.latent.bottlenecks.vq import straight_through
from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.encoder import steps
from lapa_jax.latent.objectives.mixed import Changed, Mixed
from lapa_jax.latent.parts import CodeProjection, Normalizer
from lapa_jax.nn.layers import GEGLU, Dense, LayerNorm, dtype_of, truncated_normal
from lapa_jax.nn.module import Frozen, param
from lapa_jax.nn.surgery import Borrowed

NO_WORD = 0
DROPS = 1  # folded into the key of a step: which examples are not told


@dataclass(frozen=True)
class TwoStageConfig:
    """Which of the two, and what is told beside frames."""

    of: Annotated[Mapping[str, Any], "the objective that is trained with what is told"] = field(
        default_factory=lambda: {"name": "pixels"}
    )
    stage: Annotated[int, "[1, 2]", "1: with words; 2: with the codes of a run of stage 1"] = 1
    weights: Annotated[
        str,
        "stage 2: the run of stage 1 that a new run takes its codebook from",
    ] = ""
    text_length: Annotated[int, "[1, 4096]", "words of an instruction at most"] = 24
    text_vocab: Annotated[
        int, "[2, 1e7]", "rows for words, which their hash chooses: two words may share one"
    ] = 2048
    commitment_weight: Annotated[
        float, "[0, 1e6]", "stage 2: on the distance of latents to the codes of stage 1"
    ] = 0.25
    untold: Annotated[
        float, "[0, 1)", "share of the training examples that are told nothing, so that a decoder "
        "without words or first codes is one that was trained"
    ] = 0.1  # fmt: skip


class TwoStage(Mixed):
    """Stage 1: the words of the instruction reach the encoder (patches attend to them) and the
    decoder (beside the codes), so that codes need not say what words do: they are of what is not
    the task's. Stage 2, without words: beside the model's own codes, which become the task's and
    are the labels, latents of their own take codes of stage 1, whose codebook is frozen; the
    decoder sees both. As in the original nothing but the codebook comes from stage 1.

    Words are rows of a table, chosen by a hash, and a layer of attention among those of an
    example (the original has a pretrained T5). Codes that die are drawn anew by the bottleneck, in
    both stages, as training goes on.
    """

    def __init__(self, settings: TwoStageConfig, config: QuantizerConfig, *, rngs: nnx.Rngs):
        super().__init__(settings, config, rngs=rngs)
        self.settings = settings
        if settings.stage == 1:
            self.words = Words(settings, config, rngs=rngs)
            self.first = None
        else:
            self.first = FirstCodes(settings, config, rngs=rngs)
            self.words = None

    @classmethod
    def columns(cls, settings):
        words = {"words": jax.ShapeDtypeStruct((settings.text_length,), jnp.int32)}
        return super().columns(settings) | (words if settings.stage == 1 else {})

    @classmethod
    def fields(cls, settings):
        text = ("instruction",) if settings.stage == 1 else ()
        return tuple(dict.fromkeys((*super().fields(settings), *text)))

    @classmethod
    def prepare(cls, settings, batch):
        found = super().prepare(settings, batch)
        if settings.stage == 1:
            found["words"] = np.stack([words_of(text, settings) for text in batch["instruction"]])
        return found

    @classmethod
    def unusable(cls, settings, instructions):
        if settings.stage == 2:
            return super().unusable(settings, instructions)
        count = np.array([len(split(text)) for text in instructions], int)
        key = "model.objective.text_length"
        why = f"have an instruction of more than {key}={settings.text_length} words"
        why += f" (the longest has {count.max(initial=0)})"
        return count > settings.text_length, why, f"Raise {key}"

    @classmethod
    def borrowed(cls, settings):
        others = super().borrowed(settings)
        if settings.stage == 1:
            return others
        codebook = Borrowed(
            key="model.objective.weights",
            run=settings.weights,
            hint='model.objective.name="two_stage" with stage=1',
            stage="quantizer",
            settings_key="model",
            settings={"objective.name": "two_stage", "objective.stage": 1},
            theirs="bottleneck",
            ours="objective/first/bottleneck",
        )
        return (*others, codebook)

    def __call__(self, model, batch, *, train, rng=None):
        rows = len(batch["frames"])
        told_B = jnp.ones(rows, bool)
        if train:
            draws = jax.random.uniform(jax.random.fold_in(rng, DROPS), (rows,))
            told_B = draws >= self.settings.untold
        if self.words is not None:
            known_BS = (batch["words"] != NO_WORD) & told_B[:, None]
            words_BSD = self.words(batch["words"], known_BS)
            tools = self._with_words(model, words_BSD, known_BS)
            return self.of(tools, batch, train=train, rng=rng)
        tools, found = self._with_first_codes(model, told_B)
        outcome = self.of(tools, batch, train=train, rng=rng)
        (commitment,) = found
        metrics = outcome["metrics"] | {"first_error": jax.lax.stop_gradient(commitment)}
        loss = outcome["loss"] + self.settings.commitment_weight * commitment
        return outcome | {"loss": loss, "metrics": metrics}

    def _with_words(self, model, words_BSD, known_BS):
        def pairs(frames, *, train):
            told = partial(self.words.told, words_BSD=words_BSD, known_BS=known_BS)
            return model.pairs(frames, train=train, told=told)

        def tokens(embedded_MHWD, z_MLQ):
            also = (each(words_BSD, len(z_MLQ)), each(known_BS, len(z_MLQ)))
            return model.tokens(embedded_MHWD, z_MLQ, also=also)

        return Changed(model, pairs=pairs, tokens=tokens)

    def _with_first_codes(self, model, told_B):
        also, found = [], []

        def pairs(frames, *, train):
            pairs = model.pairs(frames, train=train)
            context_MUD, commitment = self.first(pairs.features_BTHWD, train=train)
            told_MU = jnp.broadcast_to(
                each(told_B, len(context_MUD))[:, None], context_MUD.shape[:2]
            )
            also[:], found[:] = [(context_MUD, told_MU)], [commitment]
            return pairs

        def tokens(embedded_MHWD, z_MLQ):
            return model.tokens(embedded_MHWD, z_MLQ, also=also[0])

        return Changed(model, pairs=pairs, tokens=tokens), found


class Words(nnx.Module):
    """The text encoder, and how the quantizer's encoder is told of it."""

    def __init__(self, settings: TwoStageConfig, config: QuantizerConfig, *, rngs: nnx.Rngs):
        D, dtype = config.dim, dtype_of(config.compute_dtype)

        def table(rows, name):
            return param(truncated_normal(rngs.params(), (rows, D), 0.02), name, "embed")

        def attend(**kwargs):
            return CosineAttention(
                *(D, config.heads, config.head_dim), dtype=dtype, rngs=rngs, **kwargs
            )

        self.table, self.place = (
            table(settings.text_vocab, "vocab"),
            table(settings.text_length, None),
        )
        self.attention = attend(num_null=0, cross=False)
        self.mlp = GEGLU(D, config.mlp_dim, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(D)
        self.cross = attend(num_null=2, cross=True)
        self.implementation = config.attention

    def __call__(self, words_BS: jax.Array, known_BS: jax.Array) -> jax.Array:
        """(B, S, D); what stands where there is no word means nothing."""
        x = self.table[...][words_BS] + self.place[...]
        x = x + self.attention(
            x,
            known_BS=known_BS | ~known_BS.any(axis=1, keepdims=True),
            implementation=self.implementation,
        )
        return self.norm(x + self.mlp(x))

    def told(self, x_BTHWD: jax.Array, *, words_BSD: jax.Array, known_BS: jax.Array) -> jax.Array:
        """What the encoder sees, changed by the words of the example; by none, not at all."""
        B, T, H, W, D = x_BTHWD.shape
        x = x_BTHWD.reshape(B * T, H * W, D)
        words, known = each(words_BSD, B * T), each(known_BS, B * T)
        change = self.cross(x, words, known_BS=known, implementation=self.implementation)
        x = jnp.where(known.any(axis=1)[:, None, None], x + change, x)
        return x.reshape(B, T, H, W, D)


class FrozenCodebook(nnx.Module):
    def __init__(self, codes_KQ: jax.Array):
        self.codebook = Frozen(codes_KQ)


class FirstCodes(nnx.Module):
    """Latents of their own, in the codes of stage 1."""

    def __init__(self, settings: TwoStageConfig, config: QuantizerConfig, *, rngs: nnx.Rngs):
        L, Q = config.code_length, config.quant_dim
        self.code_projection = CodeProjection(config, rngs=rngs)
        decay = config.normalize_decay
        self.normalize = Normalizer(decay, L, Q) if decay else None
        codes = jax.random.normal(rngs.params(), (config.codebook_size, Q))
        self.bottleneck = FrozenCodebook(codes)
        dtype = dtype_of(config.compute_dtype)
        self.context = Dense(
            (Q,), (config.dim,), (None, "embed"), bias=True, dtype=dtype, rngs=rngs
        )
        self.slots = param(truncated_normal(rngs.params(), (L, config.dim), 0.02), None, "embed")

    def __call__(self, features_BTHWD: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """(what the decoder sees beside (M, U, D), mean squared distance to the codes)."""
        z_MUQ = steps(features_BTHWD, self.code_projection, self.normalize, train=train)
        codebook = self.bottleneck.codebook[...]
        hard_MUQ = codebook[nearest_code(z_MUQ, codebook)]
        commitment = jnp.mean(jnp.square(z_MUQ - hard_MUQ))
        context = self.context(straight_through(z_MUQ, hard_MUQ))
        return context + self.slots[...].astype(context.dtype), commitment


def each(x_B: jax.Array, rows: int) -> jax.Array:
    """Of every example, once for each of its frames or pairs, of which there are `rows` in all."""
    return jnp.repeat(x_B, rows // len(x_B), axis=0)


def split(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def words_of(text: str, settings: TwoStageConfig) -> np.ndarray:
    """Row numbers int32 (S,), NO_WORD after the last. Raises ValueError for too many."""
    words, rows = split(text), np.full(settings.text_length, NO_WORD, np.int32)
    if len(words) > settings.text_length:
        raise ValueError(
            f"instruction {text!r} has {len(words)} words, more than "
            f"model.objective.text_length={settings.text_length}"
        )
    rows[: len(words)] = [1 + zlib.crc32(w.encode()) % (settings.text_vocab - 1) for w in words]
    return rows
