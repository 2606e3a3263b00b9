"""Files of others: whether they are what was meant, and their tensors, read when asked for.

Nothing in a file is run: safetensors hold arrays alone, and of PyTorch's files only tensors and
plain containers are read (`weights_only`).
"""

import argparse
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath
from typing import Any

import ml_dtypes
import numpy as np
import yaml

from lapa_jax.interop.mapping import Tensor
from lapa_jax.interop.torch_code import require_torch

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
# Of a folder in Hugging Face's form, the first that is there.
_OF_FOLDERS = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
DEEPEST = 8  # mappings inside of each other
_LFS = b"version https://git-lfs.github.com/spec/"
_FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_FLOAT8 = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
_DTYPES = (
    _FLOATS
    | _FLOAT8
    | {
        name: np.dtype(f"{'uint' if name[0] == 'U' else 'int'}{name[1:]}")
        for name in ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
    }
)
_DTYPES["BOOL"] = np.dtype(bool)


def given_file(path: str | Path, what: str = "a file") -> Path:
    """`path`, if it is a file that holds something. OSError or ValueError say what is there
    instead; a Git LFS pointer is named as one."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: {what} is meant")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {what} is meant")
    with open(path, "rb") as file:
        begin = file.read(len(_LFS))
    if begin == _LFS:
        raise ValueError(
            f"{path} is a Git LFS pointer, not the file that it stands for: git lfs pull fetches it"
        )
    if not begin:
        raise ValueError(f"{path} is empty: {what} is meant")
    return path


def text_of(path: str | Path, what: str) -> str:
    """What a text file holds."""
    try:
        return given_file(path, what).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {what} is meant") from error


def json_object(path: str | Path, what: str = "a JSON file") -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        found = json.loads(text_of(path, what))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is no JSON of a configuration: it nests without end") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object: {what} is meant")
    return found


def yaml_object(path: str | Path, what: str = "a YAML file") -> dict[str, Any]:
    """The mapping that a YAML file of plain values holds; aliases are refused, whose expansion has
    no end."""
    try:
        text = text_of(path, what)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError(f"{path} has aliases (*name), which are not read: write values out")
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is no YAML of a configuration: it nests without end") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping: {what} is meant")
    return found


def tensors(source: str | Path) -> dict[str, Tensor]:
    """Of a file (.safetensors, .npz or PyTorch's), or of a directory in Hugging Face's form: one of
    them, or shards with an index. Mappings inside of mappings are joined by dots. Raises ValueError
    for float8 with a scale beside it: its values are others."""
    found = _tensors(Path(source))
    for name in [name for name, one in found.items() if one.dtype in _FLOAT8.values()]:
        module = name.rpartition(".")[0]
        for other in found:
            folder, _, last = other.rpartition(".")
            scale = "scale" in last and folder in (module, name)
            if scale or other == "scaled_fp8":
                raise ValueError(
                    f"{source}: tensor {name!r} is {found[name].dtype}, scaled by {other!r}: "
                    "quantized weights are not read. Save the weights in bfloat16 or float32"
                )
    return found


def _tensors(source: Path) -> dict[str, Tensor]:
    if not source.is_dir():
        return _of_file(given_file(source, "a file of weights"))
    name = next((name for name in _OF_FOLDERS if (source / name).exists()), None)
    if name is None:
        hint = ""
        if (source / "adapter_config.json").exists():
            hint = ". It holds an adapter: merge it into its model and save that"
        raise FileNotFoundError(f"{source} holds none of {', '.join(_OF_FOLDERS)}{hint}")
    if not name.endswith(".index.json"):
        return _of_file(given_file(source / name))
    return dict(_of_shards(source / name))


def _of_shards(index: Path) -> Iterator[tuple[str, Tensor]]:
    files = json_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(x, str) for x in files.values()):
        raise ValueError(f"{index} has no weight_map from names of tensors to files")
    shards = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file:
            raise ValueError(f"{index} names a file elsewhere: {file!r}")
        shards[file] = _of_file(given_file(index.with_name(file), f"a shard that {index} names"))
    for name, file in files.items():
        if name not in shards[file]:
            raise ValueError(f"{index}: tensor {name!r} is not in {file}")
        yield name, shards[file][name]


def _of_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npz":
        return _of_npz(path)
    return _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)


def _of_npz(path: Path) -> dict[str, Tensor]:
    found, heads = {}, {(1, 0): np.lib.format.read_array_header_1_0}

    def make(name: str) -> np.ndarray:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]

    try:
        _check_sums(path)
        with zipfile.ZipFile(path) as records:
            for record in records.namelist():
                with records.open(record) as file:
                    version = np.lib.format.read_magic(file)
                    read = heads.get(version, np.lib.format.read_array_header_2_0)
                    shape, _, dtype = read(file)
                name = record.removesuffix(".npy")
                found[name] = Tensor(shape, dtype, lambda name=name: make(name))
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise ValueError(f"{path} is no whole file of NumPy's arrays: {reason}") from None
    for name, one in found.items():
        if one.dtype not in _DTYPES.values():
            raise ValueError(_odd(path, name, str(one.dtype)))
    return found


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    def make(name: str) -> np.ndarray:
        if found[name].dtype in _FLOAT8.values():  # which it reads for other frameworks alone
            return _bytes_of(path, name).view(found[name].dtype).reshape(found[name].shape)
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                one = file.get_slice(name)
                dtype = _DTYPES.get(one.get_dtype())
                if dtype is None:
                    raise ValueError(_odd(path, name, one.get_dtype()))
                found[name] = Tensor(tuple(one.get_shape()), dtype, lambda name=name: make(name))
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    return found


def _bytes_of(path: Path, name: str) -> np.ndarray:
    """Of a tensor in a whole safetensors file: a length in 8 bytes, a JSON header, the data."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(length))[name]["data_offsets"]
        file.seek(8 + length + begin)
        return np.frombuffer(file.read(end - begin), np.uint8)


def _of_torch(path: Path) -> dict[str, Tensor]:
    require_torch(f"reading {path}")
    import torch

    try:
        # Nothing that the file names is run. Files of PyTorch before 1.6 cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _check_sums(path)
        with torch.serialization.safe_globals(_inert()):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    # What torch.load raises of bytes that it cannot read.
    except Exception as error:
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} holds more than tensors: it names {named[1]}, which is not run here. Save "
                "the state dict alone, where it was made: torch.save(model.state_dict(), PATH)"
            ) from None
        reason = str(error).strip().partition("\n")[0][:120]
        raise ValueError(f"{path} is no whole file of PyTorch's tensors: {reason}") from None
    flat: dict[str, Any] = {}
    left: list[tuple[str, int, Any]] = [("", 0, loaded)]
    while left:
        name, depth, value = left.pop()
        if isinstance(value, Mapping):
            if depth > DEEPEST or len(left) > 10**6:
                raise ValueError(f"{path} holds mappings without end, at {name[:80]!r}")
            inner = [(f"{name}.{k}" if name else str(k), depth + 1, x) for k, x in value.items()]
            left += reversed(inner)
        elif torch.is_tensor(value):
            if name in flat:
                raise ValueError(f"{path} holds tensor {name!r} twice")
            flat[name] = value
    if not flat or "" in flat:
        raise ValueError(f"{path} holds no state dict (a mapping of names to tensors)")
    return {name: _lazy(path, name, value) for name, value in flat.items()}


def _check_sums(path: Path) -> None:
    """Raises BadZipFile for a record that is not what was written: PyTorch does not look."""
    with zipfile.ZipFile(path) as records:
        for record in records.infolist():
            if record.CRC:  # 0: written without (set_crc32_options)
                with records.open(record) as file:
                    while file.read(1 << 24):
                        pass


def _inert() -> list[Any]:
    """What trainers keep beside tensors, and does nothing when it is made: a loss as a NumPy
    number, flags, paths."""
    scalar = np._core.multiarray.scalar
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    letters = np.typecodes["AllInteger"] + np.typecodes["Float"]
    kinds = {type(np.dtype(letter)) for letter in letters}
    return [*numbers, np.dtype, *kinds, type(np.dtype(bool)), argparse.Namespace, PosixPath]


def _lazy(path: Path, name: str, tensor: Any) -> Tensor:
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"}
    names |= {torch.bfloat16: "BF16", torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8"}
    names |= {torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"}
    names |= {getattr(torch, dtype.name): name for name, dtype in _FLOAT8.items()}
    if tensor.layout != torch.strided or tensor.dtype not in names or tensor.is_meta:
        raise ValueError(_odd(path, name, f"{tensor.dtype}, {tensor.layout}, {tensor.device}"))
    dtype = _DTYPES[names[tensor.dtype]]

    def make() -> np.ndarray:
        found = tensor.detach().contiguous()
        if names[tensor.dtype] == "BF16" or dtype in _FLOAT8.values():  # which NumPy has not
            found = found.view({1: torch.uint8, 2: torch.int16}[dtype.itemsize])
        return found.numpy().view(dtype)

    return Tensor(tuple(tensor.shape), dtype, make)


def _odd(path: Path, name: str, kind: str) -> str:
    return (
        f"{path}: tensor {name!r} is {kind}: numbers as they are, in one of "
        f"{sorted(map(str, _DTYPES.values()))}, are read; quantized weights are not"
    )
