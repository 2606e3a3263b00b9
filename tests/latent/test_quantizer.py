"""The quantizer: shapes, causality, validation, training without collapse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import NSVQ, Training, moving_squares, quantizer_config

from experiments import base
from lapa_jax.latent import Quantizer
from lapa_jax.latent.bottlenecks.base import (
    dead_codes,
    latents_held,
    nearest_code,
    replace_dead_codes,
    squared_distances,
)
from lapa_jax.latent.bottlenecks.nsvq import substitute_noise
from lapa_jax.latent.config import code_grid
from lapa_jax.latent.parts import Normalizer, moment_weights
from lapa_jax.nn.flops import counted
from lapa_jax.nn.module import Functional
from lapa_jax.nn.patches import from_patches, to_patches


@functools.cache
def training():
    return Training(quantizer_config())


def model():
    return training().model


@functools.cache
def start():
    return training().start()


def train(params, variables, steps):
    return training().run(params, variables, steps)


@pytest.mark.slow
def test_training_does_not_collapse():
    _, _, metrics = train(*start(), range(150))
    assert metrics["perplexity"] >= 0.5 * 8
    assert 1 - metrics["mse"] / metrics["copy_mse"] > 0.2


@pytest.mark.slow
def test_collapsed_codebook_recovers():
    params, variables = start()
    # All codes equal and far away; starting at step 1 skips the initialisation from data.
    params = {
        **params,
        "bottleneck": {"codebook": jnp.full_like(params["bottleneck"]["codebook"], 50.0)},
    }
    _, _, metrics = train(params, variables, range(1, 101))
    assert metrics["perplexity"] >= 0.5 * 8


@pytest.mark.slow
def test_evaluation_is_deterministic_and_pure():
    params, variables = start()
    frames, _ = moving_squares(jax.random.key(3), 4)

    @jax.jit
    def run(frames):
        out, new = model().apply(params, variables, "__call__", frames, train=False)
        z = model().apply(params, variables, "quantize", frames[:, 0], frames[:, 1])[0]
        recon = model().apply(params, variables, "decode", frames[:, 0], z)[0]
        return out, new, z, recon

    out, new, z, recon = run(frames)
    np.testing.assert_array_equal(out["z"], z)
    assert z.dtype == jnp.int32 and z.shape == (4, 1)
    np.testing.assert_allclose(out["recon"], recon, atol=1e-5)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_encoder_is_causal_in_the_frames():
    config = quantizer_config(code_length=4, predict="frame")
    module = Quantizer(config, rngs=nnx.Rngs(params=0))
    first, last, other = jax.random.uniform(jax.random.key(1), (3, 2, 16, 16, 3))

    def encoded(last):
        x = module.patches(jnp.stack([first, last], axis=1))
        return module.temporal(module.spatial(x, module.bias()))

    a, b = encoded(last), encoded(other)
    np.testing.assert_array_equal(a[:, 0], b[:, 0])
    assert float(jnp.abs(a[:, 1] - b[:, 1]).max()) > 1e-3
    assert module.encode(first, last).shape == (2, 4, 8)


@pytest.mark.parametrize(
    ("length", "grid", "expected"),
    [(4, (8, 8), (2, 2)), (2, (8, 8), (2, 1)), (6, (6, 4), (3, 2)), (8, (8, 8), (4, 2))],
)
def test_code_grid(length, grid, expected):
    assert code_grid(length, grid, (0, 0), 1) == expected


def test_impossible_configs_name_their_numbers():
    with pytest.raises(ValueError, match="code_length=5.*4x4 patch grid.*16, 16.*patch_size=4"):
        quantizer_config(code_length=5)
    with pytest.raises(ValueError, match="image_size=.16, 18.*patch_size=4"):
        quantizer_config(image_size=(16, 18))
    with pytest.raises(ValueError, match="recent_size=4.*codebook_size=8"):
        Functional(
            lambda rngs: Quantizer(
                quantizer_config(bottleneck={**NSVQ, "recent_size": 4}), rngs=rngs
            )
        )
    with pytest.raises(ValueError, match="model.bottleneck: .*usage"):
        quantizer_config(bottleneck={**NSVQ, "usage": 1})


@pytest.mark.slow
def test_patches_round_trip_channel_first():
    x = jnp.arange(2 * 8 * 4 * 3.0).reshape(2, 8, 4, 3)
    patches = to_patches(x, 4)
    np.testing.assert_array_equal(patches[0, 1, 0, 16:32], x[0, 4:8, :, 1].reshape(-1))
    np.testing.assert_array_equal(from_patches(patches, 4), x)


@pytest.mark.slow
def test_noise_substitution_has_error_length_and_finite_gradient():
    z = jnp.array([[[1.0, 2.0], [3.0, -1.0]]])
    codebook = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    code = codebook[nearest_code(z, codebook)]

    def out(z, codebook):
        hard = codebook[nearest_code(z, codebook)]
        error = jnp.sum(jnp.square(z - hard), axis=-1)
        return substitute_noise(z, error, jax.random.normal(jax.random.key(0), z.shape))

    length = jnp.linalg.norm(out(z, codebook) - z, axis=-1)
    np.testing.assert_allclose(length, jnp.linalg.norm(z - code, axis=-1), atol=1e-5)
    grads = jax.grad(lambda *a: jnp.sum(out(*a) ** 2), argnums=(0, 1))(z, codebook)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)  # z[0, 0] equals its code
    assert float(jnp.abs(grads[1]).max()) > 0


def redrawn(codebook, recent, count, **changes):
    options = dict(dead_fraction=0.125, noise=0.0) | changes
    return replace_dead_codes(codebook, recent, count, jax.random.key(0), **options)


def held(codebook, recent):
    return latents_held(squared_distances(codebook, recent), jnp.ones(len(recent)))[0]


def used(codebook, recent):
    share = held(codebook, recent) / len(recent)
    return float(jnp.exp(-jnp.sum(share * jnp.log(share + 1e-9))))


@pytest.mark.slow
def test_dead_codes_split_the_code_that_most_latents_share():
    recent = jnp.concatenate([jnp.zeros((30, 2)), jnp.full((34, 2), 9.0), jnp.full((64, 2), 77.0)])
    codebook = jnp.array([[0.0, 0.0], [500.0, 0.0]])
    new = redrawn(codebook, recent, 64)
    assert set(np.asarray(new)[:, 0]) == {0.0, 9.0}, "unwritten latents never"
    np.testing.assert_array_equal(redrawn(new, recent, 64), new)
    np.testing.assert_array_equal(redrawn(codebook, recent, 0), codebook)
    # what is all the same cannot be split: the others share the codes
    still = jnp.concatenate([jnp.zeros((90, 2)), jax.random.normal(jax.random.key(2), (38, 2))])
    assert held(redrawn(jnp.zeros((5, 2)), still, 128), still).min() >= 2
    # a code at an outlier that almost nobody shares is dead, too
    outlier = recent.at[63].set(1000.0)
    found = redrawn(codebook.at[1].set(1000.0), outlier, 64)
    assert set(np.asarray(found)[:, 0]) == {0.0, 9.0}


@pytest.mark.slow
def test_codes_that_leave_most_to_one_are_dead():
    """Fifteen codes with more than half of a uniform share each: none is rare, one holds half."""
    centre = 10.0 * jnp.arange(16)[:, None] * jnp.ones(2)
    code = jnp.concatenate([jnp.zeros(484, jnp.int32), jnp.repeat(jnp.arange(1, 16), 35)])
    recent = centre[code] + jax.random.normal(jax.random.key(1), (len(code), 2))
    assert held(centre, recent).min() > 0.5 * len(recent) / 16 and used(centre, recent) < 8.5
    assert dead_codes(held(centre, recent), 0.125).sum() == 15
    new = redrawn(centre, recent, len(recent))
    assert dead_codes(held(new, recent), 0.125).sum() == 0 and used(new, recent) >= 0.6 * 16


@pytest.mark.slow
@pytest.mark.parametrize("tail", [0.0, 3.0])
def test_redrawn_codes_are_all_used_however_skewed_the_latents(tail):
    """A tight cluster of nine tenths, the rest far out: one code a cluster would leave 1.4 of 8."""
    spread = jnp.where(jnp.arange(1000) < 900, 0.01, 10.0**tail)[:, None]
    recent = spread * jax.random.normal(jax.random.key(1), (1000, 4))
    codebook = redrawn(jnp.zeros((8, 4)), recent, 1000, all_dead=True)
    assert used(codebook, recent) >= 0.6 * 8


@pytest.mark.slow
def test_normalised_latents_forget_their_scale_and_place():
    def normalised(z):
        """In training, and in evaluation once the running statistics are those of the batch."""
        normalize = Normalizer(0.9, 2, 4)
        for _ in range(200):
            trained = normalize(z, train=True)
        return trained, normalize(z, train=False)

    z = jax.random.normal(jax.random.key(0), (64, 2, 4))
    expected, _ = normalised(z)
    np.testing.assert_allclose(expected.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(expected.std(0), 1.0, atol=1e-5)
    by_slot = jnp.array([50.0, 0.02])[:, None]
    for found in normalised(by_slot * z + 9.0 * by_slot):
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_moments_of_a_moving_feature_change_by_its_motion():
    weights = moment_weights(8, 8)
    np.testing.assert_allclose((weights**2).sum((0, 1)), 1.0, rtol=1e-5)
    down, right = weights[1:] - weights[:-1], weights[:, 1:] - weights[:, :-1]
    for change, axis in ((down, 1), (right, 2)):
        unit = np.zeros(3)
        unit[axis] = change[0, 0, axis]
        assert unit[axis] > 0
        np.testing.assert_allclose(change, np.broadcast_to(unit, change.shape), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pixels", "contrastive"])
def test_flops_match_the_compiler(objective):
    config = quantizer_config(
        dim=128, mlp_dim=256, head_dim=32, unroll=0, objective=base.objective(objective).to_dict()
    )
    net = Functional(lambda rngs: Quantizer(config, rngs=rngs))
    params, variables = net.abstract()
    frames = jax.ShapeDtypeStruct((8, 2, 16, 16, 3), jnp.float32)

    def forward(params, variables, frames):
        return net.apply(params, variables, "__call__", frames, train=False)[0]["loss"]

    measured = jax.jit(forward).lower(params, variables, frames).cost_analysis()["flops"] / 8
    assert counted(forward, params, variables, frames) / 8 == pytest.approx(measured, rel=0.2)
