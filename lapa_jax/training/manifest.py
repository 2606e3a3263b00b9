"""What a checkpoint says about itself: the arrays of a state by item and path, and the JSON
document that records them. Knows nothing of how arrays are stored.
"""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import xxhash

from lapa_jax.training import checksum
from lapa_jax.training.state import TrainState

FORMAT_VERSION = 3


def _with_loss_stats(meta: dict) -> dict:
    """Format 3 has the running statistics of the loss (guard.py)."""
    record = {"path": ["loss_stats"], "dtype": "float32", "shape": [3], "zeros": True}
    arrays = meta["arrays"]
    return {**meta, "arrays": {**arrays, "state": [*arrays["state"], record]}}


# version → what makes the document of the version after it. A new format comes with a line here, or
# the older one is refused. A record's path may change: the place of the array on disk stays in
# "stored_path"; a new record has no array there, but "zeros". From 1, which had xxh3 checksums of
# whole arrays, there is no way.
UPGRADES: dict[int, Callable[[dict], dict]] = {2: _with_loss_stats}
OWN_KEYS = ("format_version", "step", "arrays")
ITEMS = ("params", "ema", "variables")  # fields of TrainState stored apart; the rest is "state"
DIFF_LINES = 20

ArrayPaths = dict[str, Any]  # by slash-separated path
Records = dict[str, dict[str, dict]]  # item -> path -> {dtype, shape, checksum}


class CheckpointError(RuntimeError):
    """A checkpoint directory that cannot be used as asked."""


class CheckpointSaveError(CheckpointError):
    """A step that was not saved; the steps before it are intact."""


class CheckpointDamagedError(CheckpointError):
    """Steps exist, but what they hold is not what was saved."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """A sound checkpoint of another state: other names, shapes or dtypes."""


# --- Trees: a state <-> items of {path: array} ---


def _part(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            part = str(getattr(entry, attribute))
            if not part or any(c in part for c in "./"):
                raise ValueError(f"checkpoints cannot hold the name {part!r}: no '.' or '/'")
            return part
    raise ValueError(f"checkpoints cannot hold tree entries of type {type(entry).__name__}")


def paths_of(tree: Any) -> ArrayPaths:
    """Leaves by path, in the order of the tree; containers of any type become names."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {"/".join(_part(entry) for entry in path): leaf for path, leaf in leaves}
    if len(arrays) != len(leaves):
        raise ValueError("checkpoints cannot hold two leaves of one name, such as keys 1 and '1'")
    return arrays


def _item(path: str) -> tuple[str, str]:
    """(the item that stores a leaf of a state, its path in there)."""
    name, _, rest = path.partition("/")
    return (name, rest) if name in ITEMS else ("state", path)


def split_items(state: TrainState) -> dict[str, ArrayPaths]:
    """Arrays of a state by the item that stores them."""
    items: dict[str, ArrayPaths] = {}
    for path, leaf in paths_of(state).items():
        name, rest = _item(path)
        items.setdefault(name, {})[rest] = leaf
    return items


def join_items(like: TrainState, items: Mapping[str, ArrayPaths]) -> TrainState:
    """Undoes `split_items`, with the containers of `like`."""
    leaves = [items[name][rest] for name, rest in map(_item, paths_of(like))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_same(
    records: Mapping[str, Mapping], wanted: Mapping[str, ArrayPaths], where: str
) -> None:
    """Raises a readable difference between what is stored and what is asked for."""

    def describe(items: Mapping[str, Mapping], of: Any) -> dict[str, str]:
        return {f"{name}/{path}": of(x) for name, xs in items.items() for path, x in xs.items()}

    stored = describe(records, lambda r: f"{r['dtype']}{list(r['shape'])}")
    asked = describe(wanted, lambda x: f"{x.dtype}{list(x.shape)}")
    lines = []
    for key in sorted(set(stored) | set(asked)):
        if stored.get(key) != asked.get(key):
            lines.append(
                f"  {key}: checkpoint {stored.get(key, 'none')}, config {asked.get(key, 'none')}"
            )
    if lines:
        more = len(lines) - DIFF_LINES
        raise CheckpointMismatchError(
            f"{where} does not fit this config; {len(lines)} arrays differ:\n"
            + "\n".join(lines[:DIFF_LINES])
            + (f"\n  ... and {more} more" if more > 0 else "")
            + "\nUse the config of the run, or another workdir"
        )


# --- Arrays ---


def is_key(x: Any) -> bool:
    """Whether this is an array of PRNG keys."""
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def storable(where: str, x: Any) -> Any:
    """The array as stored: keys as their integers."""
    if not isinstance(x, jax.Array | np.ndarray | np.generic):
        raise ValueError(f"{where} is a {type(x).__name__}, not an array")
    if x.size == 0:
        raise ValueError(f"{where} of shape {x.shape} is empty: leave it out")
    x = jax.random.key_data(x) if is_key(x) else x
    if x.dtype.itemsize > 4:
        raise ValueError(f"{where} is {x.dtype}: checkpoints hold 32 bits at most")
    return x


# --- Meta ---


def encode_meta(
    step: int,
    meta: Mapping[str, Any],
    originals: Mapping[str, ArrayPaths],
    items: Mapping[str, ArrayPaths],
) -> dict:
    """The JSON document of a step: `meta` and the records of its arrays, under one checksum."""
    taken = sorted(set(meta) & set(OWN_KEYS))
    if taken:
        raise ValueError(f"meta must not use the keys {taken}")
    arrays = {}
    checksums = checksum.of_items(items)
    for name, xs in originals.items():
        arrays[name] = []
        for path, original in xs.items():
            record = {
                "path": path.split("/"),
                "dtype": str(original.dtype),
                "shape": list(original.shape),
                "checksum": checksums[name][path],
            }
            if is_key(original):
                record["key_impl"] = str(jax.random.key_impl(original))
            arrays[name].append(record)
    assets = {
        name: base64.b64encode(data).decode("ascii")
        for name, data in meta.get("assets", {}).items()
    }
    content = {
        **meta,
        "assets": assets,
        "format_version": FORMAT_VERSION,
        "step": step,
        "arrays": arrays,
    }
    try:
        payload = json.dumps(content, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta of a checkpoint must be JSON: {error}") from error
    return {"payload": payload, "xxh3_64": xxhash.xxh3_64_hexdigest(payload.encode())}


def stored_path(record: Mapping[str, Any]) -> str:
    """Where the array of a record is on disk: elsewhere than at its path after an upgrade."""
    return "/".join(record.get("stored_path", record["path"]))


def decode_meta(document: Mapping[str, Any]) -> tuple[dict, Records]:
    """(meta as it was given, with step and format_version; records of the arrays)."""
    payload = document["payload"]
    if xxhash.xxh3_64_hexdigest(payload.encode()) != document["xxh3_64"]:
        raise CheckpointDamagedError("checksum of meta differs")
    meta = json.loads(payload)
    found = meta["format_version"]
    for version in range(found, FORMAT_VERSION):
        if version not in UPGRADES:
            break
        meta = {**UPGRADES[version](meta), "format_version": version + 1}
    if meta["format_version"] != FORMAT_VERSION:
        raise CheckpointMismatchError(
            f"step {meta['step']} has checkpoint format {found}, this code reads {FORMAT_VERSION}"
            + (f" and knows no way from {meta['format_version']}" if found < FORMAT_VERSION else "")
        )
    meta["assets"] = {name: base64.b64decode(data) for name, data in meta["assets"].items()}
    records: Records = {
        name: {"/".join(record["path"]): record for record in entries}
        for name, entries in meta.pop("arrays").items()
    }
    return meta, records
