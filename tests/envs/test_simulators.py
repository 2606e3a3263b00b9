"""The tests of simulators that draw with OpenGL, in a process of their own: with TensorFlow, which
others here load, Mesa ends it."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_simulators():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-m", "simulator", str(HERE)],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-2_000:]


def test_drawing_beside_tensorflow_is_refused(monkeypatch):
    from lapa_jax.envs import graphics

    monkeypatch.setitem(sys.modules, "tensorflow", object())
    graphics.context.cache_clear()
    with pytest.raises(RuntimeError, match="cannot draw in a process that has loaded TensorFlow"):
        graphics.context()
