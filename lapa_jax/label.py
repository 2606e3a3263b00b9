"""`lapa label`: a model over a corpus → codes of its frames in sidecar files, shard by shard.

A quantizer gives latent actions: every start frame that has a later frame one window away gets its
own, the others stay unlabelled. An image tokenizer gives the tokens of every frame. A run that was
stopped continues with the first shard that is missing.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from data_pipelines.index import load_index
from data_pipelines.labels import IMAGE_TOKENS, LabelSetWriter
from lapa_jax import pairs, runs

IMAGES = 32  # in a batch of the image tokenizer, whose first level keeps every pixel


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa label",
        description="Write the latent actions, or the image tokens, of a corpus beside its index.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: lapa label --workdir runs/quantizer --corpus data/robot --name laq\n"
        "         lapa label --what image_tokens --workdir runs/vqgan --corpus data/robot "
        "--name vqgan",
    )
    parser.add_argument(
        "--what", choices=["latent_actions", "image_tokens"], default="latent_actions"
    )
    parser.add_argument("--workdir", required=True, help="run of a quantizer or image tokenizer")
    parser.add_argument("--corpus", required=True, help="directory of the shards (indexed)")
    parser.add_argument("--name", required=True, help="name of the set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--sidecar_dir", default="", help="where index and labels lie")
    parser.add_argument("--image_key", default="image", help="the camera; each has its own tokens")
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
    )
    if args.what == "latent_actions":
        pairs_of = {"fps": args.fps, "window_seconds": args.window_seconds}
        label(run, args.name, corpus | pairs_of)
        return 0
    if args.window_seconds or args.fps:
        raise ValueError("--window_seconds and --fps are of --what latent_actions")
    label_images(run, args.name, corpus)
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
    return _write(
        writer,
        source,
        source.rows,
        lambda frames: quantize(run.params, run.variables, frames[:, 0], frames[:, 1]),
        run.config.data.max_bad_fraction,
    )


def label_images(run: runs.Run, name: str, corpus: dict) -> dict[str, int]:
    """Writes the image tokens of every frame of a corpus (keys path, split, sidecar_dir and
    image_key as under data.corpora), row by row of the image; returns the counts {rows, labelled,
    bad}.

    Raises ValueError when more frames are undecodable than data.max_bad_fraction of the run allows.
    """
    pairs.require_image_tokenizer(run)
    index = load_index(
        corpus["path"],
        split=corpus["split"],
        sidecar_dir=corpus["sidecar_dir"] or None,
        image_key=corpus["image_key"],
    )
    if index.image_size is None:
        raise ValueError(f"no first frame of {index.directory} can be read: its size is unknown")
    rows, columns = run.stage.model_config.grid(index.image_size)
    writer = LabelSetWriter(
        index.sidecar_dir,
        name,
        index,
        provenance={
            "tokenizer_hash": run.params_hash,
            "image_size": index.image_size,
            "codebook_size": run.stage.model_config.codebook_size,
            "tokens_per_frame": rows * columns,
            "code_version": runs.code_version(),
        },
        kind=IMAGE_TOKENS,
    )
    encode = jax.jit(run.stage.encode)
    return _write(
        writer,
        pairs.Frames(index, index.image_size, batch=IMAGES),
        np.arange(index.num_frames)[:, None],
        lambda frames: encode(run.params, run.variables, frames[:, 0]),
        run.config.data.max_bad_fraction,
    )


def _write(
    writer: LabelSetWriter,
    source: pairs.Frames,
    rows: np.ndarray,
    encode: Callable[[np.ndarray], jax.Array],
    max_bad_fraction: float,
) -> dict[str, int]:
    """Labels examples, int64 rows (N, n), ascending by their first, which gets the codes that
    `encode` makes of the frames uint8 (B, n, H, W, 3)."""
    index, done = source.index, set(writer.done_shards())
    counts = {"rows": index.num_frames, "labelled": 0, "bad": 0}
    allowed = max_bad_fraction * len(rows)
    with tqdm(total=len(rows), unit="example", desc=f"label {Path(index.directory).name}") as bar:
        for shard in range(len(index.shards)):
            here = index.rows_of_shard(shard)
            mine = slice(*np.searchsorted(rows[:, 0], [here.start, here.stop]))
            if shard in done:
                bar.update(mine.stop - mine.start)
                continue
            labels = np.full((here.stop - here.start, writer.code_length), -1, np.int32)
            for batch in source.batches(rows[mine]):
                codes = np.asarray(encode(batch.frames)).reshape(len(batch.frames), -1)
                labels[batch.rows[batch.good, 0] - here.start] = codes[: batch.size][batch.good]
                counts["labelled"] += int(batch.good.sum())
                counts["bad"] += int((~batch.good).sum())
                bar.update(batch.size)
            if counts["bad"] > max(10, allowed):
                raise ValueError(
                    f"{counts['bad']} of {len(rows)} examples of {index.directory} cannot be "
                    f"decoded; data.max_bad_fraction of the run allows {allowed:.0f}"
                )
            writer.write_shard(shard, labels)
    writer.finish()
    logging.info("%s %r of %s: %s", writer.kind.what, writer.name, index.directory, counts)
    return counts
