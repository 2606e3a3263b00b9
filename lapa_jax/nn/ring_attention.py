"""Blockwise attention whose keys and values travel around the `seq` axis of the mesh.

Ring attention (Liu et al. 2023, arXiv 2310.01889) with an online softmax (Dao et al. 2022, arXiv
2205.14135). Every device keeps its queries and sees the keys and values of all others, one device's
share after the other; the next share is on its way while one is in use. Its backward pass goes
around once more, recomputes the weights block by block, and the gradients of keys and values travel
with them. Memory per device is O(T / n); nothing is quadratic but one block of scores.

Causal attention would leave the first device idle and make the last one work at every step.
Therefore tokens are re-dealt first: of 2n chunks device d holds d and 2n − 1 − d ("zigzag"). Then
every step after the first is half a square on every device: all queries see the first chunk of a
share from before, the later half of the queries sees all of a share from after. Blocks above the
diagonal are never computed. The price is two exchanges of half the local tokens per array.

A share makes n − 1 useful steps; one more send of it, unused, overlaps the last step. The products
are plain XLA on every platform: on a TPU a fused kernel inside each step would be faster.

Shape suffixes: B batch, T queries, S keys, K heads, C head width, t local tokens, N blocks, b
tokens in a block. Blocks lie as (N, B, K, b, C).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lapa_jax.nn.stack import ATTENTION_OUT
from lapa_jax.parallel.sharding import current_rules, get_preset, partition_spec, placement

AXIS = "seq"
# Tokens in a block, at most. A CPU keeps the scores of 128 in its cache; the matrix units of others
# want more (not measured).
CPU_BLOCK, BLOCK = 128, 512
HIDDEN = -1e30  # a score that softmax makes 0; finite, so that differences are
FILL = -1  # segment of what pads a chunk to whole blocks


def ring_attention(
    q_BTKC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    scale: float,
    causal: bool,
    q_segments_BT: jax.Array | None = None,
    kv_segments_BS: jax.Array | None = None,
) -> jax.Array:
    """As `attention`. Lengths must divide by the size of `seq`, or by twice that if causal;
    without mesh rules in force all is on one device, blockwise."""
    segments = () if q_segments_BT is None else (q_segments_BT, kv_segments_BS)
    rules = current_rules()
    platform, n = placement()
    block = CPU_BLOCK if platform == "cpu" else BLOCK
    local = functools.partial(_local_attention, plan=Plan(scale, causal, n, block))
    if rules is None:
        return local(q_BTKC, k_BSKC, v_BSKC, *segments)
    mesh, preset = rules
    table = get_preset(preset).activations

    def spec(x: jax.Array, *names: str | None):
        return partition_spec(names, x.shape, mesh, table, "ring attention")

    heads, ids = ("batch", "length", "heads", None), ("batch", "length")
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            *(spec(x, *heads) for x in (q_BTKC, k_BSKC, v_BSKC)),
            *(spec(x, *ids) for x in segments),
        ),
        out_specs=spec(q_BTKC, *heads),
        check_vma=False,
    )(q_BTKC, k_BSKC, v_BSKC, *segments)


class Plan(NamedTuple):
    """What is static: `n` devices along the axis, at most `block` tokens in a block."""

    scale: float
    causal: bool
    n: int
    block: int

    @property
    def chunks(self) -> int:
        """Of a device, blocked apart."""
        return 2 if self.causal and self.n > 1 else 1


def _local_attention(q_BtKC, k_BtKC, v_BtKC, *segments, plan: Plan) -> jax.Array:
    """One device's part."""
    arrays = (q_BtKC, k_BtKC, v_BtKC, *segments)
    if plan.chunks == 2:
        arrays = jax.tree.map(lambda x: _zigzag(x, plan.n), arrays)
    q, k, v, *segments = arrays
    q_size, k_size = (x.shape[1] // plan.chunks for x in (q, k))
    q_blocks, k_blocks = (blocks(size, plan.block) for size in (q_size, k_size))
    ragged = math.prod(q_blocks) != q_size or math.prod(k_blocks) != k_size
    if ragged and not segments:
        segments = [jnp.ones(x.shape[:2], jnp.int32) for x in (q, k)]
    q, k, v = (
        _to_blocks(x, plan.chunks, *shape)
        for x, shape in ((q, q_blocks), (k, k_blocks), (v, k_blocks))
    )
    ids = [None, None]
    if segments:
        ids = [
            _to_blocks(x[..., None, None], plan.chunks, *shape, fill=FILL)[:, :, 0, :, 0]
            for x, shape in zip(segments, (q_blocks, k_blocks), strict=True)
        ]
    out = _ring(plan, q, k, v, *ids)
    out = _from_blocks(out, plan.chunks, q_size)
    return _zigzag(out, plan.n, back=True) if plan.chunks == 2 else out


def blocks(length: int, limit: int, multiple: int = 1) -> tuple[int, int]:
    """(count, size) of the fewest equal blocks of at most `limit` that cover `length`; sizes are
    multiples of `multiple`."""
    count = -(-length // limit)
    return count, -(-length // (count * multiple)) * multiple


def _to_blocks(x_BtKC, chunks: int, count: int, size: int, fill: int = 0) -> jax.Array:
    B, t, K, C = x_BtKC.shape
    x = x_BtKC.reshape(B, chunks, t // chunks, K, C)
    tail = count * size - t // chunks
    x = jnp.pad(x, ((0, 0), (0, 0), (0, tail), (0, 0), (0, 0)), constant_values=fill)
    return x.reshape(B, chunks * count, size, K, C).transpose(1, 0, 3, 2, 4)


def _from_blocks(x_NBKbC: jax.Array, chunks: int, chunk_size: int) -> jax.Array:
    N, B, K, b, C = x_NBKbC.shape
    x = x_NBKbC.transpose(1, 0, 3, 2, 4).reshape(B, chunks, N // chunks * b, K, C)
    return x[:, :, :chunk_size].reshape(B, chunks * chunk_size, K, C)


def _zigzag(x_Bt: jax.Array, n: int, *, back: bool = False) -> jax.Array:
    """Local tokens of the consecutive chunks 2d, 2d + 1 → of the chunks d, 2n − 1 − d; or back.

    Chunks of even and of odd number each spread over all devices, so that two exchanges do it; a
    device's lower chunk is the even one if its own number is even.
    """

    def owner(chunk):
        return chunk if chunk < n else 2 * n - 1 - chunk

    def exchange(x, odd):
        moves = [(d, owner(2 * d + odd)) for d in range(n)]
        return jax.lax.ppermute(x, AXIS, [move[::-1] for move in moves] if back else moves)

    first, second = jnp.split(x_Bt, 2, axis=1)
    on_even = jax.lax.axis_index(AXIS) % 2 == 0
    if back:
        even, odd = jnp.where(on_even, first, second), jnp.where(on_even, second, first)
        return jnp.concatenate([exchange(even, 0), exchange(odd, 1)], axis=1)
    even, odd = exchange(first, 0), exchange(second, 1)
    low, high = jnp.where(on_even, even, odd), jnp.where(on_even, odd, even)
    return jnp.concatenate([low, high], axis=1)


# --- The ring: forward and backward ---


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(plan: Plan, q_NBKbC, k_NBKbC, v_NBKbC, q_ids_NBb, k_ids_NBb) -> jax.Array:
    return _forward(plan, q_NBKbC, k_NBKbC, v_NBKbC, q_ids_NBb, k_ids_NBb)[0]


def _forward(plan, q, k, v, q_ids, k_ids):
    def visit(state, share, _, pairs, diagonal):
        k, v, k_ids = share

        def pair(state, where):
            i, j = where
            out, top, total = state
            scores = _scores(plan, q, k, q_ids, k_ids, i, j, diagonal)
            new_top = jnp.maximum(top[i], scores.max(axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            keep = jnp.exp(top[i] - new_top)
            seen = _product("bkts,bksc->bktc", weights.astype(v.dtype), v[j])
            return (
                out.at[i].set(out[i] * keep[..., None] + seen),
                top.at[i].set(new_top),
                total.at[i].set(total[i] * keep + weights.sum(axis=-1)),
            ), None

        return jax.lax.scan(pair, state, pairs)[0], ()

    state = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], HIDDEN, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
    )
    (out, top, total), _ = _around(plan, visit, state, (k, v, k_ids), (), q.shape[0])
    out = checkpoint_name((out / total[..., None]).astype(v.dtype), ATTENTION_OUT)
    log_total = checkpoint_name(top + jnp.log(total), ATTENTION_OUT)
    return out, (q, k, v, q_ids, k_ids, out, log_total)


def _backward(plan, saved, d_out):
    q, k, v, q_ids, k_ids, out, log_total = saved
    shift = jnp.sum(out.astype(jnp.float32) * d_out, axis=-1)

    def visit(dq, share, gradients, pairs, diagonal):
        k, v, k_ids = share

        def pair(state, where):
            i, j = where
            dq, dk, dv = state
            scores = _scores(plan, q, k, q_ids, k_ids, i, j, diagonal)
            weights = jnp.exp(scores - log_total[i][..., None])
            d_weights = _product("bktc,bksc->bkts", d_out[i], v[j])
            d_scores = weights * (d_weights - shift[i][..., None]) * plan.scale
            d_scores, weights = d_scores.astype(q.dtype), weights.astype(d_out.dtype)
            return (
                dq.at[i].add(_product("bkts,bksc->bktc", d_scores, k[j])),
                dk.at[j].add(_product("bkts,bktc->bksc", d_scores, q[i])),
                dv.at[j].add(_product("bkts,bktc->bksc", weights, d_out[i])),
            ), None

        dq, *gradients = jax.lax.scan(pair, (dq, *gradients), pairs)[0]
        return dq, tuple(gradients)

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    dq, (dk, dv) = _around(plan, visit, zeros[0], (k, v, k_ids), tuple(zeros[1:]), q.shape[0])
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_ring.defvjp(_forward, _backward)


def _around(plan: Plan, visit, state: Any, share: Any, companions: Any, q_blocks: int):
    """Visits every share with `visit(state, share, companions, pairs, diagonal)` → (state,
    companions); pairs are those of (query block, key block) to compute. `companions` stay with
    their share, and are home at the end."""
    first, before, after = _pairs(plan, q_blocks, share[0].shape[0])
    if plan.n == 1:
        return visit(state, share, companions, first, plan.causal)

    def send(tree):
        return jax.lax.ppermute(tree, AXIS, [(d, (d + 1) % plan.n) for d in range(plan.n)])

    arriving = send(share)
    state, companions = visit(state, share, companions, first, plan.causal)
    me = jax.lax.axis_index(AXIS)

    def step(carry, distance):
        state, share, companions = carry
        arriving, companions = send(share), send(companions)
        # The share of device me − distance, modulo n: from before if that is not negative.
        pairs = tuple(jnp.where(me >= distance, a, b) for a, b in zip(before, after, strict=True))
        state, companions = visit(state, share, companions, pairs, False)
        return (state, arriving, companions), None

    (state, _, companions), _ = jax.lax.scan(
        step, (state, arriving, companions), jnp.arange(1, plan.n)
    )
    return state, send(companions)


def _pairs(plan: Plan, queries: int, keys: int):
    """Block pairs (query, key) of a device's own share, of a share before it, of one after it: a
    pair of index arrays each."""
    every = np.indices((queries, keys), dtype=np.int32).reshape(2, -1)
    if not plan.causal:
        return (tuple(every),) * 3
    i, j = every
    chosen = j <= i, j < keys // 2, i >= queries // 2
    return tuple(tuple(every[:, which]) for which in chosen)


def _scores(plan, q, k, q_ids, k_ids, i, j, diagonal: bool) -> jax.Array:
    """(B, K, b, b), float32, hidden ones replaced."""
    scores = _product("bktc,bksc->bkts", q[i], k[j]) * plan.scale
    if diagonal:
        # Local numbers do: of a device's own two chunks the first is the earlier one.
        rows = i * q.shape[3] + jnp.arange(q.shape[3])
        columns = j * k.shape[3] + jnp.arange(k.shape[3])
        scores = jnp.where(rows[:, None] >= columns, scores, HIDDEN)
    if q_ids is not None:
        same = q_ids[i][:, None, :, None] == k_ids[j][:, None, None, :]
        scores = jnp.where(same, scores, HIDDEN)
    return scores


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
