"""Processes of `lapa` that compute ask for huge pages, and say so once."""

import os
import subprocess
import sys

import pytest

from lapa_jax import cli
from lapa_jax.machine import allocator

_SAID = """
import os, sys
from lapa_jax import cli
cli.dispatch = lambda *_: print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
sys.exit(cli.main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked for on Linux")
@pytest.mark.parametrize(
    "given, verb, said",
    [
        ("", "train", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", "train", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "train", "glibc.malloc.hugetlb=0"),
        ("", "status", "None"),
    ],
)
def test_huge_pages_are_asked_for(given, verb, said):
    env = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    env |= {"GLIBC_TUNABLES": given} if given else {}
    command = [sys.executable, "-c", _SAID, verb, "--workdir", "a b"]
    started = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    told, _ = started.communicate(timeout=60)
    assert told == f"{started.pid} {[verb, '--workdir', 'a b']} {said}\n"


def test_who_calls_a_verb_is_not_started_anew(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(allocator.os, "execv", None)  # would fail
    monkeypatch.setattr(cli, "dispatch", lambda *_: 7)
    assert cli.main(["train"]) == 7
