"""The loss guard: what is a spike, what a bad step leaves behind, and what the host does then."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import OPTIMIZER

from lapa_jax.training import guard as guards
from lapa_jax.training.optimizer import make_optimizer
from lapa_jax.training.saves import Best
from lapa_jax.training.state import create
from lapa_jax.training.step import make_train_step

FINE = {"nonfinite": 0.0, "spike": 0.0, "loss": 1.0, "grad_norm": 1.0, "update_norm": 1.0}
BAD = FINE | {"nonfinite": 1.0, "loss": math.nan}


def config(**changes):
    settings = dict(action="stop", spike_sigmas=0.0, memory_steps=5, max_events=2)
    return guards.GuardConfig(**settings | changes)


def guard(tmp_path, step=0, **changes):
    return guards.Guard(config(**changes), tmp_path, step, guards.read(tmp_path), first=True)


def test_statistics_are_those_of_all_losses_and_then_of_the_latest():
    losses = np.random.default_rng(0).normal(3.0, 2.0, 400).astype(np.float32)
    remember = jax.jit(guards.remember, static_argnums=2)
    stats = jnp.zeros(3)
    for loss in losses:
        stats = remember(stats, loss, 1000)
    np.testing.assert_allclose(stats, [400, losses.mean(), losses.var()], rtol=1e-4)
    for _ in range(60):  # twelve times the memory
        stats = remember(stats, jnp.float32(9.0), 5)
    np.testing.assert_allclose(stats[1:], [9.0, 0.0], atol=1e-2)


def test_a_spike_is_above_the_mean_after_enough_steps():
    stats = jnp.array([5.0, 1.0, 0.04])
    three = config(spike_sigmas=3.0)
    found = [bool(guards.is_spike(stats, jnp.float32(x), three)) for x in (1.7, 1.5, -9.0)]
    assert found == [True, False, False]
    assert not guards.is_spike(stats.at[0].set(4.0), jnp.float32(9.0), three)


def loss_fn(params, variables, batch, rng):
    loss = jnp.square(params["w"] - batch["x"]).mean() * batch["factor"].mean()
    return loss, {}, {"seen": variables["seen"] + 1}


@pytest.mark.slow
@pytest.mark.parametrize("factor, told", [(math.nan, "nonfinite"), (1e4, "spike")])
def test_a_skipped_step_changes_nothing_but_its_number(factor, told):
    optimizer = make_optimizer(OPTIMIZER, 20, {"w": (None,)})
    guard = config(action="skip", spike_sigmas=6.0)
    step = jax.jit(make_train_step(loss_fn, optimizer, ema_decay=0.5, guard=guard))
    params, variables = {"w": jnp.arange(3.0)}, {"seen": jnp.int32(0)}
    state = create(params, variables, optimizer, 0, ema=True)
    for number in range(12):
        bad = number == 8
        batch = {"x": jnp.full((2, 3), number / 7), "factor": jnp.full(2, factor if bad else 1.0)}
        before, (state, metrics) = state, step(state, batch)
        assert state.step == number + 1
        assert metrics[told] == bad and metrics["nonfinite"] + metrics["spike"] == bad
        same = jax.tree.map(np.array_equal, state.replace(step=before.step), before)
        assert all(jax.tree.leaves(same)) == bad
    assert state.variables["seen"] == 11 and state.loss_stats[0] == 11


def test_stop_names_the_step_and_what_to_do(tmp_path):
    watch = guard(tmp_path)
    watch.check(2, FINE)
    with pytest.raises(guards.NonFiniteError, match="step 3 is not finite: loss=nan.*--step 2"):
        watch.check(3, BAD)
    with pytest.raises(guards.LossSpikeError, match="step 4 leaps: loss=1.*guard.action='skip'"):
        watch.check(4, FINE | {"spike": 1.0})
    assert guards.read(tmp_path) == []


def test_what_was_skipped_is_written_once_though_it_is_met_twice(tmp_path):
    for start in (0, 2):  # the second time from a checkpoint before the step
        watch = guard(tmp_path, start, action="skip")
        watch.check(3, BAD)
    (line,) = guards.read(tmp_path)
    assert line["step"] == 3 and line["action"] == "skip" and line["loss"] == "nan"
    assert not watch.goes_back and not watch.left_out
    watch.check(5, BAD)
    with pytest.raises(guards.NonFiniteError, match="number 3.*guard.max_events=2"):
        watch.check(6, BAD)


def test_a_rollback_leaves_the_batch_out_next_time(tmp_path):
    watch = guard(tmp_path, action="rollback")
    assert not watch.left_out
    watch.check(7, FINE | {"spike": 1.0})
    assert watch.goes_back
    again = guard(tmp_path, 5, action="rollback")
    assert again.left_out == {7} and not again.goes_back
    text = (tmp_path / guards.GUARD_FILE).read_text()
    assert json.loads(text)["reason"] == "leaps"


def test_the_best_step_is_the_first_of_equals_and_survives_a_restart():
    rows = [{"step": 2, "mse": 3.0}, {"step": 4, "mse": math.nan}, {"step": 6, "mse": 1.0}]
    best = Best("mse", "lowest", rows)
    assert best.step == 6
    assert not best.better(8, {"mse": 1.0}) and best.better(10, {"mse": 0.5})
    assert best.step == 10
    assert Best("mse", "highest", rows).step == 2
    assert Best("", "lowest", rows).step is None
    with pytest.raises(ValueError, match="best_metric='loss' is not among"):
        Best("loss", "lowest", rows)
