"""Clips of more than two frames, and objectives that constrain more than neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moving_squares, quantizer_config

from lapa_jax.latent import Quantizer
from lapa_jax.latent.bottlenecks.base import BottleneckOutput
from lapa_jax.latent.encoder import flat
from lapa_jax.latent.objectives import objective_config, objective_settings
from lapa_jax.latent.objectives.algebraic import Algebraic, AlgebraicConfig
from lapa_jax.latent.objectives.base import Objective
from lapa_jax.latent.objectives.rotation import Rotation, RotationConfig
from lapa_jax.latent.parts import Normalizer
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


class Encoded:
    """A toolbox whose latents are f(last) − f(first) and something that all have in common."""

    def __init__(self, values_BTLQ, common):
        self.values, self.common = values_BTLQ, common
        self.normalize = Normalizer(0.9, *values_BTLQ.shape[2:])
        self.given = []

    def patches(self, frames):
        return frames

    def latents(self, frames, firsts, lasts, *, train, embedded_BTHWD, counted):
        z = self.values[:, np.array(lasts)] - self.values[:, np.array(firsts)] + self.common
        of = flat(z[:, np.array(counted)])
        return self.normalize(flat(z), train=train, of_MLQ=of).reshape(z.shape)

    def pairs(self, frames, *, train):
        raise AssertionError("they are there already")


class Seen(Objective):
    """Keeps what it is given; its loss is 5."""

    def __call__(self, model, batch, *, train, rng=None):
        model.given.append(model.pairs(batch["frames"], train=train))
        return {"loss": jnp.float32(5.0), "metrics": {}}


@pytest.mark.parametrize("frames, obeys", [(3, True), (5, True), (3, False)])
def test_what_adds_up_is_the_latents_that_are_read(frames, obeys):
    values = np.random.default_rng(0).normal(0.3, 1.0, (64, frames, 2, 3)).cumsum(axis=1)
    model = Encoded(jnp.asarray(values, jnp.float32), 4.0)
    settings = AlgebraicConfig(of=(Seen, None), additivity=2.0, reversal=3.0)
    objective = Algebraic(settings, None, rngs=None)
    if not obeys:
        square = model.values
        model.values = model.values * 0.0
        model.latents = lambda frames, firsts, lasts, **_: jnp.square(
            square[:, np.array(lasts)] - square[:, np.array(firsts)]
        )
    clip = jnp.zeros((64, frames, 2, 2, 3))
    out = objective(model, {"frames": clip}, train=True)
    gaps = [float(out["metrics"][name]) for name in ("additivity_gap", "reversal_gap")]
    if obeys:
        assert max(gaps) < 1e-8 and out["loss"] == pytest.approx(5.0)
        (pairs,) = model.given
        n = 64 * (frames - 1)
        assert pairs.latent_MLQ.shape == (n, 2, 3) and pairs.embedded_MHWD.shape == (n, 2, 2, 3)
        step = np.asarray(pairs.latent_MLQ)
        assert step.mean() > 0.2, "what steps do on average stays"
        later = objective(model, {"frames": clip}, train=False)["metrics"]
        assert later["reversal_gap"] > 1.0, "the running mean is on its way to the common part"
    else:
        assert min(gaps) > 0.5
        assert out["loss"] == pytest.approx(5.0 + 2.0 * gaps[0] + 3.0 * gaps[1], rel=1e-5)


def test_a_mixed_in_objective_is_read_and_borrowed_as_by_itself():
    settings = objective_settings("algebraic+features").to_dict()
    settings["of"] |= {"weights": "runs/teacher"}
    objective, config = objective_config(settings)
    (found,), alone = objective.borrowed(config), objective_config(settings["of"])[0]
    (alone,) = alone.borrowed(objective_config(settings["of"])[1])
    assert (found.key, found.ours) == ("model.objective.of.weights", "objective/of/teacher")
    assert found.settings_key == "model.objective.of.teacher"
    assert (found.run, found.settings, found.theirs) == (alone.run, alone.settings, alone.theirs)
    assert objective.fields(config) == () and objective.prepare(config, {}) == {}


def test_clips_name_what_they_need():
    with pytest.raises(ValueError, match="data.num_frames=1 must be at least 2"):
        quantizer_config(num_frames=1)
    settings = objective_settings("algebraic").to_dict()
    message = "data.num_frames=2 must be at least 3 for model.objective.name='algebraic'"
    with pytest.raises(ValueError, match=message):
        Functional(lambda rngs: Quantizer(quantizer_config(objective=settings), rngs=rngs))
    with pytest.raises(ValueError, match="model.objective.of.name='algebraic' must be none of"):
        objective_config(settings | {"of": settings})
    with pytest.raises(ValueError, match="model.objective.of.name='pixel' must be one of"):
        objective_config(settings | {"of": {"name": "pixel"}})
    with pytest.raises(ValueError, match="only .* are added to another"):
        objective_settings("features+pixels")


class Drawn:
    """A toolbox that keeps what the decoder is given, and has given latents."""

    def __init__(self, z_BPLQ):
        self.z = z_BPLQ

    def patches(self, frames):
        return frames

    def latents(self, frames, firsts, lasts, **_):
        assert list(zip(firsts, lasts, strict=True)) == [(0, 1), (1, 2), (0, 0)][: self.z.shape[1]]
        return self.z

    def bottleneck(self, z, **_):
        return BottleneckOutput(z, None, jnp.zeros(()), {})

    def tokens(self, embedded, z):
        self.given = z
        return embedded

    def draw(self, first, tokens):
        return tokens

    def outcome(self, pairs, out, recon, *, loss, train, metrics):
        return {"loss": loss, "recon": recon, "metrics": metrics}


@pytest.mark.parametrize("projection", ["exp", "nearest"])
@pytest.mark.parametrize("composition", ["anchored", "product"])
def test_two_steps_are_one_rotation(projection, composition):
    config = quantizer_config(num_frames=3, code_length=4, quant_dim=4)
    settings = RotationConfig(projection, composition, compose_weight=0.5)
    objective = Rotation(settings, config, rngs=None)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 2 + (composition == "anchored"), 4, 4)).astype(np.float32)
    model, frames = Drawn(jnp.asarray(z)), jnp.asarray(rng.random((4, 3, 2, 2, 3)), jnp.float32)
    out = objective(model, {"frames": frames}, train=True)
    given = np.asarray(model.given)
    step, both = given[:8].reshape(4, 2, 4, 4), given[8:]
    gap = step @ step.swapaxes(2, 3) - np.eye(4)
    np.testing.assert_allclose(gap, 0.0, atol=1e-5)
    made = objective.received(model.z[:, :2].reshape(8, 4, 4)).reshape(4, 2, 4, 4)
    np.testing.assert_allclose(step, made, atol=1e-6)
    if composition == "anchored":
        still = np.asarray(objective.received(model.z[:, 2]), np.float64).mean(axis=0)
        U, _, Vt = np.linalg.svd(still)
        anchor = U @ np.diag([1, 1, 1, np.linalg.det(U @ Vt)]) @ Vt
        expected = step[::2, 1] @ anchor.T @ step[::2, 0]
    else:
        expected = step[::2, 0] @ step[::2, 1]
    np.testing.assert_allclose(both, expected, atol=2e-5)
    # What is measured composes as what was trained; latents of no motion are the last ones.
    composed = objective.compose(model, model.z[::2, 0], model.z[::2, 1], model.z[:, -1])
    np.testing.assert_allclose(composed, both, atol=1e-6)
    copy = np.square(np.diff(frames, axis=1)).mean()
    far = np.square(frames[::2, 2] - frames[::2, 0]).mean()
    assert out["loss"] == pytest.approx(copy + 0.5 * far, rel=1e-5)
    with pytest.raises(ValueError, match="model.code_length=4 x model.quant_dim=8 must be the sq"):
        Rotation(settings, quantizer_config(num_frames=3, code_length=4), rngs=None)
