"""metrics.jsonl through kills and restarts, late fetching, throughput."""

import json
import math
import sys
import types

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.rlds.tfrecord import read_payloads
from lapa_jax.training.clock import Clock as Watch
from lapa_jax.training.clock import Work, starving
from lapa_jax.training.metrics import (
    EVALUATION_FILE,
    METRICS_FILE,
    TIMING_KEYS,
    Alarms,
    LateMetrics,
    MetricWriter,
    read_metrics,
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def write(workdir, start, steps, speed=1.0):
    with MetricWriter(workdir, start) as writer:
        for step in steps:
            writer.write(step, {"loss": 1 / step, "usage": step % 3, "step_seconds": speed})


def without_timing(workdir):
    lines = (workdir / METRICS_FILE).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [json.dumps({k: v for k, v in row.items() if k not in TIMING_KEYS}) for row in rows]


@settings(max_examples=5, deadline=None)
@given(saved=st.integers(0, 6), logged=st.integers(0, 8), torn=st.integers(0, 30))
def test_killed_and_restarted_equals_uninterrupted(tmp_path_factory, saved, logged, torn):
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    saved = min(saved, logged)
    write(whole, 0, range(1, 11))
    write(broken, 0, range(1, logged + 1))
    with open(broken / METRICS_FILE, "a") as file:  # a kill in the middle of a line
        file.write('{"step": 9, "loss": 0.111111111'[:torn])
    write(broken, saved, range(saved + 1, 11), speed=2.0)
    assert without_timing(broken) == without_timing(whole)
    assert sorted(p.name for p in broken.iterdir()) == [METRICS_FILE, "tensorboard"]


def test_tensorboard_reads_the_scalars(tmp_path):
    """The bytes are those that protobuf writes of such events; each begins with a time."""
    with MetricWriter(tmp_path, 299) as writer:
        writer.write(300, {"loss": 0.5})
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    events = [bytes(one) for one in read_payloads(file)]
    assert [one[0] for one in events] == [9] * 3
    assert [one[9:] for one in events] == [
        b"\x10\x00\x1a\x0dbrain.Event:2",
        b"\x10\xac\x02\x3a\x02\x08\x01",
        b"\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f",
    ]


def test_lines_are_standard_json_and_on_disk_at_once(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": jnp.float32("nan"), "z": jnp.bfloat16(0.5), "count": jnp.int32(3)})
    text = (tmp_path / METRICS_FILE).read_text()
    assert text == '{"step": 1, "count": 3, "loss": "nan", "z": 0.5}\n'
    row = read_metrics(tmp_path)[0]
    assert math.isnan(row["loss"]) and row["count"] == 3
    with pytest.raises(ValueError, match="step 1 after"):
        writer.write(1, {})
    with pytest.raises(ValueError, match="'loss'.*not a number"):
        writer.write(2, {"loss": jnp.zeros(2)})
    writer.close()
    (tmp_path / METRICS_FILE).write_text("{]\n")
    with pytest.raises(ValueError, match="metrics.jsonl:1 is not"):
        MetricWriter(tmp_path, 1)


def test_rows_and_their_faults(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text("".join(json.dumps({"step": i, "loss": i}) + "\n" for i in range(3)))
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo\n')
    with pytest.raises(ValueError, match=":2 is not a line of metrics"):
        read_metrics(tmp_path)
    path.write_text('{"loss": 2}\n')
    with pytest.raises(ValueError, match=":1 is not a line of metrics"):
        read_metrics(tmp_path)


def test_metrics_come_one_push_late_and_none_is_lost():
    late = LateMetrics()
    seen = []
    for step in range(1, 4):
        seen += late.push(step, {"loss": jnp.float32(step)})
        assert [s for s, _ in seen] == list(range(1, step))
    seen += late.flush()
    assert [(s, float(m["loss"])) for s, m in seen] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert late.flush() == []


def test_throughput_counts_steps_waits_and_leaves_out_pauses(tmp_path):
    clock = Clock()
    work = Work(examples=8, tokens=80, devices=2, count_flops=lambda: 4e12, peak_flops=4e12)
    meter = Watch(tmp_path, clock=clock)
    clock.now += 7.0
    meter.begin(0)
    for _ in range(4):
        with meter.phase("data"):
            clock.now += 0.5
        clock.now += 1.5
        meter.step()
    with meter.phase("checkpoint"):
        clock.now += 100.0
    fields = meter.report(work)
    assert set(fields) <= set(TIMING_KEYS)
    memory = fields.pop("host_memory_gib")
    assert 0.01 < memory < 100.0
    assert fields == {
        "elapsed_seconds": 108.0,
        "step_seconds": 2.0,
        "examples_per_second": 4.0,
        "tokens_per_second_per_device": 20.0,
        "tflops_per_device": 1.0,
        "mfu": 0.25,
        "data_wait_fraction": 0.25,
    }
    assert starving(fields) == {"data_starves": 1.0}
    assert starving({"data_wait_fraction": 0.1}) == {"data_starves": 0.0}
    with pytest.raises(ValueError, match="no step"):
        meter.report(work)


def test_an_error_while_closing_does_not_hide_the_first_one(tmp_path, monkeypatch):
    def close(self):
        raise OSError("no space")

    monkeypatch.setattr(MetricWriter, "close", close)
    with pytest.raises(RuntimeError, match="first"), MetricWriter(tmp_path):
        raise RuntimeError("first")
    with pytest.raises(OSError, match="no space"), MetricWriter(tmp_path):
        pass


def test_evaluation_has_lines_of_its_own(tmp_path):
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):  # killed after the checkpoint of step 4
        with MetricWriter(tmp_path, start, tensorboard=False) as writer:
            for step in steps:
                writer.write_evaluation(step, {"mse": abs(step - 5.0)})
    assert [row["step"] for row in read_metrics(tmp_path, EVALUATION_FILE)] == [2, 4, 6, 8]
    assert sorted(p.name for p in tmp_path.iterdir()) == [EVALUATION_FILE]
    assert read_metrics(tmp_path / "none", EVALUATION_FILE) == []


def test_weights_and_biases_get_what_the_file_gets(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    wandb = types.ModuleType("wandb")
    wandb.util = types.SimpleNamespace(generate_id=lambda: f"id{len(calls)}")
    wandb.init = lambda **given: calls.append(given) or Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for start in (0, 1):
        given = dict(tensorboard=False, wandb_project="lapa", config={"seed": 3})
        with MetricWriter(tmp_path, start, **given) as writer:
            writer.write(start + 1, {"loss": 0.5})
            writer.write_evaluation(start + 1, {"mse": 2.0})
    first, *logged, again = calls[:4], *calls[1:4], calls[4]
    assert first[0]["project"] == "lapa" and first[0]["config"] == {"seed": 3}
    assert logged == [(1, {"loss": 0.5}), (1, {"evaluation/mse": 2.0}), "finish"]
    assert again["id"] == first[0]["id"] == "id0" and again["resume"] == "allow"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="logging.wandb_project='lapa' needs the package wandb"):
        MetricWriter(tmp_path, 2, **given)


def test_alarms_tell_the_beginning_and_the_end_once(caplog):
    alarms = Alarms({"collapsed": "few codes are in use"})
    with caplog.at_level("WARNING"):
        for step, value in enumerate([0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0]):
            alarms.check(step, {"loss": 0.1, "collapsed": value})
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "step 1: collapsed: few codes are in use",
        "step 4: no longer collapsed",
        "step 6: collapsed: few codes are in use",
    ]
