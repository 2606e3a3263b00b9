"""Quantizers that predict the features of a frozen teacher."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Training, at_random, moving_squares, quantizer_config

from lapa_jax.latent import Quantizer
from lapa_jax.latent.bottlenecks.base import BottleneckOutput
from lapa_jax.latent.objectives import objective_config
from lapa_jax.latent.objectives.features import Features, FeaturesConfig, patches_of_cell
from lapa_jax.nn.module import Functional, flatten, paths, unflatten
from lapa_jax.nn.vit import vit_settings

pytestmark = pytest.mark.usefixtures("quick_compile")

TEACHER = vit_settings().to_dict() | dict(
    grid=(4, 4), patch_size=4, dim=32, depth=1, heads=2, head_dim=16, mlp_dim=32
)


def objective(**changes):
    return {"name": "features", "weights": "", "teacher": TEACHER | changes}


@pytest.mark.slow
def test_training_predicts_features_and_leaves_the_teacher_as_it_is():
    training = Training(quantizer_config(objective=objective(), normalize_decay=0.9))
    params, variables = training.start()
    before = flatten(variables["objective"]["teacher"])
    assert not any("teacher" in path for path in paths(params)), "no parameter, so no moments"
    start = training.run(params, variables, [])[2]
    assert start["feature_skill"] == pytest.approx(0.0, abs=1e-6), "the first frame's features"
    params, variables, metrics = training.run(params, variables, range(20))
    assert metrics["feature_loss"] < start["feature_loss"]
    assert metrics["feature_skill"] > 0.1 and metrics["perplexity"] >= 0.5 * 8
    after = flatten(variables["objective"]["teacher"])
    assert after.keys() == before.keys() and len(before) > 10
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


class Toolbox:
    """Of a quantizer that draws the first frame, from any tokens."""

    def __init__(self, first, last, tokens):
        self.drawn_from = SimpleNamespace(
            first_MIJC=first, last_MIJC=last, latent_MLQ=None, embedded_MHWD=None
        )
        self.given = tokens

    def pairs(self, frames, *, train):
        return self.drawn_from

    def bottleneck(self, z, **options):
        return BottleneckOutput(None, None, 0.0, {})

    def tokens(self, embedded, z):
        return self.given

    def draw(self, first, tokens):
        return first

    def outcome(self, pairs, out, recon, *, loss, train, metrics):
        return loss, metrics


@pytest.mark.slow
@pytest.mark.parametrize("predict", ["residual", "frame"])
def test_a_residual_is_added_to_the_features_of_the_first_frame(predict):
    config = quantizer_config(objective=objective(), predict=predict)
    settings = objective_config(config.objective)[1]
    model = Functional(lambda rngs: Features(settings, config, rngs=rngs))
    params, variables = model.init(jax.random.key(0))
    frames, _ = moving_squares(jax.random.key(2), 4)
    first, last = frames[:, 0], frames[:, 1]
    tokens = jax.random.normal(jax.random.key(3), (4, 4, 4, 48))
    toolbox = Toolbox(first, last, tokens)
    loss, metrics = model.apply(
        params, variables, "__call__", toolbox, {"frames": frames}, train=False
    )[0]
    if predict == "residual":
        assert metrics["feature_skill"] == pytest.approx(0.0, abs=1e-6), "nothing is added yet"
    else:
        assert metrics["feature_skill"] < -0.1
    copy = jnp.mean(jnp.square(first - last))
    assert loss == pytest.approx(float(metrics["feature_loss"] + copy), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "patch_size, teacher, side, image_size",
    [(4, 4, 1, (16, 16)), (8, 4, 2, (16, 16)), (4, 14, 1, (56, 56)), (8, 3, 3, (18, 18))],
)
def test_a_cell_holds_whole_patches_of_the_teacher(patch_size, teacher, side, image_size):
    config = quantizer_config(patch_size=patch_size, objective=objective(patch_size=teacher))
    settings = objective_config(config.objective)[1]
    assert isinstance(settings, FeaturesConfig)
    assert patches_of_cell(settings, config) == side
    model = Functional(lambda rngs: Features(settings, config, rngs=rngs))
    params, variables = model.abstract()
    F = side**2 * 32
    assert params["head"]["kernel"].shape == (48, F) and set(params) == {"head"}
    frames = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    features = jax.eval_shape(
        lambda v, f: model.apply(params, v, "_features", f)[0], variables, frames
    )
    assert features.shape == (2, *config.grid, F)
    built = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    assert built[1]["teacher"]["positions"].shape == (17, 32)
    assert image_size == tuple(n * side * teacher for n in config.grid)


@pytest.mark.slow
def test_features_of_a_cell_are_those_of_its_patches():
    config = quantizer_config(patch_size=8, objective=objective())
    settings = objective_config(config.objective)[1]
    model = Functional(lambda rngs: Features(settings, config, rngs=rngs))
    params, variables = model.init(jax.random.key(0))
    frame, _ = moving_squares(jax.random.key(2), 1)
    cells = model.apply(params, variables, "_features", frame[:, 0])[0]
    assert cells.shape == (1, 2, 2, 128)
    patches = model.apply(params, variables, "teacher", frame[:, 0])[0][:, 1:]
    patches = np.asarray(patches).reshape(4, 4, 32)
    for row, column in np.ndindex(2, 2):
        ours = np.asarray(cells)[0, row, column].reshape(32, 2, 2).transpose(1, 2, 0)
        theirs = patches[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        correlation = np.corrcoef(ours[1, 0], theirs[1, 0])[0, 1]
        assert correlation == pytest.approx(1.0, abs=1e-4)
    flat = np.asarray(cells).reshape(2, 2, 32, 4)
    np.testing.assert_allclose(flat.mean(axis=2), 0.0, atol=1e-5)
    np.testing.assert_allclose(flat.std(axis=2), 1.0, atol=1e-3)


def test_motion_is_read_off_features_and_drawn_in_pixels():
    sizes = dict(dim=16, mlp_dim=16, heads=1, code_length=8, codebook_size=128)
    config = quantizer_config(**sizes, objective=objective(heads=1) | {"name": "motion"})
    model = Functional(lambda rngs: Quantizer(config, rngs=rngs))
    params, variables = at_random(model)
    frames, _ = moving_squares(jax.random.key(2), 4)

    @jax.jit
    def step(params):
        out, new = model.apply(
            params, variables, "__call__", frames, train=True, rng=jax.random.key(1)
        )
        return out["loss"], out["z"], new["bottleneck"]["recent"][: 4 * 8]  # the latents

    loss, codes, latents = step(params)
    assert codes.shape == (4, 8) and np.isfinite(loss) and np.ptp(latents) > 0
    for path, of_latents in (("patches/project/kernel", False), ("objective/project/kernel", True)):
        other, _, moved = step(unflatten({**flatten(params), path: flatten(params)[path][::-1]}))
        assert other != loss, "the decoder sees pixels"
        assert np.any(moved != latents) == of_latents, path


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="model.objective.teacher.dim=0 must be"):
        objective_config(objective(dim=0))
    with pytest.raises(ValueError, match="model.objective.teacher: .*'width'"):
        objective_config(objective(width=3))
    with pytest.raises(ValueError, match="model.objective: .*'wieghts'"):
        objective_config({"name": "features", "wieghts": "", "teacher": TEACHER})
