"""The quantizer's attention: cosine similarity in place of products, and attention over frames.

Shape suffixes: B batch, T queries or frames, S keys, N cells, K heads, C head width, D model width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.attention import attention
from lapa_jax.nn.layers import Dense, LayerNorm
from lapa_jax.nn.module import param


def frame_attention(
    q_BTNKC: jax.Array,
    k_BTNKC: jax.Array,
    v_BTNKC: jax.Array,
    *,
    seen: Sequence[Sequence[int]],
) -> jax.Array:
    """Attention over a few frames T, of which each sees those of its number in `seen`, at every
    cell N, without moving T next to the heads.

    With T = 2 the matrices are far too small for a matrix product: products and sums fuse instead.
    """
    outputs = []
    q = q_BTNKC.astype(jnp.float32)
    for t, frames in enumerate(seen):
        if len(frames) == 1:
            outputs.append(v_BTNKC[:, frames[0]])
            continue
        logits = jnp.sum(q[:, t, None] * _of(k_BTNKC, frames), axis=-1, keepdims=True)
        weights = jax.nn.softmax(logits, axis=1).astype(v_BTNKC.dtype)
        outputs.append(jnp.sum(weights * _of(v_BTNKC, frames), axis=1))
    return jnp.stack(outputs, axis=1)


def _of(x_BTNKC: jax.Array, frames: Sequence[int]) -> jax.Array:
    if isinstance(frames, range):
        return x_BTNKC[:, frames.start : frames.stop]
    return jnp.stack([x_BTNKC[:, t] for t in frames], axis=1)


def l2_normalize(x: jax.Array) -> jax.Array:
    """x / ‖x‖ over the last axis, in float32, with a finite gradient at zero."""
    y = x.astype(jnp.float32)
    return y * jax.lax.rsqrt(jnp.sum(jnp.square(y), axis=-1, keepdims=True) + 1e-12)


class CosineAttention(nnx.Module):
    """Pre-norm attention with l2-normalised, learned-scaled queries and keys and a constant scale
    of 8.

    With `context`, keys and values come from it (normalised), preceded by `num_null` learned pairs:
    a token that needs nothing from the context can attend to those. Without, `normalize_kv=False`
    takes them from the input before its norm.
    """

    SCALE = 8.0  # a power of two: exact wherever it is multiplied in

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        num_null: int,
        cross: bool,
        normalize_kv: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        names = ("embed", "heads", "head_dim")
        self.norm = LayerNorm(dim)
        self.context_norm = LayerNorm(dim) if cross else None
        self.q = Dense((dim,), (heads, head_dim), names, dtype=dtype, rngs=rngs)
        kv_names = ("embed", None, "heads", "head_dim")
        self.kv = Dense((dim,), (2, heads, head_dim), kv_names, dtype=dtype, rngs=rngs)
        self.out = Dense(
            (heads, head_dim), (dim,), ("heads", "head_dim", "embed"), dtype=dtype, rngs=rngs
        )
        self.q_scale = param(jnp.ones(head_dim), "head_dim")
        self.k_scale = param(jnp.ones(head_dim), "head_dim")
        null = jax.random.normal(rngs.params(), (2, num_null, heads, head_dim))
        self.null_kv = param(null, None, None, "heads", "head_dim") if num_null else None
        self.normalize_kv, self.dtype = normalize_kv, dtype

    def heads(
        self, x: jax.Array, context: jax.Array | None = None, *, asking: int = 0
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q, k, v with their heads; q and k normalised and scaled, q with all of the scales; q of
        the tokens from number `asking` on."""
        normed = self.norm(x)
        if context is not None:
            source = self.context_norm(context)
        else:
            source = normed if self.normalize_kv else x
        q, kv = self.q(normed[:, asking:] if asking else normed), self.kv(source)
        k, v = kv[..., 0, :, :], kv[..., 1, :, :]
        if self.null_kv is not None:
            null = jnp.broadcast_to(
                self.null_kv[...].astype(self.dtype)[:, None],
                (2, x.shape[0], *self.null_kv.shape[1:]),
            )
            k, v = (jnp.concatenate([null[i], y], axis=1) for i, y in enumerate((k, v)))
        q = (l2_normalize(q) * (self.SCALE * self.q_scale[...])).astype(self.dtype)
        k = (l2_normalize(k) * self.k_scale[...]).astype(self.dtype)
        return q, k, v

    def __call__(
        self,
        x_BTD: jax.Array,
        context_BSD: jax.Array | None = None,
        *,
        bias_KTS: jax.Array | None = None,
        known_BS: jax.Array | None = None,
        implementation: str,
    ) -> jax.Array:
        """`known_BS`: bool, which of the keys there are; all, unless given."""
        q, k, v = self.heads(x_BTD, context_BSD)
        which = {}
        if known_BS is not None:
            own = ((0, 0), (k.shape[1] - known_BS.shape[1], 0))
            keys = jnp.pad(known_BS, own, constant_values=True).astype(jnp.int32)
            which = {
                "q_segments_BT": jnp.ones(q.shape[:2], jnp.int32),
                "kv_segments_BS": keys,
            }
        y = attention(q, k, v, scale=1.0, bias_KTS=bias_KTS, implementation=implementation, **which)
        return self.out(y)

    def over_frames(self, x_BTND: jax.Array, *, seen: Sequence[Sequence[int]]) -> jax.Array:
        q, k, v = self.heads(x_BTND)
        return self.out(frame_attention(q, k, v, seen=seen))

    def of_pairs(self, x_BTND: jax.Array, firsts: Sequence[int]) -> jax.Array:
        """Of frames that see themselves alone, followed by one of each pair, which sees itself and
        one of them, the first of the pair."""
        alone = x_BTND.shape[1] - len(firsts)
        q, k, v = self.heads(x_BTND, asking=alone)
        seen = [(i, alone + p) for p, i in enumerate(firsts)]
        lasts = frame_attention(q, k, v, seen=seen)
        return self.out(jnp.concatenate([v[:, :alone], lasts], axis=1))
