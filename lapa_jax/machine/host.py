"""What `lapa doctor` finds out about this host: packages, memory, the disk and bucket of runs.

A check takes the verb's flags and gives findings: (name, state, what was found, what to do about
it, figures), the last two where there are any. States are ok, warning and problem.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from lapa_jax.machine import devices
from lapa_jax.machine.environment import package_versions

DISK_BYTES = 2**28
GIB = 2**30
# What requirements/light.txt leaves out.
NOT_LIGHT = {"tensorflow", "tensorflow-cpu", "tensorflow-datasets", "rlds", "pyarrow"}
BUCKET_SECONDS = 60.0  # without credentials the client asks again and again


def versions(args: argparse.Namespace) -> Iterator[tuple]:
    """Python, and whether what is installed is what this package asks for."""
    yield "python", "ok", platform.python_version()
    try:
        wanted = importlib.metadata.requires("lapa_jax") or []
    except importlib.metadata.PackageNotFoundError:
        do = "pip install -e ."
        yield "packages", "warning", "lapa_jax is not installed, so its needs are unknown", do
        return
    wrong, absent = [], []
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            light = requirement.name in NOT_LIGHT
            (absent if light else wrong).append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    known = package_versions(("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "flax"))
    if known.get("jax") != known.get("jaxlib"):
        wrong.append(f"jax {known.get('jax')} beside jaxlib {known.get('jaxlib')}")
    told = ", ".join(f"{name} {version}" for name, version in known.items())
    told += f"; light: {', '.join(absent)}" if absent else ""
    if wrong:
        do = "pip install -r requirements/base.txt (or tpu.txt, cuda.txt)"
        yield "packages", "problem", f"{'; '.join(wrong)} ({told})", do, known
    else:
        yield "packages", "ok", told


def memory(args: argparse.Namespace) -> Iterator[tuple]:
    """Memory of the host, and the shared memory that NCCL needs in containers."""
    size = psutil.virtual_memory()
    found = f"{size.available / GIB:.1f} of {size.total / GIB:.1f} GiB free"
    if size.available < 0.1 * size.total:
        yield "memory", "warning", found, "end what else runs here: loading needs memory"
    else:
        yield "memory", "ok", found
    shared = Path("/dev/shm")
    if devices.hardware()[0] == "gpu" and shared.exists():
        size = shutil.disk_usage(shared).total
        found = f"{size / GIB:.2f} GiB"
        if size < GIB:
            do = "start the container with --ipc=host or --shm-size=8g: NCCL uses it"
            yield "shared memory", "warning", found, do
        else:
            yield "shared memory", "ok", found


def disk(args: argparse.Namespace) -> Iterator[tuple]:
    """Room and speed of the directory of runs, and the clock of its server."""
    folder = Path(args.dir)
    probe = folder / f".lapa-doctor-{os.getpid()}"
    block = os.urandom(2**22)
    try:
        free = shutil.disk_usage(folder).free
        start = time.perf_counter()
        with open(probe, "wb") as file:
            for _ in range(DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        write = DISK_BYTES / (time.perf_counter() - start)
        skew = time.time() - probe.stat().st_mtime
        start = time.perf_counter()
        with open(probe, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # not from the cache
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(len(block)):
                pass
        read = DISK_BYTES / (time.perf_counter() - start)
    except OSError as error:
        yield "disk", "problem", f"{folder}: {error}", "make --dir a directory to write to"
        return
    finally:
        probe.unlink(missing_ok=True)
    found = (
        f"{folder}: {free / GIB:.0f} GiB free, writes {write / 1e6:.0f} MB/s, "
        f"reads {read / 1e6:.0f} MB/s"
    )
    figures = {"free_bytes": free, "write_bytes_per_second": write, "read_bytes_per_second": read}
    if free < 10 * GIB:
        do = "free some: a checkpoint of 7 B parameters with AdamW is about 80 GB"
        yield "disk", "warning", found, do, figures
    elif write < 100e6:
        do = f"saving 10 GiB takes {10 * GIB / write / 60:.0f} minutes: put runs on a faster disk"
        yield "disk", "warning", found, do, figures
    else:
        yield "disk", "ok", found, "", figures
    skew = max(0.0, abs(skew) - 1.0)  # some file systems keep whole seconds
    if skew > 5:
        do = "synchronise the clock (chrony): certificates, tokens and ages of files depend on it"
        yield "clock", "warning", f"{skew:.0f} s from that of the disk's server", do
    else:
        yield "clock", "ok", "agrees with that of the disk"


def bucket(args: argparse.Namespace) -> Iterator[tuple]:
    """Whether an object can be written, read and deleted, as checkpoints are."""
    if not args.bucket:
        return
    import tensorstore

    key, value = f"lapa-doctor-{platform.node()}-{os.getpid()}", os.urandom(2**20)
    try:
        store = tensorstore.KvStore.open(args.bucket.rstrip("/") + "/").result()
        start = time.perf_counter()
        store.write(key, value).result(BUCKET_SECONDS)
        same = store.read(key).result(BUCKET_SECONDS).value == value
        seconds = time.perf_counter() - start
        only = tensorstore.KvStore.KeyRange(key, key + "\0")
        store.delete_range(only).result(BUCKET_SECONDS)
    except (ValueError, OSError, RuntimeError) as error:
        do = (
            "check the name; gcloud auth application-default login, or a service account that "
            "may write (roles/storage.objectUser)"
        )
        yield "bucket", "problem", f"{args.bucket}: {error}", do
        return
    if not same:
        yield "bucket", "problem", f"{args.bucket}: read other bytes than written", "do not use it"
    else:
        yield "bucket", "ok", f"{args.bucket}: 1 MiB written and read in {seconds:.2f} s"
