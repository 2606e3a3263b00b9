"""`lapa bench dynamics`: training steps of the tabletop's dynamics model, and frames imagined."""

import argparse
import statistics
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.dynamics import tabletop
from lapa_jax import stages
from lapa_jax.benchmarks import measure

FORMS = ("maskgit", "next_token")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--form", choices=FORMS, action="append", default=[])
    parser.add_argument("--batch", type=int, action="append", default=[], help="clips a step")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for every form and batch size."""
    peak = measure.matmul_peak(args.dtype)
    rows = [
        _train(form, batch, args, peak)
        for form in args.form or FORMS
        for batch in args.batch or (32,)
    ]
    return {"matmul_peak_tflops": round(peak / 1e12, 4), "dynamics": rows}


def _train(form: str, batch: int, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    config: ConfigDict = tabletop.get_config(f"form={form}")
    config.compute_dtype, config.global_batch = args.dtype, batch
    train = measure.Training(config, _batch)
    row, model = train.row(args.steps, peak), train.stage.model_config
    tokens = batch * model.seen * model.grid[0] * model.grid[1]
    return {
        "form": form,
        "parameters": train.parameters,
        "batch": batch,
        **row,
        "tokens_per_second": round(1e3 * tokens / row["ms_per_step"]),
        "ms_per_imagined_frame": round(1e3 * _frame(train, args.steps), 2),
        "peak_memory_gib": measure.peak_memory_gib(),
    }


def _batch(stage: stages.Stage) -> dict[str, np.ndarray]:
    """Noise."""
    rng, most = np.random.default_rng(0), {"frames": 256, "z": stage.model_config.latent_codes}
    spec = stage.batch_spec()
    return {name: rng.integers(0, most[name], x.shape, x.dtype) for name, x in spec.items()}


def _frame(train: measure.Training, repeats: int) -> float:
    """Median seconds from one frame to the next, drawn."""
    stage, state = train.stage, train.state
    held = state.params, state.variables
    first = np.zeros((1, *stage.config.data.image_size, 3), np.uint8)
    z = np.zeros((1, *stage.batch_spec()["z"].shape[2:]), np.int32)
    past = jax.jit(stage.begin)(*held, first)
    step = jax.jit(stage.step)
    return statistics.median(measure.seconds(lambda: step(*held, past, z), repeats))
