"""Augmentation: a function of (seed, position), the same for all images of an example, none unless
asked for."""

import colorsys

import jax
import numpy as np
import pytest
import test_policy
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import base
from lapa_jax import stages
from lapa_jax.nn.image_changes import CropAndColour, shift_hsv
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.runs import program
from lapa_jax.stages import augmentation
from lapa_jax.stages.augmentation import COLUMN, augment, draw

SETTINGS = {k: v for k, v in base.augment("crop_and_colour").items() if k != "name"}
SEED = 3
GOLDEN = [  # of seed 0 at positions 0, 1 and 2**33 + 1
    [0.465381, 0.378159, 0.559223, 0.772592, 0.746332, 0.776963, 0.347472, 0.618403, 0.853025],
    [0.975861, 0.966692, 0.202635, 0.820248, 0.177237, 0.637465, 0.970667, 0.677562, 0.729304],
    [0.765344, 0.381163, 0.132862, 0.366491, 0.656432, 0.73899, 0.614119, 0.450637, 0.418214],
]
POSITIONS = np.array([0, 7, 2**32 + 7, 10**12, 31, 5, 6, 8])


def words(positions, k=1):
    data = base.stage_defaults("quantizer").data
    data.augment = base.augment("crop_and_colour")
    return augmentation.column(data, {"position": np.asarray(positions)}, k=k)[COLUMN]


def images(count, frames=2):
    shape = (count, frames, 32, 32, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


compiled = jax.jit(augment, static_argnums=(0, 1))


def run(words_RK2, frames):
    return np.asarray(compiled(CropAndColour(**SETTINGS), SEED, words_RK2, frames))


def assert_same(found, expected):
    """Of two programs, a rounding here and there apart."""
    away = np.abs(np.asarray(found, int) - expected)
    assert away.max() <= 1 and away.mean() < 1e-3


def only(**changes):
    """Settings that leave images as they are, but for these."""
    return CropAndColour(**({name: 0.0 for name in SETTINGS} | {"crop_area": 1.0} | changes))


@pytest.mark.slow
def test_a_place_in_the_batch_does_not_matter():
    """Neither do hosts (half of a batch each), nor other examples, nor rows of several."""
    frames = images(8)
    whole = run(words(POSITIONS), frames)
    assert whole.dtype == np.uint8 and whole.shape == frames.shape
    assert len({x.tobytes() for x in whole}) == 8
    order = np.array([3, 1, 7, 0, 2, 5, 4, 6])
    np.testing.assert_array_equal(run(words(POSITIONS[order]), frames[order]), whole[order])
    for half in (slice(0, 4), slice(4, 8)):
        assert_same(run(words(POSITIONS[half]), frames[half]), whole[half])
    rows = run(words(POSITIONS[order], k=4), frames[order].reshape(2, 8, 32, 32, 3))
    assert_same(np.reshape(rows, frames.shape), whole[order])
    devices = Mesh(np.array(jax.devices()[:8]), ("data",))
    split = [
        jax.device_put(x, NamedSharding(devices, PartitionSpec("data")))
        for x in (words(POSITIONS), frames)
    ]
    assert_same(run(*split), whole)


def test_all_images_of_an_example_get_the_same():
    frames = images(8, frames=1).repeat(2, axis=1)
    found = run(words(POSITIONS), frames)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    same = run(words(POSITIONS), frames[:1].repeat(8, axis=0))
    assert len({x.tobytes() for x in same}) == 8  # 7 and 2**32 + 7 among them


@pytest.mark.slow
def test_golden_draws():
    """What a key gives is fixed: a resumed run must not see other images."""
    found = jax.vmap(lambda w: draw(0, w))(words([0, 1, 2**33 + 1])[:, 0])
    np.testing.assert_allclose(found, GOLDEN, atol=1e-6)
    many = jax.vmap(lambda w: draw(SEED, w))(words(np.arange(4000))[:, 0])
    assert np.asarray(many).min() >= 0 and np.asarray(many).max() < 1
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.03)
    assert np.abs(np.corrcoef(many.T) - np.eye(9)).max() < 0.08


@pytest.mark.slow
def test_settings_of_zero_leave_images_as_they_are():
    frames = images(4)
    found = compiled(only(colour_fraction=1.0), SEED, words(POSITIONS[:4]), frames)
    np.testing.assert_array_equal(found, frames)


@pytest.mark.slow
def test_crops_are_of_the_images():
    """A crop of a ramp is a ramp of as much less slope, from within."""
    ramp = np.linspace(0, 255, 32).round().astype(np.uint8)
    frames = np.broadcast_to(ramp[:, None, None], (64, 1, 32, 32, 3))
    found = np.asarray(compiled(only(crop_area=0.25), SEED, words(np.arange(64)), frames))
    found = found[:, 0, :, 0, 0].astype(float)
    slopes = (found[:, 28] - found[:, 4]) / 24
    np.testing.assert_allclose(slopes, 0.5 * 255 / 31, atol=0.1)
    assert found[:, 0].min() < 10 and 110 < found[:, 0].max() <= 130  # anywhere
    assert found[:, -1].max() > 245


def test_colours_shift_as_python_says():
    rng = np.random.default_rng(1)
    colours = np.concatenate([rng.random((50, 3)), [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]])
    hue, saturation, value = 7.0, -0.05, 0.06
    expected = []
    for colour in colours:
        h, s, v = colorsys.rgb_to_hsv(*colour)
        s, v = np.clip(s + saturation, 0, 1), np.clip(v + value, 0, 1)
        expected.append(colorsys.hsv_to_rgb((h + hue / 360) % 1.0, s, v))
    found = jax.jit(shift_hsv)(colours.astype(np.float32), hue, saturation, value)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_brightness_and_contrast_of_some_examples():
    frames = np.full((400, 1, 4, 4, 3), 100, np.uint8)
    settings = only(brightness=0.2, contrast=0.2, colour_fraction=0.5)
    found = np.asarray(compiled(settings, SEED, words(np.arange(400)), frames))[:, 0, 0, 0, 0]
    changed = found[found != 100].astype(float)
    assert 160 < len(changed) < 240
    assert changed.min() >= 100 * 0.8 - 51.5 and changed.max() <= 100 * 1.2 + 51.5
    assert changed.min() < 50 and changed.max() > 150


def test_wrong_names_are_named():
    with pytest.raises(ValueError, match="augment='flip' must be one of"):
        base.augment("flip")


# --- In the stages ---


def policy(**changes):
    """A packed policy: (stage, its batch prepared)."""
    changes = dict(model__examples_per_row=2, model__text_length=40, global_batch=8) | changes
    config = tiny.config("latent_pretraining", "data", **changes)
    with config.unlocked():
        config.data.augment = base.augment("crop_and_colour")
    assets = {test_policy.TOKENIZER: test_policy.train(test_policy.TEXTS, 320)}
    stage = stages.build(config, assets)
    return stage, test_policy.batch() | {"position": POSITIONS}


def test_packing_takes_the_keys_along():
    stage, columns = policy()
    prepared = stage.prepare(columns)
    test_policy.check_spec(stage, prepared)
    order = [
        int(np.flatnonzero((columns["frames"][:, 0] == image).all((1, 2, 3)))[0])
        for image in prepared["images"].reshape(-1, 64, 64, 3)
    ]
    assert order != sorted(order)
    np.testing.assert_array_equal(prepared[COLUMN].reshape(-1, 1, 2), words(POSITIONS[order]))


@pytest.mark.slow
def test_training_alone_sees_augmented_images():
    stage, columns = policy()
    prepared = stage.prepare(columns)
    seen = []

    class Spy:
        config, image_column, batch_spec = stage.config, stage.image_column, stage.batch_spec

        @staticmethod
        def loss(params, variables, batch, rng):
            seen.append(batch)
            return batch["images"], {}, variables

    loss = jax.jit(augmentation.training_loss(Spy))
    found, _, _ = loss({}, {}, prepared, jax.random.key(0))
    changed = np.abs(np.asarray(found, int) - prepared["images"]).mean((2, 3, 4))
    assert found.dtype == np.uint8 and changed.min() > 1
    (batch,) = seen
    assert batch.keys() == prepared.keys() - {COLUMN}
    jaxpr = str(jax.make_jaxpr(stage.eval_metrics)(*stage.model.abstract(), prepared))
    assert "random_bits" not in jaxpr


@pytest.mark.slow
@pytest.mark.parametrize("task", ["quantizer", "teacher"])
def test_other_stages_carry_the_keys(task):
    config = tiny.config(task, "data")
    plain = stages.build(config, {})
    assert augmentation.training_loss(plain) == plain.loss and COLUMN not in plain.batch_spec()
    with config.unlocked():
        config.data.augment = base.augment("crop_and_colour")
    stage = stages.build(config, {})
    shape = (8, config.data.num_frames, 64, 64, 3)
    columns = {"frames": np.zeros(shape, np.uint8), "position": POSITIONS}
    test_policy.check_spec(stage, stage.prepare(columns))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    built = program.build(config, stage, mesh)
    state, metrics = jax.eval_shape(built.step, built.state, built.batch)
    assert metrics["loss"].shape == ()


def test_tokens_cannot_be_augmented():
    stage = test_policy.stage_of(test_policy.IDS, model__image_vocab=512)
    with stage.config.unlocked():
        stage.config.data.augment = base.augment("crop_and_colour")
    with pytest.raises(ValueError, match="'crop_and_colour' needs images, .*latent_pretraining"):
        augmentation.training_loss(stage)
