"""Action and text tokenizers."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.policy.codecs import Bins, Clusters, from_json
from lapa_jax.policy.text import TextTokenizer, train

EDGES = [np.array([-1.0, 0.0, 0.5, 2.0]), np.array([-0.5, 0.5, 1.5])]
TEXTS = [
    f"{verb} the {colour} {thing}"
    for verb in ("push", "put", "lift")
    for colour in ("red", "blue", "green")
    for thing in ("cube", "bowl", "star")
]


def test_csv_of_ragged_edges_round_trips():
    edges = [np.array([-1.0, 0.1, 1 / 3, 2.0]), np.array([-0.5, 0.5, 1.5])]
    text = Bins(edges).to_csv()
    lines = ["0,1,2,3", "-1.0,0.1,0.3333333333333333,2.0", "-0.5,0.5,1.5,"]
    assert text.splitlines() == lines
    assert [e.tolist() for e in Bins.from_csv(text).edges] == [e.tolist() for e in edges]


def test_bins_are_left_closed_and_outer_bins_catch_the_rest():
    tokenizer = Bins(EDGES)
    values = np.array([[-9, -9], [-1, -0.5], [0, 0.5], [0.49, 0.49], [0.5, 1.5], [2, 9]])
    assert tokenizer.encode(values).tolist() == [[0, 0], [0, 0], [1, 1], [1, 0], [2, 1], [2, 1]]
    np.testing.assert_allclose(tokenizer.decode(np.array([1, 0])), [0.25, 0.0])
    assert tokenizer.sizes.tolist() == [3, 2]
    assert tokenizer.centres.shape == (2, 3) and np.isnan(tokenizer.centres[1, 2])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_bin_survives_decode_encode_and_json(data):
    edges = [
        np.cumsum(data.draw(st.lists(st.floats(0.01, 5), min_size=2, max_size=9))) - 3
        for _ in range(3)
    ]
    tokenizer = from_json(Bins(edges).to_json())
    ids = np.stack(
        [data.draw(st.integers(0, n - 1)) * np.ones(1, int) for n in tokenizer.sizes], axis=-1
    )
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)
    for a, b in zip(edges, tokenizer.edges, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_actions_and_ids_are_refused():
    tokenizer = Bins(EDGES)
    with pytest.raises(ValueError, match="id 2 of dimension 1 .* 2 bins"):
        tokenizer.decode(np.array([[0, 1], [2, 2]]))
    with pytest.raises(ValueError, match="id -1 of dimension 0"):
        tokenizer.decode(np.array([-1, 0]))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=f"{bad} of dimension 1 is not finite"):
            tokenizer.encode(np.array([0.0, bad]))
    with pytest.raises(ValueError, match="dimension 1"):
        Bins([EDGES[0], np.array([1.0])])


def test_clusters_are_one_token_for_a_whole_action():
    centres = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 100.0]])
    tokenizer = from_json(Clusters(centres, np.array([1.0, 100.0])).to_json())
    assert tokenizer.sizes.tolist() == [3] and tokenizer.action_dim == 2
    # In units of each dimension's scale: 40 of 100 is nearer to 0 than 0.9 of 1.
    actions = np.array([[0.1, 40.0], [0.9, 40.0], [0.4, 90.0]])
    ids = tokenizer.encode(actions)
    assert ids.tolist() == [[0], [1], [2]] and ids.dtype == np.int32
    np.testing.assert_array_equal(tokenizer.decode(ids), centres.astype(np.float32))
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)
    with pytest.raises(ValueError, match=r"\[3\].*out of range: one of 3 clusters"):
        tokenizer.decode(np.array([[3]]))
    with pytest.raises(ValueError, match="nan of dimension 0 is not finite"):
        tokenizer.encode(np.array([np.nan, 0.0]))
    with pytest.raises(ValueError, match="scales positive"):
        Clusters(centres, np.zeros(2))


def test_text_is_deterministic_and_reversible():
    model = train(TEXTS, 320)
    assert model == train(TEXTS[::-1], 320)
    tokenizer = TextTokenizer(model)
    ids = tokenizer.ids("push the red cube")
    assert ids.dtype == np.int32 and not set(ids) & {tokenizer.bos, tokenizer.eos}
    assert tokenizer.decode(ids) == "push the red cube"
    assert not (tokenizer.ids("é ♞") == 0).any()  # bytes, never unknown
    assert tokenizer.fingerprint == TextTokenizer(model).fingerprint
    for text in ("pick up the cup", "a"):  # the only instruction that there is
        assert TextTokenizer(one := train([text], 384)).decode(TextTokenizer(one).ids(text)) == text


def test_tokens_import_is_light():
    code = (
        "import sys, json, lapa_jax.policy.layout, lapa_jax.policy.codecs;"
        "print(json.dumps([m for m in ('jax', 'tensorflow', 'torch') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []
