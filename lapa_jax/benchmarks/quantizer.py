"""`lapa bench quantizer`: whole training steps (forward, backward, optimizer) on one device."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.quantizer import paper, tabletop
from lapa_jax.benchmarks import measure

# `released`: the shape of the released weights.
CONFIGS: dict[str, Callable[[], ConfigDict]] = {
    "demo": tabletop.get_config,
    "released": lambda: paper.get_config("legacy=True"),
}
BATCHES = {"demo": (64,), "released": (1, 4)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", choices=sorted(CONFIGS), action="append", default=[])
    parser.add_argument("--batch", type=int, action="append", default=[], help="frame pairs a step")
    parser.add_argument("--unroll", type=int, help="layers per scan step; 0: all")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for every config and batch size."""
    peak = measure.matmul_peak(args.dtype)
    rows = [
        _train(name, batch, args, peak)
        for name in args.config or sorted(CONFIGS)
        for batch in args.batch or BATCHES[name]
    ]
    return {"matmul_peak_tflops": round(peak / 1e12, 4), "quantizer": rows}


def quantizer_config(name: str, dtype: str) -> ConfigDict:
    """A shipped config, to compute in that type."""
    config = CONFIGS[name]()
    config.compute_dtype = dtype
    return config


def _train(name: str, batch: int, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    config = quantizer_config(name, args.dtype)
    config.global_batch = batch
    if args.unroll is not None:
        config.model.unroll = args.unroll
    shape = (batch, 2, *config.data.image_size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    train = measure.Training(config, {"frames": frames})
    row = train.row(args.steps, peak)
    return {
        "config": name,
        "parameters": train.parameters,
        "batch": batch,
        "unroll": config.model.unroll,
        **row,
        "pairs_per_second": round(1e3 * batch / row["ms_per_step"], 2),
        "peak_memory_gib": measure.peak_memory_gib(),
    }
