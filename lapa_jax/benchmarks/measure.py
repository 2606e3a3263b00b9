"""What a device can do, and how long programs take: what the benchmarks share."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lapa_jax import stages
from lapa_jax.aot.assess import stand_in_assets
from lapa_jax.machine.memory import peak_resident_bytes
from lapa_jax.parallel import sharding
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.runs import program as programs
from lapa_jax.training.state import TrainState


def seconds(function: Callable[[], Any], repeats: int, warm_up: int = 1) -> list[float]:
    """Wall times of calls, each waited for; `warm_up` calls come first and do not count."""
    times = []
    for i in range(warm_up + repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        if i >= warm_up:
            times.append(time.perf_counter() - start)
    return times


def matmul_peak(dtype: str) -> float:
    """The most FLOP/s that large square products reach on the first device."""
    sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192, 16384)
    return max(product_rate([(n, n, n)], dtype) for n in sizes)


def product_rate(shapes: Iterable[tuple[int, int, int]], dtype: str) -> float:
    """FLOP/s of products (m, k) x (k, n), each alone and at its best, all together."""
    total, spent, best = 0, 0.0, {}
    product = jax.jit(lambda x, y: x @ y)
    for m, k, n in shapes:
        if (m, k, n) not in best:
            a, b = (jax.random.normal(jax.random.key(0), s).astype(dtype) for s in ((m, k), (k, n)))
            best[m, k, n] = min(seconds(lambda a=a, b=b: product(a, b), 5))
        total, spent = total + 2 * m * k * n, spent + best[m, k, n]
    return total / spent


def memory_bandwidth() -> float:
    """Bytes/s that the first device reads, or reads and writes, at its best: a sum, a scaling and
    a matrix times a vector, over 256 MiB (1 GiB on accelerators)."""
    rows = 8192 if jax.default_backend() == "cpu" else 32_768
    x = jnp.ones((rows, 8192), jnp.float32)
    v = jnp.ones(8192, jnp.float32)
    best = 0.0
    for function, passes in ((jnp.sum, 1), (lambda x: x * 2.0, 2), (lambda x: x @ v, 1)):
        program = jax.jit(function)
        best = max(best, passes * x.nbytes / min(seconds(lambda f=program: f(x), 5)))
    return best


class Training:
    """Steps of a config's program on one batch: each call is one, and returns (state, metrics).

    `batch`: host arrays, or a function of the stage that gives them. `devices`: the first alone,
    unless said otherwise.
    """

    def __init__(
        self,
        config: ConfigDict,
        batch: dict[str, np.ndarray] | Callable[[stages.Stage], dict[str, np.ndarray]],
        devices: Sequence[jax.Device] | None = None,
    ):
        mesh = make_mesh(config.mesh, jax.devices()[:1] if devices is None else devices)
        stage = stages.build(config, stand_in_assets(config))
        self.stage, self.program = stage, programs.build(config, stage, mesh)
        self.state = self.program.init(jax.random.key(config.seed))
        self._batch = sharding.put_batch(batch(stage) if callable(batch) else batch, mesh)

    def __call__(self) -> tuple[TrainState, dict[str, jax.Array]]:
        self.state, metrics = self.program.step(self.state, self._batch)
        return self.state, metrics

    def seconds(self, repeats: int) -> list[float]:
        """Wall times of steps."""
        return seconds(self, repeats, warm_up=2)

    def row(self, repeats: int, peak: float) -> dict[str, float]:
        """The median and the fastest of steps, and what fraction of the matmul peak either is."""
        times, flops = self.seconds(repeats), self.program.work.flops
        median, fastest = statistics.median(times), min(times)
        return {
            "ms_per_step": round(1e3 * median, 2),
            "fastest_ms": round(1e3 * fastest, 2),
            "model_gflop_per_step": round(flops / 1e9, 3),
            "fraction_of_matmul_peak": round(flops / median / peak, 4),
            "fastest_fraction": round(flops / fastest / peak, 4),
        }

    @property
    def parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(self.state.params))


def peak_memory_gib() -> float:
    """Of the device where it tells, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return round(stats.get("peak_bytes_in_use", peak_resident_bytes()) / 2**30, 3)
