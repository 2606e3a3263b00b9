"""`lapa data index`: the frame index of a corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines.index import load_index
from data_pipelines.index.build import build_index
from data_pipelines.rlds.shards import find_shards
from lapa_jax.verbs import data, flags, text
from lapa_jax.verbs.data.corpus import Corpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Corpus):
    """Of `lapa data index`.

    image_key: camera, below steps/observation/ or steps/; observation where that is the image
        (default: image)
    fps: of episodes whose metadata do not tell it, 0: unknown (default: that of the data set where
        it is known)
    state_key: the robot's state, numbers below steps/, several joined by commas (default:
        observation/state where there are such)
    sidecar_dir: where to write (default: in the corpus directory)
    workers: processes (default: one per core)
    exclude: leave a damaged episode out, by shard file name and record number; repeatable
    exclude_file: the same, a line each; lapa data verify writes it
    """

    image_key: str | None = None
    state_key: str = ""
    fps: float | None = None
    workers: int | None = None
    exclude: list[str] = flags.option([], metavar="SHARD:RECORD")
    exclude_file: str | None = flags.option(None, metavar="FILE")


def main(argv: list[str]) -> int:
    parser = data.parser("index", "Builds the frame index of a corpus beside its shards.")
    options = flags.parse(parser, argv, Options)
    directory, splits = options.directory, options.splits
    exclude = [_record(line) for line in options.exclude + _lines(options.exclude_file)]
    shards = {split: {path.name for path in find_shards(directory, split)} for split in splits}
    for name, _ in exclude:
        if not any(name in names for names in shards.values()):
            raise ValueError(f"--exclude {name}: no such shard in {directory}, {splits}")
    for split in splits:
        known = options.known(split)
        keys = {"image_key": options.image_key or known.image, **options.keys(split)}
        keys["state_key"] = options.state_key
        folder = build_index(
            directory,
            split=split,
            fps=known.fps if options.fps is None else options.fps,
            workers=options.workers,
            exclude=[item for item in exclude if item[0] in shards[split]],
            **keys,
        )
        found = load_index(directory, split=split, **keys)
        actions = "none" if found.actions is None else f"{found.actions.shape[1]} dimensions"
        parts = [key for key in found.keys if key.startswith("steps/action/")]
        if actions == "none" and parts:
            actions += f" (there are {', '.join(parts)}: --action_key)"
        if found.states is not None:
            actions += f", states {found.state_dim} dimensions"
        text.show(
            f"{split}: {found.num_episodes} episodes, {found.num_frames} frames, images "
            f"{found.image_size}, actions {actions}, {len(found.instructions)} instructions -> "
            f"{folder}"
        )
    return 0


def _record(line: str) -> tuple[str, int]:
    shard, _, number = line.rpartition(":")
    if not shard or not number.isdigit():
        raise ValueError(f"--exclude {line!r} is not SHARD_FILE_NAME:RECORD_NUMBER")
    return shard, int(number)


def _lines(path: str | None) -> list[str]:
    """What stands before # in each line."""
    if path is None:
        return []
    lines = [line.partition("#")[0].strip() for line in Path(path).read_text("utf-8").splitlines()]
    return [line for line in lines if line]
