"""An objective with columns, a target that is an average, and what is known in part."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from data_pipelines.loader import Loader
from experiments import base
from lapa_jax import stages
from lapa_jax.nn.module import flatten

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
