"""Several processes as one run: start-up, agreement, a common stop, and an end when one is lost.

`initialize` comes once, before anything touches a device. On one process, with no sign of a cluster
in the environment, it starts nothing. It always logs the devices, so that a run on the wrong
machine is seen in its first lines. Everything else here costs nothing on one process.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

T = TypeVar("T")

HEARTBEAT_SECONDS = 60
CONNECT_SECONDS = 300  # in which all processes of a run must have come
OWN_ERROR_SECONDS = 10  # for an orderly end of a process that has failed by itself
EXIT_ALONE = 70  # ended without the other processes: one of them, or this one, has failed

# Variables that a launcher sets on every process of a run; a count must exceed one to matter.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # as the flags
_PRESENT = ("JAX_COORDINATOR_ADDRESS", "COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")

_LOST = (
    "\nIf this is because another process was lost, its own log and its machine tell why. The run "
    "continues from its newest complete checkpoint when all processes are started again"
)

_asked = itertools.count(1)
_heartbeat_seconds = HEARTBEAT_SECONDS
_leaving: threading.Timer | None = None
_uninterrupted = _noted = False  # a signal waits


class OtherProcessError(RuntimeError):
    """What all processes were doing has failed on another one."""


# --- Start-up ---


def cluster_sign(environ: Mapping[str, str] = os.environ) -> str | None:
    """The variable by which the environment says that this process is one of several, NAME=VALUE;
    None where nothing does."""
    # A job step of Slurm has SLURM_STEP_ID; the batch script around it has not.
    counts = [n for n in _COUNTS if n != "SLURM_NTASKS" or "SLURM_STEP_ID" in environ]
    hosts = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    names = [n for n in counts if environ.get(n, "1") not in ("", "1")]
    names += ["TPU_WORKER_HOSTNAMES"] if len(hosts) > 1 else []
    names += [n for n in _PRESENT if environ.get(n)]
    return f"{names[0]}={environ[names[0]]}" if names else None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of `initialize`, for a verb that runs on several processes."""
    group = parser.add_argument_group(
        "several processes", "found by themselves on TPU pods and under Slurm or Open MPI"
    )
    group.add_argument("--coordinator_address", help="HOST:PORT on which process 0 will listen")
    group.add_argument(
        "--num_processes", type=int, help="of the run; 1: this one, whatever else says"
    )
    group.add_argument("--process_id", type=int, help="of this process, from 0")
    group.add_argument(
        "--multihost",
        action="store_true",
        default=None,
        help="for TPU pods that only their metadata server tells of",
    )
    group.add_argument(
        "--heartbeat_seconds",
        type=int,
        default=HEARTBEAT_SECONDS,
        help="a process unheard of for so long is lost, and the others end (default: %(default)s)",
    )


def initialize(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    multihost: bool | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Connects the processes of a run; a second call is an error unless it has nothing to do.

    With no addresses given, they are those of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, where all three are set; else jax.distributed finds them (Cloud TPU, GKE, Slurm,
    Open MPI). num_processes=1 alone connects nothing, whatever the environment says. TPU pods that
    announce themselves only through their metadata server need multihost=True.
    """
    global _heartbeat_seconds
    given = (coordinator_address, num_processes, process_id)
    alone = given == (None, 1, None)
    if given == (None, None, None) and all(os.environ.get(name) for name in VARIABLES):
        coordinator_address = os.environ[VARIABLES[0]]
        num_processes, process_id = (int(os.environ[name]) for name in VARIABLES[1:])
    explicit = coordinator_address is not None
    partly = None in (coordinator_address, num_processes, process_id)
    if partly and given != (None, None, None) and not alone:
        raise ValueError(
            f"coordinator_address={coordinator_address!r}, num_processes={num_processes} and "
            f"process_id={process_id}: give all three, none where the cluster tells them, or "
            f"num_processes=1 alone for one process"
        )
    if multihost is not None and (alone or (explicit and not multihost)):
        raise ValueError(
            f"multihost={multihost} contradicts num_processes={num_processes}, "
            f"coordinator_address={coordinator_address!r}"
        )
    sign = cluster_sign()
    if explicit or multihost or (multihost is None and sign and not alone):
        if explicit:
            why = f"process {process_id} of {num_processes}, {coordinator_address}"
        else:
            why = sign or "--multihost"
        with _connecting(why):
            # A dead peer shows as a stalled collective; the heartbeat is what ends it then.
            jax.distributed.initialize(
                coordinator_address=coordinator_address,
                num_processes=num_processes,
                process_id=process_id,
                heartbeat_timeout_seconds=heartbeat_seconds,
                initialization_timeout=CONNECT_SECONDS + 60,  # _connecting ends it before
            )
        _heartbeat_seconds = heartbeat_seconds
    devices = jax.devices()
    asked = os.environ.get("JAX_PLATFORMS", "cpu")
    if devices[0].platform == "cpu" and asked.split(",")[0] in ("cuda", "gpu"):
        # JAX passes over CUDA without its plugin, though it refuses other platforms that lack.
        raise RuntimeError(
            f"JAX_PLATFORMS={asked}, but JAX has no plugin for CUDA and would use the CPU: install "
            "requirements/cuda.txt, or set JAX_PLATFORMS=cpu"
        )
    logging.info(
        "process %d of %d: %d local of %d devices, %s (%s)",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        len(devices),
        devices[0].device_kind,
        devices[0].platform,
    )


@contextlib.contextmanager
def _connecting(why: str) -> Iterator[None]:
    """Tells what is awaited, and ends this process when the others do not come: JAX would abort
    with the stacks of its service."""
    come = threading.Event()
    if "SLURM" in why:
        why += "; in a shell of srun or salloc nobody starts the others"
    logging.info(
        "waiting for the other processes of the run, %d s at most (%s). "
        "--num_processes 1 uses this one alone",
        CONNECT_SECONDS,
        why,
    )

    def watch() -> None:
        if not come.wait(CONNECT_SECONDS):
            logging.error(
                "after %d s the other processes have not come (%s): start all of them, with the "
                "same command and within that time; a proxy must not stand between them",
                CONNECT_SECONDS,
                why,
            )
            _exit()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        come.set()


def initialize_from(args: argparse.Namespace) -> None:
    """`initialize` with what the flags of `add_flags` say."""
    initialize(
        coordinator_address=args.coordinator_address,
        num_processes=args.num_processes,
        process_id=args.process_id,
        multihost=args.multihost,
        heartbeat_seconds=args.heartbeat_seconds,
    )


def is_first() -> bool:
    """Whether this is process 0, which alone writes the files of a run."""
    return jax.process_index() == 0


# --- Agreement: every process must make these calls, in the same order ---


def exchange(text: str) -> list[str]:
    """What each process says, in their order; waits for the last."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(data.size))
    longest = int(lengths.max())
    if longest == 0:
        return [""] * len(lengths)
    # Of few sizes: each is one more program to compile.
    padded = np.zeros(max(256, 1 << (longest - 1).bit_length()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, lengths, strict=True)]


def together(action: Callable[[], T]) -> T:
    """Runs `action` on every process; if it fails on one of them, all raise.

    It must not wait for other processes: one that fails would leave them waiting.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    told = exchange("" if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    failed = [f"process {number}: {text}" for number, text in enumerate(told) if text]
    if failed:
        raise OtherProcessError("\n".join(failed))
    return result


def on_first(action: Callable[[], Any]) -> None:
    """Runs `action` on process 0, for what is done once in a run: files. The others wait for it,
    and raise if it fails. It must not compute on devices: those are of all processes."""
    together(lambda: action() if is_first() else None)


def from_first(action: Callable[[], T]) -> T:
    """What `action` gives on process 0, in every process; it must be JSON. For files: another host
    may see an old one."""
    told = together(lambda: json.dumps(action()) if is_first() else "")
    return json.loads(exchange(told)[0])


def agree(what: str, values: Mapping[str, Any]) -> None:
    """Raises ValueError on every process where one has another of these JSON values than process 0:
    each would compute its part of another step, and nothing else tells."""
    told = [json.loads(text) for text in exchange(json.dumps(values))]
    lines = [
        f"  {key}: {told[0].get(key)!r} on process 0, {other.get(key)!r} on process {number}"
        for number, other in enumerate(told)
        for key in sorted(told[0].keys() | other.keys())
        if json.dumps(told[0].get(key)) != json.dumps(other.get(key))  # 1, 1.0 and True differ
    ]
    if lines:
        more = [f"  and {len(lines) - 8} more"] if len(lines) > 8 else []
        raise ValueError(
            f"the processes of a run must have the same {what}\n" + "\n".join(lines[:8] + more)
        )


# --- The end ---


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """`stopped()`: whether SIGTERM (preemption), Ctrl-C or a closed terminal (not under `nohup`)
    asks to stop after this step.

    With several processes, a signal to any of them stops all after the same step: all must ask
    after every step. JAX catches the signal, and the processes agree on which time of asking beside
    the training, through the coordinator, so that asking takes no collective and no time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    if jax.process_count() > 1:
        # SIGTERM is JAX's, whose place a handler of ours would take.
        names, handler = (signal.SIGINT,), lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        # They agree on the one after the latest number: all numbers must occur, from 1. Steps do
        # not, in a run that continues.
        stopped = lambda: multihost_utils.reached_preemption_sync_point(next(_asked))  # noqa: E731
    else:
        stop = threading.Event()
        names, handler = (signal.SIGTERM, signal.SIGINT), lambda *_: stop.set()
        stopped = stop.is_set
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        names = (*names, signal.SIGHUP)
    before = {name: signal.signal(name, handler) for name in names}
    try:
        yield stopped
    finally:
        for name, earlier in before.items():
            signal.signal(name, earlier)


@contextlib.contextmanager
def stopped_at_once() -> Iterator[None]:
    """Around what comes before and after the steps, where nothing waits to be saved: what
    `stop_signal` knows ends it, which is told; inside of `uninterrupted` when that is done, or at
    a second signal.

    With several processes a closed terminal is SIGTERM, which JAX catches: all stop after the first
    step. Ctrl-C is an error there, of this one alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _noted
    _noted = False

    def at_once(*_: Any) -> None:
        global _noted
        if not _uninterrupted or _noted:
            raise KeyboardInterrupt
        _noted = True

    names, handler = (signal.SIGTERM, signal.SIGINT), at_once
    if jax.distributed.is_initialized():
        names, handler = (), lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        names = (*names, signal.SIGHUP)
    before = {name: signal.signal(name, handler) for name in names}
    try:
        yield
    except KeyboardInterrupt:
        if jax.distributed.is_initialized():
            raise
        logging.warning("stopped by a signal, at no step: there is nothing new to save")
    finally:
        for name, earlier in before.items():
            signal.signal(name, earlier)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Around tracing and compiling: the process may crash where an exception of a signal's handler
    comes out of them."""
    global _uninterrupted, _noted
    before, _uninterrupted = _uninterrupted, True
    try:
        yield
    finally:
        _uninterrupted = before
    if _noted and not before:
        _noted = False
        raise KeyboardInterrupt


@contextlib.contextmanager
def leaving_on_error() -> Iterator[None]:
    """After an error this process ends in time, however long the others could keep it waiting.

    They may be lost, and with them every collective and barrier that an orderly end would wait for.
    JAX ends processes when one is unheard of for the heartbeat, and names it; where that does not
    come, this one ends after twice the heartbeat, and so the others find out. Where its own error
    is not of JAX, it has nobody to wait for: all fail alike at about the same time, or it alone.
    """
    global _leaving
    try:
        yield
    except BaseException as error:
        if jax.process_count() > 1 and _leaving is None:
            of_others = isinstance(error, jax.errors.JaxRuntimeError)
            logging.error(
                "process %d of %d fails: %s: %s%s",
                jax.process_index(),
                jax.process_count(),
                type(error).__name__,
                error,
                _LOST if of_others else "",
            )
            index = jax.process_index()  # in time: JAX's own end forgets it
            seconds = 2 * _heartbeat_seconds if of_others else OWN_ERROR_SECONDS
            _leaving = threading.Timer(seconds, _leave, [index])
            _leaving.daemon = True
            _leaving.start()
        raise


def _leave(index: int) -> None:
    logging.error("process %d ends without the others", index)
    _exit()


def _exit() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(EXIT_ALONE)
