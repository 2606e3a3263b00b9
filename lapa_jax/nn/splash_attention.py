"""JAX's splash attention kernel for TPUs, under shard_map.

The kernel skips blocks that a causal mask hides, keeps no scores, and takes segment ids. Heads are
split over `tensor` and queries over `seq`; keys and values are gathered over `seq`.

Shape suffixes: B batch, T queries, S keys, K heads, C head width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import NamedSharding, PartitionSpec

from lapa_jax.nn.ring_attention import FILL, blocks
from lapa_jax.nn.stack import ATTENTION_OUT
from lapa_jax.parallel.sharding import current_rules, get_preset, partition_spec

LANES = 128  # block sizes are multiples of it
# MaxText's default for every one of the kernel's blocks (sa_block_q, sa_block_kv, ...); not tuned.
BLOCK = 512


def splash_attention(
    q_BTKC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    scale: float,
    causal: bool,
    q_segments_BT: jax.Array | None = None,
    kv_segments_BS: jax.Array | None = None,
    last_BT: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As `attention`. Sequences are padded at the end to whole blocks, with a segment of their own,
    and cut again: no token that was given sees the padding. `last_BT`: the last key that a query
    sees, where causal attention sees more than up to itself; then no scores are skipped.
    `interpret`: run on a CPU."""
    T, S = q_BTKC.shape[1], k_BSKC.shape[1]
    rules = current_rules()
    seq, tensor = (1, 1) if rules is None else (rules[0].shape[a] for a in ("seq", "tensor"))
    q_count, q_block = blocks(-(-T // seq), BLOCK, LANES)
    k_count, k_block = blocks(S, BLOCK, LANES)
    q_length, k_length = seq * q_count * q_block, k_count * k_block
    segments = ()
    if q_segments_BT is not None:
        segments = (q_segments_BT, kv_segments_BS)
    elif (q_length, k_length) != (T, S):
        segments = tuple(jnp.ones(x.shape[:2], jnp.int32) for x in (q_BTKC, k_BSKC))
    if segments:
        segments = (_pad(segments[0], q_length, FILL), _pad(segments[1], k_length, FILL))
    # The kernel has no scale of its own.
    q = (q_BTKC.astype(jnp.float32) * scale).astype(q_BTKC.dtype)
    q, k, v = (
        _pad(x, length, 0).swapaxes(1, 2)
        for x, length in ((q, q_length), (k_BSKC, k_length), (v_BSKC, k_length))
    )
    if causal and last_BT is None:
        shards, heads, mask = (tensor, seq), q.shape[1], splash.CausalMask((q_length, k_length))
    else:  # every device has the same full mask, and jax 0.10.2 fails to split one
        shards, heads = (1, 1), q.shape[1] // tensor
        mask = splash.FullMask((q_length // seq, k_length))
    if last_BT is not None:
        # The kernel compares these numbers with the places of keys. Here they say which blocks it
        # may skip, none; each example brings its own (`_with_last`).
        mask = splash.CausalMask(mask.shape)
        mask.q_sequence = np.full(mask.shape[0], k_length - 1, np.int32)
        last_BT = _pad(last_BT, q_length, k_length - 1)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=q_block,
            block_kv=k_block,
            block_q_dkv=q_block,
            block_kv_dkv=k_block,
            block_q_dq=q_block,
            block_kv_dq=k_block,
        ),
        head_shards=shards[0],
        q_seq_shards=shards[1],
        residual_checkpoint_name=ATTENTION_OUT,
        interpret=interpret,
    )
    function = _over_batch
    if rules is not None:
        function = _sharded(*rules, kernel, shards, (q, k, v, last_BT, *segments))
    return function(kernel, q, k, v, last_BT, *segments).swapaxes(1, 2)[:, :T]


def _over_batch(kernel, q_BKTC, k_BKSC, v_BKSC, last_BT, *segments) -> jax.Array:
    def one(q, k, v, last_T, *ids):
        own = kernel if last_T is None else _with_last(kernel, last_T)
        return own(q, k, v, splash.SegmentIds(*ids) if ids else None)

    return jax.vmap(one)(q_BKTC, k_BKSC, v_BKSC, last_BT, *segments)


def _with_last(kernel, last_T: jax.Array):
    """The kernel of a causal mask, whose queries see the keys up to these."""
    infos, settings = kernel.tree_flatten()
    infos = [info._replace(q_sequence=last_T) for info in infos]
    return kernel.tree_unflatten(settings, infos)


def _sharded(mesh, preset, kernel, shards, arrays):
    """`_over_batch` under shard_map, each device with its part of the kernel's mask."""
    table = get_preset(preset).activations

    def spec(x: jax.Array, *names: str | None) -> PartitionSpec:
        return partition_spec(names, x.shape, mesh, table, "splash attention")

    q, k, v, last_BT, *segments = arrays
    q_spec = spec(q, "batch", "heads", "length", None)
    mask_spec = PartitionSpec(*q_spec[1:3]) if shards != (1, 1) else PartitionSpec(None, None)
    specs = [q_spec, *(spec(x, "batch", "kv", None, None) for x in (k, v))]
    specs.append(None if last_BT is None else spec(last_BT, "batch", "length"))
    if segments:
        specs += [spec(segments[0], "batch", "length"), spec(segments[1], "batch", None)]
    return jax.shard_map(
        _over_batch,
        mesh=mesh,
        in_specs=(kernel.manual_sharding_spec(NamedSharding(mesh, mask_spec)), *specs),
        out_specs=q_spec,
        check_vma=False,
    )


def _pad(x_BT: jax.Array, length: int, fill: int) -> jax.Array:
    widths = ((0, 0), (0, length - x_BT.shape[1]), *((0, 0),) * (x_BT.ndim - 2))
    return jnp.pad(x_BT, widths, constant_values=fill)
