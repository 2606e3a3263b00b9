"""Optimizers, groups, decay, clipping, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import base
from lapa_jax.training.optimizer import OPTIMIZERS, make_optimizer, make_schedule, matrix_dims

SHARED = dict(peak_lr=1e-2, end_lr=1e-3, warmup_steps=0, schedule="constant", clip_norm=0.0)
AXES = {
    "encoder": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "blocks": {"scale": ("layers", "embed"), "kernel": ("layers", "embed", "mlp")},
}
PARAMS = {
    "encoder": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "blocks": {"scale": jnp.ones((2, 4)), "kernel": jnp.ones((2, 4, 4))},
}


def config(optimizer="adamw", **changes):
    return base.optimizer(optimizer).to_dict() | SHARED | changes


def two_groups(**rest):
    return {"encoder": base.group("encoder/.*"), "rest": base.group("blocks/.*", **rest)}


def gradients(seed=0, params=PARAMS):
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda p, key: jax.random.normal(key, p.shape), params, keys)


def updates_of(optimizer, params=PARAMS, steps=3):
    """Updates of a few steps on random gradients, parameters held."""
    trained, state, update = optimizer.split(params)[0], optimizer.init(params), optimizer.tx.update
    found = []
    for step in range(steps):
        grads = optimizer.split(gradients(step, params))[0]
        updates, state = update(grads, state, trained)
        found.append(updates)
    return found


# --- Groups ---


@pytest.mark.slow
def test_groups_scale_learning_rate_and_decay():
    plain = updates_of(make_optimizer(config(clip_norm=1.0, weight_decay=0.1), 10, AXES))
    groups = two_groups(lr_scale=0.25)
    slow = make_optimizer(config(clip_norm=1.0, weight_decay=0.1, groups=groups), 10, AXES)
    for found, expected in zip(updates_of(slow), plain, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found["encoder"], expected["encoder"])
        quarter = jax.tree.map(lambda u: 0.25 * u, expected["blocks"])
        jax.tree.map(np.testing.assert_array_equal, found["blocks"], quarter)
    bare = updates_of(make_optimizer(config(clip_norm=1.0), 10, AXES))
    groups = two_groups(decay_scale=0.0)
    whole = make_optimizer(config(clip_norm=1.0, weight_decay=0.1, groups=groups), 10, AXES)
    found = updates_of(whole)
    jax.tree.map(np.testing.assert_array_equal, found[0]["blocks"], bare[0]["blocks"])
    jax.tree.map(np.testing.assert_array_equal, found[0]["encoder"], plain[0]["encoder"])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_have_no_update_no_moments_and_no_part_in_clipping(name):
    groups = two_groups(frozen=True)
    optimizer = make_optimizer(config(name, clip_norm=1.0, groups=groups), 10, AXES)
    assert optimizer.frozen == {"blocks/scale", "blocks/kernel"}
    part = {"encoder": PARAMS["encoder"]}
    alone = make_optimizer(config(name, clip_norm=1.0), 10, {"encoder": AXES["encoder"]})
    sizes = [[x.size for x in jax.tree.leaves(o.init(p))] for o, p in
             ((optimizer, PARAMS), (alone, part))]  # fmt: skip
    assert sizes[0] == sizes[1]
    grads = gradients()
    updates, _ = optimizer.tx.update(
        optimizer.split(grads)[0], optimizer.init(PARAMS), optimizer.split(PARAMS)[0]
    )
    assert updates["blocks"] == {"scale": None, "kernel": None}
    expected, _ = alone.tx.update({"encoder": grads["encoder"]}, alone.init(part), part)
    jax.tree.map(np.testing.assert_array_equal, updates["encoder"], expected["encoder"])


@pytest.mark.parametrize(
    "groups, words",
    [
        ({"a": base.group("encoder/.*")}, ["2 parameters", "no group", "blocks/kernel", "'enc"]),
        (
            {"a": base.group(".*"), "b": base.group("blocks/scale")},
            ["1 parameters", "several groups", "blocks/scale (a and b)"],
        ),
        ({"a": base.group(".*"), "b": base.group("typo")}, ["['b']", "match no parameter"]),
        # A whole path must match.
        ({"a": base.group("encoder"), "b": base.group("blocks/.*")}, ["encoder/bias"]),
        ({"a": base.group("(")}, ["optimizer.groups.a.pattern='('"]),
        ({"a": base.group(".*", lr_scale=-1.0)}, ["optimizer.groups.a.lr_scale=-1.0"]),
        ({"a": base.group(".*", frozen=1)}, ["optimizer.groups.a.frozen=1 must be True or False"]),
        ({"a": base.group(".*", lr=2.0)}, ["optimizer.groups.a", "['lr']"]),
        ({"a": {"pattern": ".*"}}, ["optimizer.groups.a", "missing keys", "frozen"]),
        ({"a": base.group(".*", frozen=True)}, ["every group", "frozen"]),
    ],
)
def test_every_parameter_matches_exactly_one_group(groups, words):
    with pytest.raises(ValueError) as error:
        make_optimizer(config(groups=groups), 10, AXES)
    assert all(word in str(error.value) for word in words), error.value


def test_table_lists_every_group():
    groups = two_groups(lr_scale=0.1, decay_scale=0.0) | {"encoder": base.group("encoder/.*",
        frozen=True)}  # fmt: skip
    lines = make_optimizer(config(groups=groups), 10, AXES).table(PARAMS).splitlines()
    assert [line.split() for line in lines] == [
        ["group", "arrays", "values", "lr_scale", "decay_scale"],
        ["encoder", "2", "16", "frozen", "frozen"],
        ["rest", "2", "40", "0.1", "0"],
    ]


def test_head_and_rest_split_a_policy():
    axes = {
        "heads": {"action": {"kernel": ("embed", None)}, "text": {"kernel": ("embed", "vocab")}},
        "embeddings": {"action": {"table": (None, "embed")}},
        "backbone": {"layers": {"q": {"kernel": ("embed", "heads"), "lora_a": ("embed", None)}}},
    }
    groups = base.head_and_rest("action", frozen=True).to_dict()
    assert make_optimizer(config(groups=groups), 10, axes).group_of == {
        "heads/action/kernel": "head",
        "embeddings/action/table": "head",
        "backbone/layers/q/lora_a": "head",
        "backbone/layers/q/kernel": "rest",
        "heads/text/kernel": "rest",
    }


# --- Against optax ---


def test_decay_spares_vectors_also_when_stacked():
    optimizer = make_optimizer(config(weight_decay=0.5), 10, AXES)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.tx.update(zero, optimizer.init(PARAMS), PARAMS)
    decayed = {
        name: {key: bool(np.any(u)) for key, u in group.items()} for name, group in updates.items()
    }
    assert decayed == {
        "encoder": {"kernel": True, "bias": False},
        "blocks": {"scale": False, "kernel": True},
    }


WIDE = {"k": ("layers", "embed", "mlp"), "s": ("layers", "embed")}
WIDE_PARAMS = {"k": jnp.full((2, 4, 6), 0.5), "s": jnp.ones((2, 4))}
REFERENCES = {
    "adamw": lambda mask: optax.adamw(1e-2, b2=0.95, weight_decay=0.1, mask=mask),
    "lion": lambda mask: optax.lion(1e-2, weight_decay=0.1, mask=mask),
    # All but its matrices by AdamW, where optax would take NAdamW.
    "muon": lambda mask: optax.partition(
        {"muon": MUON, "adamw": REFERENCES["adamw"](False)}, {"k": "muon", "s": "adamw"}
    ),
}
MUON = optax.contrib.muon(
    1e-2,
    weight_decay=0.1,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=lambda params: jax.tree.map(
        lambda _: optax.contrib.MuonDimensionNumbers((1,), (2,)), params
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_matches_what_optax_composes(name):
    optimizer = make_optimizer(config(name, weight_decay=0.1, clip_norm=0.5), 10, WIDE)
    plain = optax.chain(optax.clip_by_global_norm(0.5), REFERENCES[name]({"k": True, "s": False}))
    state = plain.init(WIDE_PARAMS)
    for step, updates in enumerate(updates_of(optimizer, WIDE_PARAMS)):
        expected, state = plain.update(gradients(step, WIDE_PARAMS), state, WIDE_PARAMS)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), updates, expected
        )


@pytest.mark.slow
def test_adafactor_factors_a_layer_by_itself():
    settings = config("adafactor", min_factored_size=4)
    found = updates_of(make_optimizer(settings, 10, WIDE), WIDE_PARAMS)
    for layer in range(2):
        params = {"k": WIDE_PARAMS["k"][layer]}
        optimizer = make_optimizer(settings, 10, {"k": ("embed", "mlp")})
        state = optimizer.init(params)
        assert sorted(x.size for x in jax.tree.leaves(state)) == [1, 1, 1, 4, 6]
        for step in range(3):
            grads = {"k": gradients(step, WIDE_PARAMS)["k"][layer]}
            updates, state = optimizer.tx.update(grads, state, params)
            np.testing.assert_allclose(updates["k"], found[step]["k"][layer], rtol=1e-5)


@pytest.mark.slow
def test_muon_orthogonalises_every_matrix_of_a_stack():
    axes = {"wi": ("layers", "embed", None, "mlp"), "q": ("layers", "embed", "heads", "head_dim")}
    params = {"wi": jnp.ones((2, 6, 2, 8)), "q": jnp.ones((2, 6, 2, 4))}
    optimizer = make_optimizer(config("muon", peak_lr=1.0), 10, axes)
    updates = updates_of(optimizer, params, steps=1)[0]
    matrices = [updates["q"][i].reshape(6, 8) for i in range(2)]
    matrices += [updates["wi"][i, :, j] for i in range(2) for j in range(2)]
    for matrix in matrices:
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * 8**0.5)
        assert np.all((singular > 0.5) & (singular < 1.5))


@pytest.mark.parametrize(
    "names, sides",
    [
        (("layers", "embed", "heads", "head_dim"), ((1,), (2, 3))),
        (("layers", "heads", "head_dim", "embed"), ((1, 2), (3,))),
        (("layers", "embed", None, "kv", "head_dim"), ((1,), (3, 4))),
        (("layers", "embed", None, "mlp"), ((1,), (3,))),
        (("embed", "mlp"), ((0,), (1,))),
        (("layers", "embed"), None),
        (("layers", "heads", "head_dim"), None),  # a bias
        (("vocab", "embed"), None),
        (("embed", None), None),  # a head of a small vocabulary
        (("patch", "embed"), None),
        (("code", None), None),
        (("layers", "embed", None), None),  # a factor of LoRA
        ((None, None, None, None), None),
    ],
)
def test_muon_takes_the_matrices_inside_of_the_network(names, sides):
    assert matrix_dims(names) == (sides and optax.contrib.MuonDimensionNumbers(*sides))


# --- Schedules and errors ---


@pytest.mark.slow
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
        (dict(name="adam"), ["optimizer.name='adam'", "adamw", "muon"]),
        (dict(schedule="linear"), ["optimizer.schedule='linear'", "warmup_cosine"]),
        (dict(momentum=0.9), ["momentum"]),
        (dict(name="lion"), ["optimizer: unknown keys ['eps']"]),
        (dict(warmup_steps=5), ["optimizer.warmup_steps=5"]),
        (dict(schedule="warmup_cosine", warmup_steps=10), ["optimizer.warmup_steps=10", "9"]),
        (dict(schedule="wsd", warmup_steps=9, peak_lr=-1.0), ["peak_lr"]),
        (dict(clip_norm=-1.0), ["clip_norm"]),
        (dict(weight_decay=-1.0), ["weight_decay"]),
    ],
)
def test_errors_name_the_key(changes, words):
    with pytest.raises(ValueError) as error:
        make_optimizer(config(**changes), 10, AXES)
    assert all(word in str(error.value) for word in words), error.value
    lacking = {key: value for key, value in config().items() if key != "eps"}
    with pytest.raises(ValueError, match="missing keys.*eps"):
        make_optimizer(lacking, 10, AXES)
    with pytest.raises(ValueError, match="optimizer='adam' must be one of"):
        base.optimizer("adam")
