"""The policy: one pass and cached decoding, packing, front-ends, head swaps, FLOPs."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import token_heads

from lapa_jax.nn.flops import counted
from lapa_jax.nn.module import Functional, flatten, unflatten
from lapa_jax.nn.stack import unstack
from lapa_jax.nn.surgery import head_swap, plan_swap
from lapa_jax.policy.decoding import decode
from lapa_jax.policy.modality import ACTION, FILL, IMAGE, LATENT, TEXT
from lapa_jax.policy.vla import SIZES, VLA, VLAConfig, positions

PATCHES = dict(name="patches", image_size=(16, 16), patch_size=8, stem_channels=(4,))
HEADS = {"latent": LATENT, "action": ACTION}


def config(**changes) -> VLAConfig:
    settings = dict(
        text_vocab=32,
        image_vocab=0,
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
        param_dtype="float32",
        attention="xla",
        remat="none",
        unroll=1,
        legacy=False,
        lora_rank=0,
        lora_alpha=4.0,
        lora_pattern="attention/.*",
    )
    return VLAConfig(**{**settings, **changes})


def build(latent=8, action=11, **changes):
    sizes = {"latent": latent, "action": action}
    heads = token_heads(**{name: size for name, size in sizes.items() if size})
    return Functional(lambda rngs: VLA(config(**changes), heads, rngs=rngs))


@functools.cache
def model():
    net = build()
    return net, net.init(jax.random.key(0))[0]


def prompts() -> tuple[dict, jax.Array]:
    """Three prompts of 3, 5 and 1 text tokens and the four patches of an image."""
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16, 3), dtype=np.uint8)
    tokens = np.random.default_rng(1).integers(0, 32, (3, 9), dtype=np.int32)
    tokens[:, 5:] = FILL
    modality = np.where(np.arange(9) < 5, TEXT, IMAGE).astype(np.int8)
    segments = (np.arange(9) >= np.array([[2], [0], [4]])).astype(np.int32)
    rows = dict(tokens=tokens, modality=np.tile(modality, (3, 1)), segments=segments)
    return jax.tree.map(jnp.asarray, rows), jnp.asarray(images)


def ordered(rows: dict) -> list:
    return [rows[name] for name in ("tokens", "modality", "segments")]


@functools.cache
def apply_of(head):
    net, params = model()

    def run(rows, images, targets):
        fed = [
            (rows["tokens"], targets[:, :-1]),
            (rows["modality"], jnp.full_like(targets[:, :-1], HEADS[head], jnp.int8)),
            (rows["segments"], jnp.ones_like(targets[:, :-1])),
        ]
        fed = [jnp.concatenate(pair, axis=1) for pair in fed]
        slots = jnp.tile(8 + jnp.arange(targets.shape[1]), (len(targets), 1))
        return net.apply(params, {}, "outputs", *fed, images, slots={head: slots})[0][head]

    return jax.jit(run)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["latent", "action"])
def test_cached_decode_is_the_argmax_of_full_forwards(head):
    net, params = model()
    rows, images = prompts()
    expected = jnp.zeros((3, 4), jnp.int32)
    for i in range(4):
        logits = apply_of(head)(rows, images, expected)
        expected = expected.at[:, i].set(jnp.argmax(logits[:, i], axis=-1))
    heads = token_heads(latent=8, action=11)
    apart = Functional(lambda rngs: VLA(config(), heads, rngs=rngs, stacked=False))
    copied = jax.tree.map(lambda x: x, params)
    for one, tree in ((net, params), (apart, unstack(copied, "backbone"))):
        ids, found = decode(one, tree, {}, rows, images, head, 4)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(found, logits, atol=1e-5)


@pytest.mark.slow
def test_decode_respects_slot_vocabularies_keys_and_top_k():
    net, params = model()
    limit = jnp.array([1, 3, 11])
    key = jax.random.key(5)
    draw = functools.partial(
        decode, net, params, {}, *prompts(), "action", 3, vocab_limit_n=limit, temperature=50.0
    )
    tokens = np.stack([draw(key=jax.random.fold_in(key, i))[0] for i in range(20)])
    assert (tokens < np.asarray(limit)).all() and len(np.unique(tokens[..., 2])) > 5
    np.testing.assert_array_equal(draw(key=key)[0], draw(key=key)[0])
    best = draw(key=key, top_k=1)[0]
    np.testing.assert_array_equal(best[:, 0], 0)
    few = np.stack([draw(key=jax.random.fold_in(key, i), top_k=2)[0][:, 1] for i in range(20)])
    assert all(len(np.unique(few[:, b])) <= 2 for b in range(3))
    for wrong in (dict(temperature=1.0), dict(temperature=-1.0), dict(top_k=3)):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            decode(net, params, {}, *prompts(), "latent", 2, **wrong)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_a_last_layer_computes_the_slots_that_are_asked_for():
    """Of two examples in a row, whose latent slots see each other."""
    heads = token_heads(latent=8, action=11)
    heads["latent"].one_block = True
    net = Functional(lambda rngs: VLA(config(unroll=0), heads, rngs=rngs))
    params = net.init(jax.random.key(0))[0]
    modality = jnp.array([[TEXT, TEXT, LATENT, LATENT, ACTION, TEXT, LATENT, LATENT, ACTION]])
    segments = jnp.array([[1] * 5 + [2] * 3 + [0]])
    rows = (jnp.arange(9)[None] % 8, modality, segments)
    slots = {"latent": jnp.array([[2, 3, 6, 7]]), "action": jnp.array([[3, 7]])}

    def loss(params, all_of_them):
        asked = dict.fromkeys(slots) if all_of_them else slots
        found = net.apply(params, {}, "outputs", *rows, slots=asked)[0]
        if all_of_them:
            found = {name: found[name][:, slots[name][0]] for name in slots}
        return sum(jnp.sin(y).sum() for y in found.values()), found

    wanted, given = (
        jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, whole)
        for whole in (True, False)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, given, wanted)
    flops = [counted(lambda w=whole: loss(params, w)) for whole in (True, False)]
    assert flops[1] < 0.9 * flops[0]


@pytest.mark.slow
def test_padding_and_later_targets_are_invisible():
    rows, images = prompts()
    targets = jnp.array([[1, 2, 3]] * 3)
    base = apply_of("latent")(rows, images, targets)
    hidden = (rows["segments"] == 0) & (rows["tokens"] >= 0)
    other = {**rows, "tokens": jnp.where(hidden, 31 - rows["tokens"], rows["tokens"])}
    assert hidden.any()
    np.testing.assert_array_equal(apply_of("latent")(other, images, targets), base)
    later = apply_of("latent")(rows, images, targets.at[:, 1:].set(7))
    np.testing.assert_array_equal(later[:, :2], base[:, :2])
    assert float(jnp.abs(later[:, 2] - base[:, 2]).max()) > 1e-3
    dark = apply_of("latent")(rows, jnp.zeros_like(images), targets)
    assert float(jnp.abs(dark - base).max()) > 1e-3


@pytest.mark.slow
def test_examples_of_a_row_do_not_see_each_other():
    """Two prompts in one row, without the padding, give what each gives alone."""
    net, params = model()
    rows, images = prompts()
    alone = net.apply(params, {}, "outputs", *ordered(rows), images, slots={"latent": None})[0]
    kept = [np.asarray(rows["segments"][b]) > 0 for b in (0, 1)]
    together = {
        name: jnp.concatenate([x[b][kept[b]] for b in (0, 1)])[None] for name, x in rows.items()
    }
    together["segments"] = jnp.repeat(jnp.array([1, 2]), jnp.array([7, 9]))[None]
    frames = images[:2].reshape(1, 2, 16, 16, 3)
    found = net.apply(params, {}, "outputs", *ordered(together), frames, slots={"latent": None})[0]
    expected = np.concatenate([alone["latent"][b][kept[b]] for b in (0, 1)])
    np.testing.assert_allclose(found["latent"][0], expected, atol=1e-5)


def test_positions_count_from_zero_in_every_segment():
    segments = jnp.asarray([[0, 0, 1, 1, 1], [1, 1, 2, 2, 0]])
    assert positions(segments).tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 0]]


@pytest.mark.slow
def test_remat_keeps_what_attention_gives_and_no_more():
    def kept(remat):
        net = build(remat=remat)

        def forward(params):
            rows, images = prompts()
            slots = {"latent": jnp.full((3, 1), 8)}
            return net.apply(params, {}, "outputs", *ordered(rows), images, slots=slots)[0]

        # What the backward function holds are the leaves of its pytree.
        backward = jax.eval_shape(lambda params: jax.vjp(forward, params)[1], model()[1])
        return Counter(x.shape for x in jax.tree.leaves(backward))

    depth, batch, tokens, heads, width = 2, 3, 5 + 4, 2, 16
    more = {(depth, batch, tokens, heads, width): 1}
    assert kept("attention_out") - kept("full") == more
    assert kept("attention_out_offload") - kept("full") == more
    assert kept("dots") - kept("attention_out") and not kept("full") - kept("dots")


@pytest.mark.slow
def test_head_swap_lists_every_parameter():
    pretrained = build(action=0).init(jax.random.key(1))[0]
    target = build(latent=0)
    report = plan_swap(pretrained, target.abstract()[0])
    params = head_swap(report, flatten(pretrained), target, jax.random.key(2))
    assert set(report.dropped) == {"embeddings/latent/table", "heads/latent/kernel"}
    assert set(report.initialised) == {"embeddings/action/table", "heads/action/kernel"}
    assert set(report.taken) | set(report.initialised) == set(flatten(target.abstract()[0]))
    fresh = flatten(target.init(jax.random.key(2))[0])
    for path, leaf in flatten(params).items():
        source = fresh if path in report.initialised else flatten(pretrained)
        np.testing.assert_allclose(leaf, source[path], atol=1e-6)


def test_head_swap_refuses_what_was_not_named():
    pretrained, net = build().init(jax.random.key(1))[0], build(text_vocab=40).abstract()[0]
    with pytest.raises(ValueError, match="embeddings/text/table is .*32, 32.*40, 32.*text_vocab"):
        plan_swap(pretrained, net)
    state, action = ("embeddings/state/into/kernel", "embeddings/action/table")
    for path, key in ((state, "state_key"), (action, "data.action_horizon")):
        one, other = (unflatten({path: jnp.zeros((n, 2))}) for n in (3, 2))
        with pytest.raises(ValueError, match=f"{path} is .*: change .*{key}.* to what"):
            plan_swap(one, other)
    del pretrained["norm"]
    with pytest.raises(ValueError, match="lacks .'norm/scale'"):
        plan_swap(pretrained, build().abstract()[0])


@pytest.mark.slow
def test_image_ids_and_missing_heads():
    changes = dict(image_vocab=20, front_end=dict(name="cached_tokens", num_tokens=4))
    net = build(**changes, action=0)
    params, _ = net.init(jax.random.key(0))
    assert "front_end" not in params  # the table is the embedding's
    rows, _ = prompts()
    rows["tokens"] = jnp.where(rows["tokens"] == FILL, 3, rows["tokens"])
    assert decode(net, params, {}, rows, None, "latent", 2)[0].shape == (3, 2)
    with pytest.raises(ValueError, match="'action' must be one of .'image', 'latent', 'text'"):
        decode(net, params, {}, rows, None, "action", 2)
    with pytest.raises(ValueError, match="patch_size=8 must be a multiple of 2.4"):
        config(front_end={**PATCHES, "stem_channels": (4, 4, 4, 4)})


@pytest.mark.slow
def test_parameters_in_bfloat16():
    params, _ = build(param_dtype="bfloat16").init(jax.random.key(0))
    exact = flatten(model()[1])
    for path, leaf in flatten(params).items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, exact[path].astype(jnp.bfloat16))


@pytest.mark.slow
def test_flops_match_the_compiler_and_sizes_are_llama():
    changes = dict(dim=128, heads=4, head_dim=32, mlp_dim=352, unroll=0)
    rows, _ = prompts()
    slots = jnp.tile(jnp.arange(4), (3, 1))
    images = jax.ShapeDtypeStruct((3, 1, 16, 16, 3), jnp.uint8)

    def forward(net):
        return lambda params, images: net.apply(
            params, {}, "outputs", *ordered(rows), images, slots={"latent": slots}
        )[0]

    def flops(**more):
        net = build(**changes, **more)
        return counted(forward(net), net.abstract()[0], images) / 3

    net = build(**changes)
    lowered = jax.jit(forward(net)).lower(net.abstract()[0], images)
    measured = lowered.cost_analysis()["flops"] / 3
    assert flops() == pytest.approx(measured, rel=0.2)
    # Nine tokens in the first layer, the four that are asked for in the last; two operations a
    # multiply-add.
    more = 2 * (9 + 4) * 4 * ((128 + 128) + (352 + 128))
    assert flops(lora_rank=4, lora_pattern="attention/q|mlp/down") == flops() + more
    size = SIZES["7b"]
    inner = size["heads"] * size["head_dim"]
    layer = 4 * size["dim"] * inner + 3 * size["dim"] * size["mlp_dim"]
    assert size["depth"] * layer == pytest.approx(6.476e9, rel=1e-3)
