"""`lapa compile` in a process of its own, with the compilers that `make test` installs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

# A folder of their own, so that no other command of the environment looks for their hardware.
FOLDER = Path(sys.prefix) / "aot"

needs_compilers = pytest.mark.skipif(
    not (FOLDER / "libtpu").exists() and importlib.util.find_spec("libtpu") is None,
    reason="the compilers for accelerators are not installed: make test (or make test-aot) does it",
)


def lapa_compile(*arguments: str) -> tuple[int, dict, str]:
    """(exit code, the JSON of the last line, everything that was printed)."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tiny.ROOT), str(FOLDER)])}
    for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "lapa_jax", "compile", *arguments, "--json"],
        env=environment,
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
    last = done.stdout.rstrip().rsplit("\n", 1)[-1]
    if not last.startswith("{"):
        raise AssertionError(f"no JSON in the last line; {done.stdout}\n{done.stderr[-4000:]}")
    return done.returncode, json.loads(last), done.stdout
