"""The supervisor, over workers of a few lines that crash, hang and are told to stop."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lapa_jax.training import heartbeat
from launch import supervise

ROOT = Path(__file__).parents[2]

# `run`: the directory; `attempt`: from 1; `log(step)`: a line of metrics.jsonl.
PRELUDE = """
import faulthandler, json, os, pathlib, signal, subprocess, sys, time
run = pathlib.Path(sys.argv[2])
me = os.environ.get("JAX_PROCESS_ID", "0")
counter = run / f"attempts.{me}"
attempt = int(counter.read_text()) + 1 if counter.exists() else 1
counter.write_text(str(attempt))
def log(step):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": 1.0}) + chr(10))
"""


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(supervise, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(supervise, "DUMP_SECONDS", 2.0)


def command(workdir: Path, body: str, *flags: str) -> list[str]:
    code = PRELUDE + textwrap.dedent(body)
    return [*flags, "--", sys.executable, "-c", code, "--workdir", str(workdir)]


def attempts(workdir: Path, process: int = 0) -> int:
    return int((workdir / f"attempts.{process}").read_text())


def events(workdir: Path) -> list[dict]:
    (path,) = (workdir / "supervisor").iterdir()
    return [json.loads(line) for line in path.read_text().splitlines()]


def gone(pid: int) -> bool:
    """Whether a process has ended, within a while; one that nobody reaps yet has."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def wait_for(*paths: Path) -> None:
    for _ in range(1000):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.02)
    raise AssertionError(f"no {[str(p) for p in paths if not p.exists()]}")


def test_a_crash_is_followed_by_another_attempt(tmp_path, quickly, capfd):
    body = """
        log(attempt)
        print("attempt", attempt, "was here")
        sys.exit(1 if attempt == 1 else 0)
    """
    assert supervise.main(command(tmp_path, body, "--backoff_seconds", "0.01")) == 0
    assert attempts(tmp_path) == 2
    assert "attempt 2 was here" in capfd.readouterr().out
    told = [e["event"] for e in events(tmp_path)]
    assert told == ["started", "crashed: last lines", "crashed", "waiting", "started", "finished"]
    assert events(tmp_path)[1]["lines"] == {"0": ["attempt 1 was here"]}


@pytest.mark.slow
def test_preemption_with_a_new_step_starts_again_at_once(tmp_path, quickly):
    body = "log(attempt); sys.exit(75 if attempt < 4 else 0)"
    flags = ("--backoff_seconds", "9999", "--max_failures", "1")
    assert supervise.main(command(tmp_path, body, *flags)) == 0
    assert attempts(tmp_path) == 4


@pytest.mark.slow
def test_a_loop_at_the_same_step_ends(tmp_path, quickly):
    # New steps in the first two attempts; from then on none, in which 75 is no better than 1.
    body = "log(min(attempt, 2)); sys.exit(75 if attempt == 4 else 1)"
    flags = ("--backoff_seconds", "0.01", "--max_failures", "3")
    assert supervise.main(command(tmp_path, body, *flags)) == 1
    assert attempts(tmp_path) == 4
    assert events(tmp_path)[-1]["event"] == "given up"
    assert events(tmp_path)[-1]["step"] == 2


@pytest.mark.slow
def test_crashes_at_new_steps_never_end_it(tmp_path, quickly):
    body = (
        "(run / 'checkpoints' / str(attempt) / 'meta').mkdir(parents=True); sys.exit(attempt < 6)"
    )
    flags = ("--backoff_seconds", "0.01", "--max_failures", "2")
    assert supervise.main(command(tmp_path, body, *flags)) == 0
    assert attempts(tmp_path) == 6


def test_a_mistake_is_not_tried_again(tmp_path, quickly):
    assert supervise.main(command(tmp_path, "sys.exit(2)")) == 2
    assert attempts(tmp_path) == 1


@pytest.mark.slow
def test_a_hang_shows_stacks_and_is_followed_by_another_attempt(tmp_path, quickly, capfd):
    body = """
        faulthandler.enable()
        def the_place_where_it_hangs():
            while True:
                time.sleep(1)
        log(attempt)
        if attempt == 1:
            the_place_where_it_hangs()
    """
    flags = ("--hang_seconds", "0.5", "--start_seconds", "0.5", "--backoff_seconds", "0.01")
    assert supervise.main(command(tmp_path, body, *flags)) == 0
    assert attempts(tmp_path) == 2
    assert "in the_place_where_it_hangs" in capfd.readouterr().out
    last = next(e for e in events(tmp_path) if e["event"] == "hung: last lines")
    assert "the_place_where_it_hangs" in "\n".join(last["lines"]["0"])


@pytest.mark.slow
def test_heartbeats_are_progress(tmp_path, quickly):
    body = """
        for step in range(12):
            pathlib.Path(os.environ["LAPA_HEARTBEAT"]).write_text(f"{step}")
            time.sleep(0.1)
    """
    flags = ("--hang_seconds", "0.8", "--start_seconds", "5", "--max_failures", "1")
    assert supervise.main(command(tmp_path, body, *flags)) == 0
    assert events(tmp_path)[-1]["step"] == 11


def test_the_heartbeat_of_training_is_what_the_supervisor_reads(tmp_path, monkeypatch):
    file = tmp_path / "0"
    watch = supervise.Watch(None, [file])
    monkeypatch.setenv("LAPA_HEARTBEAT", str(file))
    heartbeat.beat(7)
    assert watch.advanced() and watch.step == 7
    heartbeat.beat(8)
    assert watch.advanced() and not watch.advanced()
    monkeypatch.delenv("LAPA_HEARTBEAT")
    heartbeat.beat(9)
    assert not watch.advanced()


@pytest.mark.slow
def test_a_stopped_process_is_killed(tmp_path, quickly, monkeypatch):
    monkeypatch.setattr(supervise, "DUMP_SECONDS", 0.2)
    body = "attempt == 1 and os.kill(os.getpid(), signal.SIGSTOP)"
    flags = ("--start_seconds", "0.5", "--backoff_seconds", "0.01")
    assert supervise.main(command(tmp_path, body, *flags)) == 0
    assert next(e for e in events(tmp_path) if e["event"] == "hung")["codes"] == [-signal.SIGKILL]


@pytest.mark.slow
def test_all_processes_join_one_run_and_start_again_together(tmp_path, quickly):
    body = """
        names = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "LOCAL_DEVICE_IDS")
        (run / f"{attempt}.{me}").write_text(" ".join(os.environ["JAX_" + n] for n in names))
        if attempt == 1:
            while not all((run / f"1.{i}").exists() for i in range(3)):
                time.sleep(0.01)
            sys.exit(1) if me == "1" else time.sleep(1000)
    """
    flags = ("--processes", "3", "--devices_per_process", "2", "--backoff_seconds", "0.01")
    assert supervise.main(command(tmp_path, body, *flags)) == 0
    told = {path.name: path.read_text().split() for path in tmp_path.glob("[12].[012]")}
    assert len(told) == 6
    for attempt in "12":
        assert len({told[f"{attempt}.{i}"][0] for i in range(3)}) == 1  # one address
        assert [told[f"{attempt}.{i}"][1] for i in range(3)] == ["3"] * 3
        assert [told[f"{attempt}.{i}"][2] for i in range(3)] == ["0,1", "2,3", "4,5"]


def test_what_a_worker_started_ends_with_it(tmp_path, quickly):
    body = """
        child = subprocess.Popen(["sleep", "1000"])
        (run / "child").write_text(str(child.pid))
    """
    assert supervise.main(command(tmp_path, body)) == 0
    assert gone(int((tmp_path / "child").read_text()))


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.supervise", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # nohup has its children ignore it, as the supervisor then does.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_passed_on_and_what_is_being_saved_is_awaited(number, tmp_path):
    body = """
        def save(*_):
            time.sleep(0.3)
            (run / f"saved.{me}").touch()
            sys.exit(75)
        signal.signal(signal.SIGTERM, save)
        (run / f"ready.{me}").touch()
        time.sleep(1000)
    """
    supervisor = start(command(tmp_path, body, "--processes", "2"))
    wait_for(tmp_path / "ready.0", tmp_path / "ready.1")
    supervisor.send_signal(number)
    said, _ = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 75, said
    assert (tmp_path / "saved.0").exists() and (tmp_path / "saved.1").exists()
    assert attempts(tmp_path) == 1


@pytest.mark.slow
def test_a_worker_that_ignores_sigterm_is_killed_when_the_time_is_over(tmp_path):
    body = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (run / "pid").write_text(str(os.getpid()))
        time.sleep(1000)
    """
    supervisor = start(command(tmp_path, body, "--drain_seconds", "0.2"))
    wait_for(tmp_path / "pid")
    time.sleep(0.1)
    supervisor.send_signal(signal.SIGTERM)
    said, _ = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 75, said
    assert events(tmp_path)[-1] | {"time": ""} == {
        **{"time": "", "attempt": 1, "event": "stopped"},
        **{"codes": [-signal.SIGKILL], "step": -1},
    }
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help exists on Linux only")
def test_a_supervisor_that_is_killed_leaves_no_worker(tmp_path):
    body = """
        (run / "pid.partial").write_text(str(os.getpid()))
        os.rename(run / "pid.partial", run / "pid")
        time.sleep(1000)
    """
    supervisor = start(command(tmp_path, body))
    wait_for(tmp_path / "pid")
    supervisor.kill()
    assert gone(int((tmp_path / "pid").read_text()))
    supervisor.communicate(timeout=60)


def test_lines_that_a_restart_cuts_off_are_not_progress(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)]
    metrics.write_text("".join(lines))
    watch = supervise.Watch(tmp_path, [])
    assert watch.step == 4
    metrics.write_text("".join(lines[:2]))
    assert not watch.advanced()
    metrics.write_text("".join(lines[:3]))
    assert watch.advanced() and not watch.advanced()
    assert watch.step == 4  # the furthest that it ever was
    (tmp_path / "checkpoints" / "5" / "meta").mkdir(parents=True)
    (tmp_path / "checkpoints" / "7").mkdir()  # empty: none
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    assert watch.advanced() and watch.step == 5
    metrics.write_text("no line of metrics\n")
    watch.advanced()
    assert watch.step == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "lapa", "train"], "no --workdir"),
        (["--", "no-such-program", "--workdir=x"], "no program 'no-such-program'"),
    ],
)
def test_wrong_commands_are_refused(arguments, said, capsys):
    assert supervise.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_run_behind_a_url_is_followed_by_its_heartbeats(tmp_path, monkeypatch, capsys):
    code = "import os, pathlib; pathlib.Path(os.environ['LAPA_HEARTBEAT']).write_text('3')"
    monkeypatch.chdir(tmp_path)
    job = ["--", sys.executable, "-c", code, "--workdir", "gs://bucket/run"]
    assert supervise.main(job) == 0
    assert "finished (codes [0], step 3)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "no folder named gs:"


def test_importing_it_loads_the_standard_library_only():
    code = (
        "import sys, launch.supervise\n"
        "ours = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "assert not {m for m in ours if not m.startswith('_')} - {'launch', 'lapa_jax'}, ours"
    )
    done = subprocess.run(
        [sys.executable, "-ISc", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
