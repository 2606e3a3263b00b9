"""The frame index: where every frame of a corpus lies in its standard RLDS shards.

`build_index` reads the shards once (checksums verified, nothing decoded) and writes sidecars under
<sidecar_dir>/index/<image_key>/<split>/; `load_index` memory-maps them and refuses an index that no
longer fits its shards. A row is one frame; rows are ordered by shard, record and step. A finished
shard is kept under <split>.incomplete/, so that a build that was stopped continues.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import schema, sidecar, tfrecord
from data_pipelines.index_build import FORMAT, REBUILD, build_index
from data_pipelines.shards import find_shards, index_folder, shard_fingerprint

__all__ = ["CorpusIndex", "StaleIndexError", "build_index", "load_index"]


class StaleIndexError(sidecar.SidecarError):
    """An index does not fit its shards, is damaged, or was built with other keys."""


@dataclass(frozen=True, eq=False)
class CorpusIndex:
    """Episodes (E), frames (F) and actions (A) of one split, in shard order."""

    directory: Path
    sidecar_dir: Path
    split: str
    image_key: str
    action_key: str
    instruction_key: str
    hash: str  # of the shards' contents, the view and the exclusions; not of any path
    keys: dict[str, str]  # features of the first episode: key → kind
    image_size: tuple[int, int] | None  # of the first readable frame
    shards: list[Path]
    instructions: list[str]
    shard_of_episode: np.ndarray  # int32 (E,)
    record_of_episode: np.ndarray  # int32 (E,) record number in its shard
    episode_start: np.ndarray  # int64 (E,) first row
    episode_length: np.ndarray  # int64 (E,) number of steps
    fps: np.ndarray  # float32 (E,), nan where the metadata has none
    record_offset: np.ndarray  # uint64 (E,) of the payload
    record_length: np.ndarray  # uint64 (E,)
    instruction_of_episode: np.ndarray  # int32 (E,), -1: none
    frame_offset: np.ndarray  # uint64 (F,) of the JPEG in its shard
    frame_length: np.ndarray  # uint32 (F,)
    frame_crc: np.ndarray  # uint32 (F,) CRC32C (not masked) of the JPEG
    actions: np.ndarray | None  # float32 (F, A)

    @property
    def num_frames(self) -> int:
        return len(self.frame_offset)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_start)

    @property
    def action_dim(self) -> int:
        return 0 if self.actions is None else self.actions.shape[1]

    @cached_property
    def shard_start(self) -> np.ndarray:
        """First row of each shard, and the number of rows: int64 (shards + 1,)."""
        first = np.searchsorted(self.shard_of_episode, np.arange(len(self.shards)))
        starts = np.append(self.episode_start, self.num_frames)
        return np.append(starts[first], self.num_frames)

    def rows_of_shard(self, shard: int) -> slice:
        return slice(int(self.shard_start[shard]), int(self.shard_start[shard + 1]))

    def episode_of_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.episode_start, rows, side="right") - 1

    def instruction(self, episode: int) -> str:
        number = int(self.instruction_of_episode[episode])
        return "" if number < 0 else self.instructions[number]

    def record(self, episode: int) -> bytes:
        """The serialised tf.train.Example of an episode (for inspection, not for training)."""
        path = self.shards[int(self.shard_of_episode[episode])]
        with open(path, "rb") as file:
            file.seek(int(self.record_offset[episode]))
            return file.read(int(self.record_length[episode]))

    def metadata(self, episode: int) -> dict[str, Any]:
        """episode_metadata of an episode, read from its shard."""
        record, found = self.record(episode), {}
        number = int(self.record_of_episode[episode])
        path = self.shards[int(self.shard_of_episode[episode])]
        for key, feature in tfrecord.parse_example(record, path=path, number=number).items():
            if key.startswith(schema.METADATA):
                values = {
                    tfrecord.BYTES: feature.byte_items,
                    tfrecord.FLOAT: feature.floats,
                    tfrecord.INT64: feature.ints,
                }.get(feature.kind, lambda record: [])(record)
                values = [
                    value.decode(errors="replace") if isinstance(value, bytes) else value.item()
                    for value in values
                ]
                found[key.removeprefix(schema.METADATA)] = values[0] if len(values) == 1 else values
        return found


# ---------------------------------------------------------------- loading


def load_index(
    directory: str | os.PathLike,
    *,
    split: str = "train",
    sidecar_dir: str | os.PathLike | None = None,
    image_key: str = "image",
    action_key: str = "",
    instruction_key: str = "",
) -> CorpusIndex:
    """Opens an index; missing, stale or damaged → an error that names the command to run.

    image_key "": the only one that is indexed. action_key, instruction_key: if given, the index
    must have been built with them.
    """
    directory = Path(directory)
    image_key = image_key or _only_key(directory, split, sidecar_dir)
    folder = index_folder(directory, image_key, split, sidecar_dir)
    shards = find_shards(directory, split)
    if not (folder / "manifest.json").is_file():
        built = sorted(
            path.parent.parent.name
            for path in folder.parent.parent.glob(f"*/{split}/manifest.json")
        )
        raise FileNotFoundError(
            f"{directory} has no index of image_key {image_key!r}, split {split!r} (looked in "
            f"{folder}; built: {built or 'none'}): {REBUILD} with path {directory}"
        )
    manifest = sidecar.read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise StaleIndexError(
            f"{folder} has index format {manifest.get('format')}, this version "
            f"reads {FORMAT}: {REBUILD} with path {directory}"
        )
    for name, wanted in (("action_key", action_key), ("instruction_key", instruction_key)):
        if wanted and manifest[name] != wanted:
            raise StaleIndexError(
                f"{folder} was built with {name} {manifest[name]!r}, the config "
                f"says {wanted!r}: {REBUILD} with path {directory}"
            )
    _check_fresh(directory, shards, manifest)
    arrays = {}
    for name, digest in manifest["digests"].items():
        arrays[name] = sidecar.map_array(folder / f"{name}.npy")
        if sidecar.array_digest(arrays[name]) != digest:
            raise StaleIndexError(
                f"{folder / name}.npy is damaged (its digest is not the "
                f"manifest's): {REBUILD} with path {directory}"
            )
    return CorpusIndex(
        directory=directory,
        sidecar_dir=Path(sidecar_dir or directory),
        split=split,
        image_key=image_key,
        action_key=manifest["action_key"],
        instruction_key=manifest["instruction_key"],
        hash=manifest["hash"],
        keys=manifest["keys"],
        image_size=tuple(manifest["image_size"]) if manifest["image_size"] else None,
        shards=shards,
        instructions=manifest["instructions"],
        actions=arrays.pop("actions", None),
        **arrays,
    )


def _only_key(directory: Path, split: str, sidecar_dir: str | os.PathLike | None) -> str:
    root = Path(sidecar_dir or directory) / "index"
    built = sorted(path.parent.parent.name for path in root.glob(f"*/{split}/manifest.json"))
    if len(built) != 1:
        raise FileNotFoundError(
            f"{root}, split {split!r}, has indexes of image_key {built or 'none'}: "
            + ("give one of them" if built else f"{REBUILD} with path {directory}")
        )
    return built[0]


def _check_fresh(directory: Path, shards: list[Path], manifest: dict) -> None:
    saved = manifest["shards"]
    if [entry["name"] for entry in saved] != [path.name for path in shards]:
        raise StaleIndexError(
            f"the index of {directory} is stale: it knows {len(saved)} shards "
            f"({saved[0]['name']} ...), the folder has {len(shards)} "
            f"({shards[0].name} ...): {REBUILD} with path {directory}"
        )
    with ThreadPoolExecutor(min(16, len(shards))) as pool:
        for path, old, now in zip(shards, saved, pool.map(shard_fingerprint, shards), strict=True):
            changed = [field for field in now if old.get(field) != now[field]]
            if changed:
                raise StaleIndexError(
                    f"the index of {directory} is stale: {path} changed since it was built ("
                    + ", ".join(f"{field} {old.get(field)} → {now[field]}" for field in changed)
                    + f"); restore the shard or {REBUILD} with path {directory}"
                )
