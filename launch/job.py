"""The processes of one attempt on this machine: started together, and none outlives it."""

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

LINES_KEPT = 100  # stacks of many threads

# Runs the command in this process, which the kernel kills should the supervisor vanish.
_BOUND = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the supervisor is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Job:
    """A context: on leaving it every process is dead, with what each has started in its group."""

    def __init__(self, command: list[str], beats: list[Path], devices_per_process: int | None):
        """One process per heartbeat file; several are told to join (parallel/distributed.py)."""
        self._tails = [collections.deque(maxlen=LINES_KEPT) for _ in beats]
        self._processes: list[subprocess.Popen] = []
        self._pumps: list[threading.Thread] = []
        bound = [sys.executable, "-ISc", _BOUND, str(os.getpid()), *command]
        coordinator = f"127.0.0.1:{_free_port()}"
        for number, beat in enumerate(beats):
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", "LAPA_HEARTBEAT": str(beat)}
            if len(beats) > 1:
                environment["JAX_COORDINATOR_ADDRESS"] = coordinator
                environment["JAX_NUM_PROCESSES"] = str(len(beats))
                environment["JAX_PROCESS_ID"] = str(number)
            if devices_per_process:
                first = number * devices_per_process
                mine = range(first, first + devices_per_process)
                environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, mine))
            process = subprocess.Popen(
                bound,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, which is signalled and killed whole
            )
            prefix = f"[{number}] ".encode() if len(beats) > 1 else b""
            pump = threading.Thread(
                target=_pump, args=(process, self._tails[number], prefix), daemon=True
            )
            pump.start()
            self._processes.append(process)
            self._pumps.append(pump)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.signal(signal.SIGKILL)
        for process, pump in zip(self._processes, self._pumps, strict=True):
            process.wait()
            pump.join(timeout=5.0)  # what left its group may hold the pipe open

    def codes(self) -> list[int | None]:
        """Exit codes, -N for a signal N; None for what is running.

        Nobody is reaped before the end: a process that has ended keeps its group's number.
        """
        return [_code(process) for process in self._processes]

    def signal(self, number: int) -> None:
        """To every process and what it has started."""
        for process in self._processes:
            if process.returncode is None:  # not reaped, so that the number is still its own
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def last_lines(self) -> dict[str, list[str]]:
        """The last lines that each process wrote."""
        return {str(i): list(tail) for i, tail in enumerate(self._tails)}


def _code(process: subprocess.Popen) -> int | None:
    if process.returncode is not None:
        return process.returncode
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _pump(process: subprocess.Popen, tail: collections.deque, prefix: bytes) -> None:
    for line in process.stdout:
        tail.append(line.decode(errors="replace").rstrip("\n"))
        with contextlib.suppress(OSError):  # a closed terminal must not stop the training
            sys.stdout.buffer.write(prefix + line)
            sys.stdout.buffer.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
