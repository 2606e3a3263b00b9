"""The dynamics model: what its frames see, how they are drawn, and what it goes on from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_tokenizers import SIZES

from experiments import base
from lapa_jax import stages
from lapa_jax.stages.dynamics import STATISTICS, DynamicsStage
from lapa_jax.world.config import DynamicsConfig

pytestmark = pytest.mark.slow
B, T, N, SIDE = 2, 4, 4, 16
MODEL = dict(dim=16, mlp_dim=32, depth=1, draw_depth=2, heads=2, head_dim=8, decode_steps=3)


def stage_of(form="maskgit", assets=None, **changes) -> DynamicsStage:
    config = base.stage_defaults("dynamics")
    config.data.update(image_size=(SIDE, SIDE), num_frames=T, corpora=ConfigDict())
    config.update(global_batch=B, compute_dtype="float32")
    config.model = base.dynamics_model(form=form, **MODEL, **changes)
    config.model.image_tokenizer.update(SIZES)
    return stages.build(config, assets or {})


@pytest.fixture(scope="module", params=["maskgit", "next_token"])
def made(request):
    """(a call of a method, the stage)."""
    stage = stage_of(request.param)
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(
        lambda x: rng.normal(0.0, 0.3, x.shape).astype(x.dtype), stage.model.abstract()
    )

    @functools.cache
    def jitted(method, **options):
        return jax.jit(
            lambda *given: stage.model.apply(*given[:2], method, *given[2:], **options)[0]
        )

    def call(method, *args, **options):
        return jitted(method, **options)(*arrays, *args)

    call.arrays = arrays
    return call, stage


def clips(seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (B, T, SIDE, SIDE, 3), np.uint8)
    return frames, rng.integers(0, 8, (B, T - 1, 1)).astype(np.int32)


def tokens(seed=0, count=T - 1):
    return np.random.default_rng(seed).integers(0, 1024, (B, count, N)).astype(np.int32)


def test_a_frame_sees_those_before_it_and_their_z(made):
    call, _ = made
    seen, z, level = tokens(), clips()[1], np.zeros((B, T - 1), np.int32)
    context = call("after", seen, z, level)
    for changed in (
        call("after", np.concatenate([seen[:, :2], tokens(1)[:, 2:]], axis=1), z, level),
        call("after", seen, np.concatenate([z[:, :2], (z[:, 2:] + 1) % 8], axis=1), level),
        call("after", seen, z, np.array([[0, 0, 3]] * B, np.int32)),
    ):
        np.testing.assert_allclose(changed[:, :2], context[:, :2], atol=1e-5)
        assert np.abs(changed[:, 2] - context[:, 2]).max() > 1e-3
    earlier = call("after", np.concatenate([tokens(1)[:, :1], seen[:, 1:]], axis=1), z, level)
    assert np.abs(earlier[:, 2] - context[:, 2]).max() > 1e-4


def test_what_is_not_known_is_not_seen(made):
    call, stage = made
    context, wanted = call("after", tokens(), clips()[1], np.zeros((B, T - 1), np.int32)), tokens(2)
    if stage.model_config.form == "maskgit":
        known = call("known", wanted, jax.random.key(3))
        assert (~known).any(axis=-1).all() and known.any()
        other = jnp.where(known, wanted, tokens(3))
        given = call("logits", context, wanted, known), call("logits", context, other, known)
        np.testing.assert_array_equal(*given)
    else:
        other = np.concatenate([wanted[..., :2], tokens(3)[..., 2:]], axis=-1)
        one, two = (call("logits", context, x, jnp.ones(x.shape, bool)) for x in (wanted, other))
        np.testing.assert_allclose(one[..., :3, :], two[..., :3, :], atol=1e-5)
        assert np.abs(one[..., 3, :] - two[..., 3, :]).max() > 1e-3


def test_drawing_agrees_with_the_logits(made):
    """One after the other: each is the likeliest, given those drawn before it. The surest first:
    what the first pass keeps is the surest of its own likeliest."""
    call, stage = made
    context = call("after", tokens(), clips()[1], np.zeros((B, T - 1), np.int32))
    drawn = call("draw", context, jax.random.key(0), temperature=0.0)
    assert drawn.shape == (B, T - 1, N) and drawn.dtype == jnp.int32
    if stage.model_config.form == "next_token":
        logits = call("logits", context, drawn, jnp.ones(drawn.shape, bool))
        np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), drawn)
    else:
        first = jax.nn.log_softmax(call("logits", context, drawn, jnp.zeros(drawn.shape, bool)))
        surest = jnp.argmax(first.max(axis=-1), axis=-1)[..., None]
        kept = jnp.take_along_axis(jnp.argmax(first, axis=-1), surest, axis=-1)
        np.testing.assert_array_equal(jnp.take_along_axis(drawn, surest, axis=-1), kept)


def test_imagining_goes_on_frame_by_frame(made):
    """From fewer and from more than the three that it sees: as if from the last each time."""
    call, stage = made
    count = {"maskgit": 2, "next_token": 4}[stage.model_config.form]
    first, z = tokens(count=count), np.concatenate([clips(s)[1] for s in (3, 4, 5)], axis=1)
    z = z[:, : count + 3]
    found = call("imagined", first, z, jax.random.key(0), temperature=0.0)
    assert found.shape == (B, 4, N)
    past = first
    for k in range(4):
        seen, of = past[:, -(T - 1) :], z[:, : past.shape[1]][:, -(T - 1) :]
        context = call("after", seen, of, np.zeros(seen.shape[:2], np.int32))[:, -1:]
        frame = call("draw", context, jax.random.key(0), temperature=0.0)
        np.testing.assert_array_equal(found[:, k], frame[:, 0])
        past = np.concatenate([past, frame], axis=1)


def test_what_keeps_its_token_keeps_its_pixels(made):
    """A cell whose token is that of the given frame has that frame's pixels; others are decoded."""
    call, stage = made
    given, held = clips()[0][:, :1], tokens(count=1)
    drawn = tokens(1)
    drawn[:, 1, 2] = held[:, 0, 2]  # cells are row by row
    found, decoded = call("draw_pixels", drawn, given, held), call("decode", drawn)
    wanted, side = np.array(decoded), SIDE // 2
    wanted[:, 1, side:, :side] = given[:, 0, side:, :side] / 255.0
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    # What is imagined is drawn so.
    frames, z = clips()
    given, key = (frames[:, :1], call("encode", frames[:, :1])), jax.random.key(0)
    imagined = call("imagined", given[1], z, key, temperature=0.0)
    at_once = jax.jit(stage.imagine)(*call.arrays, frames[:, :1], z, key)
    np.testing.assert_allclose(at_once, call("draw_pixels", imagined, *given), atol=1e-5)


def test_metrics_of_training_and_of_evaluation(made):
    call, stage = made
    frames, z = clips()
    batch = {"frames": frames, "z": z}
    loss, metrics, _ = jax.jit(stage.loss)(*call.arrays, batch, jax.random.key(1))
    assert 5.0 < float(loss) < 9.0 and set(metrics) == {"token_accuracy", "copy_accuracy"}
    found = jax.eval_shape(stage.eval_metrics, *call.arrays, batch)
    assert {"loss", "free_loss", "skill", "free_skill_1", "free_skill_3"} <= found.keys()
    # The first step of a rollout is the first teacher-forced one.
    one = call("evaluate", frames[:, :2], z[:, :1])
    np.testing.assert_allclose(one["skill"], one["free_skill_1"], rtol=1e-5)
    np.testing.assert_allclose(one["loss"], one["free_loss"], rtol=1e-5)
    still = call("evaluate", np.repeat(frames[:, :1], 2, axis=1), z[:, :1])
    assert still["copy_mse"] == 0.0 and np.isfinite(still["skill"])


def test_noise_is_what_it_says():
    stage = stage_of(noise=0.5, noise_levels=2)
    given = np.zeros((64, 8, 16), np.int32)
    arrays = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), stage.model.abstract())
    draw = jax.jit(lambda key: stage.model.apply(*arrays, "noised", given, rng=key)[0])
    noised, level = draw(jax.random.key(2))
    share = np.asarray(noised != 0).mean(axis=-1)
    assert (share[level == 0] == 0).all() and set(np.unique(level)) == {0, 1}
    assert abs(share[level == 1].mean() - 0.5) < 0.05


def test_vectors_as_z_and_what_is_refused():
    from data_pipelines.normalise import Normaliser

    vectors = np.random.default_rng(0).normal(3.0, 2.0, (50, 1, 5)).astype(np.float32)
    statistics = Normaliser.fit(vectors[:, 0], "mean_std")
    stage = stage_of(assets={STATISTICS: statistics.to_json()}, latent_codes=0)
    shape = stage.batch_spec()["z"].shape
    assert shape == (B, T - 1, 1, 5)
    assert abs(stage.z(vectors).mean()) < 0.1
    codes = stage_of()
    for one, values, told in (
        (codes, vectors, "latent actions are vectors: set model.latent_codes to 0"),
        (stage, np.zeros((3, 1), np.int16), "are codes: set model.latent_codes to the values"),
        (codes, np.full((3, 1), 8, np.int16), "codes from 8 to 8, model.latent_codes is 8"),
        (codes, np.zeros((3, 2), np.int16), r"of shape \[2\], not \[1\]: set model.latent_length"),
        (stage, vectors[..., :4], r"of shape \[1, 4\], not \[1, 5\]"),
    ):
        with pytest.raises(ValueError, match=told):
            one.z(values)
    for changes, told in (
        (dict(head_dim=7), "model.head_dim=7 must be even"),
        (dict(decode_steps=5), "model.decode_steps=5 must be at most the 4 tokens"),
    ):
        with pytest.raises(ValueError, match=told):
            shape_of(**changes)


def shape_of(**changes) -> DynamicsConfig:
    settings = base.dynamics_model(**(MODEL | changes)).to_dict()
    settings["image_tokenizer"] |= SIZES
    more = dict(image_size=(SIDE, SIDE), num_frames=T, compute_dtype="float32", latent_dim=0)
    return DynamicsConfig(**settings, **more)
