"""The TFRecord shards of a corpus: their standard names and their fingerprints."""

import os
import re
from pathlib import Path
from typing import Any

import xxhash

from data_pipelines import sidecar, storage
from data_pipelines.storage import Location

_EDGE_BYTES = 2**16
# What TFDS writes one after the other does not say how many there are.
_SHARD = re.compile(
    r"(?P<name>[^.].*)-(?P<split>[^-]+)\.tfrecord-(?P<i>\d{5,})(-of-(?P<n>\d{5,}))?"
)


def find_shards(directory: str | os.PathLike, split: str) -> list[Location]:
    """The shards of a split by their standard TFDS names, all of them or an error."""
    directory = storage.locate(directory)
    if isinstance(directory, Path):
        storage.given_folder(directory, "the folder of a corpus")
    names = storage.list_names(directory)
    if names is None:
        raise FileNotFoundError(f"corpus folder {directory} does not exist")
    found: dict[str, dict[tuple[str, int], dict[int, Location]]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            group = found.setdefault(match["split"], {})
            group.setdefault((match["name"], int(match["n"] or 0)), {})[int(match["i"])] = (
                directory / name
            )
    if split not in found:
        hint = ""
        inner = {
            path.parent
            for depth in ("*/", "*/*/")
            if isinstance(directory, Path)
            for path in directory.glob(f"{depth}*-{split}.tfrecord-*")
        }
        if inner:
            hint = f"; shards of {split!r} lie in {', '.join(map(str, sorted(inner)[:4]))}"
        elif not found:
            hint = " (names look like NAME-SPLIT.tfrecord-00000-of-00001)"
        raise FileNotFoundError(
            f"{directory} has no TFRecord shards of split {split!r}; splits "
            f"found: {sorted(found) or 'none'}{hint}"
        )
    if len(found[split]) > 1:
        raise ValueError(
            f"{directory} mixes shard sets of split {split!r}: "
            + ", ".join(f"{name} of {count}" for name, count in sorted(found[split]))
        )
    (((_, count), shards),) = found[split].items()
    count = count or max(shards) + 1
    missing = [number for number in range(count) if number not in shards]
    if missing or len(shards) != count:
        raise FileNotFoundError(
            f"{directory}, split {split!r}: {count} shards are announced by "
            f"the file names, missing: {missing[:10]}"
        )
    return [shards[number] for number in range(count)]


def other_splits(directory: Path, split: str) -> list[str]:
    """Splits with shards in the same directory."""
    names = storage.list_names(directory) or []
    found = {match["split"] for name in names if (match := _SHARD.fullmatch(name))}
    return sorted(found - {split})


def shard_fingerprint(path: Location) -> dict[str, Any]:
    """Size and hash of head and tail: changes when a shard is rewritten, cheap at any size."""
    size = storage.size(path)
    head = storage.read_range(path, 0, min(size, _EDGE_BYTES))
    tail = storage.read_range(path, max(0, size - _EDGE_BYTES), size)
    return {
        "name": path.name,
        "bytes": size,
        "head": xxhash.xxh3_64_hexdigest(head),
        "tail": xxhash.xxh3_64_hexdigest(tail),
    }


def index_folder(
    directory: str | os.PathLike,
    image_key: str,
    split: str,
    sidecar_dir: str | os.PathLike | None = None,
) -> Location:
    if not re.fullmatch(r"[\w./-]+", image_key) or ".." in image_key:
        raise ValueError(
            f"image_key {image_key!r} is not the name of an observation; an index is of one camera"
        )
    root = storage.locate(sidecar_dir or directory)
    return root / "index" / image_key.replace("/", ".") / split


def announced_lengths(directory: Location, split: str) -> list[int] | None:
    """Records per shard by dataset_info.json, if there is one that knows the split."""
    path = directory / "dataset_info.json"
    if not path.is_file():
        return None
    for entry in sidecar.read_json(path).get("splits", []):
        if entry.get("name") == split and entry.get("shardLengths"):
            return [int(length) for length in entry["shardLengths"]]
    return None
