"""The teacher that learns by itself: what it sees, what its loss is of, that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapa_jax.latent.teacher import (
    MaskedAutoencoder,
    MaskedAutoencoderConfig,
    hidden_error,
    normalized_patches,
)
from lapa_jax.nn.module import Functional
from lapa_jax.nn.patches import from_patches, to_patches

pytestmark = pytest.mark.usefixtures("quick_compile")


def config(**changes):
    settings = dict(
        grid=(4, 4), patch_size=4, dim=32, depth=1, heads=2, head_dim=16, mlp_dim=64, registers=1,
        swiglu=False, image_size=(16, 16), mask_fraction=0.75, decoder_dim=16, decoder_depth=1,
        decoder_heads=2, compute_dtype="float32", remat="none", unroll=1,
    )  # fmt: skip
    return MaskedAutoencoderConfig(**{**settings, **changes})


def build(**changes):
    model = Functional(lambda rngs: MaskedAutoencoder(config(**changes), rngs=rngs))
    return model, jax.jit(model.init)(jax.random.key(0))[0]


def tiled(seed, batch):
    """Images whose hidden patches can be told from any other: all are one of four patterns."""
    patterns = jax.random.uniform(jax.random.key(99), (4, 4, 4, 3))
    chosen = jax.random.randint(jax.random.key(seed), (batch,), 0, 4)
    return jnp.tile(patterns[chosen], (1, 4, 4, 1))


@pytest.mark.slow
def test_hidden_patches_are_not_seen_and_the_others_not_counted():
    model, params = build()
    rng = jax.random.key(5)
    frames = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    drawn, hidden = model.apply(params, {}, "draw", frames, rng=rng)[0]
    assert drawn.shape == (2, 16, 48) and hidden.dtype == bool
    np.testing.assert_array_equal(hidden.sum(axis=1), [12, 12])
    assert (hidden[0] != hidden[1]).any()

    def changed(where):
        patches = to_patches(frames, 4)
        return from_patches(jnp.where(where.reshape(2, 4, 4, 1), 0.5, patches), 4)

    unseen, _ = model.apply(params, {}, "draw", changed(hidden), rng=rng)[0]
    np.testing.assert_allclose(unseen, drawn, atol=1e-5)
    seen, _ = model.apply(params, {}, "draw", changed(~hidden), rng=rng)[0]
    assert np.abs(seen - drawn).max() > 1e-3

    wanted = normalized_patches(frames, 4)
    loss, metrics = model.apply(params, {}, "__call__", frames, rng=rng)[0]
    np.testing.assert_allclose(loss, hidden_error(drawn, wanted, hidden), rtol=1e-5)
    error = np.square(drawn - wanted).mean(axis=-1)
    np.testing.assert_allclose(loss, error[np.asarray(hidden)].mean(), rtol=1e-5)
    assert set(metrics) == {"drawing_skill"}


@pytest.mark.slow
def test_flat_patches_stay_flat():
    frames = jnp.full((1, 8, 8, 3), 0.5).at[0, 0, 0].add(1 / 255).at[0, 4:, 4:6].add(0.4)
    patches = normalized_patches(frames, 4)[0]
    assert np.abs(patches[0]).max() < 0.2, "a grey level of noise"
    np.testing.assert_allclose(patches[3].std(), 1.0, atol=0.02)


@pytest.mark.slow
def test_training_draws_what_is_hidden():
    model, params = build()
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(params, opt_state, i):
        rng = jax.random.key(i)

        def loss(params):
            return model.apply(params, {}, "__call__", tiled(i, 64), rng=rng)[0]

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value, metrics["drawing_skill"]

    opt_state, losses = optimizer.init(params), []
    for i in range(40):
        params, opt_state, loss, skill = step(params, opt_state, i)
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert float(skill) > 0.5


@pytest.mark.slow
def test_an_encoder_alone_gives_features_and_no_loss():
    model, params = build(decoder_depth=0)
    assert set(params) == {"encoder"}
    frames = tiled(0, 2)
    assert model.apply(params, {}, "features", frames)[0].shape == (2, 4, 4, 32)
    with pytest.raises(ValueError, match="model.decoder_depth=0: an encoder alone"):
        model.apply(params, {}, "__call__", frames, rng=jax.random.key(0))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(image_size=(16, 18)), r"data.image_size=\(16, 18\) must be a multiple of model.patc"),
        (dict(mask_fraction=1.0), "model.mask_fraction=1.0 of 16 patches"),
        (dict(mask_fraction=0.01), "model.mask_fraction=0.01 of 16 patches"),
        (dict(decoder_heads=3), "model.decoder_dim=16 must be .* model.decoder_heads=3"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
