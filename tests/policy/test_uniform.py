"""Uniform bins: OpenVLA's tokens."""

import pathlib

import numpy as np
import pytest

from data_pipelines.normalise import Normaliser
from lapa_jax.policy.codecs import Uniform, from_json

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "heads" / "bins.npz"
VOCABULARY = 32000  # of OpenVLA's text


def test_ids_and_values_are_openvla_s():
    golden = np.load(GOLDEN)
    codec = Uniform(256, Normaliser("q01_q99", q01=(-1.0,), q99=(1.0,)))
    values = golden["bins/values"]
    finite = np.isfinite(values)
    ids = codec.encode(values[finite, None])[:, 0]
    assert (VOCABULARY - 1 - ids == golden["bins/token_ids"][finite]).all()
    np.testing.assert_allclose(codec.decode(ids[:, None])[:, 0], golden["bins/decoded"][finite])
    np.testing.assert_array_equal(codec.edges, golden["bins/edges"])
    for value in (np.nan, np.inf):  # ids of their greatest action
        with pytest.raises(ValueError, match="is not finite"):
            codec.encode(np.array([[value]]))
    theirs, said = VOCABULARY - 1 - golden["bins/all_ids"], golden["bins/all_decoded"]
    known = (theirs >= 0) & (theirs < 256)
    np.testing.assert_allclose(codec.decode(theirs[known, None])[:, 0], said[known], rtol=1e-6)
    assert not known.all()  # text, which says an action there
    for one in theirs[~known]:
        with pytest.raises(ValueError, match="of dimension 0 is out of range: one of 256 uniform"):
            codec.decode(np.array([one]))


def test_bins_are_between_the_quantiles_of_the_data():
    rng = np.random.default_rng(0)
    actions = np.stack([rng.normal(3.0, 0.1, 2000), rng.choice([0.0, 1.0], 2000)], axis=1)
    actions = np.append(actions, np.full((2000, 1), 0.25), axis=1).astype(np.float32)
    codec = from_json(Uniform.fit(actions, 64).to_json())
    low, high = np.quantile(actions.astype(np.float64), [0.01, 0.99], axis=0)
    inside = ((actions >= low) & (actions <= high)).all(axis=1)
    off = np.abs(codec.decode(codec.encode(actions)) - actions)[inside].max(axis=0)
    assert (off[:2] <= (high - low)[:2] / 63 / 2 + 1e-6).all() and off[2] == 0.0
    told = codec.describe()
    assert told["num_bins"] == [64] * 3 and len(told["centres"][0]) == 64
    # What an exported policy reads needs no normaliser.
    centres = np.array(codec.settings()["centres"], np.float32)
    np.testing.assert_array_equal(centres, codec.centres)
