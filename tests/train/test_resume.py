"""A run that was stopped and restarted is bitwise the run that was not."""

import dataclasses
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from experiments import base
from lapa_jax import train
from lapa_jax.parallel import distributed, sharding
from lapa_jax.runs import status
from lapa_jax.training import checkpoint
from lapa_jax.training.guard import Guard

STEPS = 18
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]


def assert_same(one: dict, other: dict) -> None:
    assert one["step"] == other["step"] == STEPS
    changed = [path for path, value in one["arrays"].items() if other["arrays"][path] != value]
    assert not changed and one["arrays"].keys() == other["arrays"].keys()
    assert one["meta"] == other["meta"]
    assert one["metrics"] == other["metrics"]
    assert [row["step"] for row in one["metrics"]] == list(range(1, STEPS + 1))


def assert_codes_were_replaced(directory: Path) -> None:
    """Between the last two checkpoints: codes moved further than an optimizer moves them, to where
    a latent was."""
    assert checkpoint.list_steps(directory) == [15, STEPS]
    (before, _), (after, recent) = (
        (loaded.params["bottleneck"]["codebook"], loaded.variables["bottleneck"]["recent"])
        for loaded in (checkpoint.load_params(directory, step) for step in (15, STEPS))
    )
    replaced = after[np.abs(after - before).max(axis=1) > 0.1]
    assert len(replaced) >= 2
    # `recent` holds the batches 15 to 18; the replacement after batch 16 drew from 13 to 16.
    nearest = np.abs(replaced[:, None] - recent).max(axis=2).min(axis=1)
    assert nearest.min() < 0.05


def test_sigterm_and_sigkill_in_a_process_of_its_own(tiny_data, tmp_path):
    """The quantizer, whose codebook is replaced at random and keeps statistics."""

    def arguments(name):
        changes = dict(steps=STEPS, checkpoint__every_steps=5, optimizer__warmup_steps=4)
        config = tiny.arguments("quantizer", tiny_data, **changes)
        return ["train", *config, "--workdir", str(tmp_path / name)]

    code, output = tiny.run_until(arguments("whole"))
    assert code == 0, output
    whole = tiny.result(tmp_path / "whole")
    assert_codes_were_replaced(tmp_path / "whole" / "checkpoints")

    stopped = tmp_path / "stopped"
    rng = random.Random(2)
    first, second = rng.randint(2, 7), rng.randint(11, 14)
    code, output = tiny.run_until(
        arguments("stopped"), lambda: tiny.logged_step(stopped) >= first, signal.SIGTERM
    )
    assert code == train.EXIT_RESTART, output
    saved = checkpoint.list_steps(stopped / "checkpoints")[-1]
    assert first <= saved < second, "the step in flight is saved, whatever checkpoint.every_steps"

    code, output = tiny.run_until(
        arguments("stopped"), lambda: tiny.logged_step(stopped) >= second, signal.SIGKILL
    )
    assert code == -signal.SIGKILL, output
    assert f"continues at step {saved} of {STEPS}" in output
    assert checkpoint.list_steps(stopped / "checkpoints")[-1] < STEPS

    code, output = tiny.run_until(arguments("stopped"))
    assert code == 0, output
    assert_same(whole, tiny.result(stopped))


def test_restart_of_a_policy_with_moving_average(tiny_data, tmp_path, monkeypatch):
    """A policy that sees augmented images and learns from noise, in process: once by a signal, once
    by an error in the middle of an interval, then for longer than it was to train at first."""
    changes = dict(steps=STEPS, checkpoint__every_steps=5, optimizer__ema_decay=0.9)
    changes |= dict(optimizer__schedule="warmup_constant")  # the same, whatever the steps
    config = tiny.config("action_finetuning", tiny_data, **changes)
    with config.unlocked():
        config.data.augment = base.augment("crop_and_colour")
        config.data.action_horizon = 3
        flow = base.head("flow", dim=16, mlp_dim=24)
        config.model.targets = ConfigDict({"action": flow})
    longer, config = config, config.copy_and_resolve_references()
    with config.unlocked():
        config.steps = 15
    assert train.train(longer, tmp_path / "whole")
    whole = tiny.result(tmp_path / "whole")
    assert {path.split("/")[0] for path in whole["arrays"]} >= {"params", "ema", "state"}

    stopped = tmp_path / "stopped"
    tiny.disturb(monkeypatch, stop_at=3, crash_at=13)
    assert not train.train(config, stopped)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the handler is given back"
    assert status.look(stopped, time.time()).state == "stopped"
    saved = checkpoint.list_steps(stopped / "checkpoints")
    assert saved[-1] in (3, 4, 5)
    with pytest.raises(tiny.Crash):
        train.train(config, stopped)
    found = status.look(stopped, time.time())
    assert (found.state, found.told) == ("failed", "Crash: ")
    assert checkpoint.list_steps(stopped / "checkpoints")[-1] == 10
    monkeypatch.undo()
    assert train.train(config, stopped)
    assert checkpoint.list_steps(stopped / "checkpoints")[-1] == 15
    assert train.train(longer, stopped)
    assert_same(whole, tiny.result(stopped))

    assert train.train(longer, stopped), "a finished run stays as it is"
    assert_same(whole, tiny.result(stopped))
    with pytest.raises(ValueError, match="has done 18 steps; config.steps=15 is less"):
        train.train(config, stopped)


def test_the_next_batch_goes_to_the_devices_before_a_step_is_waited_for(
    tiny_data, tmp_path, monkeypatch
):
    events = []

    def told(name, function):
        def call(*args):
            events.append(name)
            return function(*args)

        return call

    build = train.programs.build

    def built(*args):
        program = build(*args)
        return dataclasses.replace(program, step=told("step", program.step))

    monkeypatch.setattr(train.programs, "build", built)
    monkeypatch.setattr(sharding, "put_batch", told("put", sharding.put_batch))
    monkeypatch.setattr(Guard, "check", told("settled", Guard.check))
    config = tiny.config("quantizer", tiny_data, steps=4, checkpoint__every_steps=4)
    assert train.train(config, tmp_path)
    first, later, last = ["put", "step", "put"], ["step", "put", "settled"], ["step", "settled"]
    assert events == first + later * 2 + last + ["settled"], "and none that is not used"


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (signal.SIGTERM, "initialize"),
        (signal.SIGINT, "open_run"),
        (signal.SIGHUP, "open_run"),
        (signal.SIGTERM, "first_state"),
    ],
)
def test_a_signal_before_the_first_step(number, where, tiny_data, tmp_path, monkeypatch, capsys):
    """While processes are joined, data are checked, or the state is made or restored."""

    owner = distributed if where == "initialize" else train.start
    real = getattr(owner, where)

    def signalled(*args, **kwargs):
        signal.raise_signal(number)
        assert where == "first_state"  # in which it waits, as JAX does not bear it
        return real(*args, **kwargs)

    before = signal.signal(number, signal.SIG_DFL)
    monkeypatch.setattr(owner, where, signalled)
    try:
        config = tiny.arguments("quantizer", tiny_data, steps=4)
        assert train.main([*config, "--workdir", str(tmp_path)]) == 75
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert status.look(tmp_path, time.time()).state == "stopped"
    assert not (tmp_path / "run.lock").exists()
    assert "not at its end: the same command continues" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_asks_to_stop(number):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with distributed.stop_signal() as stopped:
            assert not stopped()
            signal.raise_signal(number)
            assert stopped()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_closed_terminal_is_nothing_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with distributed.stop_signal() as stopped:
            signal.raise_signal(signal.SIGHUP)
            assert not stopped()
    finally:
        signal.signal(signal.SIGHUP, before)
