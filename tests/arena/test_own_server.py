"""`lapa evaluate --benchmark` with a run of ours, for which it starts the server itself."""

import os

import psutil
from tiny_policy import make_policy


def test_a_run_is_served_as_long_as_it_takes(run, read, tmp_path, capfd):
    policy = make_policy(tmp_path / "run", "action")
    flags = ("--tasks", "go", "--episodes", 2, "--videos", 0)
    before = psutil.Process(os.getpid()).children(recursive=True)
    assert run("", "--workdir", policy, *flags) == 0
    result, found = read(tmp_path / "out")
    assert len(found) == 2 and all(one["asked"] == one["steps"] > 0 for one in found.values())
    assert result["settings"]["image_size"] == [32, 48]
    assert result["settings"]["cameras"] == ["front"]
    assert len(result["settings"]["policy"]["params_hash"]) > 8
    assert psutil.Process(os.getpid()).children(recursive=True) == before
    why = run("", "--workdir", tmp_path / "none", *flags, out="other")
    assert "lapa serve: " in why and str(tmp_path / "none") in why
