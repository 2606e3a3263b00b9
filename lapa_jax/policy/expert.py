"""A small transformer beside the backbone, for what is predicted from noise: its tokens see the
rows of the backbone and each other, and the backbone does not see them.

Layer by layer they attend to the backbone's own keys and values, as the action expert of pi0 (Black
et al. 2024, arXiv:2410.24164), or all to its last hidden states. How far on the way from noise they
are is mixed into the tokens ("concatenated", pi0) or into norms and gates ("adaptive", pi0.5;
Peebles and Xie 2023, arXiv:2212.09748). Adaptive gates are zero at first, so that each layer gives
what it was given: in the first step only the gates, the maps into and out of the expert and the
last norm have a gradient; the expert's attention and feed-forwards, the layers of the time and the
backbone have none.

Shape suffixes: B rows, T tokens of the backbone, k examples of a row, n tokens beside them, m those
of one example, S keys, D width, C width of the condition, V numbers of a vector.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.layers import Dense, RMSNorm, SwiGLU, dtype_of
from lapa_jax.nn.position import rope, rope_tables
from lapa_jax.nn.stack import Stack
from lapa_jax.parallel.sharding import constrain
from lapa_jax.policy.attention import Backbone, SelfAttention, positions

CONDITIONING = ("concatenated", "adaptive")
PERIODS = (4e-3, 4.0)  # of the time's sines: its range is 1


class Context(NamedTuple):
    """What modules beside the backbone see of it."""

    segments_BT: jax.Array
    keys_and_values: Any = None  # (depth, B, T, K, C) each
    hidden_BTD: jax.Array | None = None


class Fed(NamedTuple):
    """To an expert: the time of each example, and of each stream its vectors on the way (B, k·n, V)
    and which of them are known bool (B, k·n); None: all."""

    time_Bk: jax.Array
    values: Mapping[str, jax.Array]
    known: Mapping[str, jax.Array] | None = None


class Given(NamedTuple):
    """What all layers are given: rotary tables and segments of their tokens, segments of all keys,
    the last key that each token sees (None: all of its segment), and the condition (B, n, C)."""

    tables: tuple[jax.Array, jax.Array]
    segments_Bn: jax.Array
    segments_BS: jax.Array
    last_Bn: jax.Array | None = None
    condition_BnC: jax.Array | None = None


@dataclass(frozen=True)
class Size:
    """Of an expert; heads and their width are the backbone's."""

    dim: int
    mlp_dim: int
    depth: int
    adaptive: bool
    activation: str


class AdaptiveNorm(nnx.Module):
    """RMSNorm whose scale and shift, and the gate of what follows it, come from a condition: all of
    them zero at first."""

    def __init__(
        self, dim: int, condition_dim: int, *, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        given = dict(bias=True, std=0.0, dtype=dtype, rngs=rngs)
        self.change = Dense((condition_dim,), (3, dim), (None, None, "embed"), **given)
        self.eps = eps

    def __call__(self, x_BnD: jax.Array, condition_BnC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(what it makes of x, the gate), (B, n, D) each."""
        change = self.change(condition_BnC).astype(jnp.float32)
        scale, shift, gate = (change[..., i, :] for i in range(3))
        y = x_BnD.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * (1.0 + scale) + shift).astype(x_BnD.dtype), gate.astype(x_BnD.dtype)


class Layer(nnx.Module):
    """Pre-norm attention to keys of the backbone and to its own, and a gated feed-forward."""

    def __init__(self, size: Size, model: Backbone, hidden_dim: int, *, rngs: nnx.Rngs):
        dtype = dtype_of(model.compute_dtype)
        common = dict(dtype=dtype, std=model.init_std, rngs=rngs)

        def norm():
            if size.adaptive:
                return AdaptiveNorm(size.dim, size.dim, eps=model.norm_eps, dtype=dtype, rngs=rngs)
            return RMSNorm(size.dim, eps=model.norm_eps)

        self.adaptive = size.adaptive
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = SelfAttention(model, size.dim, length=None, rngs=rngs)
        self.mlp = SwiGLU(size.dim, size.mlp_dim, activation=size.activation, **common)
        if hidden_dim:  # keys and values of hidden states are this layer's own
            shape, names = (model.heads, model.head_dim), ("embed", "heads", "head_dim")
            self.context_k = Dense((hidden_dim,), shape, names, **common)
            self.context_v = Dense((hidden_dim,), shape, names, **common)

    def joint(self, x_BnD: jax.Array, given: Given, kv: tuple[jax.Array, jax.Array]):
        """With keys and values (B, T, K, C) of the backbone; also gives its own."""
        y, gate = self._normed(self.attention_norm, x_BnD, given)
        q, k, v = self.attention.heads(y, given.tables)
        keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(kv, (k, v), strict=True))
        mask = dict(q_segments_BT=given.segments_Bn, kv_segments_BS=given.segments_BS)
        if given.last_Bn is not None:
            mask |= dict(last_BT=given.last_Bn, implementation="xla")
        else:
            mask |= dict(implementation="auto")
        x = x_BnD + self._gated(self.attention.attend(q, keys, values, **mask), gate)
        y, gate = self._normed(self.mlp_norm, x, given)
        x = x + self._gated(self.mlp(y), gate)
        return constrain(x, "batch", None, "embed"), (k, v)

    def across(self, x_BnD: jax.Array, given: Given, hidden_BTD: jax.Array, tables) -> jax.Array:
        """With hidden states of the backbone, and rotary tables of these."""
        kv = rope(self.context_k(hidden_BTD), *tables), self.context_v(hidden_BTD)
        return self.joint(x_BnD, given, kv)[0]

    def _normed(self, norm: nnx.Module, x: jax.Array, given: Given):
        return norm(x, given.condition_BnC) if self.adaptive else (norm(x), None)

    def _gated(self, y: jax.Array, gate: jax.Array | None) -> jax.Array:
        return y if gate is None else y * gate


class Expert(nnx.Module):
    """Velocities of some streams of vectors, together; each has its own map in and out.

    `streams`: (vectors of an example, numbers of each) by name, in the order of tokens.
    """

    def __init__(
        self,
        streams: Mapping[str, tuple[int, int]],
        size: Size,
        model: Backbone,
        *,
        sees_hidden: bool,
        rngs: nnx.Rngs,
    ):
        self.streams, self.size, D = dict(streams), size, size.dim
        self.head_dim, self.theta = model.head_dim, model.rope_theta
        self.dtype = dtype = dtype_of(model.compute_dtype)

        def dense(inputs: int, outputs: int, *axes: str | None) -> Dense:
            return Dense((inputs,), (outputs,), axes, bias=True, dtype=dtype, rngs=rngs)

        self.into = nnx.data({m: dense(V, D, None, "embed") for m, (_, V) in streams.items()})
        self.out = nnx.data({m: dense(D, V, "embed", None) for m, (_, V) in streams.items()})
        self.time_in = dense(D if size.adaptive else 2 * D, D, None, "embed")
        self.time_out = dense(D, D, "embed", None)
        hidden_dim = model.dim if sees_hidden else 0
        self.layers = Stack(
            lambda rngs: Layer(size, model, hidden_dim, rngs=rngs),
            size.depth,
            remat=model.remat,
            unroll=model.unroll,
            rngs=rngs,
        )
        if size.adaptive:
            self.norm = AdaptiveNorm(D, D, eps=model.norm_eps, dtype=dtype, rngs=rngs)
        else:
            self.norm = RMSNorm(D, eps=model.norm_eps)

    def __call__(self, fed: Fed, context: Context) -> dict[str, jax.Array]:
        """Of each stream float32 (B, k·count, V)."""
        time_Bk = fed.time_Bk
        B, k = time_Bk.shape
        counts = [count for count, _ in self.streams.values()]
        of_each, known = [], []
        for name, count in zip(self.streams, counts, strict=True):
            values = fed.values[name]
            of_each.append(self.into[name](values).reshape(B, k, count, self.size.dim))
            if fed.known is not None:
                known.append(fed.known[name].reshape(B, k, count))
        known_Bn = jnp.concatenate(known, axis=2).reshape(B, -1) if known else None
        x, condition = self.timed(
            jnp.concatenate(of_each, axis=2), time_embedding(time_Bk, self.size.dim)
        )
        x = self.seeing(x, condition, context, known_Bn)
        at = 0
        found = {}
        for name, (count, V) in self.streams.items():
            own = x.reshape(B, k, sum(counts), -1)[:, :, at : at + count]
            found[name] = self.out[name](own).astype(jnp.float32).reshape(B, k * count, V)
            at += count
        return found

    def timed(
        self, tokens_BkmD: jax.Array, time_BkD: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """(tokens (B, n, D), what conditions the norms (B, n, D)), of embeddings of the time."""
        B, k, m, D = tokens_BkmD.shape
        time = time_BkD.astype(self.dtype)
        if self.size.adaptive:
            time = jax.nn.silu(self.time_out(jax.nn.silu(self.time_in(time))))
        time = jnp.broadcast_to(time[:, :, None], tokens_BkmD.shape)
        if self.size.adaptive:
            return tokens_BkmD.reshape(B, k * m, D), time.reshape(B, k * m, D)
        both = jnp.concatenate([tokens_BkmD, time], axis=-1)
        return self.time_out(jax.nn.silu(self.time_in(both))).reshape(B, k * m, D), None

    def seeing(
        self,
        x_BnD: jax.Array,
        condition_BnD: jax.Array | None,
        context: Context,
        known_Bn: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens after the layers and the last norm. Those of an example see what the row has of
        it, and each other but for those that are not known; they stand where the row goes on."""
        n, each = x_BnD.shape[1], sum(count for count, _ in self.streams.values())
        within, prefix = jnp.arange(n) % each, context.segments_BT
        own = jnp.broadcast_to(1 + jnp.arange(n) // each, (len(x_BnD), n)).astype(prefix.dtype)
        before = (prefix[:, None] == own[:, :, None]).sum(axis=-1)
        own = own if known_Bn is None else jnp.where(known_Bn, own, 0)  # as padding
        given = Given(
            rope_tables(before + within, self.head_dim, self.theta),
            own,
            jnp.concatenate([prefix, own], axis=1),
            condition_BnC=condition_BnD,
        )
        x = constrain(x_BnD, "batch", None, "embed")
        if context.keys_and_values is not None:
            x, _ = self.layers(x, given, per_layer=context.keys_and_values, method="joint")
        else:
            tables = rope_tables(positions(prefix), self.head_dim, self.theta)
            x, _ = self.layers(x, given, context.hidden_BTD, tables, method="across")
        return self.norm(x, condition_BnD)[0] if self.size.adaptive else self.norm(x)


def time_embedding(time: jax.Array, width: int) -> jax.Array:
    """Sines and cosines (..., width) of times in [0, 1], at periods from 0.004 to 4."""
    least, most = PERIODS
    periods = least * (most / least) ** jnp.linspace(0.0, 1.0, width // 2)
    angles = 2.0 * math.pi * time[..., None] / periods
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
