"""The frame index: where every frame of a corpus lies in its standard RLDS shards.

`build_index` reads the shards once (checksums verified, nothing decoded) and writes sidecars under
<sidecar_dir>/index/<image_key>/<split>/; `load_index` memory-maps them and refuses an index that no
longer fits its shards. A row is one frame; rows are ordered by shard, record and step. A finished
shard is kept under <split>.incomplete/, so that a build that was stopped continues.
"""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from absl import logging

from data_pipelines import sidecar, storage
from data_pipelines.index.build import FORMAT, REBUILD, build_index
from data_pipelines.rlds import open_x, schema, tfrecord
from data_pipelines.rlds.fields import STATE
from data_pipelines.rlds.shards import find_shards, index_folder, shard_fingerprint
from data_pipelines.storage import Location

__all__ = ["CorpusIndex", "StaleIndexError", "build_index", "load_index", "load_or_build"]


class StaleIndexError(sidecar.SidecarError):
    """An index does not fit its shards, is damaged, or was built with other keys."""


class MissingIndexError(FileNotFoundError):
    """There is no index of this split and image_key."""


@dataclass(frozen=True, eq=False)
class CorpusIndex:
    """Episodes (E), frames (F), actions (A) and states (S) of one split, in shard order."""

    directory: Location
    sidecar_dir: Location
    split: str
    image_key: str
    action_key: str
    instruction_key: str
    hash: str  # of the shards' contents, the view and the exclusions; not of any path
    keys: dict[str, str]  # features of the first episode: key → kind
    image_size: tuple[int, int] | None  # of the first readable frame
    shards: list[Location]
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
    states: np.ndarray | None = None  # float32 (F, S); indexes of earlier code have none
    state_key: str = ""  # where they are from
    # Episodes with images of another size than image_size: one such size. Indexes of earlier code
    # do not know them.
    other_sizes: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @cached_property
    def of_other_size(self) -> np.ndarray:
        """Which episodes have images of another size than image_size, bool (E,)."""
        found = np.zeros(self.num_episodes, bool)
        found[list(self.other_sizes)] = True
        return found

    @property
    def num_frames(self) -> int:
        return len(self.frame_offset)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_start)

    @property
    def action_dim(self) -> int:
        return 0 if self.actions is None else self.actions.shape[1]

    @property
    def state_dim(self) -> int:
        return 0 if self.states is None else self.states.shape[1]

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

    def place(self, row: int) -> tuple[str, int, int]:
        """(file, episode, step) of a frame."""
        episode = int(self.episode_of_rows(row))
        file = self.shards[self.shard_of_episode[episode]]
        return str(file), episode, int(row - self.episode_start[episode])

    def instruction(self, episode: int) -> str:
        number = int(self.instruction_of_episode[episode])
        return "" if number < 0 else self.instructions[number]

    def metadata(self, episode: int) -> dict[str, Any]:
        """episode_metadata of an episode, read from its shard."""
        path, found = self.shards[int(self.shard_of_episode[episode])], {}
        start, number = int(self.record_offset[episode]), int(self.record_of_episode[episode])
        record = storage.read_range(path, start, start + int(self.record_length[episode]))
        for key, feature in tfrecord.parse_example(record, path=path, number=number).items():
            if key.startswith(schema.METADATA):
                values = [
                    value.decode(errors="replace") if isinstance(value, bytes) else value.item()
                    for value in feature.values(record)
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
    state_key: str = "",
) -> CorpusIndex:
    """Opens an index; missing, stale or damaged → an error that names the command to run.

    image_key "": the only one that is indexed. action_key, instruction_key, state_key: if given,
    the index must have been built with them.
    """
    directory = storage.locate(directory)
    sidecars = storage.locate(sidecar_dir or directory)
    shards = find_shards(directory, split)
    image_key = image_key or _only_key(sidecars, split)
    inside = index_folder(".", image_key, split)
    folder = storage.fetch(sidecars, str(inside)) / inside
    if not (folder / "manifest.json").is_file():
        built = sorted(
            path.parent.parent.name
            for path in folder.parent.parent.glob(f"*/{split}/manifest.json")
        )
        raise MissingIndexError(
            f"{directory} has no index of image_key {image_key!r}, split {split!r} (looked in "
            f"{sidecars / inside}; built: {built or 'none'}): {REBUILD} with path {directory}"
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
                f"says {wanted!r}: {REBUILD} --{name} {wanted} with path {directory}"
            )
    _check_fresh(directory, shards, manifest)
    digests, states = dict(manifest["digests"]), manifest.get("states", {})
    built_with = (manifest.get("state_key") or STATE) if states else ""
    if state_key and (state_key != built_with or not states["digest"]):
        why = f"was built with state_key {built_with!r}" if states else "is of earlier code"
        if state_key == built_with:
            why = f"has no states {state_key!r} ({states['why']})"
        raise StaleIndexError(
            f"{folder} {why}, the config says {state_key!r}: {REBUILD} --state_key {state_key} "
            f"with path {directory}"
        )
    if states.get("digest"):
        digests["states"] = states["digest"]
    arrays = {}
    for name, digest in digests.items():
        path = folder / f"{name}.npy"
        arrays[name] = sidecar.map_array(path)
        if sidecar.file_digest(path) != digest:
            raise StaleIndexError(
                f"{path} is damaged (its digest is not the "
                f"manifest's): {REBUILD} with path {directory}"
            )
    return CorpusIndex(
        directory=directory,
        sidecar_dir=sidecars,
        split=split,
        image_key=image_key,
        action_key=manifest["action_key"],
        instruction_key=manifest["instruction_key"],
        hash=manifest["hash"],
        keys=manifest["keys"],
        image_size=tuple(manifest["image_size"]) if manifest["image_size"] else None,
        shards=shards,
        instructions=manifest["instructions"],
        other_sizes={int(e): tuple(s) for e, s in manifest.get("other_sizes", {}).items()},
        actions=arrays.pop("actions", None),
        state_key=built_with,
        **arrays,
    )


def load_or_build(
    directory: str | os.PathLike,
    *,
    split: str,
    sidecar_dir: str | os.PathLike | None = None,
    **view: Any,
) -> CorpusIndex:
    """`load_index`, but a corpus that has no index gets one: in the cache folder of this machine,
    where it is kept. One process builds, others of the machine wait for it. Keys that are not given
    are those of the data set, where it is one of Open X-Embodiment."""
    view["split"] = split
    try:
        return load_index(directory, sidecar_dir=sidecar_dir, **view)
    except MissingIndexError:
        pass
    location = storage.locate(directory)
    cache = storage.cache_folder(location)
    table = open_x.keys_of(location, split) or open_x.Keys()
    standard = {"image": table.image, "action": table.action, "instruction": table.instruction}
    for name, value in standard.items():
        view[f"{name}_key"] = view.get(f"{name}_key") or value
    with storage.Lock(cache / "index.lock", "an index", wait=True):
        try:
            index = load_index(directory, sidecar_dir=cache, **view)
        except (MissingIndexError, StaleIndexError) as error:
            logging.warning(
                "%s. Its shards are read once to make one in %s, for this machine; %s beside the "
                "shards and no machine needs to.",
                str(error).partition(" (looked in")[0],
                cache,
                REBUILD,
            )
            build_index(directory, sidecar_dir=cache, fps=table.fps, **view)
            index = load_index(directory, sidecar_dir=cache, **view)
    return dataclasses.replace(index, sidecar_dir=storage.locate(sidecar_dir or directory))


def _only_key(sidecars: Location, split: str) -> str:
    root = sidecars / "index"
    built = [
        name
        for name in storage.list_names(root) or ()
        if (root / name / split / "manifest.json").is_file()
    ]
    if len(built) != 1:
        raise (FileNotFoundError if built else MissingIndexError)(
            f"{root}, split {split!r}, has indexes of image_key {built or 'none'}: "
            + ("give one of them (image_key)" if built else REBUILD)
        )
    return built[0]


def _check_fresh(directory: Location, shards: list[Location], manifest: dict) -> None:
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
