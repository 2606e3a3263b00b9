"""One side of `lapa bench compare`: a process that stays warm and does what it is told to.

    python side.py CASE OPTIONS PACKAGES      # the last two as JSON

Of the standard library alone, for interpreters that have nothing of ours. Every line of the input
asks for a repetition; what is measured of it is a line of the output.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import sys
import time
from typing import Any


def main(case: str, options: str, packages: str) -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the case prints
    del sys.path[0]  # this folder
    if os.path.isdir(os.path.join(sys.path[0], "lapa_jax")):
        forget_installed()
    step = _module(case).prepare(**json.loads(options))
    versions = {"python": platform.python_version(), **_versions(json.loads(packages))}
    replies.write(json.dumps({"work": getattr(step, "work", 1), "versions": versions}) + "\n")
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), cpu_seconds()
        step()
        found = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
        replies.write(json.dumps(found) + "\n")


def forget_installed() -> None:
    """An editable installation would lend an earlier build the packages that it lacks."""

    def finds_ours(finder: Any) -> bool:
        module = sys.modules.get(getattr(finder, "__module__", ""))
        return "lapa_jax" in getattr(module, "MAPPING", ())

    sys.meta_path[:] = [finder for finder in sys.meta_path if not finds_ours(finder)]


def cpu_seconds() -> float:
    """Of all threads of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("case", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["case"] = module
    spec.loader.exec_module(module)
    return module


def _versions(packages: list[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
