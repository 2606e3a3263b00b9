"""Image front-ends: a tokenizer in the model gives what cached tokens give, and stays frozen."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from experiments import base
from lapa_jax.interop import vqgan
from lapa_jax.nn.module import Functional, flatten, param, paths
from lapa_jax.policy.front_end import FRONT_ENDS, front_end_column, front_end_config
from lapa_jax.stages.stage import frozen_source, with_borrowed

pytestmark = pytest.mark.usefixtures("quick_compile")
GOLDEN = Path(__file__).parents[1] / "golden" / "vqgan"
TOKENIZER = dict(
    dim=32, multipliers=(1, 2), blocks=1, latent_dim=16, code_dim=16, codebook_size=64
)  # fmt: skip
VQGAN = dict(name="vqgan", image_size=(32, 32), weights="runs/vqgan", tokenizer=TOKENIZER)
CACHED = dict(name="cached_tokens", num_tokens=256)
DIM = 24


class Table(nnx.Module):
    def __init__(self, vocab: int, rngs: nnx.Rngs):
        self.table = param(jax.random.normal(rngs.params(), (vocab, DIM)), None, "embed")

    def __call__(self, ids):
        return jnp.asarray(self.table[...])[ids]


class Policy(nnx.Module):
    """What a policy has of a front-end."""

    def __init__(self, settings, vocab, *, rngs):
        name, config = front_end_config(settings)
        self.embed = Table(vocab, rngs)
        self.front_end = FRONT_ENDS[name][1](config, DIM, self.embed, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, images):
        return self.front_end(images)

    def tokens(self, images):
        return self.front_end.tokens(images)


def build(settings, vocab=70):
    return Functional(lambda rngs: Policy(settings, vocab, rngs=rngs))


def borrowed(front_end):
    (tokenizer,) = front_end_config(front_end)[1].borrowed
    return tokenizer


@pytest.fixture(scope="module")
def source():
    """(config, parameters) of a run of an image tokenizer."""
    model, params = vqgan.from_tensors(dict(np.load(GOLDEN / "vqgan_tiny_params.npz")))
    return ConfigDict({"stage": "image_tokenizer", "model": model.settings()}), params


@pytest.fixture(scope="module")
def adopted(source, quick_compile):
    """(model, parameters, variables with the tokenizer of the run)."""
    model = build(VQGAN)
    params, variables = jax.jit(model.init)(jax.random.key(0))
    return model, params, with_borrowed(borrowed(VQGAN), variables, *source)


@pytest.mark.slow
def test_a_tokenizer_in_the_model_gives_what_cached_tokens_give(adopted, source):
    model, params, variables = adopted
    io = dict(np.load(GOLDEN / "vqgan_tiny_io.npz"))

    @jax.jit
    def both(params, variables, images):
        ids = model.apply(params, variables, "tokens", images)[0]
        return ids, model.apply(params, variables, "__call__", images)[0]

    ids, embedded = both(params, variables, io["images_u8"])
    wanted = io["indices"].reshape(2, 256)
    assert ids.dtype == np.int32 and embedded.shape == (2, 256, DIM)
    assert ((np.asarray(ids) == wanted) | (io["margin"].reshape(2, 256) < 1e-4)).all()
    np.testing.assert_array_equal(embedded, params["embed"]["table"][ids])


@pytest.mark.slow
def test_the_tokenizer_is_frozen_and_has_no_decoder(adopted, source):
    model, params, variables = adopted
    assert paths(params) == {"embed/table"}, "no parameter, so no gradient and no moments"
    encoder = flatten(source[1]["encoder"])
    found = flatten(variables)
    assert found.keys() == {f"front_end/encoder/{path}" for path in encoder}
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)

    @jax.jit
    def step(params, variables):
        def loss(params):
            out, new = model.apply(params, variables, "__call__", images)
            return jnp.square(out).sum(), (new, out)

        return jax.grad(loss, has_aux=True)(params)

    gradient, (after, embedded) = step(params, variables)
    for path, value in encoder.items():
        np.testing.assert_array_equal(flatten(after)[f"front_end/encoder/{path}"], value)
    np.testing.assert_allclose(gradient["embed"]["table"].sum(0), 2 * embedded.sum((0, 1)), 1e-4)


def test_a_source_that_does_not_fit(source):
    variables = build(VQGAN).abstract()[1]
    config, params = source

    def refused(changes=None, front_end=VQGAN):
        with pytest.raises(ValueError) as info:
            config_there = ConfigDict(config.to_dict() | (changes or {}))
            with_borrowed(borrowed(front_end), variables, config_there, params)
        return str(info.value)

    assert refused({"stage": "quantizer"}) == "it is of stage 'quantizer', not 'image_tokenizer'"
    other = VQGAN | {"tokenizer": TOKENIZER | {"blocks": 2, "codebook_size": 32}}
    assert refused(front_end=other) == (
        "model.front_end.tokenizer.blocks=2, which is 1 there; "
        "model.front_end.tokenizer.codebook_size=32, which is 64 there"
    )
    assert frozen_source(borrowed(VQGAN)) == ("model.front_end.weights", "runs/vqgan")
    assert front_end_config(CACHED)[1].borrowed == ()
    with pytest.raises(ValueError, match="model.front_end.weights is empty: name the run of an"):
        frozen_source(borrowed(VQGAN | {"weights": ""}))


def test_settings_and_images_that_cannot_be():
    for settings, message in (
        (VQGAN | {"image_size": (30, 31)}, "30x31 are not a multiple of 2.*front_end.tokenizer"),
        (VQGAN | {"tokenizer": TOKENIZER | {"dim": 0}}, "model.front_end.tokenizer.dim=0 must be"),
        (VQGAN | {"tokenizer": {"dim": 32}}, "model.front_end.tokenizer: .*missing"),
        ({"name": "ids", "num_tokens": 3}, "name='ids' must be one of .*'cached_tokens'"),
    ):
        with pytest.raises(ValueError, match=message):
            front_end_config(settings)
    with pytest.raises(ValueError, match="model.image_vocab=63 is less than .*codebook_size=64"):
        build(VQGAN, vocab=63)
    model = build(VQGAN)
    call = functools.partial(model.apply, *model.abstract(), "__call__")
    with pytest.raises(ValueError, match="model.front_end"):
        jax.eval_shape(call, jax.ShapeDtypeStruct((1, 16, 32, 3), jnp.uint8))


def test_shipped_settings():
    columns = {"patches": "frames", "vqgan": "frames", "cached_tokens": "image_tokens"}
    assert columns.keys() == FRONT_ENDS.keys()
    for name, column in columns.items():
        settings = base.front_end(name).to_dict()
        assert front_end_column(settings) == column
        settings |= {"image_size": (256, 256)} if column == "frames" else {}
        assert front_end_config(settings)[1].num_tokens == 256
    with pytest.raises(ValueError, match="front_end='pixels' must be one of"):
        base.front_end("pixels")
