"""Files of a run that are empty, torn, no text, no files, or not there: named, or rebuilt."""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from lapa_jax import config as configs
from lapa_jax.runs import attempt, loaded, status
from lapa_jax.studies.study import Part, Study
from lapa_jax.training import clock, guard
from lapa_jax.training.metrics import MetricWriter, read_metrics
from lapa_jax.training.sound import list_steps

NOISE = bytes(range(128, 256)) * 3 + b"\n" + bytes(range(200)) + b"\n"
CONFIG = {
    "stage": "quantizer",
    "steps": 100,
    "log_every_steps": 1,
    "checkpoint": {"every_steps": 10},
}
ATTEMPT = {
    "started": 0.0,
    "ended": 9.0,
    "first_step": 0,
    "last_step": 2,
    "seconds": dict.fromkeys(clock.PHASES, 1.5),
}
SKIPPED = {"step": 1, "batch": 0, "action": "skip", "reason": "leaps"}
FILES = {
    "config.json": json.dumps(CONFIG),
    "goodput.json": json.dumps([ATTEMPT]),
    "guard.jsonl": json.dumps(SKIPPED) + "\n",
    "metrics.jsonl": '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n',
    "evaluation.jsonl": '{"step": 2, "mse": 1.0}\n',
    "ended.json": json.dumps({"state": "stopped", "reason": "", "time": 1.0}),
    "run.lock": json.dumps({"host": "there"}),
    "supervisor/there.jsonl": '{"event": "started"}\n',
    "parts/one.json": json.dumps({"done": True, "seconds": 1.0, "result": 7}),
}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no text": lambda path: path.write_bytes(NOISE),
    "another value": lambda path: path.write_text('["x"]\n'),
    "a number": lambda path: path.write_text('{"step": "x", "seconds": 7, "done": 1}\n'),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "missing": lambda path: path.unlink(),
}
# Who reads a file beside `lapa status`; a damaged one must raise an error that names it, or gives
# what is there without it.
READERS: dict[str, tuple[Callable[[Path], object], object]] = {
    "config.json": (
        lambda w: configs.parse(parser(), ["--workdir", str(w)], or_workdir=True),
        None,
    ),
    "goodput.json": (clock.read_goodput, []),
    "guard.jsonl": (guard.read, []),
    "metrics.jsonl": (read_metrics, None),
    "evaluation.jsonl": (lambda w: read_metrics(w, "evaluation.jsonl"), []),
    "ended.json": (attempt.ended, None),
    "run.lock": (lambda w: attempt.Attempt(w).__exit__(None, None), None),
    "parts/one.json": (lambda w: Study(w, []).do(Part("one", lambda: 8)), None),
}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser()
    found.add_argument("--workdir")
    return found


@pytest.fixture
def workdir(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "run" / "run.lock").unlink()
    (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
    return tmp_path / "run"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_or_does_not_matter(name, damage, workdir):
    (workdir / "run.lock").write_text(FILES["run.lock"])
    DAMAGES[damage](workdir / name)
    if name != "run.lock":
        (workdir / "run.lock").unlink()
    found = status.look(workdir, time.time())
    assert found.state != "damaged" or str(workdir / name) in found.told
    if name not in READERS:
        return
    read, without = READERS[name]
    try:
        value = read(workdir)
    except (ValueError, OSError) as error:
        assert str(workdir / name) in str(error)
        assert damage != "missing" or name in ("config.json", "metrics.jsonl")
    else:
        whole = damage in ("missing", "empty", "torn") and name.endswith(".jsonl")
        assert whole or value in (without, None)


@pytest.mark.parametrize("stray", ["0057", "57", "٣"])
def test_what_looks_like_a_step_is_named(stray, workdir):
    path = workdir / "checkpoints" / stray
    path.write_text("x") if stray == "57" else path.mkdir()
    for read in (loaded.load, lambda w: list_steps(w / "checkpoints"), loaded.newest_meta):
        with pytest.raises(ValueError, match=f"{path} is no checkpoint.*: move it away"):
            read(workdir)
    assert f"{path} is no checkpoint" in status.look(workdir, time.time()).told
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").write_text("x")
    with pytest.raises(ValueError, match="checkpoints is no directory of checkpoints"):
        loaded.load(workdir)


def test_metrics_that_are_damaged_in_the_middle_are_told_by_their_line(workdir):
    path = workdir / "metrics.jsonl"
    path.write_text(FILES["metrics.jsonl"] + '{"step": 3, "loss": "high"}\n')
    for read in (read_metrics, lambda w: MetricWriter(w, 2, tensorboard=False)):
        with pytest.raises(ValueError, match=f"{path}:3 is not a line of metrics.* move it away"):
            read(workdir)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("place", ["a file", "below a file", "/proc/run"])
def test_a_workdir_that_cannot_be_made_is_one_line(place, tmp_path):
    (tmp_path / "file").write_text("x")
    where = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "run"}
    workdir = where.get(place, place)
    commands = [
        ["train", "--config", tiny.ROOT / "experiments/quantizer/tabletop.py"],
        ["study", tiny.ROOT / "tests/studies/none.py"],
        ["evaluate"],
        ["export", "--format", "safetensors", "--out", tmp_path / "out"],
        ["serve"],
    ]
    for command in commands:
        code, _, err = tiny.lapa(*command, "--workdir", workdir)
        assert code == 2 and "Traceback" not in err, err
        assert command[0] == "study" or str(workdir) in err.splitlines()[-1], err
    code, _, err = tiny.lapa("status", workdir)
    assert code == 2 and "the directory of a run, or one with runs below it, is meant" in err
