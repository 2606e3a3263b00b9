"""Attention: every implementation against the plain one, the choice between them, its errors."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn import attention as entry
from lapa_jax.nn.attention import Call, attention, choose, refusal
from lapa_jax.nn.ring_attention import ring_attention
from lapa_jax.nn.splash_attention import splash_attention
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.parallel.sharding import with_rules

SCALE = 0.3
xla = functools.partial(attention, implementation="xla")


def arrays(B=2, T=2048, K=2, C=8, S=None, dtype="float32"):
    """q, k, v and the gradient of the output."""
    draw = np.random.default_rng(0).standard_normal
    lengths = (T, S or T, S or T, T)
    return [jnp.asarray(draw((B, length, K, C), np.float32), dtype) for length in lengths]


def vjp(function, mesh=None, options=None, **settings):
    """jit of (q, k, v, g, *segments) → (y, dq, dk, dv), with XLA's options."""

    def run(q, k, v, g, *segments):
        names = ("q_segments_BT", "kv_segments_BS")
        ids = dict(zip(names, segments, strict=bool(segments)))
        y, back = jax.vjp(lambda *x: function(*x, scale=SCALE, **settings, **ids), q, k, v)
        return y, *back(g)

    run = run if mesh is None else with_rules(run, mesh, "fsdp_tp_sp")
    return jax.jit(run, compiler_options=options)


@functools.cache
def reference(causal):
    return vjp(xla, causal=causal)


def assert_close(actual, expected, tolerance):
    """`tolerance`: of the largest value of each array."""
    for name, a, b in zip(("y", "dq", "dk", "dv"), actual, expected, strict=True):
        assert a.dtype == b.dtype, name
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


def layouts(T):
    """Segment ids (2, T) of two examples, by name."""
    at = np.arange(T)
    packed = [np.searchsorted([T // 5, T // 2 + 3], at, side="right") + 1, 1 + at * 7 // T]
    padded = [at < T - 1, at < T // 3]
    gap = [(at < 9) | (at >= T // 2), np.ones(T)]  # text padded in the middle
    mixed = np.random.default_rng(0).integers(0, 3, (2, T))  # not even contiguous
    named = dict(packed=packed, padded=padded, gap=gap, mixed=mixed)
    return {name: jnp.asarray(np.array(ids), jnp.int32) for name, ids in named.items()}


# --- The entry point ---


@pytest.mark.slow
def test_masks_are_what_the_docstring_says():
    q, k, v, _ = arrays(T=6)
    ids = jnp.array([[1, 1, 0, 2, 2, 2], [0, 0, 1, 1, 1, 1]], jnp.int32)
    run = jax.jit(functools.partial(attention, scale=0.5), static_argnames="causal")
    y = run(q, k, v, causal=True, q_segments_BT=ids, kv_segments_BS=ids)
    same = np.asarray(ids)[:, :, None] == np.asarray(ids)[:, None]
    logits = np.einsum("btkc,bskc->bkts", q, k) * 0.5
    logits = np.where(np.tri(6, dtype=bool) & same[:, None], logits, -np.inf)
    expected = np.einsum("bkts,bskc->btkc", np.asarray(jax.nn.softmax(logits, -1)), v)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    # A query that sees nothing harms nobody: its output is finite.
    alone = ids.at[0, 0].set(7)
    assert np.isfinite(run(q, k, v, q_segments_BT=alone, kv_segments_BS=ids)).all()


def block_causal(T):
    """By name (blocks, segments or None), int32 (2, T): targets at the end of an example, in packed
    rows and padded ones, the prompt a block too, and two blocks of targets side by side."""
    at, n = np.arange(T), 9
    ends = np.array([T // 4, T // 2 + 3, T - 5])
    example = np.searchsorted(ends, at, side="right")
    packed = np.where(example < 3, example + 1, 0)
    in_pack = np.isin(example, (0, 1, 2)) & (np.append(ends, T)[example] - at <= n)
    right = np.where(at < T - 20, 1, 0), (at >= T - 20 - n) & (at < T - 20)
    left = np.where(at >= 30, 1, 0), at >= T - n
    crossing = np.ones(T), (at >= T // 2 - 4) & (at < T // 2 + 4)  # of kernel blocks, devices
    prompt = np.where(at < T // 2, 1, 2)
    pairs = dict(
        packed=((packed, packed[::-1]), (in_pack, in_pack[::-1])),
        padded=tuple(zip(right, left, strict=True)),
        crossing=tuple(zip(crossing, right, strict=True)),
        prefix=((np.ones(T), left[0]), (prompt, prompt * left[0])),
        apart=(None, (np.where(at >= T - n, 1, 0), np.where(at >= T - n, 1 + at % n // 5, 0))),
    )
    return {
        name: [None if x is None else jnp.asarray(np.array(x), jnp.int32) for x in (blocks, ids)]
        for name, (ids, blocks) in pairs.items()
    }


def dense(blocks, ids):
    """What is seen, bool (2, T, T), pair by pair."""
    blocks, T = np.asarray(blocks), blocks.shape[1]
    ids = np.ones((2, T)) if ids is None else np.asarray(ids)
    seen = np.tri(T, dtype=bool) & (ids[:, :, None] == ids[:, None])
    for b, i in np.ndindex(2, T):
        j, block = i, (ids[b, i], blocks[b, i])
        while block[1] > 0 and j < T and (ids[b, j], blocks[b, j]) == block:
            seen[b, i, j], j = True, j + 1
    return seen


def by_mask(seen):
    """`vjp` of plain attention where `seen`."""

    def plain(q, k, v, *, scale):
        scores = jnp.einsum("btkc,bskc->bkts", q, k) * scale
        weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
        return jnp.einsum("bkts,bskc->btkc", weights, v)

    return vjp(plain)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "padded", "crossing", "prefix", "apart"])
def test_blocks_see_each_other_in_both_directions(layout):
    """Against the mask written out; queries, heads and examples of `splash` split, too."""
    T = 150
    blocks, ids = block_causal(T)[layout]
    given, seen = arrays(T=T), dense(blocks, ids)
    assert (seen & ~np.tri(T, dtype=bool)).any() and seen.any(-1).all()
    expected = by_mask(seen)(*given)
    given += [] if ids is None else [ids, ids]
    assert_close(vjp(xla, causal=True, blocks_BT=blocks)(*given), expected, 1e-5)
    last = entry.last_seen(blocks, ids)
    cudnn = functools.partial(entry._cudnn, kernel="xla")
    splash = functools.partial(splash_attention, interpret=True)
    split = mesh_of(dict(fsdp=2, seq=2, tensor=2))
    for function, mesh in ((cudnn, None), (splash, None), (splash, split)):
        actual = vjp(function, mesh, causal=True, last_BT=last)(*given)
        assert_close(actual, expected, 1e-5)


@pytest.mark.slow
def test_splash_blocks_across_those_of_the_kernel():
    T = 600  # two blocks of 384
    blocks, ids = block_causal(T)["crossing"]
    blocks = blocks.at[:, 380:390].set(1)
    given = arrays(T=T, K=1)
    expected = by_mask(dense(blocks, ids))(*given)
    splash = functools.partial(splash_attention, interpret=True)
    last = entry.last_seen(blocks, ids)
    assert_close(vjp(splash, causal=True, last_BT=last)(*given, ids, ids), expected, 1e-5)


@pytest.mark.slow
def test_cudnn_is_given_what_we_mean():
    """jax's own plain implementation takes the same arguments as its cuDNN kernel."""
    q, k, v, g = arrays(T=40)
    function = functools.partial(entry._cudnn, kernel="xla")
    ids = layouts(40)["packed"]
    for causal, given in ((True, (q, k, v, g, ids, ids)), (False, (q, k, v, g))):
        actual = vjp(function, causal=causal)(*given)
        assert_close(actual, reference(causal)(*given), 1e-5)


# --- Ring ---

RING_MESHES = [dict(seq=8), dict(data=2, seq=2, tensor=2), dict(fsdp=2, seq=4)]


def mesh_of(sizes):
    return make_mesh(dict(data=1, fsdp=1, seq=1, tensor=1) | sizes)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("sizes", RING_MESHES, ids=lambda s: "-".join(s))
def test_ring_is_exact(sizes, causal):
    given = arrays()
    ring = vjp(ring_attention, mesh_of(sizes), causal=causal)
    for ids in layouts(2048).values():
        assert_close(ring(*given, ids, ids), reference(causal)(*given, ids, ids), 1e-5)


@pytest.mark.slow
def test_ring_without_segments_and_with_chunks_that_are_no_whole_blocks():
    """532 / 2 devices / 2 = 133 tokens in a chunk, two blocks; 526: 263 tokens, three of 88."""
    for T, causal in ((532, True), (526, False)):
        given = arrays(T=T)
        ring = vjp(ring_attention, mesh_of(dict(data=2, seq=2, tensor=2)), causal=causal)
        assert_close(ring(*given), reference(causal)(*given), 1e-5)


@pytest.mark.slow
def test_ring_on_one_device_is_blockwise_attention():
    for causal, S in ((True, 300), (False, 200)):
        q, k, v, g = arrays(T=300, S=S)
        q_ids, k_ids = (layouts(length)["mixed"] for length in (300, S))
        given = (q, k, v, g, q_ids, k_ids)
        ring = vjp(attention, causal=causal, implementation="ring")
        assert_close(ring(*given), reference(causal)(*given), 1e-5)


@pytest.mark.slow
def test_ring_in_bfloat16():
    """Against float32 on the same rounded inputs: bfloat16 has 8 bits, two percent allow for the
    roundings of weights and of their gradients."""
    given = arrays(T=512, dtype="bfloat16")
    ids = layouts(512)["packed"]
    actual = vjp(ring_attention, mesh_of(dict(seq=4, tensor=2)), causal=True)(*given, ids, ids)
    assert {x.dtype.name for x in actual} == {"bfloat16"}
    precise = [x.astype(jnp.float32) for x in given]
    expected = reference(True)(*precise, ids, ids)
    assert_close([x.astype(jnp.float32) for x in actual], expected, 2e-2)


@pytest.mark.slow
def test_ring_over_32k_tokens():
    """With a gradient on some queries only, theirs are the only rows of a reference to compute."""
    T = 32_768
    q, k, v, g = arrays(B=1, T=T, K=1, C=8)
    ids = jnp.asarray(1 + np.arange(T)[None] * 3 // T, jnp.int32)
    rows = np.random.default_rng(0).choice(T, 64, replace=False)
    g = jnp.zeros_like(g).at[:, rows].set(g[:, rows])
    optimised = {"xla_backend_optimization_level": 1}  # it takes longer than to compile it
    ring = vjp(ring_attention, mesh_of(dict(seq=8)), optimised, causal=True)
    y, dq, dk, dv = ring(q, k, v, g, ids, ids)

    def some_rows(q_rows, k, v):
        scores = jnp.einsum("brkc,bskc->bkrs", q_rows, k) * SCALE
        seen = (np.arange(T) <= rows[:, None]) & (ids[0] == ids[0, rows][:, None])
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bkrs,bskc->brkc", weights, v)

    y_rows, back = jax.vjp(some_rows, q[:, rows], k, v)
    actual = (y[:, rows], dq[:, rows], dk, dv)
    assert_close(actual, (y_rows, *back(g[:, rows])), 1e-5)
    assert not np.delete(np.asarray(dq), rows, axis=1).any()


@pytest.mark.slow
def test_ring_memory_grows_with_the_length_not_its_square():
    def temporary(T):
        ring = vjp(ring_attention, mesh_of(dict(seq=8)), causal=True)
        x = jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)
        return ring.lower(x, x, x, x).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(8192), temporary(65_536)
    assert large < 10 * small, f"{small} bytes for 8192 tokens, {large} for 65536"


# --- Splash ---


@pytest.mark.slow
def test_splash_equals_the_plain_one_in_interpret_mode():
    """Lengths that need padding; queries, heads and examples split, or one device."""
    splash = functools.partial(splash_attention, interpret=True)
    ids = layouts(150)["gap"]
    for sizes, causal, S in (
        (None, True, 150),
        (dict(fsdp=2, seq=2, tensor=2), True, 150),
        (dict(fsdp=2, seq=2, tensor=2), False, 260),
    ):
        mesh = sizes and mesh_of(sizes)
        given = arrays(T=150, S=S)
        if causal:
            given += [ids, ids]
        actual = vjp(splash, mesh, causal=causal)(*given)
        assert_close(actual, reference(causal)(*given), 1e-5)


# --- The choice ---

CPU = Call(
    platform="cpu",
    seq_shards=1,
    queries=64,
    keys=64,
    head_dim=128,
    dtype="bfloat16",
    causal=True,
    segments=True,
    bias=False,
    compiles_cudnn=False,
)
TPU = dataclasses.replace(CPU, platform="tpu", queries=2048, keys=2048)
GPU = dataclasses.replace(TPU, platform="gpu", compiles_cudnn=True)
LONG = dict(queries=65_536, keys=65_536)


@pytest.mark.parametrize(
    "call, changes, name, reason",
    [
        (CPU, {}, "xla", "64 positions on cpu"),
        (CPU, dict(queries=2048, keys=2048), "ring", "at least 256 positions"),
        (CPU, dict(queries=2048, keys=2048, bias=True), "xla", "no bias"),
        (CPU, dict(queries=2048, keys=2048, blocks=True), "xla", "not ring: it takes no blocks"),
        (TPU, dict(blocks=True), "splash", "a TPU"),
        (TPU, dict(seq_shards=4, blocks=True, **LONG), "splash", "not ring: it takes no blocks"),
        (GPU, dict(blocks=True), "cudnn", "a GPU"),
        (CPU, dict(queries=1, keys=2048, causal=False), "xla", "one query"),
        (CPU, dict(queries=2050, keys=2050, seq_shards=4), "xla", "do not divide into 8 parts"),
        (TPU, {}, "splash", "a TPU"),
        (TPU, dict(queries=100, keys=100), "xla", "100 positions on tpu"),
        (TPU, dict(dtype="float32", head_dim=100), "splash", "a TPU"),
        (TPU, dict(bias=True), "xla", "no bias"),
        (TPU, dict(seq_shards=4), "splash", "a TPU"),
        (TPU, LONG, "splash", "a TPU"),
        (TPU, dict(seq_shards=4, **LONG), "ring", "over mesh.seq"),
        (GPU, {}, "cudnn", "a GPU"),
        (GPU, dict(platform="cuda"), "cudnn", "a GPU"),
        (GPU, dict(compiles_cudnn=False), "xla", "not cudnn: .* this process has no GPU"),
        (GPU, dict(dtype="float32"), "xla", "not cudnn: .*compute_dtype"),
        (GPU, dict(head_dim=100), "xla", "not cudnn: head_dim=100"),
        (GPU, dict(queries=2047, keys=2047), "xla", "not cudnn: .*even lengths"),
        # What a quantizer's decoder asks for: a code and two null keys. Training fails in cuDNN.
        (GPU, dict(keys=3, causal=False, segments=False), "xla", "not cudnn: .*even lengths"),
        (GPU, dict(dtype="float32", **LONG), "ring", "no fused kernel; not cudnn"),
        (GPU, dict(seq_shards=4, **LONG), "ring", "no fused kernel"),
        (GPU, dict(seq_shards=4), "xla", "2048 positions on gpu"),
    ],
)
def test_the_choice(call, changes, name, reason):
    call = dataclasses.replace(call, **changes)
    chosen, why = choose(call)
    assert chosen == name
    assert re.search(reason, why), why
    assert not refusal(chosen, call)


def test_the_choice_follows_the_mesh_and_is_logged_once(monkeypatch):
    lines = []
    monkeypatch.setattr(entry.logging, "info", lambda text, *args: lines.append(text % args))
    entry._log.cache_clear()
    shape = [jax.ShapeDtypeStruct((2, 576, 2, 8), jnp.float32)] * 3
    run = functools.partial(attention, scale=1.0, causal=True)
    for _ in range(2):
        jax.eval_shape(with_rules(run, mesh_of(dict(seq=8)), "fsdp_sp"), *shape)
    jax.eval_shape(
        with_rules(run, mesh_of(dict(seq=8)), "fsdp_sp"),
        *[x.update(shape=(2, 8, 2, 8)) for x in shape],
    )
    assert len(lines) == 2
    assert lines[0].startswith("attention: ring (at least 256 positions") and "576" in lines[0]
    assert lines[1].startswith("attention: xla (8 positions on cpu")


def test_ring_refuses_blocks():
    q, k, v, _ = arrays(T=8)
    blocks = jnp.ones((2, 8), jnp.int32)
    with pytest.raises(ValueError, match="model.attention='ring' cannot.*it takes no blocks"):
        attention(q, k, v, scale=1.0, causal=True, blocks_BT=blocks, implementation="ring")


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(implementation="fast"), "model.attention='fast'.*auto.*xla.*cudnn.*splash.*ring"),
        (dict(implementation="cudnn"), "model.attention='cudnn' cannot.*NVIDIA GPU.*are cpu"),
        (dict(implementation="splash"), "model.attention='splash' cannot.*TPU.*are cpu"),
        (dict(implementation="ring", bias_KTS=0.0), "model.attention='ring' cannot.*no bias"),
        (dict(blocks_BT=0), "blocks_BT are of causal attention"),
        (dict(q_segments_BT=0), "segment ids of queries and of keys, or neither"),
    ],
)
def test_what_is_refused(settings, message):
    q, k, v, _ = arrays(T=8)
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, scale=1.0, **settings)


def test_lengths_that_do_not_fit_are_refused():
    q, k, v, _ = arrays(T=8, S=12)
    with pytest.raises(ValueError, match="as many queries as keys, got 8 and 12"):
        attention(q, k, v, scale=1.0, causal=True)
    run = functools.partial(attention, scale=1.0, implementation="ring")
    with pytest.raises(ValueError, match="8 queries and 12 keys do not divide into 8 parts"):
        jax.eval_shape(with_rules(run, mesh_of(dict(seq=8)), "fsdp_sp"), q, k, v)
