"""The policy: a LLaMA-style decoder over [text slots][image tokens][target slots].

Every modality has its own embedding table and its own head; ids start at 0 in each. Logits exist
only where they are asked for: at the target slots, for one head (and at the text slots for the text
loss). Slots are static: text is padded on the right to `text_length` and masked.

Shape suffixes: B batch, T sequence, S keys, P prefix (text and image) length, n targets, K heads, C
head width, D width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lapa_jax.models import lora
from lapa_jax.models.attention import attention
from lapa_jax.models.front_end import FRONT_ENDS, front_end_config
from lapa_jax.models.layers import Dense, RMSNorm, SwiGLU, dtype_of
from lapa_jax.models.module import param
from lapa_jax.models.position import rope, rope_tables
from lapa_jax.models.stack import ATTENTION_OUT, Stack
from lapa_jax.parallel.sharding import constrain

MODALITIES = ("text", "image", "latent", "action")
TARGET_HEADS = ("latent", "action")

# Backbone sizes under the names LWM and EasyLM use, and small ones of our own.
SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(dim=128, depth=4, heads=4, head_dim=32, mlp_dim=352),
    "small": dict(dim=256, depth=6, heads=8, head_dim=32, mlp_dim=704),
    "debug": dict(dim=256, depth=2, heads=2, head_dim=128, mlp_dim=256),
    "200m": dict(dim=1024, depth=14, heads=8, head_dim=128, mlp_dim=2048),
    "1b": dict(dim=2048, depth=22, heads=16, head_dim=128, mlp_dim=5504),
    "3b": dict(dim=3200, depth=26, heads=32, head_dim=100, mlp_dim=8640),
    "7b": dict(dim=4096, depth=32, heads=32, head_dim=128, mlp_dim=11008),
    "13b": dict(dim=5120, depth=40, heads=40, head_dim=128, mlp_dim=13824),
    "30b": dict(dim=6656, depth=60, heads=52, head_dim=128, mlp_dim=17920),
    "65b": dict(dim=8192, depth=80, heads=64, head_dim=128, mlp_dim=22016),
}


@dataclass(frozen=True)
class VLAConfig:
    """A vocabulary of 0 leaves the modality out: no table and no head. `front_end`: {name, ...its
    settings}."""

    text_vocab: int
    image_vocab: int
    latent_vocab: int
    action_vocab: int
    text_length: int
    front_end: Mapping[str, Any]
    dim: int
    depth: int
    heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float
    norm_eps: float
    init_std: float
    compute_dtype: str
    attention: str
    remat: str
    unroll: int
    lora_rank: int  # 0: none; see lora.py
    lora_alpha: float
    lora_pattern: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "front_end", dict(self.front_end))
        front_end_config(self.front_end)
        dtype_of(self.compute_dtype)
        for name in ("text_vocab", "text_length", "dim", "depth", "heads", "head_dim", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        for name in MODALITIES:
            if self.vocab(name) < 0:
                raise ValueError(f"model.{name}_vocab={self.vocab(name)} must not be negative")
        if self.lora_rank < 0:
            raise ValueError(f"model.lora_rank={self.lora_rank} must be positive, or 0: no LoRA")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} must be even: RoPE rotates pairs")

    def vocab(self, modality: str) -> int:
        return getattr(self, f"{modality}_vocab")

    @property
    def num_image_tokens(self) -> int:
        return front_end_config(self.front_end)[1].num_tokens

    @property
    def prefix_length(self) -> int:
        """Slots before the first target."""
        return self.text_length + self.num_image_tokens


class Embedding(nnx.Module):
    def __init__(self, vocab: int, config: VLAConfig, axis: str | None, rngs: nnx.Rngs):
        table = config.init_std * jax.random.normal(rngs.params(), (vocab, config.dim))
        self.table = param(table, axis, "embed")
        self.dtype = dtype_of(config.compute_dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.table[...].astype(self.dtype)[ids]


class SelfAttention(nnx.Module):
    def __init__(self, config: VLAConfig, *, rngs: nnx.Rngs):
        common = dict(dtype=dtype_of(config.compute_dtype), std=config.init_std, rngs=rngs)
        shape, names = (config.heads, config.head_dim), ("heads", "head_dim")
        self.q = Dense((config.dim,), shape, ("embed", *names), **common)
        self.k = Dense((config.dim,), shape, ("embed", *names), **common)
        self.v = Dense((config.dim,), shape, ("embed", *names), **common)
        self.out = Dense(shape, (config.dim,), (*names, "embed"), **common)
        self.scale, self.implementation = config.head_dim**-0.5, config.attention

    def heads(self, x_BTD: jax.Array, tables) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = rope(self.q(x_BTD), *tables), rope(self.k(x_BTD), *tables), self.v(x_BTD)
        return tuple(constrain(y, "batch", "length", "heads", None) for y in (q, k, v))

    def attend(self, q, k, v, **masks) -> jax.Array:
        y = attention(q, k, v, scale=self.scale, implementation=self.implementation, **masks)
        return self.out(checkpoint_name(y, ATTENTION_OUT))


class Layer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: VLAConfig, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = SelfAttention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = SwiGLU(
            config.dim,
            config.mlp_dim,
            dtype=dtype_of(config.compute_dtype),
            std=config.init_std,
            rngs=rngs,
        )
        if config.lora_rank:
            lora.adapt(
                self,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                pattern=config.lora_pattern,
                rngs=rngs,
            )

    def __call__(self, x_BTD: jax.Array, tables, key_mask_BT: jax.Array) -> jax.Array:
        q, k, v = self.attention.heads(self.attention_norm(x_BTD), tables)
        return self._finish(x_BTD, q, k, v, causal=True, key_mask_BS=key_mask_BT)

    def prefill(self, x_BTD, tables, key_mask_BT, _):
        """As a call, and returns this layer's (keys, values)."""
        q, k, v = self.attention.heads(self.attention_norm(x_BTD), tables)
        return self._finish(x_BTD, q, k, v, causal=True, key_mask_BS=key_mask_BT), (k, v)

    def step(self, x_B1D, tables, key_mask_BS, slot, cache):
        """One token whose keys and values enter the cache at `slot`; returns the new cache."""
        q, k, v = self.attention.heads(self.attention_norm(x_B1D), tables)
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=1)
            for old, new in zip(cache, (k, v), strict=True)
        )
        return self._finish(x_B1D, q, k, v, key_mask_BS=key_mask_BS), (k, v)

    def _finish(self, x, q, k, v, **masks) -> jax.Array:
        x = x + self.attention.attend(q, k, v, **masks)
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "batch", "length", "embed")


class Cache(NamedTuple):
    """State of a decode in progress."""

    keys_and_values: Any  # per layer, (depth, B, S, K, C) each
    mask_BS: jax.Array  # keys that may be seen
    position_B: jax.Array  # rotary position of the next token


class VLA(nnx.Module):
    def __init__(self, config: VLAConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = dtype_of(config.compute_dtype)
        present = [name for name in MODALITIES if config.vocab(name)]
        # Latent and action vocabularies are small and of any size: they are not split.
        split = {"text": "vocab", "image": "vocab"}
        embeddings, heads = {}, {}
        for name in present:
            axis, size = split.get(name), config.vocab(name)
            embeddings[name] = Embedding(size, config, axis, rngs)
            heads[name] = Dense(
                (config.dim,), (size,), ("embed", axis), dtype=dtype, std=config.init_std, rngs=rngs
            )
        self.embeddings, self.heads = nnx.data(embeddings), nnx.data(heads)
        name, settings = front_end_config(config.front_end)
        self.front_end = FRONT_ENDS[name][1](
            settings, config.dim, embeddings.get("image"), dtype=dtype, rngs=rngs
        )
        self.backbone = Stack(
            lambda rngs: Layer(config, rngs=rngs),
            config.depth,
            remat=config.remat,
            unroll=config.unroll,
            rngs=rngs,
        )
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)

    # --- Training and scoring: everything in one pass ---

    def target_logits(
        self,
        images: jax.Array,
        text_tokens_BT: jax.Array,
        text_mask_BT: jax.Array,
        targets_Bn: jax.Array,
        head: str,
    ) -> jax.Array:
        """Teacher-forced logits (B, n, V), float32: slot i sees the targets before i."""
        return self.logits(images, text_tokens_BT, text_mask_BT, targets_Bn, head)["target"]

    def logits(
        self,
        images: jax.Array,
        text_tokens_BT: jax.Array,
        text_mask_BT: jax.Array,
        targets_Bn: jax.Array,
        head: str,
        *,
        with_text: bool = False,
    ) -> dict[str, jax.Array]:
        """{"target": (B, n, V)} and, if asked, "text": (B, text_length − 1, V), where text[:, i]
        predicts text token i + 1."""
        self._check_head(head)
        prefix, mask = self.embed_prefix(images, text_tokens_BT, text_mask_BT)
        # The last target predicts nothing: it is not fed.
        fed = self.embeddings[head](targets_Bn[:, :-1])
        x = jnp.concatenate([prefix, fed], axis=1)
        mask = jnp.concatenate([mask, jnp.ones(fed.shape[:2], bool)], axis=1)
        hidden = self.hidden(x, positions(mask), mask)
        out = {"target": self.head(hidden[:, prefix.shape[1] - 1 :], head)}
        if with_text:
            out["text"] = self.head(hidden[:, : self.config.text_length - 1], "text")
        return out

    def embed_prefix(
        self, images: jax.Array, text_tokens_BT: jax.Array, text_mask_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Embeddings (B, P, D) and mask (B, P) of the text and image slots."""
        if text_tokens_BT.shape[1] != self.config.text_length:
            raise ValueError(
                f"text tokens of shape {text_tokens_BT.shape} do not fill "
                f"model.text_length={self.config.text_length} slots"
            )
        text = self.embeddings["text"](text_tokens_BT)
        image = self.front_end(images).astype(text.dtype)
        mask = [text_mask_BT.astype(bool), jnp.ones(image.shape[:2], bool)]
        return jnp.concatenate([text, image], axis=1), jnp.concatenate(mask, axis=1)

    def hidden(self, x_BTD: jax.Array, positions_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """The backbone: embeddings → normed hidden states. Causal; masked slots are seen by
        none."""
        x = constrain(x_BTD, "batch", "length", "embed")
        tables = rope_tables(positions_BT, self.config.head_dim, self.config.rope_theta)
        x, _ = self.backbone(x, tables, mask_BT)
        return self.norm(x)

    def head(self, hidden_BTD: jax.Array, name: str) -> jax.Array:
        """Logits of one head, float32."""
        if name not in self.heads:
            raise ValueError(
                f"head {name!r} does not exist: model.{name}_vocab is 0 "
                f"(heads: {sorted(self.heads)})"
            )
        return self.heads[name](hidden_BTD).astype(jnp.float32)

    # --- Decoding: a prefix once, then token by token (see decoding.py) ---

    def prefill(
        self,
        images: jax.Array,
        text_tokens_BT: jax.Array,
        text_mask_BT: jax.Array,
        head: str,
        num_tokens: int,
    ) -> tuple[jax.Array, Cache]:
        """Logits (B, V) of the first target and a cache with room for `num_tokens` − 1 more."""
        self._check_head(head)
        x, mask = self.embed_prefix(images, text_tokens_BT, text_mask_BT)
        where = positions(mask)
        tables = rope_tables(where, self.config.head_dim, self.config.rope_theta)
        depth = jnp.arange(self.config.depth)
        x, kv = self.backbone(x, tables, mask, per_layer=depth, method="prefill")
        room = num_tokens - 1
        kv = jax.tree.map(lambda y: jnp.pad(y, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))), kv)
        mask = jnp.pad(mask, ((0, 0), (0, room)))
        logits = self.head(self.norm(x[:, -1:])[:, 0], head)
        return logits, Cache(kv, mask, where[:, -1] + 1)

    def step(
        self, token_B: jax.Array, slot: jax.Array, cache: Cache, head: str
    ) -> tuple[jax.Array, Cache]:
        """Feeds one token at cache slot `slot`; returns logits (B, V) of the next and the cache."""
        x = self.embeddings[head](token_B[:, None])
        mask = cache.mask_BS.at[:, slot].set(True)
        tables = rope_tables(
            cache.position_B[:, None], self.config.head_dim, self.config.rope_theta
        )
        x, kv = self.backbone(x, tables, mask, slot, per_layer=cache.keys_and_values, method="step")
        logits = self.head(self.norm(x)[:, 0], head)
        return logits, Cache(kv, mask, cache.position_B + 1)

    def _check_head(self, head: str) -> None:
        if head not in TARGET_HEADS or head not in self.heads:
            present = [name for name in TARGET_HEADS if name in self.heads]
            raise ValueError(
                f"head={head!r} must be one of {present}: a head exists where its vocabulary "
                f"(model.latent_vocab, model.action_vocab) is above 0"
            )


def positions(mask_BT: jax.Array) -> jax.Array:
    """Rotary positions that skip masked slots (a masked slot repeats the position before it)."""
    return jnp.maximum(jnp.cumsum(mask_BT.astype(jnp.int32), axis=1) - 1, 0)


def vla_flops(config: VLAConfig, num_targets: int, head: str) -> int:
    """Floating-point operations of one example's teacher-forced forward pass (a multiply-add is
    two), from the shapes: matrix products and convolutions. Attention is counted in full, as it is
    computed."""
    tokens = config.prefix_length + num_targets - 1
    inner = config.heads * config.head_dim
    per_token = 4 * config.dim * inner + 2 * tokens * inner + 3 * config.dim * config.mlp_dim
    total = 2 * config.depth * tokens * per_token
    total += 2 * num_targets * config.dim * config.vocab(head)
    return int(total + front_end_config(config.front_end)[1].flops(config.dim))
