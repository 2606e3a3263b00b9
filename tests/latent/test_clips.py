"""Clips of more than two frames, and objectives that constrain more than neighbours."""

import jax
import numpy as np
import optax
import pytest
from helpers import moving_squares, quantizer_config

from lapa_jax.latent import Quantizer
from lapa_jax.latent.objectives import OBJECTIVES
from lapa_jax.latent.objectives.base import Objective, mean_squared_error
from lapa_jax.latent.objectives.pixels import PixelsConfig
from lapa_jax.nn.module import Functional

pytestmark = pytest.mark.usefixtures("quick_compile")


def clips(batch, frames):
    """Float32 (batch, frames, 16, 16, 3): squares that go on in their direction."""
    pairs, _ = moving_squares(jax.random.key(3), batch * frames)
    return pairs[:, 1].reshape(batch, frames, 16, 16, 3)


def build(frames, **changes):
    config = quantizer_config(num_frames=frames, normalize_decay=0.9, **changes)
    model = Functional(lambda rngs: Quantizer(config, rngs=rngs))
    return model, *jax.jit(model.init)(jax.random.key(0))


@pytest.mark.slow
def test_a_clip_of_two_frames_is_a_pair_and_later_frames_do_not_matter():
    model, params, variables = build(3)
    frames = clips(4, 3)

    def evaluate(frames):
        return model.apply(params, variables, "__call__", frames, train=False)[0]

    out = evaluate(frames)
    assert out["z"].shape == (8, 1) and out["recon"].shape == (8, 16, 16, 3)
    pair = evaluate(frames[:, :2])
    np.testing.assert_allclose(
        out["recon"].reshape(4, 2, 16, 16, 3)[:, 0], pair["recon"], atol=1e-5
    )
    z, _ = model.apply(params, variables, "quantize", frames[:, 0], frames[:, 1])
    np.testing.assert_array_equal(out["z"].reshape(4, 2, 1)[:, 0], z)
    later = evaluate(frames.at[:, 2].set(0.0))
    np.testing.assert_allclose(
        later["recon"].reshape(4, 2, 16, 16, 3)[:, 0], pair["recon"], atol=1e-5
    )
    expected = np.square(np.asarray(frames[:, 1:] - frames[:, :-1])).mean()
    np.testing.assert_allclose(out["metrics"]["copy_mse"], expected, rtol=1e-5)


@pytest.mark.slow
def test_frames_before_a_pair_may_change_its_latent():
    model, params, variables = build(3)
    frames = clips(4, 3)

    def latents(frames):
        return model.apply(params, variables, "pairs", frames, train=False)[0].latent_MLQ

    z, other = latents(frames), latents(frames.at[:, 0].set(0.0))
    assert z.shape == (8, 1, 8)
    assert not np.allclose(z.reshape(4, 2, 8)[:, 1], other.reshape(4, 2, 8)[:, 1], atol=1e-4)


@pytest.mark.parametrize("sees", ["clip", "frame"])
def test_any_two_frames_of_a_clip_are_as_by_themselves(sees):
    model, params, variables = build(3, spatial_sees=sees, dim=16, mlp_dim=16, heads=1)
    key = jax.random.key(1)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(key, x.shape), params)
    frames, firsts, lasts = clips(4, 3), (0, 1, 0, 1, 2), (1, 2, 2, 0, 2)

    def of_clips(train, counted=None):
        told = dict(train=train, counted=counted)
        return model.apply(params, variables, "latents", frames, firsts, lasts, **told)

    z, _ = jax.jit(lambda: of_clips(False))()
    pair = (frames[:, np.array(which)].reshape(20, 16, 16, 3) for which in (firsts, lasts))
    alone, _ = jax.jit(lambda *pair: model.apply(params, variables, "encode", *pair))(*pair)
    assert z.shape == (4, 5, 1, 8) and np.abs(z).max() > 0.1
    np.testing.assert_allclose(z.reshape(20, 1, 8), alone, rtol=1e-4, atol=1e-4)

    z, after = jax.jit(lambda: of_clips(True, (0, 3)))()
    counted = np.asarray(z)[:, [0, 3]].reshape(8, 8)
    np.testing.assert_allclose(counted.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(counted.std(axis=0), 1.0, atol=1e-3)
    assert not np.allclose(np.asarray(z).std(axis=(0, 1)), 1.0, atol=1e-2)
    before = variables["normalize"]["mean"]
    assert not np.allclose(after["normalize"]["mean"], before, atol=1e-3)
    with pytest.raises(ValueError, match="data.num_frames=2 must be at least 3"):
        model.apply(params, variables, "latents", frames[:, :2], firsts, lasts, train=False)


class Additive(Objective):
    """z of the first and third frame should be the sum of those of the two steps, and that sum
    should draw the third frame from the first."""

    def __call__(self, model, batch, *, train, rng=None):
        frames = batch["frames"][:, :3]
        pairs = model.pairs(frames, train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=rng, train=train)
        recon = model.draw(pairs.first_MIJC, model.tokens(pairs.embedded_MHWD, out.z_q_BLD))
        loss = mean_squared_error(recon, pairs.last_MIJC)
        first, third = frames[:, 0], frames[:, 2]
        latents, received = (
            x.reshape(len(first), 2, *x.shape[1:]).sum(axis=1)
            for x in (pairs.latent_MLQ, out.z_q_BLD)
        )
        gap = mean_squared_error(model.encode(first, third), latents)
        drawn = mean_squared_error(model.decode_latent(first, received), third)
        metrics = {"gap": gap, "drawn": drawn}
        return model.outcome(
            pairs, out, recon, loss=loss + gap + drawn, train=train, metrics=metrics
        )  # fmt: skip


@pytest.mark.slow
def test_a_triplet_objective_is_one_more_class(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "additive", (PixelsConfig, Additive))
    model, params, variables = build(3, objective={"name": "additive"})
    frames = clips(16, 3)
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, variables, opt_state, i):
        def loss(params):
            out, new = model.apply(
                params, variables, "__call__", frames, train=True, rng=jax.random.key(i)
            )
            return out["loss"], ((out["metrics"]["gap"], out["metrics"]["drawn"]), new)

        (_, (told, variables)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), variables, opt_state, told

    opt_state, rows = optimizer.init(params), []
    for i in range(40):
        params, variables, opt_state, told = step(params, variables, opt_state, i)
        rows.append([float(x) for x in told])
    gap, drawn = np.array(rows).T
    assert gap[-5:].mean() < 0.5 * gap[1:6].mean()
    assert drawn[-5:].mean() < 0.9 * drawn[1:6].mean()


def test_clips_name_what_they_need():
    with pytest.raises(ValueError, match="data.num_frames=1 must be at least 2"):
        quantizer_config(num_frames=1)
