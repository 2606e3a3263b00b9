"""The verb on the toy, and what it leaves."""

import json
import sys
from pathlib import Path

import pytest
import walk

from lapa_jax import cli, envs
from lapa_jax.arena import records
from lapa_jax.verbs import evaluate


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls the verb: what it returns, or its one line where it refuses."""
    monkeypatch.setitem(envs.ENVS, "toy", (walk.Settings, walk.Toy))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{walk.__file__}"\n')
    python.chmod(0o755)

    def call(server: str, *given: object, out: str = "out") -> int | str:
        argv = ["--benchmark", "toy", "--server", server, "--python", python, "--episodes", 3]
        argv += ["--out", tmp_path / out, "--start_seconds", 60, *given]
        try:
            return evaluate.main(list(map(str, argv)))
        except (ValueError, RuntimeError, OSError) as error:
            assert cli._message(error) and "\n" not in str(error), error
            return f"{error}"

    return call


@pytest.fixture
def read():
    """Of a folder the result, and its episodes by (task, number)."""

    def read(out: Path) -> tuple[dict, dict]:
        lines = (out / records.EPISODES).read_text().splitlines()
        found = {(one["task"], one["number"]): one for one in map(json.loads, lines)}
        return json.loads((out / "result.json").read_text()), found

    return read
