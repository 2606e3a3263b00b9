"""What the features.json of a data set says of its fields: types and shapes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from data_pipelines.storage import Location

FEATURES_FILE = "features.json"


@dataclasses.dataclass(frozen=True)
class Declared:
    """What features.json says of a field: its type and shape in a step (or in the episode), -1 for
    what differs, and whether tensors are stored as "bytes" or "zlib"; sequence: how many a step has
    is not fixed."""

    dtype: str
    shape: tuple[int, ...] = ()
    encoding: str = "none"
    is_image: bool = False
    is_sequence: bool = False

    def __str__(self) -> str:
        shape = ["N"] * self.is_sequence + ["?" if size < 0 else str(size) for size in self.shape]
        return self.dtype + (f"[{','.join(shape)}]" if shape else "")


Declaration = Mapping[str, Declared]
NOTHING: Declaration = {}


def declaration_of(directory: Location) -> Declaration:
    """By the features.json of a data set; empty where there is none that can be read."""
    path = directory / FEATURES_FILE
    if not path.is_file():
        return NOTHING
    found: dict[str, Declared] = {}

    def walk(node: dict, key: str, sequences: int) -> None:
        if "featuresDict" in node:
            for name, child in node["featuresDict"]["features"].items():
                walk(child, f"{key}/{name}" if key else name, sequences)
        elif "sequence" in node:  # the steps are one
            walk(node["sequence"]["feature"], key, sequences + (key != "steps"))
        elif "text" in node or "classLabel" in node:
            dtype = "text" if "text" in node else "int64"
            found[key] = Declared(dtype, is_sequence=sequences > 0)
        else:
            image = "image" in node
            inner = (value for value in node.values() if isinstance(value, dict))
            content = next(inner, {})  # tensor, image, boundingBox, ...
            shape = tuple(int(n) for n in content.get("shape", {}).get("dimensions", ()))
            dtype = content.get("dtype", "uint8" if image else "?")
            dtype = "text" if dtype in ("string", "object") else dtype
            encoding = content.get("encoding", "none")
            found[key] = Declared(dtype, shape, encoding, image, sequences > 0)

    try:
        walk(json.loads(path.read_bytes()), "", 0)
    except (ValueError, KeyError, AttributeError, TypeError):  # of another form: the records tell
        return NOTHING
    return found
