"""LIBERO: its Python, which is another, runs the contract and in_libero.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lapa_jax import envs
from lapa_jax.arena import checks
from lapa_jax.envs import libero
from lapa_jax.envs.libero import suites

HERE = Path(__file__).parent
PYTHON = Path(sys.prefix) / "libero" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON.exists(), reason="the environment of LIBERO is not there: make test makes it"
)
def test_its_own_python_runs_it():
    files = [HERE / "test_contract.py", HERE / "in_libero.py"]
    options = "-q --noconftest -p no:cacheprovider -W ignore -c".split()
    command = [PYTHON, "-m", "pytest", *options, os.devnull]
    env = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([*command, *files], capture_output=True, text=True, env=env)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    last = found.stdout.strip().splitlines()[-1]
    assert int(re.match(r"(\d+) passed", last)[1]) >= 16 and "skipped" not in last, last


def test_without_it_tasks_are_known_and_what_mends_it():
    env = envs.make({"name": "libero", "suite": "10"})
    assert "is not installed in this Python: make .venv/.libero" in env.available()
    assert len(env.spec.tasks) == 10 and env.spec.horizon == 520
    for suite in suites.SUITES:
        env = envs.make({"name": "libero", "suite": suite})
        assert len(env.spec.tasks) == (90 if suite == "90" else 10)
        assert len(env.all_instructions()) == len(env.spec.tasks)
        assert not {*env.all_instructions()} & {*env.all_instructions("held_out")}
    assert "put the bowl on the stove" in envs.make({"name": "libero"}).all_instructions()


def test_actions_of_other_units_are_refused():
    spec = envs.make({"name": "libero"}).spec
    checks.fits(spec, {"action": {"units": ["5 cm"] * 3 + ["0.5 rad"] * 3 + ["-1..1"]}})
    for units in (["m"] * 3 + ["0.5 rad"] * 3, ["5 cm"] * 3 + ["rad"] * 3):
        with pytest.raises(ValueError, match="that of libero in (5 cm|0.5 rad) in 1/20 s"):
            checks.fits(spec, {"action": {"units": [*units, ""]}})


def test_its_python_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(libero, "_PROJECT", tmp_path)
    assert envs.make({"name": "libero"}).python == ""
    python = tmp_path / "libero/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert envs.make({"name": "libero"}).python == str(python)
