"""Workers, each with one episode at a time: those that crash or hang are replaced."""

import collections
import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lapa_jax.arena.client import ServerError
from lapa_jax.arena.worker import BEAT_SECONDS, Job, Setup

TRIES = 3  # of an episode whose worker crashes or hangs
_STARTS = 2  # workers in a row that end before they are ready
_IN_VAIN = 4 * TRIES  # that crash or hang before any episode is finished
_ROOT = Path(__file__).parents[2]
# A worker is one process of many: its libraries start no threads of their own.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")


class Worker:
    """One process, and its pipes. Its standard error goes to `log`."""

    def __init__(self, python: str, packages: str, setup: Setup, log: Path):
        self.log, self.ready, self._rest = log, False, b""
        self.job: Job | None = None
        self.task = ""  # of its last episode
        self.deadline = 0.0
        environment = dict.fromkeys(_THREADS, "1") | os.environ | {"JAX_PLATFORMS": "cpu"}
        ours = [os.environ.get("PYTHONPATH", "")] if python == sys.executable else []
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [packages, *ours]))
        with open(log, "ab") as errors:
            try:
                self.process = subprocess.Popen(
                    [python, "-m", "lapa_jax.arena.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is this process's
                )
            except OSError as error:
                raise OSError(f"--python {python}: {error.strerror}") from error
        self.send(dataclasses.asdict(setup))

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is dead, as its end of file will tell
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> list[dict[str, Any]] | None:
        """Messages that have come, {} for a beat; None: it has ended."""
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) if line else {} for line in lines]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def why(self) -> str:
        """How it ended, and the last that it said."""
        code = self.process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = self.log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"{how}, {last[:300]}"


@dataclasses.dataclass
class Pool:
    """How episodes are spread over processes.

    python: runs them. step_seconds: a worker that takes no step for so long is ended (and, while it
    may wait for an answer, its `answer_seconds`). logs: a folder.
    """

    python: str
    workers: int
    step_seconds: float
    setup: Setup
    logs: Path

    def run(self, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """What each episode gave, as they finish; of one that fails TRIES times `error`. Raises
        RuntimeError where workers cannot start or none gets to an end, ServerError for a server
        that does not answer."""
        with tempfile.TemporaryDirectory(prefix="lapa-") as packages:
            for name in ("lapa_jax", "data_pipelines"):  # and nothing else of our environment
                (Path(packages) / name).symlink_to(_ROOT / name)
            self._packages = packages
            self._waiting, self._tries = collections.defaultdict(list), collections.Counter()
            for job in reversed(jobs):  # the first of a task is the last of its list
                self._waiting[job.task].append(job)
            self._all: list[Worker] = []
            self._unstarted = self._made = self._finished = 0
            with selectors.DefaultSelector() as self._selector:
                try:
                    yield from self._run()
                finally:
                    for worker in self._all:
                        worker.end()

    def _run(self) -> Iterator[dict[str, Any]]:
        while True:
            while len(self._all) < min(self.workers, self._left):
                self._start()
            for worker in self._all:
                if worker.job is None and (job := self._next(worker)):
                    worker.job, worker.task = job, job.task
                    worker.send(dataclasses.asdict(worker.job))
                    self._alive(worker)
            busy = [worker for worker in self._all if worker.job]
            if not busy:
                return
            patience = min(worker.deadline for worker in busy) - time.monotonic()
            for key, _ in self._selector.select(max(0.0, patience)):
                yield from self._hear(key.data)
            for worker in [w for w in self._all if w.job and time.monotonic() > w.deadline]:
                worker.process.kill()
                why = f"it hung, no step in {self.step_seconds:g} s (--step_seconds)"
                if not worker.ready:
                    why = f"not ready in {self.setup.start_seconds:g} s (--start_seconds)"
                yield from self._lost(worker, why)

    @property
    def _left(self) -> int:
        """Episodes that run or wait."""
        waiting = sum(map(len, self._waiting.values()))
        return waiting + sum(worker.job is not None for worker in self._all)

    def _next(self, worker: Worker) -> Job | None:
        """Of the worker's task while there is one: others make some simulators anew. Else of the
        task that is most left alone."""
        tasks = [task for task, jobs in self._waiting.items() if jobs]
        busy = {one.task for one in self._all if one.job}
        tasks.sort(
            key=lambda task: (task == worker.task, task not in busy, len(self._waiting[task]))
        )
        return self._waiting[tasks[-1]].pop() if tasks else None

    def _start(self) -> None:
        log = self.logs / f"worker-{self._made % self.workers}.log"
        worker = Worker(self.python, self._packages, self.setup, log)
        self._made += 1
        self._all.append(worker)
        self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)

    def _alive(self, worker: Worker) -> None:
        seconds = self.step_seconds + self.setup.answer_seconds + BEAT_SECONDS
        if not worker.ready:
            seconds = self.setup.start_seconds
        worker.deadline = time.monotonic() + seconds

    def _hear(self, worker: Worker) -> Iterator[dict[str, Any]]:
        messages = worker.read()
        if messages is None:
            yield from self._lost(worker, worker.why())
            return
        for message in messages:
            if "cannot" in message:
                raise RuntimeError(message["cannot"])
            if "server" in message:
                raise ServerError(message["server"])
            if "ready" in message:
                worker.ready, self._unstarted = True, 0
            if "done" in message:
                self._finished += 1
                yield message["done"] | {"tries": self._tries[worker.job] + 1}
                worker.job = None
            self._alive(worker)

    def _lost(self, worker: Worker, why: str) -> Iterator[dict[str, Any]]:
        """A worker is gone; its episode is tried again, or recorded as an error."""
        self._selector.unregister(worker.process.stdout)
        self._all.remove(worker)
        worker.end()
        job = worker.job
        if not worker.ready:
            self._unstarted += 1
            if self._unstarted >= _STARTS:
                mends = f" ({worker.log})"
                if "ModuleNotFoundError" in why:
                    mends = ": pip install numpy websockets msgpack there"
                raise RuntimeError(
                    f"{self.python} -m lapa_jax.arena.worker does not start: {why}{mends}"
                )
        elif job:
            self._tries[job] += 1
            if not self._finished and self._tries.total() >= _IN_VAIN:
                raise RuntimeError(
                    f"{_IN_VAIN} workers ended in their episode, one after another; "
                    f"the last one: {why} ({worker.log})"
                )
        if job and self._tries[job] < TRIES:
            self._waiting[job.task].insert(0, job)
        elif job:
            yield {"task": job.task, "number": job.number, "error": why, "tries": TRIES}
