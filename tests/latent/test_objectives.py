"""An objective with columns, a target that is an average, and what is known in part."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from helpers import at_random, quantizer_config

from data_pipelines.loader import DataSettings, Loader
from experiments import base
from lapa_jax import stages
from lapa_jax.latent.bottlenecks.base import BottleneckOutput
from lapa_jax.latent.encoder import Pairs
from lapa_jax.latent.objectives import objective_config
from lapa_jax.latent.objectives.latent_targets import LatentTargets
from lapa_jax.latent.objectives.pose import Pose
from lapa_jax.nn.module import Functional, flatten
from lapa_jax.runs.usable import open_loader

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def stage(tiny_data):
    config = tiny.config("quantizer", tiny_data)
    config.data.corpora.robot.action_fraction = 0.5
    config.data.num_frames = 3
    with config.unlocked():
        config.model.objective = base.objective("latent_targets")
    config.model.objective.update(action_dim=2, decay=0.5)
    return stages.build(config, {})


def trained(stage, batches, state):
    """State (params, variables, optimizer's) and metrics after a step on each (number, batch)."""
    optimizer = optax.adam(1e-2)
    params, variables, opt_state = state if len(state) == 3 else (*state, optimizer.init(state[0]))

    @jax.jit
    def update(params, variables, opt_state, batch, i):
        def loss(params):
            value, metrics, new = stage.loss(params, variables, batch, jax.random.key(i))
            return value, (metrics, new)

        gradient, (metrics, new) = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        return *stage.after_update(params, new, i, jax.random.key(i)), opt_state, metrics

    for i, batch in batches:
        *state, metrics = update(params, variables, opt_state, batch, jnp.int32(i))
        params, variables, opt_state = state
    return state, metrics


@pytest.mark.slow
def test_a_target_that_follows_and_actions_that_are_known_in_part(stage):
    config = stage.config
    fields = stage.fields_of(config)
    assert fields == ("frames", "action", "action_known")
    options = dict(fields=fields, global_batch=config.global_batch, seed=0, prepare=stage.prepare)
    with Loader(config.data, **options) as loader:
        batches = [(step, loader.batch(step)) for step in range(3)]
    for name, spec in stage.batch_spec().items():
        given = batches[0][1][name]
        assert (given.shape, given.dtype) == (spec.shape, spec.dtype), name
    assert 0 < np.mean([batch["action_known"] for _, batch in batches]) < 1

    start = jax.jit(stage.init)(jax.random.key(0))
    first, _ = trained(stage, batches[:1], start)
    encoder = flatten(first[0])
    target = flatten(first[1]["objective"]["target"])
    assert not any("target" in path for path in encoder), "no parameter, so no moments"
    for path in ("spatial/norm/scale", "patches/norm_out/scale", "patches/project/bias"):
        np.testing.assert_array_equal(target[path], encoder[path], err_msg=path)

    whole, metrics = trained(stage, batches[1:], first)
    path = "patches/project/kernel"
    second, _ = trained(stage, batches[1:2], first)
    expected = 0.5 * target[path] + 0.5 * flatten(second[0])[path]
    np.testing.assert_allclose(flatten(second[1]["objective"]["target"])[path], expected, rtol=1e-6)
    assert metrics["target_loss"] > 0
    assert {"mse", "skill", "action_known", "action_error", "target_skill"} <= set(metrics)

    # Resumed from what a checkpoint holds: plain arrays.
    kept = jax.tree.map(np.asarray, second)
    resumed, _ = trained(stage, batches[2:], kept)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.slow
def test_unknown_actions_do_not_count(stage):
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(0, 256, spec.shape).astype(spec.dtype)
        for name, spec in stage.batch_spec().items()
    }
    half = np.arange(len(batch["frames"])) % 2 == 0
    other = batch["action"] + 100.0 * ~half[:, None]
    state = jax.jit(stage.init)(jax.random.key(0))
    evaluate = jax.jit(stage.eval_metrics)
    found, same = (
        evaluate(*state, batch | {"action": action, "action_known": half})
        for action in (batch["action"], other)
    )
    assert found["action_known"] == 0.5
    np.testing.assert_array_equal(found["action_error"], same["action_error"])


def test_cameras_are_for_the_objective_of_views(tiny_data):
    for name, cameras, told in (
        ("cross_view", (), r"is \[\], but 'cross_view' .* is of clips by several cameras"),
        ("pixels", ("wrist",), r"is \['wrist'\], but 'pixels' .* is of clips by one camera"),
    ):
        config = tiny.config("quantizer", tiny_data)
        config.data.corpora.robot.extra_image_keys = cameras
        config.model.objective = base.objective(name)
        with pytest.raises(ValueError, match=f"data.corpora.robot.extra_image_keys {told}"):
            stages.get("quantizer").fields_of(config)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(stage, config) of an objective on two corpora, of which one has states and actions."""
    folder = tmp_path_factory.mktemp("two")
    for name in "av":
        tiny.write_corpus(folder / name, size=32, states=True)

    def build(objective, **settings):
        config = tiny.config("quantizer", folder)
        config.data.update(image_size=(32, 32), action_horizon=2)
        keys = dict(window_seconds=0.2)
        config.data.corpora = {
            "a": base.corpus(str(folder / "a"), state_key="observation/state", **keys),
            "v": base.corpus(str(folder / "v"), action_fraction=0.0, **keys),
        }
        config.model.update(patch_size=16, dim=16, mlp_dim=16, heads=1)
        with config.unlocked():
            config.model.objective = base.objective(objective)
        config.model.objective.update(horizon=2, **settings)
        return stages.build(config, {}), config

    return build


class Tools:
    """Of a quantizer with these latents, which draws what it should."""

    def __init__(self, latent):
        frames = np.zeros((len(latent), 1, 1, 3))
        self._pairs = SimpleNamespace(
            first_MIJC=frames, last_MIJC=frames, latent_MLQ=latent, embedded_MHWD=None
        )

    def pairs(self, frames, *, train):
        return self._pairs

    def bottleneck(self, z, **options):
        return BottleneckOutput(z, None, 0.0, {})

    def tokens(self, embedded, z):
        return None

    def draw(self, first, tokens):
        return first

    def outcome(self, pairs, out, recon, *, loss, train, metrics):
        return loss, metrics


class Redrawn(Tools):
    """Of one that keeps what it is shown."""

    def pairs(self, frames, *, train):
        self.shown = frames
        return Pairs(frames[:, 0], frames[:, 1], frames, jnp.zeros((len(frames), 1, 4)))

    def patches(self, frames):
        self.embedded = frames[:, 0]
        return frames

    def outcome(self, pairs, out, recon, *, loss, train, metrics):
        return loss, metrics, pairs


def test_pixels_of_the_next_frame_as_it_is():
    config = quantizer_config(objective=base.objective("latent_targets").to_dict())
    settings = dataclasses.replace(objective_config(config.objective)[1], target="pixels")
    objective = LatentTargets(settings, config, rngs=nnx.Rngs(params=0))
    assert not jax.tree.leaves(nnx.state(objective)), "no weights that follow others"
    model = Redrawn(jnp.zeros((8, 1, 4)))
    frames = jax.random.uniform(jax.random.key(1), (8, 3, 4, 4, 3))
    loss, metrics, pairs = objective(model, {"frames": frames}, train=True, rng=jax.random.key(0))
    np.testing.assert_allclose(loss, jnp.mean(jnp.square(frames[:, 1] - frames[:, 0])), rtol=1e-6)
    np.testing.assert_array_equal(model.embedded, frames[:, 0])
    np.testing.assert_array_equal(pairs.last_MIJC, frames[:, 1])
    assert metrics == {} and np.any(model.shown[:, 0] != frames[:, 0]), "its colours change"
    objective.after_update(model, jnp.int32(0), jax.random.key(0))


def loader(stage, config):
    return open_loader(config, DataSettings.of(config.data), stage, config.global_batch)


def test_the_motion_of_a_camera_that_is_known_in_part(two):
    stage, config = two("pose")
    with loader(stage, config) as opened:
        batch = opened.batch(0)
    known = batch["action_mask"].all(axis=1)
    assert 0 < known.mean() < 1
    settings = objective_config(config.model.objective.to_dict())[1]
    rng = np.random.default_rng(0)
    one = stage.model_config
    latent = rng.normal(size=(len(known), one.code_length, one.quant_dim)).astype(np.float32)
    model = Functional(lambda rngs: Pose(settings, one, rngs=rngs))
    params, variables = model.init(jax.random.key(0))

    def error(action):
        given = batch | {"action": np.ascontiguousarray(action)}
        return model.apply(params, variables, "__call__", Tools(latent), given, train=True)[0]

    loss, metrics = error(batch["action"])
    assert metrics["pose_known"] == known.mean() and 0.3 < metrics["pose_error"] < 5
    np.testing.assert_allclose(loss, settings.pose_weight * metrics["pose_error"], rtol=1e-6)
    assert error(batch["action"] + 9.0 * ~known[:, None, None])[0] == loss
    np.testing.assert_allclose(
        error(batch["action"][:, ::-1])[0], loss, rtol=1e-5
    )  # the sum counts
    with pytest.raises(ValueError, match=r"its 'action' is of shape \(2, 2\), but .* \(2, 6\)"):
        loader(*two("pose", pose_dim=6))
    for objective in ("pose", "shared_codes"):
        stage, config = two(objective)
        config.data.corpora.v.window_seconds = 0.4  # nothing is known there
        loader(stage, config).close()
        config.data.corpora.a.window_seconds = 0.4
        told = r"corpora.a.window_seconds=0.4 is 4 steps, but the actions of 2 are read"
        with pytest.raises(ValueError, match=told):
            loader(stage, config)


def test_bodies_whose_state_is_known_in_part(two):
    sizes = dict(state_dim=3, corpora=2)
    stage, config = two("proprio", **sizes)
    with loader(stage, config) as opened:
        batch = opened.batch(0)
    for name, spec in stage.batch_spec().items():
        assert (batch[name].shape, batch[name].dtype) == (spec.shape, spec.dtype), name
    params, variables = at_random(stage.model)
    for name in ("state", "change", "action"):  # nothing was met yet
        units = variables["objective"][f"{name}_units"]
        units["count"], units["mean"] = 0 * units["count"], 0 * units["mean"]

    @jax.jit
    def step(batch):
        def loss(params):
            return stage.loss(params, variables, batch, jax.random.key(1))

        def value(params):
            total, metrics, _ = loss(params)
            return total, metrics

        return jax.value_and_grad(value, has_aux=True)(params)

    (_, metrics), gradient = step(batch)
    known = np.isfinite(batch["state"]).all(axis=1)
    assert metrics["state_known"] == known.mean() and 0 < known.mean() < 1
    assert 0.5 < metrics["state_error"] < 4 and 0.5 < metrics["action_error"] < 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient)), "NaN is of nobody"
    body = np.abs(gradient["objective"]["body"]).sum(axis=1)
    assert body[0] > 0 and body[1] == 0
    other = batch | {"action": np.where(known[:, None, None], batch["action"], 9.0)}
    jax.tree.map(np.testing.assert_array_equal, step(other)[1], gradient)

    for settings, refused in (
        (
            {"corpora": 1},
            "'v': it is number 1 from 0 of data.corpora, but model.*corpora=1",
        ),
        (
            {"state_dim": 5},
            r"'a': its 'state' is of shape \(3,\), but .* wants \(5,\)",
        ),
        ({"action_dim": 3}, r"'action' is of shape \(2, 2\), .* data.action_horizon"),
    ):
        with pytest.raises(ValueError, match=refused):
            loader(*two("proprio", **(sizes | settings)))
