"""The robot's state: in the index, and as a column of batches."""

import json

import numpy as np
import pytest
from shards import data_config, episode, spec, write_corpus

from data_pipelines.index import StaleIndexError, build_index, load_index
from data_pipelines.loader import FingerprintError, Loader, check_fingerprint
from data_pipelines.rlds import schema, tfrecord

KEY = "observation/state"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("states")
    episodes = {
        "a": write_corpus(root / "a", states=4, seed=1),
        "b": write_corpus(root / "b", states=4, seed=2, lengths=(5, 8), shards=1),
        "narrow": write_corpus(root / "narrow", states=2, lengths=(5,), shards=1),
        "none": write_corpus(root / "none", lengths=(5,), shards=1),
    }
    return root, episodes


def make(corpora, names="ab", *, key=KEY, fields=("state",), **keys):
    keys = {"num_frames": 1, **{f"{name}__state_key": key for name in names}} | keys
    data = data_config({name: corpora[0] / name for name in names}, **keys)
    return Loader(data, fields=fields, global_batch=8, seed=5)


def test_the_column_is_the_state_of_the_frame_at_which_an_example_stands(corpora):
    for keys in ({}, {"num_frames": 2, "history_seconds": 0.4, "tail": "clamp"}):
        loader = make(corpora, **keys)
        for step in range(4):
            batch = loader.batch(step)
            assert batch["state"].shape == (8, 4) and batch["state"].dtype == np.float32
            for found, where in zip(batch["state"], loader.describe(step), strict=True):
                states = corpora[1][where["corpus"]][where["episode"]].states
                np.testing.assert_array_equal(found, states[where["steps"][-1]])


def test_the_order_is_the_same_and_checkpoints_know_of_it(corpora):
    plain, with_states = make(corpora, fields=("instruction",)), make(corpora)
    assert "state" not in plain.batch(0)
    np.testing.assert_array_equal(plain.batch(3)["position"], with_states.batch(3)["position"])
    with pytest.raises(FingerprintError, match="mixture_hash"):
        check_fingerprint(plain.fingerprint(0), with_states.fingerprint(0))
    unused = make(corpora, key="", fields=("instruction",))
    assert unused.fingerprint(0) == plain.fingerprint(0), "a key that nobody asks for"


def test_mistakes_are_named(corpora, tmp_path):
    with pytest.raises(
        ValueError, match=r"no corpus of .'a', 'b'. has the robot's state.*state_key"
    ):
        make(corpora, key="")
    with pytest.raises(ValueError, match="agree in state_dim: a has 4, narrow has 2"):
        make(corpora, ("a", "narrow"))
    with pytest.raises(StaleIndexError, match="no states 'observation/state'.*there is no field"):
        make(corpora, ("none",))
    with pytest.raises(StaleIndexError, match="the config says 'observation/joints': run `lapa "):
        make(corpora, key="observation/joints")
    write_corpus(tmp_path, states=4, lengths=(3,), shards=1)
    with pytest.raises(tfrecord.RecordError, match="state_key is 'observation/joints'.*no field"):
        build_index(tmp_path, state_key="observation/joints", progress=False)
    build_index(tmp_path, state_key="observation/state[:2]", progress=False)
    index = load_index(tmp_path, state_key="observation/state[:2]")
    assert index.states.shape == (3, 2) and index.state_key == "observation/state[:2]"


def test_an_index_of_earlier_code_has_none(tmp_path):
    write_corpus(tmp_path, states=4, lengths=(3,), shards=1)
    folder = tmp_path / "index/image/train"
    manifest = json.loads((folder / "manifest.json").read_text())["content"]
    assert "states" not in manifest["digests"], "earlier code would not know what that is"
    for name in ("states", "state_key"):
        del manifest[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert load_index(tmp_path).states is None
    with pytest.raises(StaleIndexError, match="of earlier code.*index` --state_key observation/st"):
        load_index(tmp_path, state_key=KEY)


def write_odd(directory, states):
    """Episodes of three steps whose states are these."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    with open(directory / "toy-train.tfrecord-00000-of-00001", "wb") as file:
        for number, own in enumerate(states):
            record = schema.encode_episode(episode(rng, 3, number), spec())
            given = {} if own is None else {schema.STATE: own}
            tfrecord.write_record(file, record + tfrecord.encode_example(given))


@pytest.mark.parametrize(
    ("states", "why"),
    [
        ([np.ones((3, 2), np.float32), None], "there is no field observation/state"),
        ([np.ones((3, 2), np.float32), np.ones((3, 1), np.float32)], "1 dimensions, 2 in the"),
        ([np.full((3, 2), np.nan, np.float32)], "the state of step 0, dimension 0 is nan"),
        ([["x", "y", "z"]], "holds bytes, not numbers"),
    ],
)
def test_what_is_no_state_stops_only_who_asks_for_it(tmp_path, states, why):
    write_odd(tmp_path / "odd", states)
    build_index(tmp_path / "odd", progress=False)
    assert load_index(tmp_path / "odd").states is None
    with pytest.raises(StaleIndexError, match=why):
        load_index(tmp_path / "odd", state_key=KEY)
    with pytest.raises(tfrecord.RecordError, match=why):
        build_index(tmp_path / "odd", state_key=KEY, progress=False)


def test_a_corpus_without_states_gives_none(corpora):
    """Also one whose index has some, of another width, which nobody asks for."""
    for other in ("none", "narrow"):
        loader = make(corpora, ("a", other), **{f"{other}__state_key": ""})
        batch = loader.batch(0)
        of = np.array([where["corpus"] for where in loader.describe(0)])
        assert set(of) == {"a", other}
        assert np.isnan(batch["state"][of == other]).all()
        assert np.isfinite(batch["state"][of == "a"]).all() and batch["state"].shape == (8, 4)
