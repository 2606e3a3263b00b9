"""Where the work of a conversion is done: here, in processes beside this one, or on Apache Beam.

The work is the same function everywhere. It leaves a manifest, in a folder that all see, when a job
is done; so the result depends on none of this, and Beam need not carry results back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
import pickle
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import process
from pathlib import Path
from typing import Any

from data_pipelines import sidecar
from data_pipelines.processes import end_with_parent
from data_pipelines.rlds import writer

_POLL_SECONDS = 0.5
_JOBS, _STOP = "jobs.pickle", "stop.json"


class NeedsSettingError(ValueError):
    """The conversion stops: the user has to give a setting."""


# The user's business: shown without the traces of another process, and not tried again.
_FINAL = {error.__name__: error for error in (writer.NoSpaceError, NeedsSettingError)}


@dataclasses.dataclass(frozen=True)
class Job:
    """Something that is to be written."""

    path: Path

    @property
    def manifest(self) -> Path:
        """What the work writes last."""
        return self.path.with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class Local:
    """So many processes of this machine; 1: this one."""

    workers: int
    runner: str = ""
    beam_options: str = ""


def run(
    work: Callable[[Any], dict], jobs: Iterable[Job], options: Any
) -> contextlib.closing[Iterator[dict]]:
    """The result of each job, in the order in which they end; what runs elsewhere is ended with
    the block. `options`: those of every conversion that say where it runs, or `Local`. In this
    process `jobs` are taken one by one, each when the one before is done."""
    if jobs and options.runner:
        results = _run_on_beam(work, jobs, options.runner, options.beam_options)
    elif jobs and options.workers > 1:
        results = _run_in_processes(work, jobs, options.workers)
    else:
        results = (work(job) for job in jobs)
    return contextlib.closing(results)


def _run_in_processes(
    work: Callable[[Any], dict], jobs: Sequence[Job], workers: int
) -> Iterator[dict]:
    # Spawned, not forked: the parent may hold threads (JAX, tqdm).
    spawn = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(workers, spawn, initializer=end_with_parent)
    waiting = iter(jobs)
    try:
        # No more are given away than run: what a pool has queued is done even after a stop.
        running = {pool.submit(work, job) for job in itertools.islice(waiting, workers)}
        while running:
            done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            running |= {pool.submit(work, job) for job in itertools.islice(waiting, len(done))}
            yield from (future.result() for future in done)
    except tuple(_FINAL.values()) as error:
        raise error.with_traceback(None) from None
    except process.BrokenProcessPool:
        raise RuntimeError(
            f"one of {workers} worker processes was ended, by want of memory (fewer --workers need "
            "less) or by a crash; the same command goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _run_on_beam(
    work: Callable[[Any], dict], jobs: Sequence[Job], runner: str, options: str
) -> Iterator[dict]:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            f"--runner {runner} needs Apache Beam, which cannot be imported ({error}): make "
            ".venv/.beam, or install apache-beam into an environment of its own"
        ) from error
    folder = jobs[0].manifest.parent
    (folder / _STOP).unlink(missing_ok=True)
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(shlex.split(options)))
    _ = (
        pipeline
        | "Jobs" >> beam.Create(_save_jobs(jobs, folder / _JOBS))
        | "Spread" >> beam.Reshuffle()
        | "Work" >> beam.Map(functools.partial(_work_on_beam, work, folder))
    )
    end, handles = _start(pipeline)
    left = {job.manifest.name: job for job in jobs}
    try:
        while left:
            ended = bool(futures.wait([end], _POLL_SECONDS).done)
            _raise_final(folder)
            for name in sorted(left.keys() & set(os.listdir(folder))):
                yield sidecar.read_json(left.pop(name).manifest)
            if ended and left:
                end.result()
                raise RuntimeError(f"{runner} ended without {next(iter(left))}")
        end.result()
    finally:
        if handles and not end.done():
            handles[0].cancel()


Place = tuple[int, int, str]  # offset, length, digest


def _save_jobs(jobs: Sequence[Job], path: Path) -> list[Place]:
    """Where each is: runners limit what a pipeline itself may hold."""
    places, offset = [], 0
    with path.open("wb") as file:
        for job in jobs:
            data = pickle.dumps(job)
            length = file.write(data)
            places.append((offset, length, hashlib.sha256(data).hexdigest()))
            offset += length
    return places


def _work_on_beam(work: Callable[[Any], dict], folder: Path, place: Place) -> None:
    with (folder / _JOBS).open("rb") as file:
        file.seek(place[0])
        data = file.read(place[1])
    if hashlib.sha256(data).hexdigest() != place[2]:
        raise ValueError(f"{folder / _JOBS} is not what this pipeline wrote: start it again")
    job = pickle.loads(data)  # the very bytes of _save_jobs: the pipeline itself has their digest
    if job.manifest.exists():  # Beam tries a job again when another one beside it has failed
        return
    try:
        work(job)
    except tuple(_FINAL.values()) as error:
        kind = next(name for name, one in _FINAL.items() if isinstance(error, one))
        sidecar.write_json(folder / _STOP, [kind, str(error)])


def _raise_final(folder: Path) -> None:
    if (folder / _STOP).exists():
        name, message = sidecar.read_json(folder / _STOP)
        raise _FINAL[name](message)


def _start(pipeline: Any) -> tuple[futures.Future, list]:
    """Its end, and what it can be cancelled by once it runs; local runners keep their thread busy
    until they end."""
    end, handles = futures.Future(), []

    def run() -> None:
        try:
            handles.append(pipeline.run())
            handles[0].wait_until_finish()
        except BaseException as error:
            end.set_exception(error)
        else:
            end.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return end, handles
