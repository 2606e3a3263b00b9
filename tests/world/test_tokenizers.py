"""The image tokenizer that is trained here: its codes, what it draws of them, that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapa_jax.latent.bottlenecks import bottleneck_settings
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import default_settings, typed_config
from lapa_jax.world.tokenizers import PatchTokenizer, PatchTokenizerConfig, tokenizer_of

SIZES = dict(patch_size=8, dim=16, depth=1, decoder_depth=1, heads=2, head_dim=8, mlp_dim=32)


def config(image_size=(16, 16), **changes) -> PatchTokenizerConfig:
    settings = default_settings(PatchTokenizerConfig, **SIZES, **changes).to_dict()
    given = settings | {"image_size": image_size, "compute_dtype": "float32"}
    return typed_config(tokenizer_of(settings)[0], given, "model")


def images(seed: int, count: int) -> np.ndarray:
    """Patches of one colour each."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return colours.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.slow
def test_training_draws_images_of_codes():
    made = config()
    model = Functional(lambda rngs: PatchTokenizer(made, dtype=jnp.float32, rngs=rngs))
    params, variables = jax.jit(model.init)(jax.random.key(0))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            drawn, own, metrics = model.apply(params, variables, "__call__", batch, train=True)[0]
            return jnp.mean(jnp.square(drawn - batch / 255.0)) + own, metrics

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value, metrics["perplexity"]

    state, losses = optimizer.init(params), []
    for i in range(30):
        params, state, loss, used = step(params, state, images(i, 16))
        losses.append(float(loss))
    assert np.mean(losses[-3:]) < 0.6 * losses[0] and float(used) > 4
    seen = images(99, 4)
    codes = model.apply(params, variables, "encode", seen)[0]
    assert codes.shape == (4, 2, 2) and codes.dtype == jnp.int32
    assert codes.min() >= 0 and codes.max() < made.codebook_size
    drawn = model.apply(params, variables, "decode", codes)[0]
    whole = model.apply(params, variables, "__call__", seen, train=False)[0][0]
    np.testing.assert_allclose(drawn, np.clip(2.0 * whole - 1.0, -1.0, 1.0), atol=1e-5)
    for method, given, told in (
        ("encode", seen[:, :8], "images of 8x16 are not of 16x16"),
        ("encode", seen / 255.0, "must be uint8 of shape"),
        ("decode", codes[:, :1], r"codes of \[1, 2\] are not of"),
    ):
        with pytest.raises(ValueError, match=told):
            model.apply(params, variables, method, given)


def test_a_code_is_of_its_own_patch_alone():
    """So what stands still keeps its codes, whatever else moves."""
    model = Functional(lambda rngs: PatchTokenizer(config(), dtype=jnp.float32, rngs=rngs))
    params, variables = jax.jit(model.init)(jax.random.key(0))
    before, after = images(0, 4), images(1, 4)
    after[:, :8, 8:] = before[:, :8, 8:]
    codes = [np.asarray(model.apply(params, variables, "encode", x)[0]) for x in (before, after)]
    same = codes[0] == codes[1]
    assert same[:, 0, 1].all() and not same.all()


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            dict(image_size=(16, 20)),
            r"data.image_size=\(16, 20\) must be a multiple of model",
        ),
        (dict(bottleneck=bottleneck_settings("none")), "model.bottleneck.name='none' has no codes"),
        (
            dict(codebook_size=512),
            "model.bottleneck.levels=.* make 1024 codes",
        ),
        (dict(architecture="vq"), "model.architecture='vq' must be one of .*'patches', 'vqgan'"),
    ],
)
def test_settings_that_cannot_be(changes, told):
    with pytest.raises(ValueError, match=told):
        config(**changes)
