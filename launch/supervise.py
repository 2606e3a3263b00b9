"""Keeps a job running: starts its processes, and all of them again after a crash, hang or stop.

    python -m launch.supervise -- lapa train --config FILE --workdir runs/x

The job continues from its newest good checkpoint, because `lapa train` does. Exit codes of the
processes: 0 is finished, 75 is "saved, start me again" (preemption), everything else is a crash.

| what happens            | what follows                                                          |
|-------------------------|-----------------------------------------------------------------------|
| exit 75                 | all start again at once                                               |
| crash                   | the other processes are ended; all start again after a back-off       |
| no progress (hang)      | SIGABRT, at which Python writes the stacks of all threads; then as a  |
|                         | crash                                                                 |
| fails again and again   | after --max_failures attempts in a row that reach no new step: exit 1 |
| first attempt exits 2   | a mistake in the command or config: not tried again, exit 2           |
| SIGTERM, Ctrl-C, SIGHUP | SIGTERM to all processes, which save and exit; what is left after     |
|                         | --drain_seconds, or at a second signal, is killed; exit 75            |

Several machines: one supervisor on each, with the same command. When a process is lost the others
end by themselves (JAX's heartbeat), and each supervisor starts its own again.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lapa_jax.training.run_files import EXIT_RESTART, METRICS_FILE, last_metrics, saved_steps

from .job import Job
from .shell import split

EXIT_MISTAKE = 2  # of lapa: a command or config that cannot run
POLL_SECONDS = 0.1
DUMP_SECONDS = 10.0  # for writing stacks
GRACE_SECONDS = 5.0  # for the others to say what they saw of a crash
LONGEST_BACKOFF_SECONDS = 600.0


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Flags, and the command behind `--`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.supervise",
        usage="%(prog)s [flags] -- COMMAND --workdir DIR ...",
        description="Keeps a job running through crashes, hangs and preemptions.",
    )
    for name, kind, default, text in (
        ("processes", int, 1, "on this machine, joined into one run if > 1"),
        ("devices_per_process", int, None, "of this machine's GPUs, by number; else all see all"),
        ("hang_seconds", float, 1200.0, "without progress"),
        ("start_seconds", float, 3600.0, "to the first progress: restoring, compiling"),
        ("max_failures", int, 5, "in a row, with no new step"),
        ("backoff_seconds", float, 10.0, "after a crash, then twice as long ..."),
        ("drain_seconds", float, 600.0, "for saving after SIGTERM; then the rest is killed"),
    ):
        text += f" (default {default:g})" if default else ""
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument("--dry_run", action="store_true", help="print what would be started")
    options, command = split(parser, argv)
    if not command:
        parser.error("give the command behind --, for example: -- lapa train --config ...")
    for name in ("processes", "max_failures", "hang_seconds", "start_seconds"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} {getattr(options, name)}: must be positive")
    return options, command


def workdir_of(command: list[str]) -> str:
    """The directory that the command names by --workdir."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == "--workdir" and following:
            return following
        if word.startswith("--workdir="):
            return word.partition("=")[2]
    raise ValueError(f"no --workdir in the command: {shlex.join(command)}")


class Watch:
    """Whether a run advances, by its files and by the heartbeats of its processes."""

    def __init__(self, workdir: Path | None, beats: list[Path]):
        self._workdir, self._beats = workdir, beats
        self.step = -1  # the furthest that was logged, saved or beaten
        self._size, self._saved, self._beaten = self._look()

    def advanced(self) -> bool:
        """Whether there is anything new since the last call."""
        size, saved, beaten = self._look()
        # A run that starts cuts the lines off that follow its checkpoint: that is not progress.
        new = size > self._size or saved > self._saved or beaten != self._beaten
        self._size, self._saved, self._beaten = size, saved, beaten
        return new

    def _look(self) -> tuple[int, int, list[int]]:
        beaten = [_number(path) for path in self._beats]
        size, saved, logged = 0, -1, -1
        if self._workdir is not None:
            metrics = self._workdir / METRICS_FILE
            # A file system that fails for a moment, or a bad line (of which training will tell),
            # is no reason for the supervisor to end.
            with contextlib.suppress(OSError, ValueError):
                saved = max(saved_steps(self._workdir / "checkpoints"), default=-1)
                size = metrics.stat().st_size if metrics.exists() else 0
                logged = (last_metrics(self._workdir) or {"step": -1})["step"]
        self.step = max(self.step, saved, logged, *beaten)
        return size, saved, beaten


def _number(path: Path) -> int:
    try:
        return int(path.read_text() or -1)  # empty: between two beats
    except (FileNotFoundError, ValueError):
        return -1


class Supervisor:
    """One job on this machine, from its first attempt to its end."""

    def __init__(self, options: argparse.Namespace, command: list[str]):
        workdir = workdir_of(command)
        self._options, self._command = options, command
        # Behind a URL nothing is read or written here: heartbeats tell enough.
        self._workdir = None if "://" in workdir else Path(workdir)
        self._stop = self._hurry = False
        self._attempt = 0

    def run(self) -> int:
        """The exit code of the job."""
        names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {name: signal.getsignal(name) for name in names}
        for name in names:
            if before[name] != signal.SIG_IGN:  # under nohup a closed terminal is nothing
                signal.signal(name, self._signal)
        try:
            with tempfile.TemporaryDirectory(prefix="lapa-supervise-") as scratch:
                return self._run(Path(scratch))
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _signal(self, *_: Any) -> None:
        self._hurry, self._stop = self._stop, True

    def _run(self, scratch: Path) -> int:
        furthest, failures = -1, 0
        while True:
            self._attempt += 1
            beats = [scratch / f"{self._attempt}.{i}" for i in range(self._options.processes)]
            watch = Watch(self._workdir, beats)
            furthest = max(furthest, watch.step)
            outcome, codes = self._follow(beats, watch)
            watch.advanced()
            self._tell(outcome, codes=codes, step=watch.step)
            if outcome == "finished":
                return 0
            if outcome == "stopped":
                return EXIT_RESTART
            if self._attempt == 1 and EXIT_MISTAKE in codes and watch.step <= furthest:
                return EXIT_MISTAKE
            new_step = watch.step > furthest
            furthest = max(furthest, watch.step)
            if outcome == "preempted" and new_step:
                failures = 0
                continue
            failures = 1 if new_step else failures + 1
            if failures >= self._options.max_failures:
                self._tell("given up", step=furthest, failures=failures)
                return 1
            seconds = self._options.backoff_seconds * 2.0 ** (failures - 1)
            self._wait(min(seconds, LONGEST_BACKOFF_SECONDS))
            if self._stop:
                return EXIT_RESTART

    def _follow(self, beats: list[Path], watch: Watch) -> tuple[str, list[int]]:
        """One attempt: how it ended, and the exit codes; no process is left."""
        self._tell("started", step=watch.step)
        options = self._options
        hung, forwarded = False, False
        limit, since = options.start_seconds, time.monotonic()
        looked, deadline = since, None
        with Job(self._command, beats, options.devices_per_process) as job:
            while None in (codes := job.codes()):
                now = time.monotonic()
                if self._stop and not forwarded:
                    self._tell("stopping", step=watch.step)
                    job.signal(signal.SIGTERM)
                    forwarded, deadline = True, now + options.drain_seconds
                ended = [code for code in codes if code is not None]
                if any(code not in (0, EXIT_RESTART) for code in ended):
                    deadline = min(deadline or now + GRACE_SECONDS, now + GRACE_SECONDS)
                elif ended:
                    deadline = deadline or now + options.drain_seconds
                if self._hurry or (deadline is not None and now > deadline):
                    break
                if deadline is None and now - looked > min(5.0, limit / 10):
                    looked = now
                    if watch.advanced():
                        limit, since = options.hang_seconds, now
                    elif now - since > limit:
                        hung, deadline = True, now + DUMP_SECONDS
                        self._tell("hanging", step=watch.step, seconds=round(now - since))
                        job.signal(signal.SIGABRT)
                time.sleep(POLL_SECONDS)
        codes = job.codes()
        outcome = "crashed"
        if hung:
            outcome = "hung"
        elif not any(codes):
            outcome = "finished"
        elif self._stop:
            outcome = "stopped"
        elif all(code in (0, EXIT_RESTART) for code in codes):
            outcome = "preempted"
        if outcome in ("crashed", "hung"):
            self._record(outcome + ": last lines", lines=job.last_lines())
        return outcome, codes

    def _wait(self, seconds: float) -> None:
        self._tell("waiting", seconds=round(seconds))
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stop:
            time.sleep(min(POLL_SECONDS, seconds))

    def _tell(self, event: str, **details: Any) -> None:
        shown = ", ".join(f"{key} {value}" for key, value in details.items())
        _say(f"attempt {self._attempt} {event} ({shown})")
        self._record(event, **details)

    def _record(self, event: str, **details: Any) -> None:
        """Appends to WORKDIR/supervisor/HOST.jsonl, which a URL has not. That it cannot be written
        ends no training."""
        if self._workdir is None:
            return
        # Slurm may have started several supervisors on a machine.
        local = os.environ.get("SLURM_LOCALID")
        host = socket.gethostname() + (f"-{local}" if local else "")
        path = self._workdir / "supervisor" / f"{host}.jsonl"
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"time": stamp, "attempt": self._attempt, "event": event, **details}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            _say(f"{path} cannot be written: {error}")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a closed terminal must not end the job
        sys.stderr.write(f"supervise: {text}\n")
        sys.stderr.flush()


def main(argv: list[str] | None = None) -> int:
    """Runs the job to its end; 0, 1, 2 or 75 as above."""
    options, command = parse(sys.argv[1:] if argv is None else argv)
    try:
        supervisor = Supervisor(options, command)
    except ValueError as error:
        _say(str(error))
        return EXIT_MISTAKE
    if options.dry_run:
        sys.stdout.write(f"{options.processes} x {shlex.join(command)}\n")
        return 0
    if shutil.which(command[0]) is None:
        _say(f"there is no program {command[0]!r} on PATH")
        return EXIT_MISTAKE
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
