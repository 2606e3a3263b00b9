"""`lapa bench quantizer`: whole training steps (forward, backward, clip, Adam) on one device."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments import base
from lapa_jax.benchmarks import measure
from lapa_jax.latent import Quantizer, QuantizerConfig
from lapa_jax.nn.module import Functional

# name → (settings of the model, pixels). `released`: the shape of the released weights.
MODELS: dict[str, tuple[Callable[[], ConfigDict], int]] = {
    "demo": (base.quantizer_model, 64),
    "released": (base.legacy_quantizer_model, 256),
}
BATCHES = {"demo": (64,), "released": (1, 4)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", choices=sorted(MODELS), action="append", default=[])
    parser.add_argument("--batch", type=int, action="append", default=[], help="frame pairs a step")
    parser.add_argument("--unroll", type=int, help="layers per scan step; 0: all")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for every config and batch size."""
    peak = measure.matmul_peak(args.dtype)
    rows = [
        _train(name, batch, args, peak)
        for name in args.config or sorted(MODELS)
        for batch in args.batch or BATCHES[name]
    ]
    return {"matmul_peak_tflops": round(peak / 1e12, 4), "quantizer": rows}


def quantizer_config(name: str, dtype: str) -> QuantizerConfig:
    model, pixels = MODELS[name]
    size = (pixels, pixels)
    return QuantizerConfig(**model().to_dict(), image_size=size, num_frames=2, compute_dtype=dtype)


def _train(name: str, batch: int, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    config = quantizer_config(name, args.dtype)
    if args.unroll is not None:
        config = dataclasses.replace(config, unroll=args.unroll)
    model = Functional(lambda rngs: Quantizer(config, rngs=rngs))

    def loss(params, variables, batch, rng):
        out, variables = model.apply(
            params, variables, "__call__", batch["frames"], train=True, rng=rng
        )
        return out["loss"], out["metrics"], variables

    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-4, b2=0.99))
    frames = jax.random.randint(jax.random.key(0), (batch, 2, *config.image_size, 3), 0, 256)
    train = measure.Training(model, loss, tx, {"frames": frames.astype(jnp.uint8)})
    times = train.seconds(args.steps)
    row = measure.timing_row(times, train.flops, peak)
    return {
        "config": name,
        "parameters": train.parameters,
        "batch": batch,
        "unroll": config.unroll,
        **row,
        "pairs_per_second": round(1e3 * batch / row["ms_per_step"], 2),
        "peak_memory_gib": measure.peak_memory_gib(),
    }
