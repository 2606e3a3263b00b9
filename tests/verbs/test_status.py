"""`lapa status` over directories made by hand, and over what `lapa train` leaves."""

import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from data_pipelines.storage import lease
from lapa_jax.runs import attempt
from lapa_jax.runs.status import look
from lapa_jax.training import guard, metrics, run_files
from lapa_jax.training.run_files import last_metrics, sampled_metrics
from lapa_jax.verbs import status, text

CONFIG = {"stage": "quantizer", "steps": 1000, "log_every_steps": 50}


def make_run(
    workdir: Path,
    *,
    step: int = 500,
    age: float = 5.0,
    saved: tuple[int, ...] = (),
    events: tuple[str, ...] = (),
    told_age: float = 10_000.0,
    step_seconds: float = 2.0,
) -> Path:
    """A run whose newest line is `age` seconds old, with a line every 50 steps up to `step`."""
    workdir.mkdir(parents=True)
    config = CONFIG | {"checkpoint": {"every_steps": 200}}
    (workdir / "config.json").write_text(json.dumps(config))
    for number in saved:
        (workdir / "checkpoints" / str(number) / "meta").mkdir(parents=True)
    lines = [
        {"step": s, "loss": 1000.0 / s, "examples_per_second": 32.0, "step_seconds": step_seconds}
        for s in range(50, step + 1, 50)
    ]
    newest = workdir / "config.json"
    if lines:
        newest = workdir / "metrics.jsonl"
        newest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(newest, (time.time() - age,) * 2)
    if events:
        file = workdir / "supervisor" / "host.jsonl"
        file.parent.mkdir()
        file.write_text("".join(json.dumps({"event": e}) + "\n" for e in events))
        os.utime(file, (time.time() - told_age,) * 2)
    return workdir


@pytest.mark.parametrize(
    ("state", "run"),
    [
        ("running", dict(step=500, age=5)),
        ("running", dict(step=500, age=290, step_seconds=2.0)),  # a line takes 100 s
        ("stalled", dict(step=500, age=310, step_seconds=2.0)),
        ("running", dict(step=500, age=170, step_seconds=0.1)),
        ("stalled", dict(step=500, age=190, step_seconds=0.1)),
        ("stalled", dict(step=500, age=9000, saved=(400,))),
        ("stopped", dict(step=500, age=9000, saved=(400, 517))),
        ("stalled", dict(step=600, age=9000, saved=(400, 600))),
        ("finished", dict(step=1000, age=9000, saved=(1000,))),
        ("starting", dict(step=0, age=60)),
        ("stalled", dict(step=0, age=9000)),
        ("imported", dict(step=0, age=9000, saved=(0,))),
        ("failed", dict(step=500, age=60, events=("started", "given up"), told_age=30)),
        ("stopped", dict(step=500, age=60, saved=(400,), events=("stopped",), told_age=30)),
        ("running", dict(step=500, age=60, events=("started", "given up"), told_age=3000)),
        ("running", dict(step=500, age=9000, events=("started",), told_age=30)),  # again
    ],
)
def test_state(state, run, tmp_path):
    assert look(make_run(tmp_path / "run", **run), time.time()).state == state


def test_a_stray_folder_is_no_checkpoint(tmp_path):
    run = make_run(tmp_path / "run", age=5, saved=(400,))
    for stray in ("5700", "step_x", "step_5700"):
        (run / "checkpoints" / stray).mkdir()
    found = look(run, time.time())
    assert (found.state, found.step, found.saved) == ("running", 500, 400)


def hold(workdir: Path, *, age: float, **changes) -> None:
    """The lock of a training, whose newest sign of life is `age` seconds old."""
    found = lease.Holder("here", os.getpid(), time.time(), lease._machine(), "key")
    file = workdir / attempt.LOCK_FILE
    file.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(found, **changes))))
    os.utime(file, (time.time() - age,) * 2)


@pytest.mark.parametrize(
    ("state", "told", "run", "held", "ended"),
    [
        ("running", "", dict(age=290), dict(age=5), None),
        ("stalled", "here since .* lives, and tells nothing", dict(age=310), dict(age=5), None),
        ("stalled", "here since .* is gone", dict(age=5), dict(age=100, machine="other"), None),
        ("stalled", "is gone", dict(age=5), dict(age=5, pid=2**30), None),
        ("running", "crashed", dict(age=5, events=("crashed",), told_age=5), dict(age=100), None),
        ("stopped", "", dict(age=5, saved=(400,)), None, ("stopped", "")),
        ("failed", "ValueError: no", dict(age=5), None, ("failed", "ValueError: no")),
        ("running", "", dict(age=5, events=("waiting",), told_age=5), None, ("failed", "x")),
        ("failed", "given up: x", dict(events=("given up",), told_age=0), None, ("failed", "x")),
        ("starting", "", dict(step=0, age=60), dict(age=5), ("failed", "before")),
    ],
)
def test_what_the_newest_attempt_left_counts(state, told, run, held, ended, tmp_path):
    workdir = make_run(tmp_path / "run", **run)
    if held:
        hold(workdir, **held)
    if ended:
        attempt.Attempt(workdir, first=False)._note(*ended)
    found = look(workdir, time.time())
    assert found.state == state and re.search(told, found.told)


def test_a_start_that_failed_is_told_with_its_reason(tmp_path):
    with pytest.raises(ValueError), attempt.Attempt(tmp_path / "bad"):
        raise ValueError("data.corpora.robot: no such folder\nmore")
    make_run(tmp_path / "imported", step=0, saved=(0,))
    code, out, _ = tiny.lapa("status", tmp_path)
    assert code == 1 and re.search(r"bad +failed +- +- ", out)
    assert re.search(r"imported +imported +- +- ", out)
    assert out.endswith("bad: ValueError: data.corpora.robot: no such folder\n")
    out = tiny.lapa("status", tmp_path / "bad")[1]
    assert "state        failed: ValueError: data.corpora.robot: no such folder\n" in out


def test_one_run_in_detail(tmp_path):
    events = ("started", "crashed", "started")
    run = make_run(tmp_path / "run", step=500, saved=(200, 400), events=events)
    code, out, _ = tiny.lapa("status", run)
    told = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert told["step"] == "500 of 1000 (50.0 %)"
    assert told["time left"] == "16 min 40 s"
    assert told["checkpoint"] == "step 400"
    assert told["attempts"] == "2"
    assert told["loss"].startswith("2  █") and told["loss"].endswith("▁")


def test_a_table_of_all_runs_below(tmp_path):
    make_run(tmp_path / "a" / "one")
    make_run(tmp_path / "a" / "two", step=1000)
    make_run(tmp_path / "b", age=9000)
    code, out, _ = tiny.lapa("status", tmp_path)
    head, *rows = out.splitlines()
    assert code == 1  # one is stalled
    assert head.split()[:4] == ["run", "state", "step", "of"]
    found = {Path(row.split()[0]).name: row.split()[1:4] for row in rows}
    assert found == {
        "one": ["running", "500", "1000"],
        "two": ["finished", "1000", "1000"],
        "b": ["stalled", "500", "1000"],
    }
    assert tiny.lapa("status", tmp_path / "a")[0] == 0


def test_the_runs_of_a_demo_are_below_its_config(tmp_path):
    make_run(tmp_path / "demo" / "quantizer")
    make_run(tmp_path / "demo" / "lapa")
    (tmp_path / "demo" / "config.json").write_text(json.dumps({"size": "tiny", "seed": 0}))
    code, out, _ = tiny.lapa("status", tmp_path)
    assert code == 0 and "damaged" not in out
    assert "demo/lapa" in out and "demo/quantizer" in out


def test_damage_is_told_of_one_run_and_hides_no_other(tmp_path):
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad")
    (bad / "metrics.jsonl").write_text("not a line\n")
    code, out, _ = tiny.lapa("status", tmp_path)
    assert code == 1
    assert [row.split()[1] for row in out.splitlines()[1:3]] == ["damaged", "running"]
    assert "metrics.jsonl has a line that is no line of metrics" in tiny.lapa("status", bad)[1]


def test_a_directory_without_runs_is_refused(tmp_path):
    code, _, err = tiny.lapa("status", tmp_path)
    assert code == 2 and "no run (config.json)" in err
    code, _, err = tiny.lapa("status", tmp_path / "none")
    assert code == 2 and "the directory of a run, or one with runs below it, is meant" in err


def test_it_needs_no_jax(tmp_path):
    make_run(tmp_path / "run")
    code = (
        "import sys\nfrom lapa_jax import cli\n"
        "assert cli.main(['status', sys.argv[1]]) == 0\n"
        "assert not {'jax', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("small_bytes", [0, 2**20])
def test_sampled_lines_are_spread_in_order_and_whole(small_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "SMALL_BYTES", small_bytes)
    lines = [{"step": step, "text": 10.0 ** (step % 7)} for step in range(1, 1001)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 1001, "te')
    steps = [row["step"] for row in sampled_metrics(tmp_path, 20)]
    assert len(steps) == 20 and steps[0] == 1
    assert all(30 < b - a < 70 for a, b in itertools.pairwise(steps))
    assert last_metrics(tmp_path)["step"] == 1000
    monkeypatch.undo()
    (tmp_path / "metrics.jsonl").write_text("".join(text.splitlines(keepends=True)[:3]))
    assert [row["step"] for row in sampled_metrics(tmp_path, 20)] == [1, 2, 3]
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": "nan"}\n')
    assert math.isnan(last_metrics(tmp_path)["loss"])


def test_sparklines_and_durations():
    assert text.sparkline([0.0, 0.5, 1.0, math.nan]) == "▁▅█!"
    assert text.sparkline([2.0, 2.0]) == "▁▁"
    assert text.sparkline([math.inf]) == "!"
    assert [status.duration(s) for s in (None, 0, 59, 60, 3661, 90_061)] == [
        *("-", "0 s", "59 s", "1 min", "1 h 1 min", "1 d 1 h"),
    ]


def test_files_have_one_name():
    """launch/ imports nothing of ours: what trains takes them from there."""
    assert run_files.METRICS_FILE == metrics.METRICS_FILE
    assert run_files.GUARD_FILE == guard.GUARD_FILE
