"""Groups, decay, clipping and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapa_jax.training.optimizer import make_optimizer, make_schedule

CONFIG = dict(
    name="adamw",
    peak_lr=1e-2,
    end_lr=1e-3,
    warmup_steps=0,
    schedule="constant",
    weight_decay=0.0,
    clip_norm=0.0,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    pretrained_lr_scale=1.0,
    ema_decay=0.0,
)
PARAMS = {
    "encoder": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "blocks": {"scale": jnp.ones((2, 4)), "kernel": jnp.ones((2, 4, 4))},
}
AXES = {
    "encoder": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "blocks": {"scale": ("layers", "embed"), "kernel": ("layers", "embed", "mlp")},
}


def config(**changes):
    return {**CONFIG, **changes}


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_pretrained_parameters_move_by_a_part(scale):
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    whole, _ = make_optimizer(config(clip_norm=1.0), 10, axes=AXES)
    expected, _ = jax.jit(whole.update)(grads, whole.init(PARAMS), PARAMS)
    part, _ = make_optimizer(
        config(clip_norm=1.0, pretrained_lr_scale=scale), 10, axes=AXES,
        pretrained=["blocks/kernel", "blocks/scale"],
    )  # fmt: skip
    updates, _ = jax.jit(part.update)(grads, part.init(PARAMS), PARAMS)
    for name in ("kernel", "scale"):
        np.testing.assert_allclose(
            updates["blocks"][name], scale * expected["blocks"][name], rtol=1e-6
        )
    np.testing.assert_array_equal(updates["encoder"]["kernel"], expected["encoder"]["kernel"])
    # From random parameters nothing is held back.
    scratch, _ = make_optimizer(config(clip_norm=1.0, pretrained_lr_scale=scale), 10, axes=AXES)
    free, _ = jax.jit(scratch.update)(grads, scratch.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(free["blocks"]["kernel"], expected["blocks"]["kernel"])
    with pytest.raises(ValueError, match="pretrained_lr_scale=2.0 must be in"):
        make_optimizer(config(pretrained_lr_scale=2.0), 10, axes=AXES)


def test_frozen_parameters_have_no_update_no_moments_and_no_part_in_clipping():
    tx, _ = make_optimizer(config(clip_norm=1.0), 10, lambda path: path[0] == "blocks", axes=AXES)
    state = tx.init(PARAMS)
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(size for size in sizes if size > 1) == 2 * (8 + 32)  # two moments of blocks only
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    grads["encoder"] = jax.tree.map(lambda g: 1e6 * g, grads["encoder"])
    updates, _ = jax.jit(tx.update)(grads, state, PARAMS)
    assert not any(np.any(u) for u in jax.tree.leaves(updates["encoder"]))
    alone, _ = make_optimizer(config(clip_norm=1.0), 10, axes=AXES)
    part = {"blocks": PARAMS["blocks"]}
    expected, _ = jax.jit(alone.update)({"blocks": grads["blocks"]}, alone.init(part), part)
    np.testing.assert_allclose(updates["blocks"]["kernel"], expected["blocks"]["kernel"], rtol=1e-6)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        make_optimizer(config(), 10, lambda path: False)[0].init(PARAMS)


def test_decay_spares_vectors_also_when_stacked():
    tx, _ = make_optimizer(config(weight_decay=0.5), 10, axes=AXES)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = jax.jit(tx.update)(zero, tx.init(PARAMS), PARAMS)
    decayed = {
        name: {key: bool(np.any(u)) for key, u in group.items()} for name, group in updates.items()
    }
    assert decayed == {
        "encoder": {"kernel": True, "bias": False},
        "blocks": {"scale": False, "kernel": True},
    }


def test_matches_plain_adamw():
    tx, _ = make_optimizer(config(weight_decay=0.1, clip_norm=0.5), 10)
    mask = jax.tree.map(lambda p: p.ndim >= 2, PARAMS)
    plain = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(1e-2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask),
    )
    grads = jax.tree.map(lambda p: p * 0.3, PARAMS)
    state, plain_state = tx.init(PARAMS), plain.init(PARAMS)
    update, plain_update = jax.jit(tx.update), jax.jit(plain.update)
    for _ in range(3):
        updates, state = update(grads, state, PARAMS)
        expected, plain_state = plain_update(grads, plain_state, PARAMS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_schedules():
    def rates(name, warmup, steps=100, at=(0, 9, 10, 50, 99)):
        schedule = make_schedule(config(schedule=name, warmup_steps=warmup), steps)
        return [float(schedule(jnp.asarray(step))) for step in at]

    np.testing.assert_allclose(rates("constant", 0), [1e-2] * 5, rtol=1e-6)
    first, top, _, middle, last = rates("warmup_cosine", 10)
    np.testing.assert_allclose([first, top], [1e-3, 1e-2], rtol=1e-5)
    assert 1e-3 < last < 1.1e-3 < middle < 1e-2
    np.testing.assert_allclose(
        rates("wsd", 10, at=(0, 9, 10, 50, 89, 95, 100)),
        [1e-3, 1e-2, 1e-2, 1e-2, 1e-2, 5.5e-3, 1e-3],
        rtol=1e-5,
    )
    assert rates("cosine", 0)[0] == pytest.approx(1e-2)
    assert rates("warmup_constant", 10)[2:] == pytest.approx([1e-2] * 3)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(name="adam"), ["optimizer.name='adam'", "adamw"]),
        (dict(schedule="linear"), ["optimizer.schedule='linear'", "warmup_cosine"]),
        (dict(momentum=0.9), ["momentum"]),
        (dict(warmup_steps=5), ["optimizer.warmup_steps=5"]),
        (dict(schedule="warmup_cosine", warmup_steps=10), ["optimizer.warmup_steps=10", "9"]),
        (dict(schedule="wsd", warmup_steps=9, peak_lr=-1.0), ["peak_lr"]),
        (dict(clip_norm=-1.0), ["clip_norm"]),
    ],
)
def test_errors_name_the_key(changes, words):
    with pytest.raises(ValueError) as error:
        make_optimizer(config(**changes), 10)
    assert all(word in str(error.value) for word in words), error.value
    lacking = {key: value for key, value in CONFIG.items() if key != "eps"}
    with pytest.raises(ValueError, match="lacks.*eps"):
        make_optimizer(lacking, 10)
