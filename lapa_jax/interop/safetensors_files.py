"""Writes directories of safetensors files in Hugging Face's form: one file, or shards with an
index; tensor by tensor, each made when its turn comes. tensor_files.py reads them."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax.interop.mapping import Tensor
from lapa_jax.interop.tensor_files import INDEX, SINGLE

SHARD_BYTES = 5 * 10**9
_CODES = {"float32": "F32", "bfloat16": "BF16", "int32": "I32", "uint32": "U32", "bool": "BOOL"}


def write(
    directory: Path, tensors: Mapping[str, Tensor], *, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """The files written. A file holds at most `shard_bytes`, or one tensor that is larger."""
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, one in tensors.items():
        if held and held + one.nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = one
        held += one.nbytes
    if len(shards) == 1:
        return [_write_file(directory / SINGLE, shards[0])]
    files = [
        _write_file(directory / f"model-{i:05d}-of-{len(shards):05d}.safetensors", shard)
        for i, shard in enumerate(shards, 1)
    ]
    index = {
        "metadata": {"total_size": sum(one.nbytes for one in tensors.values())},
        "weight_map": {
            name: file.name for file, shard in zip(files, shards, strict=True) for name in shard
        },
    }
    (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return files


def _write_file(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """The format: the length of a JSON header (8 bytes), the header, then the bytes of each
    tensor. The safetensors package wants all of them in memory at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, one in tensors.items():
        if one.dtype.name not in _CODES:
            raise ValueError(f"tensor {name!r} is {one.dtype}: one of {sorted(_CODES)} is expected")
        start, end = end, end + one.nbytes
        header[name] = {
            "dtype": _CODES[one.dtype.name],
            "shape": list(one.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, one in tensors.items():
            array = one.make()
            if (array.shape, array.dtype) != (one.shape, one.dtype):
                raise ValueError(
                    f"tensor {name!r} is {array.dtype}{list(array.shape)}, announced as "
                    f"{one.dtype}{list(one.shape)}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return path
