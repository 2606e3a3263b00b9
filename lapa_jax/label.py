"""`lapa label`: a quantizer over a corpus → a label set, shard by shard.

Every start frame that has a later frame one window away gets its latent action; the others stay
unlabelled. A run that was stopped continues with the first shard that is missing.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from data_pipelines.labels import LabelSetWriter
from lapa_jax import pairs, runs


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa label",
        description="Write the latent actions of a corpus as a label set beside its index.",
        epilog="example: lapa label --workdir runs/quantizer --corpus data/robot --name laq",
    )
    parser.add_argument("--workdir", required=True, help="run of a quantizer")
    parser.add_argument("--corpus", required=True, help="directory of the shards (indexed)")
    parser.add_argument("--name", required=True, help="name of the label set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--sidecar_dir", default="", help="where index and labels lie")
    parser.add_argument("--image_key", default="image")
    parser.add_argument(
        "--window_seconds", type=float, default=0.0, help="0: that of the quantizer's training"
    )
    parser.add_argument("--fps", type=float, default=0.0, help="0: from the episodes' metadata")
    args = parser.parse_args(argv)
    run = runs.load(args.workdir)
    corpus = dict(
        path=args.corpus,
        split=args.split,
        sidecar_dir=args.sidecar_dir,
        image_key=args.image_key,
        fps=args.fps,
        window_seconds=args.window_seconds,
    )
    label(run, args.name, corpus)
    return 0


def label(run: runs.Run, name: str, corpus: dict) -> dict[str, int]:
    """Labels a corpus (keys as under data.corpora); returns the counts {rows, labelled, bad}.

    Raises ValueError when more pairs are undecodable than data.max_bad_fraction of the run allows.
    """
    pairs.require_quantizer(run)
    source = pairs.Pairs(run.config, corpus)
    index, model = source.index, run.stage.model_config
    writer = LabelSetWriter(
        index.sidecar_dir,
        name,
        index,
        provenance={
            "quantizer_hash": run.params_hash,
            "quantizer_step": run.step,
            "window_seconds": source.window_seconds,
            "tail": run.config.data.tail,
            "codebook_size": model.codebook_size,
            "code_length": model.code_length,
            "code_version": runs.code_version(),
        },
    )
    quantize = jax.jit(run.stage.quantize)
    done = set(writer.done_shards())
    counts = {"rows": index.num_frames, "labelled": 0, "bad": 0}
    title = f"label {Path(corpus['path']).name}"
    with tqdm(total=len(source.rows), unit="pair", desc=title) as bar:
        for shard in range(len(index.shards)):
            rows = index.rows_of_shard(shard)
            mine = slice(*np.searchsorted(source.rows[:, 0], [rows.start, rows.stop]))
            if shard in done:
                bar.update(mine.stop - mine.start)
                continue
            labels = np.full((rows.stop - rows.start, model.code_length), -1, np.int16)
            for batch in source.batches(source.rows[mine]):
                z = np.asarray(quantize(run.params, run.variables, batch.first, batch.last))
                labels[batch.rows[batch.good, 0] - rows.start] = z[: batch.size][batch.good]
                counts["labelled"] += int(batch.good.sum())
                counts["bad"] += int((~batch.good).sum())
                bar.update(batch.size)
            allowed = run.config.data.max_bad_fraction * len(source.rows)
            if counts["bad"] > max(10, allowed):
                raise ValueError(
                    f"{counts['bad']} of {len(source.rows)} pairs of {index.directory} cannot be "
                    f"decoded; data.max_bad_fraction of the quantizer's run allows {allowed:.0f}"
                )
            writer.write_shard(shard, labels)
    writer.finish()
    logging.info("label set %r of %s: %s", name, index.directory, counts)
    return counts
