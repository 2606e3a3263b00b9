"""`lapa bench serve`: what the server adds to the jitted call, and what batching gains.

The policy has the size of the demo's and random weights. Server and clients are processes of this
machine and share its cores; the clients speak openpi's protocol.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from experiments.action_vla import tabletop
from lapa_jax import stages
from lapa_jax.aot.assess import stand_in_assets
from lapa_jax.benchmarks import measure
from lapa_jax.interop.imported import Imported, write_run
from lapa_jax.runs import loaded
from lapa_jax.serving import wire
from lapa_jax.serving.limits import BATCH_SIZES

REQUESTS = 100  # for each of --steps
_START_SECONDS = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=16, help="at the same time")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One row. `added`: a client's round trips less the median of the call alone. `cpu_ms`: of all
    cores, for one observation; more than `cores` seconds of it a second there cannot be."""
    number = REQUESTS * args.steps
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "run"
        make_policy(policy, args.dtype)
        alone = _alone(policy, number, args.clients)
        sizes = [size for size in BATCH_SIZES if size <= args.clients]
        with serving(policy, "--batch_sizes", ",".join(map(str, sizes))) as (port, server):
            asyncio.run(_ask(port, args.clients, number))  # warm
            one, _ = asyncio.run(_ask(port, 1, number))
            before = _cpu_seconds(server)
            many, batches = asyncio.run(_ask(port, args.clients, 4 * number))
            spent = _cpu_seconds(server) - before
    added = np.array(one) - alone["call_ms_p50"]
    one_rate, many_rate = 1e3 / np.mean(one), 1e3 * args.clients / np.mean(many)
    row = alone | {
        "round_trip_ms_p50": np.percentile(one, 50),
        "round_trip_ms_p99": np.percentile(one, 99),
        "added_ms_p50": np.percentile(added, 50),
        "added_ms_p99": np.percentile(added, 99),
        "one_client_per_second": one_rate,
        "clients": args.clients,
        "clients_per_second": many_rate,
        "clients_ms_p99": np.percentile(many, 99),
        "mean_batch": np.mean(batches),
        "server_cpu_ms": 1e3 * spent[0] / len(many),
        "clients_cpu_ms": 1e3 * spent[1] / len(many),
        "cores": len(os.sched_getaffinity(0)),
        "gain": many_rate / one_rate,
    }
    return {"serve": [{key: round(float(value), 3) for key, value in row.items()}]}


def _cpu_seconds(server: psutil.Process) -> np.ndarray:
    """Of the server, and of this process, in which the clients are."""
    return np.array([sum(p.cpu_times()[:2]) for p in (server, psutil.Process())])


def make_policy(out: Path, dtype: str) -> None:
    """Writes a run of the tabletop's action VLA with random weights."""
    config = tabletop.get_config()
    config.compute_dtype = dtype
    assets = stand_in_assets(config)
    params, variables = jax.jit(stages.build(config.lock(), assets).init)(jax.random.key(0))
    made = Imported(config, params, assets, variables)
    write_run(out, made, source="random", source_format="random")


def _alone(run: Path, number: int, most: int) -> dict[str, float]:
    """The jitted call of this process: of one observation, and how many a second in batches."""
    policy = loaded.load_policy(run)
    images, texts = _images(most, policy.image_size), _texts(most)

    def call(size: int) -> list[float]:
        given = images[:size], texts[:size]
        times = measure.seconds(lambda: jax.device_get(policy.predict(*given)), number, warm_up=10)
        return [1e3 * x for x in times]

    one, start = call(1), time.process_time()
    many = call(most)
    return {
        "call_ms_p50": np.percentile(one, 50),
        "call_ms_p99": np.percentile(one, 99),
        "calls_per_second": 1e3 / np.mean(one),
        "batched_per_second": 1e3 * most / np.mean(many),
        "batched_cpu_ms": 1e3 * (time.process_time() - start) / most / len(many),
    }


@contextlib.contextmanager
def serving(run: Path, *flags: str) -> Iterator[tuple[int, psutil.Process]]:
    """`lapa serve` in a process of its own: its port, and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lapa_jax", "serve", "--workdir", str(run)]
    command += ["--port", str(port), "--requests_per_second", "0", *flags]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            _wait_for(port, process, log)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def _wait_for(port: int, process: subprocess.Popen, log: Any) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"lapa serve ended with {process.returncode}:\n{log.read()[-2000:]}")
        time.sleep(0.1)
    raise RuntimeError(f"lapa serve did not start in {_START_SECONDS:g} s")


def _images(number: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, *size, 3), np.uint8)


def _texts(number: int) -> list[str]:
    return [f"push block {i} to the wall" for i in range(number)]


async def _ask(port: int, clients: int, number: int) -> tuple[list[float], list[int]]:
    """(round trips in ms, sizes of the batches that they were in) of `number` requests."""
    from websockets.asyncio.client import connect

    async def client(text: str) -> list[tuple[float, int]]:
        found = []
        async with connect(f"ws://127.0.0.1:{port}", compression=None) as connection:
            metadata = wire.unpack(await connection.recv())
            image = _images(1, metadata["image_size"])[0]
            for _ in range(number // clients):
                start = time.perf_counter()
                await connection.send(wire.pack({"image": image, "prompt": text}))
                answer = wire.unpack(await connection.recv())
                milliseconds = 1e3 * (time.perf_counter() - start)
                found.append((milliseconds, answer["server_timing"]["batch"]))
        return found

    found = [x for one in await asyncio.gather(*map(client, _texts(clients))) for x in one]
    return [x for x, _ in found], [batch for _, batch in found]
