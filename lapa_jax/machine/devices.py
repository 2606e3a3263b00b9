"""What `lapa doctor` finds out about devices: are they there, do they compute, and how fast do they
talk to each other."""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lapa_jax.parallel import distributed

# PCI numbers of TPU chips, as JAX looks for them.
_GOOGLE = "0x1ae0"
_TPUS = ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
_FIX = {
    "gpu": "nvidia-smi must list the GPUs (in a container: --gpus all); install "
    "requirements/cuda.txt; unset JAX_PLATFORMS, or set it to cuda,cpu",
    "tpu": "install requirements/tpu.txt; end other processes that hold the TPU (in a container: "
    "--privileged --net=host); unset JAX_PLATFORMS, or set it to tpu,cpu",
    "cpu": "set JAX_PLATFORMS=cpu",
}


def hardware() -> tuple[str, int]:
    """(gpu, tpu or cpu, how many), as the operating system says, whatever JAX sees."""
    gpus = [p for p in Path("/dev").glob("nvidia*") if p.name[6:].isdecimal()]
    if gpus:
        return "gpu", len(gpus)
    tpus = 0
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        number = vendor.with_name("device")
        tpus += vendor.read_text().strip() == _GOOGLE and number.read_text().strip() in _TPUS
    return ("tpu", tpus) if tpus else ("cpu", 0)


def devices(args: argparse.Namespace) -> Iterator[tuple]:
    """Everything about them; only that they are missing, where they are."""
    kind, number = hardware()
    expected = args.expect or kind
    try:
        distributed.initialize_from(args)
        found = jax.devices()
    except (RuntimeError, ValueError, AssertionError) as error:  # the last one of JAX, with no word
        asked = os.environ.get("JAX_PLATFORMS")
        told = f"JAX does not start{f' with JAX_PLATFORMS={asked}' if asked else ''}: "
        told += str(error) or "no such device"
        yield "devices", "problem", told, _FIX[expected]
        return
    seen, text = found[0].platform, f"{len(found)} x {found[0].device_kind}"
    text += f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    figures = {"platform": seen, "count": len(found), "processes": jax.process_count()}
    if seen != expected:
        platforms = f", JAX_PLATFORMS={p}" if (p := os.environ.get("JAX_PLATFORMS")) else ""
        told = f"{text}: expected a {expected.upper()}, JAX uses the {seen.upper()}{platforms}"
        yield "devices", "problem", told, _FIX[expected], figures
        return
    if args.devices and len(found) != args.devices:
        do = "a device is missing, or hidden (CUDA_VISIBLE_DEVICES, JAX_LOCAL_DEVICE_IDS)"
        yield "devices", "problem", f"{text}: expected {args.devices}", do, figures
    elif kind == seen and jax.local_device_count() < number and jax.process_count() == 1:
        do = "hidden by CUDA_VISIBLE_DEVICES, JAX_LOCAL_DEVICE_IDS or the container?"
        yield "devices", "warning", f"{text}: the machine has {number}", do, figures
    else:
        yield "devices", "ok", text, "", figures
    yield from _memory()
    yield _cache()
    yield _arithmetic()
    yield _collectives(found)
    yield from _clocks()


def _memory() -> Iterator[tuple]:
    stats = [(d, d.memory_stats()) for d in jax.local_devices()]
    stats = [(d, s) for d, s in stats if s and s.get("bytes_limit")]
    if not stats:
        return  # CPUs do not say
    limits = {s["bytes_limit"] for _, s in stats}
    used = max(s["bytes_in_use"] for _, s in stats)
    yield (
        "device memory",
        "ok",
        f"{min(limits) / 2**30:.1f} GiB each for JAX, {used / 2**30:.2f} in use",
        "",
        {"bytes_limit": min(limits), "bytes_in_use": used},
    )


def _cache() -> tuple:
    folder = jax.config.jax_compilation_cache_dir
    if not folder:
        do = "JAX_COMPILATION_CACHE_DIR=DIR saves compiling at every start"
        return "compile cache", "warning", "none", do
    if "://" in folder:
        return "compile cache", "ok", folder
    probe = Path(folder) / f"lapa-doctor-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return "compile cache", "problem", str(error), "set JAX_COMPILATION_CACHE_DIR to another"
    return "compile cache", "ok", f"{folder}, {sum(1 for _ in Path(folder).iterdir())} entries"


def _arithmetic() -> tuple:
    """The same product on every device of this process: a device that differs is broken."""
    side = 512 if jax.default_backend() == "cpu" else 4096
    x = np.random.default_rng(0).standard_normal((side, side), np.float32)
    product = jax.jit(lambda a: a @ a.T)
    results, times = [], []
    for device in jax.local_devices():
        a = jax.device_put(x, device)
        results.append(np.asarray(product(a)))
        start = time.perf_counter()
        for _ in range(5):
            last = product(a)
        jax.block_until_ready(last)
        times.append((time.perf_counter() - start) / 5)
    rates = [2 * side**3 / t / 1e12 for t in times]
    figures = {"tflops": rates}
    wrong = [i for i, r in enumerate(results) if r.tobytes() != results[0].tobytes()]
    if wrong or not np.isfinite(results[0]).all():
        do = "do not train on it: have the machine replaced"
        return "arithmetic", "problem", f"devices {wrong} give other products", do, figures
    told = f"the same product on each, {min(rates):.3g} to {max(rates):.3g} TFLOP/s in float32"
    if jax.default_backend() != "cpu" and min(rates) < 0.7 * max(rates):
        slow = rates.index(min(rates))
        do = "is it shared, hot or throttled? All devices wait for the slowest"
        return "arithmetic", "warning", f"{told}: device {slow} is slow", do, figures
    return "arithmetic", "ok", told, "", figures


def _collectives(found: list[jax.Device]) -> tuple:
    """All-reduce over all devices: is the sum right, and how many bytes a second."""
    count = len(found)
    if count == 1:
        return "collectives", "ok", "one device: nothing to talk to"
    sizes = (2**20, 2**24) if jax.default_backend() == "cpu" else (2**20, 2**28)
    mesh = Mesh(np.array(found), "x")
    over_x = PartitionSpec("x")
    split = NamedSharding(mesh, over_x)
    add = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.psum(x, "x"), mesh=mesh, in_specs=over_x, out_specs=PartitionSpec()
        )
    )
    figures, wrong = {}, False
    for size in sizes:
        length = size // 4
        x = jax.make_array_from_callback(
            (count * length,),
            split,
            lambda index, length=length: np.full(length, index[0].start // length, np.float32),
        )
        total = add(x)
        wrong |= bool(jnp.any(total.addressable_data(0) != count * (count - 1) / 2))
        start = time.perf_counter()
        for _ in range(5):
            total = add(x)
        jax.block_until_ready(total)
        seconds = (time.perf_counter() - start) / 5
        # What each device sends and receives in a ring.
        figures[f"all_reduce_{size >> 20}_mib"] = 2 * (count - 1) / count * size / seconds
    told = ", ".join(
        f"{rate / 1e9:.3g} GB/s of {name.split('_')[2]} MiB" for name, rate in figures.items()
    )
    if wrong:
        do = "do not train on these machines: a link or a device is broken"
        return "collectives", "problem", "an all-reduce gives a wrong sum", do, figures
    return "collectives", "ok", f"all-reduce over {count}: {told}", "", figures


def _clocks() -> Iterator[tuple]:
    """How far the clocks of the processes are apart."""
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("lapa doctor")
    # Two halves: JAX keeps 32 bits, too few for the time.
    now = time.time()
    whole, part = int(now), now - int(now)
    times = multihost_utils.process_allgather(np.array([whole % 10**6, part], np.float32))
    seconds = times[:, 0] + times[:, 1].astype(np.float64)
    skew = float(seconds.max() - seconds.min())
    if skew > 2:
        late = int(np.argmin(seconds))
        do = f"synchronise them (chrony); process {late} is behind"
        yield "clocks", "warning", f"{skew:.1f} s apart", do, {"seconds": skew}
    else:
        yield "clocks", "ok", f"{skew:.2f} s apart at most", "", {"seconds": skew}
