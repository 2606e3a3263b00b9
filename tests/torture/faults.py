"""A supervised run, and what can be done to it: signals, a full disk, damaged files, other
processes."""

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import tiny

from lapa_jax.training import checkpoint

DEVICES = 2  # of the run: one process of two, or two of one
LIMIT_SECONDS = 300.0  # for what must happen: a busy machine is slow
SAVE_SECONDS = 0.1  # longer than a save takes
HANG_SECONDS = 15.0  # ending a process takes some of these on a busy machine

# The supervisor, less patient than it is with large runs.
SUPERVISE = """
import sys
from launch import supervise
supervise.DUMP_SECONDS, supervise.GRACE_SECONDS = 1.0, 2.0
sys.exit(supervise.main(sys.argv[1:]))
"""
FLAGS = ["--hang_seconds", str(HANG_SECONDS), "--start_seconds", "120", "--drain_seconds", "60"]
FLAGS += ["--backoff_seconds", "0.1", "--max_failures", "12"]


STARTED = re.compile(r"supervise: attempt \d+ started")


class TortureError(AssertionError):
    """The run did what no fault explains."""


class Supervised:
    """`lapa train` under `launch.supervise`."""

    def __init__(self, arguments: list[str], workdir: Path, log: Path):
        self.workdir, self.checkpoints = workdir, workdir / "checkpoints"
        self._arguments, self._log = arguments, log
        self._supervisor: subprocess.Popen | None = None
        self.processes = 0
        self.lines: list[str] = []  # of this supervisor and its processes
        self.times: list[float] = []  # when they were said
        # step → (file, the attempt before): done to it, and not yet found
        self.damaged: dict[int, tuple[str, int]] = {}

    # --- Its life ---

    def start(self, processes: int) -> None:
        self.processes, self.lines, self.times = processes, [], []
        self._first: dict[int, tuple[float, int]] = {}  # attempt → when it had which step
        flags = [*FLAGS, "--processes", str(processes)]
        train = [sys.executable, "-m", "lapa_jax", "train", *self._arguments]
        self._supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, *flags, "--", *train, "--workdir", self.workdir],
            cwd=tiny.ROOT,
            env=tiny.environment(DEVICES // processes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._pump = threading.Thread(target=self._read, daemon=True)
        self._pump.start()
        self.wait_for(lambda: self.attempt > 0)

    def _read(self) -> None:
        with open(self._log, "a", encoding="utf-8") as log:
            for line in self._supervisor.stdout:
                self.times.append(time.monotonic())
                self.lines.append(line.rstrip("\n"))
                log.write(line)
                log.flush()

    def stop(self) -> int:
        """Ends the supervisor as a user would; the exit code."""
        self._supervisor.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit code of the supervisor, once it has ended by itself."""
        code = self._supervisor.wait(LIMIT_SECONDS)
        self._pump.join(LIMIT_SECONDS)
        return code

    def kill(self) -> None:
        """Ends everything; the kernel kills the processes of a supervisor that vanishes."""
        if self._supervisor is not None:
            self._supervisor.kill()
            self._supervisor.wait()

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Until `ready()`, while the supervisor lives."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not ready():
            if self._supervisor.poll() is not None:
                self._pump.join(1.0)
                tail = "\n".join(self.lines[-40:])
                raise TortureError(f"the supervisor ended by itself: {tail}")
            if time.monotonic() > deadline:
                raise TortureError("no progress: " + "\n".join(self.lines[-40:]))
            time.sleep(0.002)

    # --- What it says ---

    def said(self, pattern: str, attempt: int | None = None) -> list[tuple[float, re.Match]]:
        """When and what of the lines of this supervisor, or of one of its attempts, matches."""
        count = min(len(self.times), len(self.lines))  # one may be being added
        lines = list(zip(self.times[:count], self.lines[:count], strict=True))
        if attempt is not None:
            starts = [i for i, (_, x) in enumerate(lines) if STARTED.match(x)]
            following = starts[attempt] if attempt < len(starts) else len(lines)
            lines = lines[starts[attempt - 1] : following]
        return [(at, found) for at, line in lines if (found := re.search(pattern, line))]

    @property
    def attempt(self) -> int:
        """The number of the attempt that runs, or ran last; 0 before the first."""
        return sum(bool(STARTED.match(line)) for line in list(self.lines))

    def ended(self, attempt: int) -> str | None:
        """How an attempt ended."""
        outcomes = "finished|stopped|preempted|crashed|hung"
        found = self.said(rf"^supervise: attempt {attempt} ({outcomes}) ")
        return found[-1][1][1] if found else None

    def first_step(self, attempt: int) -> tuple[float, int] | None:
        """When an attempt had trained its first step, and which; None before."""
        if attempt == self.attempt and attempt not in self._first:
            began = self.said(r": step (\d+)/\d+, compiling", attempt)  # old lines are gone then
            if began and (step := self.step()) > int(began[-1][1][1]):
                self._first[attempt] = (time.monotonic(), step)
        return self._first.get(attempt)

    def step(self) -> int:
        """The newest step that was logged."""
        return tiny.logged_step(self.workdir)

    # --- What is done to it ---

    def pids(self) -> list[int]:
        """Its processes that run."""
        main = self._supervisor.pid
        with contextlib.suppress(FileNotFoundError):
            found = Path(f"/proc/{main}/task/{main}/children").read_text().split()
            return [int(pid) for pid in found if not _has_ended(int(pid))]
        return []

    def signal(self, number: int, rng: random.Random) -> None:
        """To one of its processes."""
        pids = self.pids()
        if pids:  # else the attempt has just ended by itself, which the driver will see
            os.kill(rng.choice(pids), number)

    def kill_all(self) -> None:
        """At once, and waits until nothing of it can write."""
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait_for(lambda: all(_has_ended(pid) for pid in pids))

    def wait_for_save(self) -> None:
        """Until a step is being written."""
        attempt = self.attempt
        pattern = "*.orbax-checkpoint-tmp*"
        self.wait_for(
            lambda: any(self.checkpoints.glob(pattern)) or self.ended(attempt) is not None
        )

    def limit_files(self, size: int | None) -> None:
        """No file of the run may grow beyond `size` bytes: the system refuses to write."""
        soft = resource.RLIM_INFINITY if size is None else size
        for pid in (self._supervisor.pid, *self.pids()):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# --- The faults. Each returns what it did, for the record ---


def kill(run: Supervised, rng: random.Random) -> dict:
    run.signal(signal.SIGKILL, rng)
    return {}


def kill_in_save(run: Supervised, rng: random.Random) -> dict:
    run.wait_for_save()
    time.sleep(rng.uniform(0, SAVE_SECONDS))
    run.signal(signal.SIGKILL, rng)
    return {"writing": sorted(p.name for p in run.checkpoints.glob("*.orbax-checkpoint-tmp*"))}


def terminate(run: Supervised, rng: random.Random) -> dict:
    run.signal(signal.SIGTERM, rng)
    return {}


def interrupt(run: Supervised, rng: random.Random) -> dict:
    run.signal(signal.SIGINT, rng)
    return {}


def hang(run: Supervised, rng: random.Random) -> dict:
    run.signal(signal.SIGSTOP, rng)
    return {}


def full_disk(run: Supervised, rng: random.Random) -> dict:
    """At any time, or while a step is being written; there is room again after the crash."""
    in_save = rng.random() < 0.5
    if in_save:
        run.wait_for_save()
        time.sleep(rng.uniform(0, SAVE_SECONDS / 4))
    attempt = run.attempt
    run.limit_files(rng.choice([0, 100, 4096]))
    try:
        run.wait_for(lambda: run.ended(attempt) is not None)
    finally:
        run.limit_files(None)
    return {"in_save": in_save}


def flip(run: Supervised, rng: random.Random) -> dict:
    """One bit of a file of a complete step, most often the newest."""
    return _damage(run, rng, "*", _flip_bit)


def truncate(run: Supervised, rng: random.Random) -> dict:
    """A file of arrays of a complete step."""
    return _damage(run, rng, "d/*", _cut)


def _damage(run: Supervised, rng: random.Random, pattern: str, how: Callable) -> dict:
    """Between two attempts, so that nobody is reading; one step at least stays as it was."""
    run.kill_all()
    sound = [step for step in checkpoint.list_steps(run.checkpoints) if step not in run.damaged]
    if len(sound) < 2:
        return {"file": None}
    step = sound[-1] if rng.random() < 0.8 else rng.choice(sound[:-1])
    files = (run.checkpoints / str(step)).rglob(pattern)
    path = rng.choice(sorted(p for p in files if p.is_file() and p.stat().st_size))
    how(path, rng)
    file = str(path.relative_to(run.checkpoints))
    run.damaged[step] = (file, run.attempt)
    return {"file": file}


def _flip_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def other_processes(run: Supervised, rng: random.Random) -> dict:
    """Stops the supervisor; the next one starts two processes instead of one, or one instead of
    two, with as many devices in all."""
    code = run.stop()
    if code != 75:
        raise TortureError(f"the supervisor was stopped and ended with {code}")
    run.start(3 - run.processes)
    return {"processes": run.processes}


FAULTS = {
    fault.__name__: fault
    for fault in (
        *(kill, kill_in_save, terminate, interrupt, hang, full_disk),
        *(flip, truncate, other_processes),
    )
}
# Also before the first step. Not Ctrl-C: before training takes it, Python raises it wherever it is,
# and in a callback of the garbage collector it is ignored.
EARLY = ("kill", "terminate", "flip", "truncate")
