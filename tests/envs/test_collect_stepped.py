"""Corpora of environments that are stepped in Python: in processes, and by blocks that survive."""

import dataclasses
import json

import numpy as np
import pytest
import simplejpeg
import walking_env

from data_pipelines.convert import staging
from data_pipelines.rlds import schema, shards, tfrecord
from lapa_jax.envs import collect, demonstrations
from lapa_jax.verbs import data

ENV = walking_env.Walk()
HOW = dict(episodes=40, views=("front", "back"), size=16, noise=0.3, progress=False)


def run(out, env=ENV, **changes):
    return collect.collect(env, out, **HOW | changes)


def episodes(directory):
    for path in shards.find_shards(directory, "train"):
        for record in tfrecord.read_payloads(path):
            read = {"bytes": "byte_items", "float": "floats", "int64": "ints"}
            features = tfrecord.parse_example(record)
            yield {k: getattr(f, read[f.kind])(record) for k, f in features.items()}


def content(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("walk")
    return out, run(out), content(out)


@pytest.fixture
def stopped(monkeypatch):
    """A context in which collecting is interrupted at the attempt of that number."""

    def at(number):
        original, seen = demonstrations._try, []

        def attempt(*args):
            seen.append(args)
            if len(seen) == number:
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(demonstrations, "_try", attempt)
        return seen

    return at


def test_episodes_are_what_happened(whole):
    """Actions as executed lead from the start state of the number to success, through the states
    and the pictures of both views."""
    out, report, _ = whole
    plan = demonstrations.Plan(ENV, None, (), (), 0, "train", 0.3, True)
    lost = 0
    for k, pair in enumerate(zip(episodes(out / "front"), episodes(out / "back"), strict=True)):
        task = ENV.spec.tasks[k % 3]
        for one, view in zip(pair, ("front", "back"), strict=True):
            assert one[schema.EPISODE_ID] == [f"train-0-{k:07d}".encode()]
            assert one[schema.METADATA + "task"] == [task.encode()]
            assert one[schema.METADATA + "camera"] == [view.encode()]
            assert one[schema.INSTRUCTION][0].startswith(f"walk {task}, way ".encode())
            starts = (ENV.reset(demonstrations.start_key(plan, k, a), task) for a in range(50))
            attempts = [next(starts)]
            while attempts[-1].lost:
                attempts.append(next(starts))
            actions, own = one[schema.ACTION], one[schema.STATE].reshape(-1, 2)
            state, seen = attempts[-1], one[schema.IMAGE]
            for t, action in enumerate(actions):
                np.testing.assert_array_equal(own[t], ENV.proprioception(state))
                grey = simplejpeg.decode_jpeg(seen[t])
                assert np.abs(grey.astype(int) - walking_env.level(state.x, view)).max() <= 2
                assert ENV.success(state) == (t == len(actions) - 1)
                if t < len(actions) - 1:
                    state = ENV.step(state, [action])
            assert one[schema.REWARD].tolist() == [0.0] * (len(actions) - 1) + [1.0]
            assert actions[-1] == 0 and one[schema.IS_TERMINAL][-1]
        lost += len(attempts) - 1
    assert k == 39 and report.dropped == lost > 0 and report.failed == 0
    assert report.episodes_of_family == {"near": 14, "far": 13, "farther": 13}
    assert len(np.unique(np.concatenate([e[schema.ACTION] for e in episodes(out / "front")]))) > 40
    assert len({e[schema.INSTRUCTION][0] for e in episodes(out / "front")}) == 6


def test_processes_one_of_which_is_killed(whole, tmp_path, monkeypatch):
    """The same command goes on, and the number of processes changes nothing."""
    monkeypatch.setenv(walking_env.DIES, str(tmp_path / "died"))
    with pytest.raises(RuntimeError, match="one of 2 worker processes .* same command goes on"):
        run(tmp_path / "out", workers=2)
    report = run(tmp_path / "out", workers=2)
    assert content(tmp_path / "out") == whole[2]
    assert dataclasses.replace(report, directories=None, resumed=0) == dataclasses.replace(
        whole[1], directories=None
    )


def test_a_stop_loses_a_block_at_most(whole, tmp_path, monkeypatch, stopped):
    attempts = 40 + whole[1].dropped
    stopped(attempts)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    assert not [*tmp_path.glob("*/dataset_info.json")]
    with pytest.raises(ValueError, match=r"other settings \(noise: 0.3 -> 0.4; seed: 0 -> 1\)"):
        run(tmp_path, noise=0.4, seed=1)
    with pytest.raises(ValueError, match=r"lost: 4 -> 5"):
        run(tmp_path, walking_env.Walk(walking_env.Settings(lost=5)))
    (tmp_path / "back/.staging-train/part-00000.json").unlink()  # one view had it, one had not
    again = stopped(1000)
    report = run(tmp_path)
    assert content(tmp_path) == whole[2] and report.resumed == 24
    assert 16 <= len(again) < attempts / 2
    assert dataclasses.replace(report, directories=None, resumed=0) == dataclasses.replace(
        whole[1], directories=None
    )
    with pytest.raises(FileExistsError, match="front already holds a finished split 'train'"):
        run(tmp_path)


def test_a_stop_between_publications(whole, tmp_path, monkeypatch):
    original = staging.Staging.publish

    def publish(stage, output):
        if output.directory.name == "back":
            raise KeyboardInterrupt
        original(stage, output)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(staging.Staging, "publish", publish)
        run(tmp_path)
    assert {path.parent.name for path in tmp_path.glob("*/dataset_info.json")} == {"front"}
    monkeypatch.setattr(demonstrations, "_try", None)  # nothing is made again
    assert run(tmp_path).frames == whole[1].frames and content(tmp_path) == whole[2]


def test_views_together_are_cameras_of_one_corpus(whole, tmp_path):
    report = run(tmp_path, together=True)
    assert list(report.directories) == ["front+back"] and report.frames == whole[1].frames
    apart = zip(episodes(whole[0] / "front"), episodes(whole[0] / "back"), strict=True)
    for one, (front, back) in zip(episodes(tmp_path / "front+back"), apart, strict=True):
        expected = front | {schema.OBSERVATION + "back": back[schema.IMAGE]}
        assert one.keys() == expected.keys()
        np.testing.assert_equal(one, expected)


def test_other_views_are_other_settings(tmp_path, stopped):
    stopped(3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, views=("back",))
    with pytest.raises(ValueError, match=r"views: \['back'\] -> \['front', 'back'\]"):
        run(tmp_path)
    assert not [*(tmp_path / "front").iterdir()]


def test_failures_are_kept_or_end_it(tmp_path):
    how = dict(episodes=12, views=("front",), noise=0.0)
    report = run(tmp_path / "kept", only_successful=False, with_actions=False, **how)
    found = [*episodes(tmp_path / "kept/front")]
    failed = [one for one in found if not one[schema.REWARD].any()]
    assert report.episodes == 12 and report.failed == len(failed) > 0 and report.dropped == 0
    assert all(len(one[schema.IMAGE]) == 10 and not one[schema.IS_TERMINAL].any() for one in failed)
    assert not any(schema.ACTION in one for one in found)
    hopeless = walking_env.Walk(walking_env.Settings(lost=1))
    with pytest.raises(ValueError, match="only 0 of 50 expert episodes of near .*horizon=9"):
        run(tmp_path / "none", hopeless, **how)
    assert not [*(tmp_path / "none/front").iterdir()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("fly",)}, "--tasks: walk has no task .*near, far, farther"),
        ({"tasks": ("far", "far")}, "different"),
        ({"views": ("top",)}, "front"),
        ({"views": ("back",), "together": True}, r"--together is of several views; .*'back'"),
    ],
)
def test_wrong_arguments(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)
    assert not [*tmp_path.iterdir()]


@pytest.mark.simulator
def test_metaworld_becomes_a_corpus_that_is_read(tmp_path, capsys):
    words = "collect --benchmark metaworld --views robot,gripper --tasks reach,drawer-close"
    words += f" --episodes 3 --action_repeat 4 --workers 1 --no-language --out {tmp_path}"
    assert data.main(words.split()) == 0
    assert "reach                         2 kept" in capsys.readouterr().out
    assert data.main(["index", str(tmp_path / "gripper")]) == 0
    assert "3 episodes" in (said := capsys.readouterr().out) and "actions 4" in said
    config = f"experiments/quantizer/tabletop.py:quick=True,data={tmp_path},views=gripper"
    words = f"batch --config {config} --config.global_batch=4 --step 1 --json"
    words += " --config.data.corpora.gripper.window_seconds=0.1"
    assert data.main(words.split()) == 0
    assert len(json.loads(capsys.readouterr().out)["examples"]) == 4
