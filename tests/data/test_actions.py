"""Chunks of actions, and actions that are known in part, against plain NumPy."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from shards import LENGTHS, data_config, write_corpus
from test_loader import assert_same

from data_pipelines.index import load_index
from data_pipelines.loader import FingerprintError, Loader, check_fingerprint
from data_pipelines.loader.actions import Actions

ASK = ("frames", "action", "action_known")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two with actions and one without: (directories, episodes) by name; nobody changes them."""
    root = tmp_path_factory.mktemp("actions")
    episodes = {
        "a": write_corpus(root / "a", seed=1),
        "b": write_corpus(root / "b", seed=2, lengths=(8, 3, 12), shards=1),
        "v": write_corpus(root / "v", seed=3, lengths=(6, 5), actions=0),
    }
    return {name: root / name for name in episodes}, episodes


def make(corpora, names="ab", *, fields=("frames", "action"), host=0, num_hosts=1, **keys):
    directories = {name: corpora[0][name] for name in names}
    data = data_config(directories, **{"num_frames": 1} | keys)
    options = dict(fields=fields, global_batch=8, seed=5)
    return Loader(data, **options, host=host, num_hosts=num_hosts)


def drawn(loader, steps=40):
    """(what describe says, the columns) of every example of these steps."""
    for step in range(steps):
        batch = loader.batch(step)
        for i, where in enumerate(loader.describe(step)):
            yield where, {name: column[i] for name, column in batch.items()}


def reference(actions, t, horizon, padding, absolute=()):
    """(chunk, mask) of an episode, a step at a time. The last step's action means nothing."""
    last, chunk, mask = len(actions) - 2, [], []
    for step in range(t, t + horizon):
        action = actions[min(step, last)].copy()
        if step > last and padding == "no_motion":
            kept = [action[dimension] for dimension in absolute]
            action[:] = 0.0
            for dimension, value in zip(absolute, kept, strict=True):
                action[dimension] = value
        chunk.append(action)
        mask.append(step <= last)
    return np.array(chunk), np.array(mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    "padding, absolute",
    [("repeat", ()), ("no_motion", ()), ("no_motion", (-1,)), ("no_motion", (0, 2))],
)
@pytest.mark.parametrize("horizon", [2, 5, 8])
def test_chunks_are_those_of_numpy(corpora, padding, absolute, horizon):
    """Some episodes are shorter than the horizon."""
    keys = dict(action_horizon=horizon, action_padding=padding, action_absolute=absolute)
    seen = set()
    for where, found in drawn(make(corpora, **keys)):
        actions = corpora[1][where["corpus"]][where["episode"]].actions
        (t,) = where["steps"]
        chunk, mask = reference(actions, t, horizon, padding, absolute)
        np.testing.assert_array_equal(found["action"], chunk)
        np.testing.assert_array_equal(found["action_mask"], mask)
        assert found["action"].dtype == np.float32 and found["action_mask"].dtype == bool
        assert mask[0], "an example has an action of its own"
        seen.add((where["corpus"], where["episode"], t))
    assert seen == {
        (name, number, t)
        for name in "ab"
        for number, episode in enumerate(corpora[1][name])
        for t in range(episode.num_steps - 1)
    }


@pytest.mark.slow
def test_drop_draws_whole_chunks(corpora):
    seen = set()
    for where, found in drawn(make(corpora, action_horizon=4, action_padding="drop")):
        assert found["action_mask"].all()
        (t,) = where["steps"]
        actions = corpora[1][where["corpus"]][where["episode"]].actions
        np.testing.assert_array_equal(found["action"], actions[t : t + 4])
        seen.add((where["corpus"], where["episode"], t))
    assert {place for place in seen if place[0] == "a"} == {
        ("a", number, t) for number, length in enumerate(LENGTHS) for t in range(length - 4)
    }


def test_a_horizon_of_one_is_the_column_as_it_was(corpora):
    loader = make(corpora)
    batch = loader.batch(3)
    assert batch.keys() == {"frames", "position", "action"} and batch["action"].shape == (8, 3)
    chunks = make(corpora, action_horizon=6).batch(3)
    np.testing.assert_array_equal(chunks["action"][:, 0], batch["action"])
    asked = make(corpora, fields=("action", "action_mask")).batch(3)
    assert asked["action_mask"].shape == (8, 1) and asked["action_mask"].all()
    with pytest.raises(FingerprintError, match="mixture_hash"):
        check_fingerprint(loader.fingerprint(0), make(corpora, action_horizon=6).fingerprint(0))
    other = make(corpora, action_padding="no_motion", action_absolute=(1,))
    assert other.fingerprint(0) == loader.fingerprint(0), "there is nothing to pad"


@pytest.mark.slow
@pytest.mark.parametrize("access", ["random", "windowed"])
def test_hosts_and_backends_give_the_same_chunks(corpora, access):
    keys = dict(
        names="abv",
        fields=ASK,
        action_horizon=3,
        action_padding="no_motion",
        a__action_fraction=0.6,
    )
    keys |= {"access": access, "lanes": 4, "block_mib": 0.01}
    loader = make(corpora, **keys)
    batches = {
        decode: make(corpora, decode=decode, **keys).iterate(2) for decode in ("threads", "tf")
    }
    for step in (2, 3):
        whole = loader.batch(step)
        parts = [make(corpora, host=h, num_hosts=4, **keys).batch(step) for h in range(4)]
        assert_same(whole, {k: np.concatenate([part[k] for part in parts]) for k in whole})
        whole.pop("frames")
        for stream in batches.values():
            batch = next(stream)
            batch.pop("frames")
            assert_same(whole, batch)
    for stream in batches.values():
        stream.close()


@pytest.mark.slow
def test_who_asks_what_is_known_gets_examples_without_actions(corpora):
    seen = set()
    for where, found in drawn(make(corpora, "abv", fields=ASK)):
        actions = corpora[1][where["corpus"]][where["episode"]].actions
        (t,) = where["steps"]
        known = actions is not None and t < len(actions) - 1
        assert found["action_known"] == known and found["action_known"].dtype == bool
        np.testing.assert_array_equal(found["action"], actions[t] if known else np.zeros(3))
        seen.add((where["corpus"], where["episode"], t))
    assert {
        (name, n, e.num_steps - 1) for name in "abv" for n, e in enumerate(corpora[1][name])
    } <= seen
    with pytest.raises(ValueError, match="'v' has no actions .*data.corpora.v.action_key"):
        make(corpora, "abv")
    with pytest.raises(ValueError, match=r"no corpus of \['v'\] has actions .*action_key"):
        make(corpora, "v", fields=ASK)
    alone = make(corpora, "v", fields=("action_known",)).batch(0)
    assert not alone["action_known"].any()


@pytest.mark.slow
def test_chunks_without_actions_are_zeros(corpora):
    for padding in ("repeat", "no_motion", "drop"):
        keys = dict(fields=ASK, action_horizon=3, action_padding=padding, action_absolute=(0,))
        told = {True: set(), False: set()}
        for where, found in drawn(make(corpora, "av", **keys)):
            mask, known = found["action_mask"], bool(found["action_known"])
            assert mask[0] == known and (known or not mask.any() and not found["action"].any())
            assert padding != "drop" or mask.all() == known
            told[known].add(where["corpus"])
        assert told[True] == {"a"} and "v" in told[False]


@pytest.mark.slow
def test_a_fraction_of_the_episodes_has_actions(tmp_path):
    write_corpus(tmp_path, lengths=[3] * 200)
    corpora = {"a": tmp_path}, None

    def known(fraction):
        loader = make(corpora, "a", fields=("action", "action_known"), a__action_fraction=fraction)
        assert loader.mixture.corpora[0].num_samples == 600, "the others are drawn, too"
        found = drawn(loader, steps=75)
        return {where["episode"] for where, columns in found if columns["action_known"]}

    none, tenth, third, every = (known(fraction) for fraction in (0.0, 0.1, 0.3, 1.0))
    assert not none and tenth < third < every and len(every) == 200
    assert 10 <= len(tenth) <= 32 and 42 <= len(third) <= 80
    few = make(corpora, "a", fields=("action",), a__action_fraction=0.1)
    drawn_from = np.flatnonzero(few.mixture.corpora[0].counts)
    assert set(drawn_from.tolist()) == tenth, "who does not ask draws those that are known"
    halves = make(corpora, "a", fields=("frames",), a__fraction=0.5, size=16)
    assert set(np.flatnonzero(halves.mixture.corpora[0].counts)) & tenth
    assert halves.fingerprint(0) == make(
        corpora, "a", fields=("frames",), a__fraction=0.5, a__action_fraction=0.1
    ).fingerprint(0), "frames alone have no actions"
    with pytest.raises(FingerprintError, match="mixture_hash"):
        one = make(corpora, "a", fields=("action", "action_known")).fingerprint(0)
        other = dict(fields=("action", "action_known"), a__action_fraction=0.1)
        check_fingerprint(one, make(corpora, "a", **other).fingerprint(0))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"action_horizon": 0}, "data.action_horizon=0 must be an integer in"),
        (
            {"action_horizon": 9},
            "data.action_horizon is 9, which is longer than every episode of corpus 'a': the "
            "longest has 8 actions",
        ),
        ({"action_padding": "zero"}, "data.action_padding='zero' must be one of"),
        ({"action_absolute": (3,)}, "data.action_absolute names dimension 3, but actions have 3"),
        ({"a__action_fraction": 1.5}, "data.corpora.a.action_fraction=1.5 must be"),
        ({"a__action_fraction": 0.0}, "'a' .* has no eligible frame"),
    ],
)
def test_mistakes_are_named(corpora, keys, message):
    with pytest.raises(ValueError, match=message):
        make(corpora, **keys)


def test_chunks_stand_where_a_history_ends(corpora):
    keys = dict(num_frames=2, history_seconds=0.4, action_horizon=3, tail="clamp")
    for where, found in itertools.islice(drawn(make(corpora, **keys)), 60):
        actions = corpora[1][where["corpus"]][where["episode"]].actions
        chunk, mask = reference(actions, where["steps"][1], 3, "repeat")
        np.testing.assert_array_equal(found["action"], chunk)
        np.testing.assert_array_equal(found["action_mask"], mask)


GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "heads" / "normalise.npz")


@pytest.mark.parametrize(
    ("original", "padding", "absolute"),
    [
        ("openvla/abs0", "no_motion", ()),
        ("openvla/abs1", "no_motion", (-1,)),
        ("oft/abs0", "drop", ()),
        ("oft/abs1", "drop", (-1,)),
    ],
)
@pytest.mark.parametrize(("window", "past"), [("w1f3", 0), ("w2f2", 1)])
def test_chunks_are_those_of_openvla_and_oft(corpora, original, padding, absolute, window, past):
    """Their zeros are of normalised actions, ours of the data: here the numbers are the same. The
    actions before the current one, which longer windows of theirs begin with, are not ours."""
    theirs = GOLDEN[f"rlds/chunk/{original}/{window}"][:, past:]
    index = load_index(corpora[0]["a"])
    (episode,) = np.flatnonzero(index.episode_length == 9)
    start = index.episode_start[episode]
    actions = np.full((index.num_frames + 1, 3), np.nan, np.float32)  # one step more: the last
    actions[start : start + 9] = np.arange(27).reshape(9, 3)
    length = np.where(np.arange(index.num_episodes) == episode, 10, index.episode_length)
    longer = dataclasses.replace(index, actions=actions, episode_length=length)
    known, horizon = np.ones(index.num_episodes, bool), theirs.shape[1]
    found = Actions(longer, known, horizon, padding, absolute, 3, None, ~known)
    rows = start + np.arange(9)
    chunks, mask = found.chunks(rows), found.mask(rows)
    if padding == "drop":  # such starts are not drawn
        chunks = chunks[mask.all(axis=1)]
    np.testing.assert_array_equal(chunks, theirs)
    np.testing.assert_array_equal(mask.sum(axis=1), np.minimum(horizon, 9 - np.arange(9)))


def test_states_ahead_and_whose_they_are(tmp_path):
    episodes = {
        "a": write_corpus(tmp_path / "a", states=2, fps=5.0),
        "v": write_corpus(tmp_path / "v", seed=1, lengths=(6, 5), actions=0, fps=10.0),
    }
    fields = ("state", "state_ahead", "corpus", "control_hz")
    keys = {"num_frames": 1, "action_horizon": 3, "a__state_key": "observation/state"}
    directories = {name: tmp_path / name for name in episodes}
    ended = 0
    with Loader(data_config(directories, **keys), fields=fields, global_batch=8, seed=5) as loader:
        for where, found in drawn(loader, steps=10):
            assert found["corpus"] == "av".index(where["corpus"])
            assert found["control_hz"] == (5.0 if where["corpus"] == "a" else 10.0)
            assert found["state_ahead"].shape == (3, 2)
            if where["corpus"] == "v":
                assert np.isnan(found["state_ahead"]).all() and np.isnan(found["state"]).all()
                continue
            states = episodes["a"][where["episode"]].states
            ahead = states[where["steps"][0] + 1 :][:3]
            ended += len(ahead) < 3
            np.testing.assert_array_equal(found["state"], states[where["steps"][0]])
            np.testing.assert_array_equal(found["state_ahead"][: len(ahead)], ahead)
            assert np.isnan(found["state_ahead"][len(ahead) :]).all()
    assert ended
