"""Whole trainings with a batch that breaks them, with evaluation, and with a trace."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lapa_jax import train
from lapa_jax.runs import program as programs
from lapa_jax.training import checkpoint, clock, guard, profiling
from lapa_jax.training.metrics import EVALUATION_FILE, read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")

BAD_STEP = 5
SETTINGS = dict(steps=6, checkpoint__every_steps=2, guard__max_events=1)


@pytest.fixture
def poison(tiny_data, monkeypatch):
    """The batch of BAD_STEP, known by its tokens and targets, has a loss that is not a number."""
    from data_pipelines.loader import Loader

    config = tiny.config("latent_pretraining", tiny_data, **SETTINGS)
    marks = []
    make = programs.augmentation.training_loss

    def put(stage):
        loss_fn = make(stage)

        def poisoned(params, variables, batch, rng):
            loss, *rest = loss_fn(params, variables, batch, rng)
            mark = batch["images"].astype(jnp.int32).sum()
            return jnp.where(mark == marks[0], jnp.nan, 1.0) * loss, *rest

        with Loader(
            config.data,
            fields=stage.fields_of(config),
            global_batch=config.global_batch,
            seed=config.seed,
            prepare=stage.prepare,
        ) as loader:
            sums = [loader.batch(k)["images"].astype(np.int32).sum() for k in range(config.steps)]
        assert len(set(sums)) == len(sums)
        marks[:] = [sums[BAD_STEP - 1]]
        return poisoned

    monkeypatch.setattr(programs.augmentation, "training_loss", put)


@pytest.mark.slow
def test_skipped_and_rolled_back_runs_end_alike(tiny_data, tmp_path, poison):
    found = {}
    for action in ("skip", "rollback"):
        config = tiny.config("latent_pretraining", tiny_data, **SETTINGS, guard__action=action)
        assert train.train(config, tmp_path / action)
        (line,) = guard.read(tmp_path / action)
        assert (line["step"], line["action"]) == (BAD_STEP, action)
        found[action] = checkpoint.load_params(tmp_path / action / "checkpoints").params
    # Of two programs: one chooses between the old state and the new.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, found["skip"], found["rollback"])
    attempts = clock.read_goodput(tmp_path / "rollback")
    assert [one["first_step"] for one in attempts] == [0, 4], "back to the newest checkpoint"

    stopped = tmp_path / "stopped"
    with pytest.raises(guard.NonFiniteError, match=f"step {BAD_STEP} is not finite"):
        train.train(tiny.config("latent_pretraining", tiny_data, **SETTINGS), stopped)
    assert checkpoint.list_steps(stopped / "checkpoints") == [2, 4]
    assert train.train(config, stopped), "and goes on with another guard"


@pytest.mark.slow
def test_evaluation_keeps_the_best_step_and_traces_are_written(tiny_data, tmp_path, monkeypatch):
    changes = dict(
        steps=7,
        checkpoint__every_steps=50,
        checkpoint__keep=1,
        checkpoint__best_metric="loss",
        checkpoint__best_is="highest",  # of a loss that falls: the first
        evaluation__every_steps=2,
        evaluation__batches=2,
        evaluation__corpora=(str(tiny_data / "robot"),),
        logging__tensorboard=False,
        optimizer__ema_decay=0.9,
    )
    config = tiny.config("action_finetuning", tiny_data, **changes)
    before = profiling.Profiler.before
    traced = []

    def ask(self, step, wait_for):
        if step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        before(self, step, wait_for)
        if self._until is not None:
            traced.append(step)

    monkeypatch.setattr(profiling.Profiler, "before", ask)
    monkeypatch.setattr(profiling, "ON_SIGNAL", 2)
    assert train.train(config, tmp_path, (2, 3))
    rows = read_metrics(tmp_path, EVALUATION_FILE)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(0 <= row["token_accuracy"] <= 1 for row in rows)
    highest = max(rows, key=lambda row: row["loss"])["step"]
    assert checkpoint.list_steps(tmp_path / "checkpoints") == [highest, 7]
    assert not (tmp_path / "tensorboard").exists()
    assert traced == [2, 4, 5]
    for folder in ("step_2", "step_4"):
        assert list((tmp_path / "profile" / folder).rglob("*.xplane.pb")), folder
    # The same parameters on the same examples give the same figures.
    seconds = clock.read_goodput(tmp_path)[-1]["seconds"]
    assert seconds["evaluation"] > 0 and seconds["compile"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(checkpoint__best_metric="mse", evaluation__every_steps=2), "'mse' must be one of"),
        (dict(checkpoint__best_metric="loss"), "evaluation.every_steps=0 must be positive"),
        (dict(evaluation__episodes=5), "evaluation.episodes=5 is for stage action_finetuning"),
        (dict(evaluation__batches=0), "evaluation.batches=0"),
        (dict(evaluation__every_steps=2, evaluation__corpora=("a/x", "b/x")), "a name twice"),
    ],
)
def test_bad_settings_are_named_before_training(tiny_data, tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        train.train(tiny.config("latent_pretraining", tiny_data, **changes), tmp_path)


@pytest.mark.parametrize("text", ["5", "a:b", "0:3", "4:4", "1:2:3"])
def test_spans_of_steps(text):
    with pytest.raises(ValueError, match="FIRST:END"):
        profiling.parse(text)
    assert profiling.parse("100:105") == (100, 105) and profiling.parse("") is None
