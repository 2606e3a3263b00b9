"""The attention entry point: one function, four implementations.

Every model calls `attention`. Masks are described (causal, segment ids, blocks), not materialised
by callers, so that a kernel may use the structure.

| name | runs on | what it is |
|---|---|---|
| `xla` | anything | plain products, the (T, S) scores in memory; the only one with a bias |
| `cudnn` | NVIDIA GPUs | cuDNN's fused kernel, 16-bit, sequence not split |
| `splash` | TPUs | a fused Pallas kernel (splash_attention.py); K and V gathered over `seq` |
| `ring` | anything | blockwise; K and V travel around `seq`, if it is split (ring_attention.py) |

Shape suffixes: B batch, T queries, S keys, K heads, C head width.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from absl import logging
from jax.ad_checkpoint import checkpoint_name

from lapa_jax.nn.ring_attention import ring_attention
from lapa_jax.nn.splash_attention import splash_attention
from lapa_jax.nn.stack import ATTENTION_OUT
from lapa_jax.parallel.sharding import GPU, placement

# Below, the scores of one head are at most 256 KiB, and padding to the kernel's multiples of 128
# would more than double the work.
SPLASH_FROM = 256
# Where there is no fused kernel. On CPUs blocks that stay in the cache take 0.7 of the time at 256,
# half at 512 and a fifth from 1024 (docs/performance.md). Elsewhere it is not measured; from 4096
# the scores of one head and one example take 64 MiB.
BLOCKWISE_FROM = {"cpu": 256}
BLOCKWISE_FROM_ELSEWHERE = 4096
# On TPUs with a split sequence. K and V are gathered below it: one collective and a fused kernel
# against a ring of plain products. At this length the gathered K and V of 32 heads of 128 take 512
# MiB an example.
TPU_RING_FROM = 32_768


def attention(
    q_BTKC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    scale: float,
    causal: bool = False,
    q_segments_BT: jax.Array | None = None,
    kv_segments_BS: jax.Array | None = None,
    blocks_BT: jax.Array | None = None,
    last_BT: jax.Array | None = None,
    bias_KTS: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(scale · q kᵀ + bias) v, (B, T, K, C) in the dtype of v; softmax in float32.

    Query i sees key j if their segment ids (int32, not negative; both or none) are equal and, if
    `causal`, j ≤ i (then T = S). By convention 0 is padding, which sees padding only. Every query
    must see at least one key, as each does where both ids are one array; what another gets is
    finite and means nothing.

    `blocks_BT` (int32) makes causal attention block-causal, as that of a prefix language model: a
    block is a run of tokens of one segment and one positive id, and its tokens see each other in
    both directions. Where the targets at the end of an example are one block, they see the prompt
    and each other, and the prompt sees none of them.

    `last_BT` (int32), instead of `causal`, says which key is the last that each query sees, where
    there are queries of a few positions only: `xla` alone does that.

    `implementation`: a name of the table above, or "auto" (see `choose`). ValueError for a named
    one that cannot serve the call.
    """
    if (q_segments_BT is None) != (kv_segments_BS is None):
        raise ValueError("attention needs the segment ids of queries and of keys, or neither")
    T, S = q_BTKC.shape[1], k_BSKC.shape[1]
    if causal and T != S:
        raise ValueError(f"causal attention needs as many queries as keys, got {T} and {S}")
    if blocks_BT is not None and not causal:
        raise ValueError("blocks_BT are of causal attention: set causal=True")
    call = call_of(
        q_BTKC,
        k_BSKC,
        v_BSKC,
        causal=causal,
        segments=q_segments_BT is not None,
        bias=bias_KTS is not None,
        blocks=blocks_BT is not None,
    )
    if _PLAIN.get():
        implementation = "xla"
    elif implementation == "auto":
        implementation, reason = choose(call)
        _log(implementation, reason, call)
    elif implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"model.attention={implementation!r} must be one of {['auto', *IMPLEMENTATIONS]}"
        )
    elif reason := refusal(implementation, call):
        raise ValueError(
            f"model.attention={implementation!r} cannot serve this attention: {reason}. Set "
            f"model.attention to 'auto' or to another of {list(IMPLEMENTATIONS)}"
        )
    more = {} if bias_KTS is None else {"bias_KTS": bias_KTS}
    if blocks_BT is not None:
        last_BT = last_seen(blocks_BT, q_segments_BT)
    if last_BT is not None:
        more["last_BT"] = last_BT
    y = IMPLEMENTATIONS[implementation](
        q_BTKC,
        k_BSKC,
        v_BSKC,
        scale=scale,
        causal=causal,
        q_segments_BT=q_segments_BT,
        kv_segments_BS=kv_segments_BS,
        **more,
    )
    # What a remat policy may keep. `splash` and `ring` name what their backward pass needs, inside.
    return checkpoint_name(y, ATTENTION_OUT) if implementation in ("xla", "cudnn") else y


def last_seen(blocks_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """The last key that each query of block-causal attention sees, int32 (B, T): the end of its
    block, or itself."""
    T = blocks_BT.shape[1]
    same = blocks_BT[:, 1:] == blocks_BT[:, :-1]
    if segments_BT is not None:
        same &= segments_BT[:, 1:] == segments_BT[:, :-1]
    goes_on = jnp.pad(same & (blocks_BT[:, 1:] > 0), ((0, 0), (0, 1)))
    ends_BT = jnp.where(goes_on, T - 1, jnp.arange(T, dtype=jnp.int32))
    return jax.lax.cummin(ends_BT, axis=1, reverse=True)


# --- Which implementation ---

_PLAIN = contextvars.ContextVar("plain_attention", default=False)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Calls traced within are of plain products, whatever they ask for: FLOPs are counted so."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


@dataclass(frozen=True)
class Call:
    """What the choice depends on. `compiles_cudnn`: this process has a GPU, hence cuDNN."""

    platform: str
    seq_shards: int
    queries: int
    keys: int
    head_dim: int
    dtype: str
    causal: bool
    segments: bool
    bias: bool
    compiles_cudnn: bool
    blocks: bool = False


def call_of(q_BTKC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array, **masks: bool) -> Call:
    """Of attention between these, where it is traced; `masks`: causal, segments, bias, blocks."""
    platform, seq_shards = placement()
    return Call(
        platform=platform,
        seq_shards=seq_shards,
        queries=q_BTKC.shape[1],
        keys=k_BSKC.shape[1],
        head_dim=q_BTKC.shape[3],
        dtype=jnp.result_type(q_BTKC, k_BSKC, v_BSKC).name,
        compiles_cudnn=jax.default_backend() == "gpu",
        **masks,
    )


def choose(call: Call) -> tuple[str, str]:
    """(implementation, reason) under "auto"."""
    split = call.seq_shards > 1
    length = min(call.queries, call.keys)
    if call.bias:
        return "xla", "the others take no bias"
    if call.queries == 1:
        return "xla", "one query has no scores to save"
    wanted = []
    if call.platform == "tpu":
        if split and length >= TPU_RING_FROM:
            wanted.append(("ring", f"at least {TPU_RING_FROM} positions over mesh.seq"))
        if length >= SPLASH_FROM:
            wanted.append(("splash", f"a TPU and at least {SPLASH_FROM} positions"))
    elif call.platform in GPU and not split:
        wanted.append(("cudnn", "a GPU and the sequence on one device"))
    blockwise_from = BLOCKWISE_FROM.get(call.platform, BLOCKWISE_FROM_ELSEWHERE)
    if length >= blockwise_from:
        wanted.append(("ring", f"at least {blockwise_from} positions and no fused kernel"))
    against = []
    for name, reason in wanted:
        refused = refusal(name, call)
        if not refused:
            return name, "; ".join([reason, *against])
        against.append(f"not {name}: {refused}")
    return "xla", "; ".join(against or [f"{length} positions on {call.platform}"])


def refusal(name: str, call: Call) -> str:
    """Why an implementation cannot serve a call; empty if it can."""
    if name == "xla":
        return ""
    if call.bias:
        return "it takes no bias"
    if name == "cudnn":
        if call.platform not in GPU:
            return f"it needs an NVIDIA GPU, the devices are {call.platform}"
        if not call.compiles_cudnn:
            return "cuDNN is where the program is compiled, and this process has no GPU"
        if call.dtype not in ("bfloat16", "float16"):
            return f"it needs model.compute_dtype='bfloat16', q, k and v are {call.dtype}"
        if call.head_dim % 8 or call.head_dim > 128:
            return f"head_dim={call.head_dim} is not a multiple of 8 up to 128"
        if call.seq_shards > 1:
            return f"it cannot split a sequence over mesh.seq={call.seq_shards}"
        if call.queries % 2 or call.keys % 2:
            return f"it needs even lengths, not {call.queries} and {call.keys}"
    if name == "splash" and call.platform != "tpu":
        return f"it needs a TPU, the devices are {call.platform}"
    if name == "ring":
        if call.blocks:
            return "it takes no blocks: what it leaves out is above the diagonal"
        parts = call.seq_shards * (2 if call.causal and call.seq_shards > 1 else 1)
        if call.queries % parts or call.keys % parts:
            return (
                f"{call.queries} queries and {call.keys} keys do not divide into {parts} parts, "
                f"{parts // call.seq_shards} for each of mesh.seq={call.seq_shards}"
            )
    return ""


@functools.cache
def _log(name: str, reason: str, call: Call) -> None:
    """Once per process and call."""
    logging.info(
        "attention: %s (%s) for %d queries, %d keys, head_dim=%d, %s",
        *(name, reason, call.queries, call.keys, call.head_dim, call.dtype),
    )


# --- Implementations that need no file of their own ---


def _xla(q, k, v, *, scale, causal, q_segments_BT, kv_segments_BS, bias_KTS=None, last_BT=None):
    logits = jnp.einsum("btkc,bskc->bkts", q, k, preferred_element_type=jnp.float32) * scale
    if bias_KTS is not None:
        logits = logits + bias_KTS
    visible = None
    if last_BT is not None:
        visible = _up_to(last_BT, k.shape[1])
    elif causal:
        visible = jnp.tri(q.shape[1], dtype=bool)
    if q_segments_BT is not None:
        same = _same_segment(q_segments_BT, kv_segments_BS)
        visible = same if visible is None else visible & same
    if visible is not None:
        logits = jnp.where(visible, logits, jnp.finfo(jnp.float32).min)
    # Normalised after the weighted sum: the (T, S) weights are touched once less.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total_BTK = jnp.moveaxis(weights.sum(axis=-1), 1, 2)
    y = jnp.einsum(
        "bkts,bskc->btkc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (y / total_BTK[..., None]).astype(v.dtype)


def _cudnn(
    q,
    k,
    v,
    *,
    scale,
    causal,
    q_segments_BT=None,
    kv_segments_BS=None,
    last_BT=None,
    kernel: str = "cudnn",
) -> jax.Array:
    """Segment ids and blocks become a (B, 1, T, S) mask, shared by the heads: the kernel knows
    neither."""
    mask = None if q_segments_BT is None else _same_segment(q_segments_BT, kv_segments_BS)
    if last_BT is not None:
        seen, causal = _up_to(last_BT, k.shape[1]), False
        mask = seen if mask is None else mask & seen
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, is_causal=causal, implementation=kernel
    )


def _same_segment(q_segments_BT: jax.Array, kv_segments_BS: jax.Array) -> jax.Array:
    """(B, 1, T, S)."""
    return (q_segments_BT[:, :, None] == kv_segments_BS[:, None, :])[:, None]


def _up_to(last_BT: jax.Array, number: int) -> jax.Array:
    """(B, 1, T, `number` of keys)."""
    return (jnp.arange(number) <= last_BT[..., None])[:, None]


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "xla": _xla,
    "cudnn": _cudnn,
    "splash": splash_attention,
    "ring": ring_attention,
}
ATTENTIONS = ("auto", *IMPLEMENTATIONS)  # what a config may name
