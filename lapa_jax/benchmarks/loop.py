"""`lapa bench loop`: what the training loop costs beside the step that it runs.

The demo's quantizer trains on a corpus that is made for it, with metrics, TensorBoard and alarms as
always; then its step runs alone, as often, on a batch that stays on the device. `overhead` is the
first time over the second, less one: reading and decoding on the cores of the step included.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.bench import corpus as bench_corpus
from data_pipelines.loader import Loader
from experiments.quantizer import tabletop
from lapa_jax import stages, train
from lapa_jax.benchmarks import measure
from lapa_jax.settings import corpus_settings
from lapa_jax.training.metrics import read_metrics

STEPS = 20  # of an interval, for each of --steps
INTERVALS = 4  # the first one compiles
PIXELS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=64, help="frame pairs a step")
    parser.add_argument(
        "--workdir", default="runs/bench_loop", help="keeps the corpus (default: runs/bench_loop)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    interval = STEPS * args.steps
    corpus = bench_corpus.make(Path(args.workdir), bench_corpus.Shape(episodes=60, size=PIXELS))
    config = _config(args, corpus, interval)
    alone = [_alone(config, interval)]
    with tempfile.TemporaryDirectory() as folder:
        train.train(config, folder)
        lines = read_metrics(folder)[1:]
    alone.append(_alone(config, interval))
    step = statistics.mean(alone)
    loop = statistics.median(line["step_seconds"] for line in lines)
    row = {
        "batch": args.batch,
        "steps": interval * (INTERVALS - 1),
        "step_alone_ms": round(1e3 * step, 3),
        "alone_before_and_after_ms": [round(1e3 * x, 3) for x in alone],
        "in_the_loop_ms": round(1e3 * loop, 3),
        "overhead": round(loop / step - 1.0, 4),
        "data_wait_fraction": round(lines[-1]["data_wait_fraction"], 4),
    }
    return {"loop": [row]}


def _config(args: argparse.Namespace, corpus: Path, interval: int) -> ConfigDict:
    config = tabletop.get_config()
    config.data.corpora = ConfigDict({"bench": corpus_settings(str(corpus), window_seconds=0.5)})
    config.compute_dtype, config.global_batch = args.dtype, args.batch
    config.steps, config.log_every_steps = INTERVALS * interval, interval
    config.checkpoint.every_steps, config.optimizer.warmup_steps = config.steps, 1
    return config


def _alone(config: ConfigDict, number: int) -> float:
    """Seconds of a step on one batch, mean of `number`."""

    def first(stage: stages.Stage) -> dict[str, np.ndarray]:
        shared = dict(global_batch=config.global_batch, seed=config.seed, prepare=stage.prepare)
        with Loader(config.data, fields=stage.fields_of(config), **shared) as loader:
            return loader.batch(0)

    step = measure.Training(config, first, jax.devices())
    jax.block_until_ready(step())
    start = time.perf_counter()
    for _ in range(number):
        _, metrics = step()
        jax.block_until_ready(metrics)  # as the loop does, a step late
    jax.block_until_ready(step.state)
    return (time.perf_counter() - start) / number
