"""The PyTorch files that are written beside exported weights, and running what was written."""

import importlib
import importlib.resources
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lapa_jax.runs.run import write_json

RUN_CONFIG = "lapa_run.json"  # the config of the run: the way back needs no other
CHECKING = "the check of what is written"
_PACKAGE = "lapa_exported"


def write(directory: Path, documents: Mapping[str, Any], sources: Sequence[str]) -> None:
    """JSON documents by file name, and files of torch_files/."""
    for name, document in documents.items():
        write_json(directory / name, document)
    for name in sources:
        source = importlib.resources.files("lapa_jax.interop") / "torch_files" / name
        (directory / name).write_text(source.read_text())


def require_torch(doing: str, *packages: str) -> None:
    """Raises ValueError where PyTorch, or one of `packages`, is not installed."""
    for name in ("torch", *packages):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"{doing} needs {name}: pip install {name}") from error


def load(directory: Path, name: str) -> ModuleType:
    """directory/NAME, which may import its neighbours, as a module. Runs it: only for what was
    written here."""
    require_torch(CHECKING)
    package = ModuleType(_PACKAGE)
    package.__path__ = [str(directory)]
    wrote_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules[_PACKAGE] = package
    try:
        return importlib.import_module(f"{_PACKAGE}.{name.removesuffix('.py')}")
    finally:
        # The next directory has files of the same names.
        for loaded in [x for x in sys.modules if x.split(".")[0] == _PACKAGE]:
            del sys.modules[loaded]
        sys.dont_write_bytecode = wrote_bytecode
