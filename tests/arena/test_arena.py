"""`lapa evaluate --benchmark`: workers and a server, when all goes well and when it does not."""

import dataclasses
import os
import threading
from types import SimpleNamespace

import av
import numpy as np
import pytest
import stub
import walk

from lapa_jax import envs
from lapa_jax.arena import evaluation, pool, records, worker
from lapa_jax.verbs import evaluate

EPISODES = 3  # of a call of `run`


def test_an_evaluation(run, read, tmp_path, capfd):
    """Two workers, without JAX; then more episodes by the same command, and no other settings."""

    def answer(seen):
        x = float(seen["observation/state"][0])
        return {"actions": np.array([[0.5, 0.0], [2.0 if x < 3 else -3.0, 0.0]])}

    with stub.serving({}, answer) as server:
        flags = ("--tasks", "go", "--execute", 2)
        assert run(server.url, *flags) == 0
        result, found = read(tmp_path / "out")
        # 2.0 and -3.0 are clipped.
        goals = [state.goal for state in walk.Toy().evaluation_states(0, "go", EPISODES)]
        ways = np.cumsum([0.5, 1, 0.5, 1, 0.5, -1, 0.5, 1, 0.5, -1, 0.5, -1])
        for (_, number), one in found.items():
            reached = np.flatnonzero(ways >= goals[number])
            assert one["success"] == bool(len(reached))
            assert one["steps"] == (reached[0] + 1 if len(reached) else walk.HORIZON)
            assert one["clipped"] == one["steps"] // 2 and one["seed"] == 0
            assert one["asked"] == (one["steps"] + 1) // 2
        for seen in server.asked[2:]:  # the first two are black
            front, wrist = seen["observation/image"], seen["observation/wrist_image"]
            assert front.shape == wrist.shape == (16, 24, 3) and front.dtype == np.uint8
            assert front[0, 0, 0] == 200 and wrist[0, 0, 0] == 100
        told = {seen["prompt"] for seen in server.asked[2:]}
        assert told == {f"go to {goal:g}, way {i % 2}" for i, goal in enumerate(goals)}
        successes = sum(one["success"] for one in found.values())
        assert 0 < successes == result["all"]["successes"] and result["all"]["episodes"] == EPISODES
        shares = result["share_of_simulator"] + result["share_of_policy"]
        assert 0.5 < shares <= 1 and result["latency_max_ms"] >= result["latency_ms"] > 0
        assert "go" in (tmp_path / "out/page.html").read_text()
        with av.open(str(tmp_path / "out/videos/go-0.mp4")) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert len(frames) == found["go", 0]["steps"] + 1 and frames[0].shape[0] >= 256
        assert frames[0][:, :8].mean() > 150 > 50 > frames[0][:, -8:].mean()
        assert not list(tmp_path.glob("out/videos/*.npy"))

        asked, path = len(server.asked), tmp_path / "out" / records.EPISODES
        with open(path, "a") as file:
            file.write('{"task": "go", "num')  # a line that was being written
        assert run(server.url, *flags, "--episodes", EPISODES + 1) == 0
        result, more = read(tmp_path / "out")
        assert {key: more[key] for key in found} == found and len(more) == EPISODES + 1
        assert len(server.asked) == asked + 2 + more["go", EPISODES]["asked"]
        whole = path.read_text()
        for line in ('{"task": "go", "number": 9}', "[]", "{"):
            path.write_text(f"{whole}{line}\n")
            assert f"line {EPISODES + 2} is no episode" in run(server.url, *flags)
        path.write_text(whole)
        why = run(server.url, *flags[:2], "--seed", 1)
        assert "execute 2 there, 1 here; seed 0 there, 1 here" in why
    with stub.serving({"checkpoint": {"params_hash": "another"}}, answer) as server:
        assert "policy" in run(server.url, *flags)
    capfd.readouterr()
    with pytest.raises(SystemExit):
        evaluate.main(["--benchmark", "toy", "--help"])
    assert "--once" in capfd.readouterr().out
    evaluate.main(["--benchmark", "toy", "--list"])
    assert "metres a step" in capfd.readouterr().out


def test_workers_that_crash_or_hang_are_replaced(run, read, tmp_path, capfd, monkeypatch):
    """Episodes 1 of three tasks end a process: once, and each time."""
    tasks = ("--tasks", "die,hang,crash", "--step_seconds", 0.3, "--answer_seconds", 1)

    def answer(seen):
        if len(server.asked) % 5 == 3:
            return "429: more than 200 requests a second"  # is asked again
        return {"actions": np.full((2, 2), 0.5, np.float32)}

    with stub.serving(THEIRS, answer) as server:
        assert run(server.url, *tasks, "--episodes", 2, "--once", tmp_path) == 0
        _, found = read(tmp_path / "out")
        assert [found[task, 1]["tries"] for task in ("die", "hang", "crash")] == [2, 2, 2]
        assert all(one["success"] or one["steps"] == walk.HORIZON for one in found.values())
        flags = ("--tasks", "die,crash", "--episodes", 2)
        assert run(server.url, *flags, out="always") == 3
        result, found = read(tmp_path / "always")
        assert result["all"]["errors"] == 2 and result["all"]["episodes"] == 2
        assert "SIGKILL" in found["die", 1]["error"] and found["die", 1]["tries"] == 3
        assert "ArithmeticError: the simulator is unstable" in found["crash", 1]["error"]
        monkeypatch.setattr(pool, "_IN_VAIN", 2)
        why = run(server.url, "--tasks", "crash", "--episodes", 2, out="always")
        assert "2 workers ended in their episode, one after another" in why
    assert "2 episodes ended in an error" in capfd.readouterr().err


def test_a_full_disk_loses_what_runs(run, read, tmp_path, monkeypatch):
    def write(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[: len(data) // 2] if next(left) == 0 else data)

    real, left = os.write, iter([1, 0])
    with stub.serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(records.os, "write", write)
            why = run(server.url, "--tasks", "go", "--videos", 0)
            assert "No space left" in why and "1 episodes are kept" in why
        assert run(server.url, "--tasks", "go", "--videos", 0) == 0
    assert len(read(tmp_path / "out")[1]) == EPISODES


def acts(value):
    return lambda seen: {"actions": value}


# Of a server that means other things by our names.
THEIRS = {
    "policy": "pi",
    "images": ["base", "wrist"],
    "num_frames": None,
    "action": 3,
    "control_hz": "x",
    "observation": {"images": 2},
    "image_size": "224",
    "checkpoint": "x",
    "names": {1: 2},
}
OURS = {"policy": "action", "num_frames": 1, "images": 2, "image_size": [8, 8]}
BAD = {
    "latent": (OURS | {"policy": "latent"}, None, "predicts latents, no actions"),
    "dim": (OURS | {"action": {"dim": 7}}, None, "have 7 dimensions, those of toy 2 \\(x, grip\\)"),
    "names": (
        OURS | {"action": {"dim": 2, "names": ["x", "y"]}},
        None,
        "x, y, those of toy x, grip",
    ),
    "units": (
        OURS | {"action": {"dim": 2, "units": ["cm", "m"]}},
        None,
        "x of its policy is in cm, that of toy in metres a step",
    ),
    "inch": (
        OURS | {"action": {"dim": 2, "units": ["inch", ""]}},
        None,
        "x of its policy is in inch",
    ),
    "speed": (
        OURS | {"action": {"dim": 2, "units": ["m/s", ""]}},
        None,
        "x of its policy is in m/s",
    ),
    "pixels": (OURS | {"image_size": [5000, 8]}, None, "5000 x 8 pixels, and at most 4096 a side"),
    "rate": (OURS | {"control_hz": 5.0}, None, "acts at 5 Hz, toy at 10 Hz"),
    "cameras": (OURS | {"images": 3}, None, "sees 3 cameras, toy sends 2 \\(front, wrist\\)"),
    "state": (
        OURS | {"observation": {"state": {"dim": 5, "names": ["robot"]}}},
        None,
        "sees states of 5 numbers, toy has",
    ),
    "history": (OURS | {"num_frames": 2}, None, "sees 2 frames"),
    "text": ("hello", None, "first message is 'hello', not metadata"),
    "bytes": (b"\xc1", None, "not msgpack with NumPy arrays: it must speak openpi's protocol"),
    "number": (7, None, "first message is '7', not metadata"),
    "nothing": ({}, lambda seen: {"z": 1}, "must hold 'actions', this one has \\['z'\\]"),
    "wide": ({}, acts(np.zeros((2, 7))), "have 7 dimensions, the environment's 2"),
    "deep": ({}, acts(np.zeros((1, 2, 2))), "actions of shape \\[1, 2, 2\\]"),
    "ragged": ({}, acts([[0.0], [0.0, 1.0]]), "must be numbers, \\(steps, 2\\)"),
    "empty": ({}, acts(np.zeros((0, 1))), "actions of shape \\[0, 1\\]"),
    "nan": ({}, acts(np.full((1, 2), np.nan)), "not finite: \\[nan, nan\\]"),
    "second": ({}, acts(np.array([[0, 0], [0, np.inf]])), "not finite: \\[0.0, inf\\]"),
    "overflow": ({}, acts(np.full((1, 2), 1e300)), "not finite: \\[1e\\+300"),
    "closes": ({}, lambda seen: 1 / 0, "has closed the connection"),
    "error": ({}, lambda seen: "422: image: missing", "answers: 422: image: missing"),
    "traceback": ({}, lambda seen: "Traceback:\n  File\nKeyError: 'x'\n", "answers: KeyError: 'x'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_servers_are_one_line(run, case):
    metadata, answer, why = BAD[case]
    with stub.serving(metadata, answer) as server, pytest.raises(ValueError, match=why):
        raise ValueError(run(server.url))


def test_flags_of_environments_are_no_others():
    ours = {field.name for field in dataclasses.fields(evaluation.Options)}
    for name in envs.ENVS:
        kind, _ = envs.ENVS[name]
        assert not ours & {field.name for field in dataclasses.fields(kind)}, name


def test_what_is_sent_and_asked_for_is_each_once(run, read, tmp_path):
    """And a folder without episodes is of no settings."""
    with stub.serving({"images": 0}) as server:
        assert "--tasks go,go must be different ones" in run(server.url, "--tasks", "go,go")
        keys = ("--image_keys", "front,observation/state")
        assert "'observation/state' is the name of two fields" in run(server.url, *keys)
        keys = ("--image_keys", "front,wrist", "--prompt_key", "front")
        assert "'front' is the name of two fields" in run(server.url, *keys)
        why = run(server.url, "--tasks", "lost", "--seed", 7)
        assert why == "lost: a mesh is missing (install it)"  # at once: no other try helps
        assert run(server.url, "--tasks", "go", "--videos", 0) == 0
    assert read(tmp_path / "out")[0]["settings"]["cameras"] == ["front", "wrist"]


def test_shuffled_words_are_never_those_of_the_task():
    """Tasks of LIBERO in several rooms are asked for by the same words."""
    for suite in ("90", "goal_task", "spatial_task"):
        env = envs.make({"name": "libero", "suite": suite})
        does = SimpleNamespace(
            start=lambda _, task, __, suite=suite: SimpleNamespace(suite=suite, task=task)
        )
        how = SimpleNamespace(seed=0, phrasings="shuffled")
        for task in env.spec.tasks:
            state = does.start(0, task, 0)
            for number in range(2 * len(env.spec.tasks)):
                text = worker.told(env, does, how, worker.Job(task, number), state)
                assert text and text not in env.instructions([state])


def test_late_and_absent_servers(run):
    waits = threading.Event()

    def answer(seen):
        if len(server.asked) > 1:  # the first answer may wait for a compilation
            waits.wait(10)
        return {"actions": [[0.0, 0.0]]}

    with stub.serving({}, answer) as server:
        assert "no answer in time: --answer_seconds" in run(server.url, "--answer_seconds", 0.2)
        waits.set()
    for status, why in ((401, "set LAPA_SERVE_TOKEN"), (404, "is it openpi's?")):
        with stub.serving(status=status) as server:
            assert f"HTTP {status}: {why}" in run(server.url)
    assert "no server there" in run("ws://127.0.0.1:9")
    assert "is no address" in run("ftp://somewhere")
