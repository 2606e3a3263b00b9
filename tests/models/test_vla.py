"""The policy: teacher forcing, cached decoding, front-ends, head swaps, FLOPs."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.models.decoding import decode
from lapa_jax.models.module import Functional, flatten
from lapa_jax.models.surgery import head_swap
from lapa_jax.models.vla import SIZES, VLA, VLAConfig, positions, vla_flops

PATCHES = dict(name="patches", image_size=(16, 16), patch_size=8, stem_channels=(4,))


def config(**changes) -> VLAConfig:
    settings = dict(
        text_vocab=32,
        image_vocab=0,
        latent_vocab=8,
        action_vocab=11,
        text_length=5,
        front_end=PATCHES,
        dim=32,
        depth=2,
        heads=2,
        head_dim=16,
        mlp_dim=48,
        rope_theta=1e4,
        norm_eps=1e-6,
        init_std=0.3,
        compute_dtype="float32",
        attention="xla",
        remat="none",
        unroll=1,
        lora_rank=0,
        lora_alpha=4.0,
        lora_pattern="attention/.*",
    )
    return VLAConfig(**{**settings, **changes})


def build(**changes):
    return Functional(lambda rngs: VLA(config(**changes), rngs=rngs))


@functools.cache
def model():
    net = build()
    return net, net.init(jax.random.key(0))[0]


def inputs():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    tokens = np.random.default_rng(1).integers(0, 32, (3, 5), dtype=np.int32)
    mask = np.arange(5) < np.array([[3], [5], [1]])
    return jnp.asarray(images), jnp.asarray(tokens), jnp.asarray(mask)


@functools.cache
def logits_of(head):
    net, params = model()
    return jax.jit(lambda *a: net.apply(params, {}, "target_logits", *a, head)[0])


@pytest.mark.parametrize("head", ["latent", "action"])
def test_cached_decode_is_the_argmax_of_full_forwards(head):
    net, params = model()
    expected = jnp.zeros((3, 4), jnp.int32)
    for i in range(4):
        logits = logits_of(head)(*inputs(), expected)
        expected = expected.at[:, i].set(jnp.argmax(logits[:, i], axis=-1))
    actual = decode(net, params, *inputs(), head, 4)
    np.testing.assert_array_equal(actual, expected)


def test_decode_respects_slot_vocabularies_and_keys():
    net, params = model()
    limit = jnp.array([1, 3, 11])
    key = jax.random.key(5)
    draw = functools.partial(
        decode, net, params, *inputs(), "action", 3, vocab_limit_n=limit, temperature=50.0
    )
    tokens = np.stack([draw(key=jax.random.fold_in(key, i)) for i in range(20)])
    assert (tokens < np.asarray(limit)).all() and len(np.unique(tokens[..., 2])) > 5
    np.testing.assert_array_equal(draw(key=key), draw(key=key))
    with pytest.raises(ValueError, match="temperature=1.0"):
        decode(net, params, *inputs(), "latent", 2, temperature=1.0)


def test_padding_and_later_targets_are_invisible():
    images, tokens, mask = inputs()
    targets = jnp.array([[1, 2, 3]] * 3)
    base = logits_of("latent")(images, tokens, mask, targets)
    filled = jnp.where(mask, tokens, 31 - tokens)
    np.testing.assert_array_equal(logits_of("latent")(images, filled, mask, targets), base)
    later = logits_of("latent")(images, tokens, mask, targets.at[:, 1:].set(7))
    np.testing.assert_array_equal(later[:, :2], base[:, :2])
    assert float(jnp.abs(later[:, 2] - base[:, 2]).max()) > 1e-3
    dark = logits_of("latent")(jnp.zeros_like(images), tokens, mask, targets)
    assert float(jnp.abs(dark - base).max()) > 1e-3


def test_positions_skip_padding_and_slots_are_static():
    net, params = model()
    mask = jnp.asarray([[True, True, False, False, True]])
    assert positions(mask).tolist() == [[0, 1, 1, 1, 2]]
    out = net.apply(
        params, {}, "logits", *inputs(), jnp.zeros((3, 4), jnp.int32), "action", with_text=True
    )[0]
    assert out["target"].shape == (3, 4, 11)  # one per target, the unfed last one included
    assert out["text"].shape == (3, 4, 32)


def test_remat_keeps_what_attention_gives_and_no_more():
    def kept(remat):
        net = build(remat=remat)

        def forward(params):
            targets = jnp.zeros((3, 4), jnp.int32)
            return net.apply(params, {}, "target_logits", *inputs(), targets, "latent")[0]

        # What the backward function holds are the leaves of its pytree.
        backward = jax.eval_shape(lambda params: jax.vjp(forward, params)[1], model()[1])
        return Counter(x.shape for x in jax.tree.leaves(backward))

    depth, batch, tokens, heads, width = 2, 3, 5 + 4 + 3, 2, 16
    more = {(depth, batch, tokens, heads, width): 1}
    assert kept("attention_out") - kept("full") == more
    assert kept("attention_out_offload") - kept("full") == more
    assert kept("dots") - kept("attention_out") and not kept("full") - kept("dots")


def test_head_swap_lists_every_parameter():
    pretrained = build(action_vocab=0).init(jax.random.key(1))[0]
    target = build(latent_vocab=0)
    params, report = head_swap(pretrained, target, jax.random.key(2))
    assert set(report.dropped) == {"embeddings/latent/table", "heads/latent/kernel"}
    assert set(report.initialised) == {"embeddings/action/table", "heads/action/kernel"}
    assert set(report.taken) | set(report.initialised) == set(flatten(target.abstract()[0]))
    fresh = flatten(target.init(jax.random.key(2))[0])
    for path, leaf in flatten(params).items():
        source = fresh if path in report.initialised else flatten(pretrained)
        np.testing.assert_allclose(leaf, source[path], atol=1e-6)


def test_head_swap_refuses_what_was_not_named():
    pretrained, net = build().init(jax.random.key(1))[0], build(text_vocab=40)
    with pytest.raises(ValueError, match="embeddings/text/table is float32.32, 32.*40, 32"):
        head_swap(pretrained, net, jax.random.key(0))
    _, report = head_swap(pretrained, net, jax.random.key(0), reinit=("*/text/*",))
    assert set(report.initialised) == {"embeddings/text/table", "heads/text/kernel"}
    del pretrained["norm"]
    with pytest.raises(ValueError, match="lacks .'norm/scale'"):
        head_swap(pretrained, build(), jax.random.key(0))
    with pytest.raises(ValueError, match="'heads/typo/.' *.* match no"):
        head_swap(pretrained, build(), jax.random.key(0), reinit=("heads/typo/*",))


def test_image_ids_front_end_and_missing_heads():
    net = build(image_vocab=20, front_end=dict(name="ids", num_tokens=6), action_vocab=0)
    params, _ = net.init(jax.random.key(0))
    assert "front_end" not in params  # the table is the embedding's, held once
    ids, (_, tokens, mask) = jnp.ones((3, 6), jnp.int32), inputs()
    assert decode(net, params, ids, tokens, mask, "latent", 2).shape == (3, 2)
    with pytest.raises(ValueError, match="'action'.*one of .'latent'"):
        decode(net, params, ids, tokens, mask, "action", 2)
    with pytest.raises(ValueError, match="image_vocab > 0"):
        build(front_end=dict(name="ids", num_tokens=6))
    with pytest.raises(ValueError, match="patch_size=8 must be a multiple of 2.4"):
        config(front_end={**PATCHES, "stem_channels": (4, 4, 4, 4)})


def test_flops_match_the_compiler_and_sizes_are_llama():
    changes = dict(dim=128, heads=4, head_dim=32, mlp_dim=352, unroll=0)
    net = build(**changes)
    _, tokens, mask = inputs()

    def forward(params, images, targets):
        return net.apply(params, {}, "target_logits", images, tokens, mask, targets, "latent")[0]

    lowered = jax.jit(forward).lower(
        net.abstract()[0],
        jax.ShapeDtypeStruct((3, 16, 16, 3), jnp.uint8),
        jax.ShapeDtypeStruct((3, 4), jnp.int32),
    )
    measured = lowered.cost_analysis()["flops"] / 3
    assert vla_flops(config(**changes), 4, "latent") == pytest.approx(measured, rel=0.2)
    size = SIZES["7b"]
    inner = size["heads"] * size["head_dim"]
    layer = 4 * size["dim"] * inner + 3 * size["dim"] * size["mlp_dim"]
    assert size["depth"] * layer == pytest.approx(6.476e9, rel=1e-3)
