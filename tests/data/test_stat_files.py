"""`lapa data stats`: states, relative actions, grippers, and the files of others."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from shards import write_corpus

from data_pipelines.checks import stat_files
from data_pipelines.checks.statistics import statistics_of
from data_pipelines.checks.vectors import Vectors, grippers, relative_statistics
from data_pipelines.index import load_index
from data_pipelines.normalise import Gripper, Normaliser, OtherDataError, relative
from lapa_jax.verbs import data

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "heads" / "normalise.npz")
LENGTHS = (7, 4, 9)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A directory with three actions and four states a step, and its episodes."""
    folder = tmp_path_factory.mktemp("stats") / "toy"
    return folder, write_corpus(folder, lengths=LENGTHS, states=4, shards=1)


@pytest.fixture(scope="module")
def index(corpus):
    return load_index(corpus[0])


def run(capsys, *argv):
    assert data.main(["stats", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_actions_relative_to_the_state_where_their_chunk_begins(corpus, index):
    chunks = []
    for episode in corpus[1]:
        for t in range(episode.num_steps - 1):
            chunk = episode.actions[t : min(t + 3, episode.num_steps - 1)]
            chunks.append(relative(chunk, episode.states[t], (0, 2)))
    every = np.concatenate(chunks)
    found = relative_statistics(index, (0, -1), 3)
    plain = np.concatenate([episode.actions[:-1] for episode in corpus[1]])
    assert found["num_actions"] == len(plain)
    for name in ("mean", "std", "min", "max", "q01", "q50", "q99"):
        expected = statistics_of([every[:, 0], plain[:, 1], every[:, 2]])[name]
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)
    for delta, horizon, why in (
        ((3,), 1, "--delta 3: dimensions are 0 to 2"),
        ((0,), 9, "--horizon 9: the longest episode of .* has 8 actions"),
    ):
        with pytest.raises(ValueError, match=why):
            relative_statistics(index, delta, horizon)
    narrow = dataclasses.replace(index, states=index.states[:, :1])
    with pytest.raises(ValueError, match="--delta 2.*relative to the state's, which has 1"):
        relative_statistics(narrow, (2,), 1)
    with pytest.raises(ValueError, match="no states in its index.*index --state_key"):
        relative_statistics(dataclasses.replace(index, states=None), (0,), 1)


@pytest.mark.parametrize("form", stat_files.FORMATS)
def test_what_is_written_is_read_and_of_this_corpus(corpus, index, form, tmp_path, capsys):
    path, other = tmp_path / "stats.json", tmp_path / "other.json"
    given = ("--write", form, path, "--gripper", "2:binary:1", "--names", "x,y,grip")
    text = run(capsys, corpus[0], *given, "--json", other)
    assert "20 states" in text and "gripper: action dimension 2, binary, open at 1\n" in text
    _, found = stat_files.read(path)
    valid = np.concatenate([episode.actions[:-1] for episode in corpus[1]])
    states = np.concatenate([episode.states for episode in corpus[1]])
    for what, numbers in (("action", valid), ("state", states)):
        exact = Normaliser.fit(numbers)
        for name in ("mean", "std", "min", "max", "q01", "q99"):
            values = getattr(found[what], name)
            if values is not None:
                np.testing.assert_allclose(values, getattr(exact, name), rtol=1e-9, err_msg=name)
    assert (found["action"].min is None) == (form == "openpi")
    assert (found["action"].mask == (True, True, False)) == (form == "openvla")
    text = run(capsys, corpus[0], "--read", path, "--read", other)
    assert f"{path} ({form}): action of this corpus, off by 0.00% at most" in text
    # The gripper that the file knows of the look of these data does not tell.
    told = "but its mask normalises action dimensions 0, 1, where 0, 1, 2 are expected (--gripper)"
    assert (told in text) == (form == "openvla")
    same = run(capsys, corpus[0], "--read", path, "--gripper", "2:binary:1")
    assert "its mask" not in same
    assert f"{other} (lapa): state of this corpus" in text
    of_ours = json.loads(other.read_text())["statistics"]["action"]
    assert of_ours["source"] == index.hash and of_ours["control_hz"] == 5.0
    assert of_ours["names"] == ["x", "y", "grip"]


def test_the_forms_of_others(corpus, tmp_path, capsys):
    """As their own code writes them: names, nulls, several data sets, and their approximations."""
    path = tmp_path / "norm_stats.json"
    path.write_text(str(GOLDEN["stats/openpi/norm_stats_json"]))
    form, found = stat_files.read(path)
    assert form == "openpi" and found["action"].q01 == (-1.0,) and found["action"].mode == "q01_q99"
    assert found["state"].q01 is None and found["state"].mode == "mean_std"
    with pytest.raises(OtherDataError, match="its state has 2 dimensions, that of the corpus 4"):
        data.main(["stats", str(corpus[0]), "--read", str(path)])
    # Their own statistics of numbers are recognised as of these numbers, and of no others.
    x = GOLDEN["stats/x"]
    keys = ("mean", "std", "min", "max", "q01", "q99")
    of_lerobot = {k: GOLDEN[f"stats/lerobot/aggregated/{k}"].tolist() for k in keys}
    image = {"min": [[[0.0]]], "max": [[[1.0]]]}
    path.write_text(json.dumps({"action": of_lerobot, "observation.images.top": image}))
    form, found = stat_files.read(path)
    assert form == "lerobot" and list(found) == ["action"]
    assert stat_files.compare(Normaliser.fit(x), found["action"], "f", "action", form) < 0.03
    with pytest.raises(OtherDataError, match="f: it is not of this action: mean of dimension 0"):
        stat_files.compare(Normaliser.fit(x + 1), found["action"], "f", "action", form)
    content = {"one": {"action": of_lerobot, "num_transitions": 700}, "two": {"action": of_lerobot}}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"of the data sets \['one', 'two'\]: name one .--name"):
        stat_files.read(path)
    assert stat_files.read(path, "two")[0] == "openvla"


def test_quantiles_that_lerobot_merged_are_told_and_refuse_nothing(tmp_path, capsys):
    """Of episodes at places of their own the mean of their quantiles is no quantile of the data."""
    folder = tmp_path / "toy"
    episodes = write_corpus(folder, lengths=LENGTHS, states=4, shards=1)
    path = tmp_path / "stats.json"
    run(capsys, folder, "--write", "lerobot", path)
    content = json.loads(path.read_text())
    first, last = episodes[0].actions[:-1], episodes[-1].actions[:-1]
    content["action"]["q99"] = (0.5 * (first.min(0) + last.min(0))).tolist()
    path.write_text(json.dumps(content))
    text = run(capsys, folder, "--read", path)
    told = "action of this corpus, off by 0.00% at most; but its quantiles are of episodes, merged"
    assert f"{told}: q99 of dimension 0 is " in text
    assert "state of this corpus, off by 0.00% at most\n" in text
    content["action"]["max"][0] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(OtherDataError, match="not of this action: max of dimension 0"):
        data.main(["stats", str(folder), "--read", str(path)])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "not JSON"),
        ("[]", "it holds a list, not statistics"),
        ('{"x": 1}', r"it holds \['x'\]; known are norm_stats"),
        ('{"norm_stats": {"arm": {}}}', r"it is of \['arm'\], not of \['state', 'actions'\]"),
        ('{"action": {"mean": [0], "std": ["1"]}}', "std is .*not a list of numbers"),
        ('{"action": {"mean": [0], "std": [1, 2]}}', "one number of dimensions"),
        ('{"action": {"mean": [NaN], "std": [1]}}', "mean of dimension 0 is nan: not finite"),
        ('{"action": {"mean": [[0]], "std": [[1]]}}', "mean is .*not a list of numbers"),
        ('{"action": {"mean": [0]}}', "needs std"),
        ('{"action": []}', "it holds a list"),
        ('{"a": {"action": {"mean": [0], "std": [1], "mask": [1]}}}', "mask is .*true and false"),
        ('{"floor": 1}', r"statistics hold \['floor'\]; they must hold"),
        ('{"mode": "q01_q99"}', r"it holds \['mode'\]; known"),
    ],
)
def test_what_is_no_such_file_is_named(content, why, tmp_path):
    (tmp_path / "stats.json").write_text(content)
    with pytest.raises(ValueError, match=f"--read .*stats.json.*{why}"):
        stat_files.read(tmp_path / "stats.json")


def test_statistics_of_another_corpus_by_its_hash(index):
    ours = Normaliser.fit(index.actions, source=index.hash)
    theirs = dataclasses.replace(ours, source="0" * 32)
    with pytest.raises(OtherDataError, match="statistics of other data"):
        stat_files.compare(ours, theirs, "action_statistics.json", "action", "lapa")


@pytest.mark.parametrize(
    ("key", "values", "found"),
    [
        ("action", [1, 1, 0, 0, 1, 1, 0], Gripper(3, "binary", 1.0)),
        ("action", [0, 1, 0.5, 0.2, 0.7, 0, 0], None),
        ("arm,open_gripper", [0.1, 1, 0.5, 0.2, 0.7, 0, 0], Gripper(3, "continuous", 1.0)),
        (
            "action/arm,action/gripper_closedness_action",
            [-1, 1, 0, 0, 0],
            Gripper(3, "continuous", -1),
        ),
        ("action", [-1, -1, -1, 1, -1], Gripper(3, "binary", -1.0)),
        ("action", [1, 1, 1, 1], None),
    ],
)
def test_grippers_as_the_data_look(index, key, values, found):
    """Of four dimensions; the first action of each episode is the first value."""
    actions = np.ones((index.num_frames, 4), np.float32)
    actions[:, 3] = np.resize(np.array(values, np.float32), index.num_frames)
    actions[index.episode_start, 3] = values[0]
    told = grippers(dataclasses.replace(index, actions=actions, action_key=key))
    assert told == (() if found is None else (found,))


def test_mistakes_in_flags_are_named(corpus, index):
    for flags, why in (
        (("--gripper", "2"), "--gripper 2: it is DIMENSION:continuous:OPEN"),
        (("--gripper", "3:binary:1"), "--gripper 3:binary:1: dimensions are 0 to 2"),
        (("--gripper", "2:soft:1"), "--gripper 2:soft:1"),
        (("--gripper", "2:binary:7"), "--gripper 2:binary:7: that dimension holds "),
        (("--gripper", "2:continuous:1,-1:continuous:0"), "dimension 2 is there twice"),
        (("--read", "nowhere.json"), "--read nowhere.json: it cannot be read .No such file"),
        (("--names", "x,y"), "--names gives 2, an action has 3 dimensions"),
        (("--horizon", "2"), "--horizon 2 is of the chunks of --delta"),
        (("--write", "octo", "x.json"), "--write octo: one of openpi, openvla, lerobot"),
    ):
        with pytest.raises(ValueError, match=why):
            data.main(["stats", str(corpus[0]), *flags])
    flat = dataclasses.replace(index, actions=np.full_like(index.actions, 0.7))
    statistics = Vectors.of(flat, statistics_of(flat.actions.T), "q01_q99").statistics
    assert statistics.mean == (float(np.float32(0.7)),) * 3 and statistics.std == (0.0,) * 3
    assert statistics.forms == ("constant",) * 3
