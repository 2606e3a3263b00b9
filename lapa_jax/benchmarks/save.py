"""`lapa bench save`: what a checkpoint costs the training that goes on.

A policy (parameters and Adam's moments) trains; between its steps it is saved. `call` is how long
the calling thread is kept, `stall` that over a step alone, `checksums_of_save` what they take of
calling and writing. The least of the timed saves counts, like the fastest call elsewhere; the time
of a step while a save is being written is a median.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from lapa_jax.benchmarks import measure, policy
from lapa_jax.training import checksum, manifest
from lapa_jax.training.checkpoint import Checkpoints

SIZES = ("20m",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    policy.add_training_arguments(parser)
    parser.add_argument("--workdir", default="runs", help="the disk that is written to")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for every size."""
    Path(args.workdir).mkdir(parents=True, exist_ok=True)
    return {"save": [_save(size, args) for size in args.size or SIZES]}


def _save(size: str, args: argparse.Namespace) -> dict[str, Any]:
    config = policy.policy_config(size, args)
    train = measure.Training(config, lambda stage: policy.rows(stage, config.global_batch))
    alone = statistics.median(train.seconds(args.steps))
    calls, saves, meanwhile = [], [], []
    with (
        tempfile.TemporaryDirectory(dir=args.workdir) as folder,
        Checkpoints(folder, keep=1) as checkpoints,
    ):
        for _ in range(1 + args.steps):
            start = time.perf_counter()
            checkpoints.save(int(train.state.step), train.state, {})
            calls.append(time.perf_counter() - start)
            checkpoints.wait()
            saves.append(time.perf_counter() - start)
            # Once more, with a step while it is being written.
            jax.block_until_ready(train())
            checkpoints.save(int(train.state.step), train.state, {})
            meanwhile += measure.seconds(train, 1, warm_up=0)
            checkpoints.wait()
            jax.block_until_ready(train())
    items = manifest.split_items(train.state)
    sums = min(measure.seconds(lambda: checksum.of_items(items), args.steps))
    call, save = min(calls[1:]), min(saves[1:])
    bytes_saved = sum(x.nbytes for x in jax.tree.leaves(train.state))
    return {
        "size": size,
        "parameters": train.parameters,
        "rows": config.global_batch,
        "state_mib": round(bytes_saved / 2**20, 1),
        "step_ms": round(1e3 * alone, 2),
        "call_ms": round(1e3 * call, 2),
        "stall": round(call / alone, 4),
        "call_seconds_per_gib": round(call / bytes_saved * 2**30, 3),
        "call_and_write_ms": round(1e3 * save, 1),
        "checksums_of_save": round(sums / save, 4),
        "step_while_writing_ms": round(1e3 * statistics.median(meanwhile[1:]), 2),
    }
