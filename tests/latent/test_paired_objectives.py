"""Objectives that compare a pair with more than itself: other bodies, actions, another arm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch_of, quantizer_config

from experiments import base
from lapa_jax.latent import Quantizer
from lapa_jax.latent.objectives.bimanual import BimanualConfig
from lapa_jax.latent.objectives.factorised import supervised_contrast
from lapa_jax.nn.module import Functional

TINY = dict(dim=8, mlp_dim=8, heads=1, head_dim=8, patch_size=8, code_length=2, quant_dim=4)


def config_of(name, **settings):
    objective = base.objective(name).to_dict() | settings
    return quantizer_config(**TINY, objective=objective)


@pytest.mark.parametrize(
    ("name", "settings", "known", "told"),
    [
        ("shared_codes", {}, "action_mask", ["action_error_of_action_codes"]),
        ("bimanual", {"action_dim": 2, "left_dims": 1}, "action_known", ["action_error_left"]),
    ],
)
def test_actions_count_where_they_are_known(name, settings, known, told):
    config = config_of(name, **settings)
    model = Functional(lambda rngs: Quantizer(config, rngs=rngs))
    params, variables = jax.jit(model.init)(jax.random.key(0))
    batch = batch_of(config, jax.random.key(1), 8)
    known_B = np.asarray(batch[known]).reshape(8, -1)[:, 0]
    assert 0 < known_B.sum() < 8

    @jax.jit
    def evaluate(batch):
        frames, columns = batch["frames"], {k: v for k, v in batch.items() if k != "frames"}
        out = model.apply(params, variables, "__call__", frames, **columns, train=False)[0]
        return out["loss"], out["metrics"], out["z"]

    loss, metrics, z = evaluate(batch)
    assert z.shape == (8, 2) and metrics["action_known"] == known_B.mean()
    spread = jnp.arange(8.0).reshape(-1, *[1] * (batch["action"].ndim - 1))

    def after(which):
        where = which.reshape(spread.shape)
        return evaluate(batch | {"action": jnp.where(where, 9.0 + spread, batch["action"])})

    other = after(~known_B)
    jax.tree.map(np.testing.assert_array_equal, other, (loss, metrics, z))
    changed, moved, same = after(known_B)
    assert changed != loss and all(moved[key] != metrics[key] for key in told)
    np.testing.assert_array_equal(same, z, err_msg="labels are those of the frames")
    nothing = evaluate(batch | {known: jnp.zeros_like(batch[known])})
    assert np.isfinite(nothing[0]) and all(nothing[1][key] == 0 for key in told)


def test_bodies_are_told_apart_where_a_batch_shows_several():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    label = np.array([0, 0, 0, 1, 1, 2])  # the last has no other of its kind
    errors = []
    for i in range(5):
        others = [j for j in range(6) if j != i]
        logits = x[others] @ x[i] / 0.1
        log_softmax = dict(zip(others, logits - np.log(np.exp(logits).sum()), strict=True))
        errors.append(-np.mean([log_softmax[j] for j in others if label[j] == label[i]]))
    error, found = supervised_contrast(jnp.asarray(x), jnp.asarray(label), 0.1)
    np.testing.assert_allclose(error, np.mean(errors), rtol=1e-5)
    assert 0 <= found <= 1
    gradient = jax.grad(lambda x: supervised_contrast(x, jnp.asarray(label), 0.1)[0])(x)
    assert np.isfinite(gradient).all()
    alone = supervised_contrast(jnp.asarray(x), jnp.zeros(6, int), 0.1)
    assert [float(value) for value in alone] == [0.0, 0.0]


def test_the_same_motion_of_another_body_is_the_nearest():
    config = config_of("factorised", positives="views", embed_dim=8)
    model = Functional(lambda rngs: Quantizer(config, rngs=rngs))
    params, variables = jax.jit(model.init)(jax.random.key(0))
    batch = batch_of(config, jax.random.key(1), 8)
    frames, corpus = batch["frames"], jnp.zeros(8, jnp.int32)
    assert frames.shape[1] == 4, "two cameras"

    @jax.jit
    def evaluate(frames):
        out = model.apply(params, variables, "__call__", frames, corpus=corpus, train=False)[0]
        return out["metrics"], out["recon"]

    same = frames.at[:, 1::2].set(frames[:, ::2])  # both show the very same
    metrics, recon = evaluate(same)
    assert metrics["task_retrieval"] == 1.0 and recon.shape[0] == 16
    assert metrics["body_contrast"] > 0, "a camera is a body"
    assert evaluate(frames)[0]["task_contrast"] > metrics["task_contrast"]


def test_what_has_no_two_arms_is_refused():
    with pytest.raises(ValueError, match="model.objective.left_dims=7 must be less than .*=7: the"):
        BimanualConfig(action_dim=7)
    with pytest.raises(ValueError, match="model.code_length=1 must be even"):
        config = quantizer_config(objective=base.objective("bimanual").to_dict())
        Functional(lambda rngs: Quantizer(config, rngs=rngs)).abstract()
