"""`lapa bench label`: labelling a corpus on this machine, beside the forward pass that it consists
of.

Rounds of both take turns. The forward pass has its frames on the devices already; labelling reads,
decodes and sends them, fetches the codes and writes the label set of a corpus that is made for it.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.bench import corpus as bench_corpus
from data_pipelines.index.labels import LabelSetWriter
from lapa_jax import stages
from lapa_jax.benchmarks import measure
from lapa_jax.benchmarks.quantizer import CONFIGS, quantizer_config
from lapa_jax.runs import examples, label
from lapa_jax.runs.loaded import LoadedQuantizer
from lapa_jax.version import __version__

ROUNDS = 3
WINDOW_SECONDS = 0.5
SHARD_BYTES = 512 << 20  # as corpora have them: the last batch of a shard is padded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", choices=sorted(CONFIGS), default="demo")
    parser.add_argument("--batch", type=int, default=examples.BATCH, help="pairs in a batch")
    parser.add_argument(
        "--workdir", default="runs/bench_label", help="keeps the corpus (default: runs/bench_label)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One row; a round is args.steps batches."""
    quantizer = _quantizer(args.config, args.dtype)
    quantize = quantizer.stage.quantize
    encode = label.Encoder(
        quantizer, lambda *held, frames: quantize(*held, frames[:, 0], frames[:, 1])
    )
    batch = encode.batch(args.batch)
    size = quantizer.config.data.image_size[0]
    episodes = -(-args.steps * batch // 30)  # an episode has about 40 frames, 35 pairs
    shape = bench_corpus.Shape(episodes=episodes, size=size, shard_bytes=SHARD_BYTES)
    directory = bench_corpus.make(Path(args.workdir), shape)
    corpus = {"path": str(directory), "window_seconds": WINDOW_SECONDS}
    source = examples.Pairs(quantizer.config, corpus, batch=batch)
    rows = source.rows[: args.steps * batch]
    resident = encode.put(next(source.batches(rows[:batch])).frames)
    jax.block_until_ready(encode(resident))  # compiled

    def forward() -> list[jax.Array]:
        return [encode(resident) for _ in range(len(rows) // batch)]

    both = (forward, lambda: _label(source, rows, encode))
    seconds = [[measure.seconds(one, 1, warm_up=0)[0] for one in both] for _ in range(ROUNDS)]
    alone, labelling = len(rows) / np.array(seconds).T
    row = {
        "config": args.config,
        "batch": batch,
        "pairs": len(rows),
        "forward_pairs_per_second": round(float(np.median(alone)), 2),
        "label_pairs_per_second": round(float(np.median(labelling)), 2),
        "fraction_of_forward": round(float(np.median(labelling / alone)), 4),
    }
    return {"label": [row]}


def _quantizer(name: str, dtype: str) -> LoadedQuantizer:
    """A quantizer of random parameters."""
    config = quantizer_config(name, dtype)
    stage = stages.build(config, {})
    params, variables = stage.init(jax.random.key(0))
    return LoadedQuantizer(config, stage, params, variables, params_hash="random")


def _label(source: examples.Pairs, rows: np.ndarray, encode: label.Encoder) -> None:
    model = encode.run.stage.model_config
    provenance = {
        "quantizer_hash": encode.run.params_hash,
        "window_seconds": source.window_seconds,
        "codebook_size": model.codebook_size,
        "code_length": model.code_length,
        "code_version": __version__,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        LabelSetWriter(folder, "bench", source.index, provenance=provenance) as writer,
    ):
        label.write(writer, source, rows, encode, max_bad_fraction=0.0)
