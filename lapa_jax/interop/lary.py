"""Latents for the probes of LARYBench (arXiv 2604.11689), in the files that its extraction leaves.

Its metadata is a CSV: of image pairs (src_img, tgt_img; regression) or of videos with frame numbers
(video_path, sample_indices; classification, a pair for each two neighbours). For row n there is
DATASET/PART/MODEL/latent_action_<n, 8 digits>.npz with `tokens`, float32 (L, Q) of a pair and
(pairs, L, Q) of a video, and `indices`, its codes (L,) or (pairs, L), empty where there are none;
and the same CSV with a column la_path.
"""

import csv
import functools
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import simplejpeg

from data_pipelines.convert import decode
from data_pipelines.progress import Progress
from data_pipelines.storage import given_folder
from lapa_jax import config as configs
from lapa_jax.interop.cards import model_card
from lapa_jax.interop.staged import staged
from lapa_jax.interop.tensor_files import text_of
from lapa_jax.runs.label import Encoder
from lapa_jax.runs.loaded import LoadedQuantizer, Model, require

PAIRS, VIDEOS = ("src_img", "tgt_img"), ("video_path", "sample_indices")
ROWS, BATCH = 128, 64
USAGE = """Point `LARY_LA_DIR` of LARYBench at this directory and copy the CSV to its `data/`: then
`python -m lary.cli regress` or `classify` with `--model {model}` (`--dim {dim}`) probe it."""


@dataclass(frozen=True)
class Options:
    """Of LARYBench's files.

    metadata: its CSV, DATASET_metadata_PART.csv
    data: folder that the paths in it start from
    dataset: as it is called there: calvin, robot_1st
    part: train, val, seen_train, ...
    stride: between the frames of a pair, part of the file's name (image pairs)
    model: name of the model there
    """

    metadata: str = field(metadata={"why": "which pairs, or which frames of videos, to read"})
    data: str = field(metadata={"why": "the metadata holds relative paths"})
    dataset: str = field(metadata={"why": "it is part of the names of files"})
    part: str = field(metadata={"why": "it is part of the names of files: train, val"})
    stride: int | None = None
    model: str = "lapa_jax"


def write(run: Model, out: Path, options: Options) -> int:
    """`lapa export --format lary`. Raises ValueError that names the row for a picture that cannot
    be read: a probe that lacks some rows compares with none."""
    run = require(run, LoadedQuantizer)
    rows, columns = _rows(Path(options.metadata))
    videos = VIDEOS[0] in columns
    if not videos and options.stride is None:
        raise ValueError(
            f"--stride is part of the name of a file of image pairs: {options.metadata}"
        )
    for name in ("dataset", "part", "model"):
        if Path(getattr(options, name)).name != getattr(options, name):
            raise ValueError(f"--{name} {getattr(options, name)!r} must be the name of a folder")
    folder = given_folder(options.data, "--data")
    shape = run.stage.model_config
    usage = USAGE.format(model=options.model, dim=shape.quant_dim)
    card = functools.partial(
        model_card, run, configs.to_dict(run.config), np.dtype(np.float32), usage
    )
    place = Path(options.dataset, options.part, options.model)
    name = f"{options.part}_la_{options.dataset}"
    name += f"_{options.model}.csv" if videos else f"_{options.stride}_{options.model}.csv"
    with staged(out, run, card) as (directory, parity):
        (directory / place).mkdir(parents=True)
        infinite = _extract(run, rows, folder, videos, directory, place)
        with open(directory / name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys([*columns, "la_path"])))
            writer.writeheader()
            writer.writerows(rows)
        parity.stated |= {"rows": len(rows), "videos": videos, "frames": list(shape.image_size)}
        parity.at_most("rows_with_values_that_are_not_finite", infinite, 0)
    return len(rows)


def _rows(metadata: Path) -> tuple[list[dict[str, str]], list[str]]:
    reader = csv.DictReader(io.StringIO(text_of(metadata, "LARYBench's metadata")))
    rows, columns = list(reader), list(reader.fieldnames or ())
    if not any(set(needed) <= set(columns) for needed in (PAIRS, VIDEOS)):
        raise ValueError(
            f"{metadata} has the columns {columns}: neither {', '.join(PAIRS)} nor "
            f"{', '.join(VIDEOS)} are among them"
        )
    if not rows:
        raise ValueError(f"{metadata} has no rows")
    for number, row in enumerate(rows):
        if None in row or None in row.values():  # more cells than columns, or fewer
            raise ValueError(
                f"row {number} of {metadata} has not as many cells as there are columns: {columns}"
            )
    return rows, columns


def _extract(
    run: LoadedQuantizer,
    rows: Sequence[dict[str, str]],
    folder: Path,
    videos: bool,
    directory: Path,
    place: Path,
) -> int:
    """Writes a file for each row, and its la_path into the row; returns of how many some value is
    not finite."""
    height, width = run.stage.model_config.image_size
    settings = decode.VideoSettings(1.0, height, width, "stretch", 92)
    encode = Encoder(run, lambda *held, frames: _read(run, held, frames))
    batch, infinite = encode.batch(BATCH), 0

    def pictures(number: int) -> np.ndarray:
        """uint8 (pairs, 2, H, W, 3) of a row."""
        row = rows[number]
        try:
            if videos:
                wanted = [int(n) for n in row[VIDEOS[1]].split(",")]
                frames = decode.numbered_frames(folder / row[VIDEOS[0]], wanted, settings)
            else:
                data = ((folder / row[name]).read_bytes() for name in PAIRS)
                frames = [decode.convert_picture(one, settings) for one in data]
            if len(frames) < 2:
                raise ValueError(f"{len(frames)} frame is no pair")
        except (ValueError, OSError) as error:
            raise ValueError(f"row {number} of the metadata: {error}") from error
        images = np.stack([simplejpeg.decode_jpeg(frame) for frame in frames])
        return np.stack([images[:-1], images[1:]], axis=1)

    with ThreadPoolExecutor() as pool, Progress("extract", len(rows), unit="row") as bar:
        bar.waits()
        for start in range(0, len(rows), ROWS):
            numbers = range(start, min(start + ROWS, len(rows)))
            read = list(pool.map(pictures, numbers))
            pairs = np.concatenate(read)
            found = []
            for first in range(0, len(pairs), batch):
                part = pairs[first : first + batch]
                padded = np.pad(part, ((0, batch - len(part)), *[(0, 0)] * 4), "edge")
                found.append([np.asarray(x)[: len(part)] for x in encode(padded)])
            tokens, codes = (np.concatenate(x) for x in zip(*found, strict=True))
            ends = np.cumsum([len(one) for one in read])
            for number, end, one in zip(numbers, ends, read, strict=True):
                mine = slice(end - len(one), end) if videos else end - 1
                infinite += int(not np.isfinite(tokens[mine]).all())
                name = place / f"latent_action_{number:08d}.npz"
                np.savez_compressed(directory / name, tokens=tokens[mine], indices=codes[mine])
                rows[number]["la_path"] = os.fspath(name)
            bar.update(len(read))
    return infinite


def _read(run: LoadedQuantizer, held: tuple, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(what the decoder receives, float32 (B, L, Q); codes int32 (B, L), or (B, 0))."""
    read = run.stage.read(*held, frames[:, 0], frames[:, 1])
    codes = read.received_BLQ[:, :0, 0].astype(int) if read.z_BL is None else read.z_BL
    return read.received_BLQ, codes
