"""`lapa bench`: how fast a training step runs, beside what the device can do.

    lapa bench quantizer                     # the demo's and the released quantizer
    lapa bench quantizer --config released --batch 4 --dtype bfloat16

The fraction of peak is taken in one process: model FLOP/s of the step over the FLOP/s of the best
of a few large matrix products in the same dtype.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import base
from lapa_jax.models.module import Functional
from lapa_jax.models.quantizer import Quantizer, QuantizerConfig, quantizer_flops
from lapa_jax.training import state as states
from lapa_jax.training.optimizer import Optimizer
from lapa_jax.training.step import make_train_step


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["quantizer"])
    parser.add_argument("--config", choices=sorted(QUANTIZERS), action="append", default=[])
    parser.add_argument("--batch", type=int, action="append", default=[], help="frame pairs a step")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=10, help="timed steps; the median counts")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args(argv)
    peak = matmul_peak(args.dtype)
    rows = [
        bench_quantizer(name, batch, args.dtype, args.steps, peak)
        for name in args.config or sorted(QUANTIZERS)
        for batch in args.batch or QUANTIZERS[name][1]
    ]
    device = jax.devices()[0]
    result = {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "jax": jax.__version__,
        "dtype": args.dtype,
        "matmul_peak_tflops": round(peak / 1e12, 4),
        "quantizer": rows,
    }
    sys.stdout.write((json.dumps(result, indent=1) if args.json else _table(result)) + "\n")
    return 0


def _demo(dtype: str) -> QuantizerConfig:
    model = base.quantizer_model().to_dict()
    return QuantizerConfig(**model, image_size=(64, 64), num_frames=2, compute_dtype=dtype)


def _released(dtype: str) -> QuantizerConfig:
    """The shape of the released weights (344 M parameters, 256 px)."""
    model = base.legacy_quantizer_model().to_dict()
    return QuantizerConfig(**model, image_size=(256, 256), num_frames=2, compute_dtype=dtype)


# name → (config by dtype, batch sizes)
QUANTIZERS: dict[str, tuple[Callable[[str], QuantizerConfig], tuple[int, ...]]] = {
    "demo": (_demo, (64,)),
    "released": (_released, (1, 4)),
}


def bench_quantizer(name: str, batch: int, dtype: str, steps: int, peak: float) -> dict[str, Any]:
    """Times whole training steps (forward, backward, clip, Adam) on one device."""
    config = QUANTIZERS[name][0](dtype)
    model = Functional(lambda rngs: Quantizer(config, rngs=rngs))

    def loss(params, variables, batch, rng):
        out, variables = model.apply(
            params, variables, "__call__", batch["frames"], train=True, rng=rng
        )
        return out["loss"], out["metrics"], variables

    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-4, b2=0.99))
    optimizer = Optimizer(tx, schedule=lambda step: 1e-4)
    step = jax.jit(
        make_train_step(
            loss,
            optimizer,
            microbatches=1,
            ema_decay=0.0,
            after_update=model.after_update,
        ),
        donate_argnums=0,
    )
    key = jax.random.key(0)
    state = jax.jit(lambda key: states.create(*model.init(key), optimizer, 0, ema=False))(key)
    state = jax.tree.map(lambda x: x.astype(x.dtype), state)
    frames = jax.random.randint(key, (batch, 2, *config.image_size, 3), 0, 256).astype(jnp.uint8)
    compiled = step.lower(state, {"frames": frames}).compile()
    times = []
    for i in range(steps + 2):
        start = time.perf_counter()
        state, metrics = compiled(state, {"frames": frames})
        jax.block_until_ready((state, metrics))
        if i >= 2:  # the first ones warm up
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    flops = 3 * quantizer_flops(config) * batch
    return {
        "config": name,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "batch": batch,
        "ms_per_step": round(1e3 * seconds, 2),
        "fastest_ms": round(1e3 * min(times), 2),
        "pairs_per_second": round(batch / seconds, 2),
        "model_gflop_per_step": round(flops / 1e9, 3),
        "fraction_of_matmul_peak": round(flops / seconds / peak, 4),
        "peak_memory_gib": round(_peak_memory() / 2**30, 3),
    }


def matmul_peak(dtype: str) -> float:
    """The most FLOP/s that large square products reach on the first device."""
    best = 0.0
    on_cpu = jax.devices()[0].platform == "cpu"
    for size in (1024, 2048) if on_cpu else (4096, 8192, 16384):
        a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        product = jax.jit(lambda x, y: x @ y)
        jax.block_until_ready(product(a, a))
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(product(a, a))
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _peak_memory() -> int:
    """Bytes: of the device where it tells, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _table(result: dict[str, Any]) -> str:
    head = f"{result['device']}, jax {result['jax']}, {result['dtype']}, matmul peak "
    lines = [f"{head}{result['matmul_peak_tflops']} TFLOP/s", ""]
    names = list(result["quantizer"][0])
    lines.append(" | ".join(names))
    lines += [" | ".join(str(row[name]) for name in names) for row in result["quantizer"]]
    return "\n".join(lines)
