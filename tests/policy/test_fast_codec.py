"""FAST tokens: those of the published processor, and what is refused where it says zeros."""

import dataclasses
import functools
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.policy.codecs import bpe
from lapa_jax.policy.codecs.fast import Fast

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "heads"
CASES = json.loads((GOLDEN / "fast_edge_cases.json").read_text())
SETS = sorted(CASES)


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "fast.npz") as found:
        return {k.partition("/")[2]: found[k] for k in found if k.startswith(name + "/")}


@functools.cache
def fitted(name: str) -> Fast:
    of = golden(name)
    given = dict(scale=float(of["scale"]), vocab_size=int(of["vocab_size"]))
    return Fast.fit(of["train_chunks"], **given)


def split(values: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("name", SETS)
def test_vocabulary_tokens_and_values_are_the_original_s(name):
    of, codec = golden(name), fitted(name)
    theirs = (GOLDEN / f"fast_{name}_tokenizer.json").read_bytes()
    assert (codec.min_token, codec.max_token) == (of["min_token"], of["max_token"])
    assert json.loads(codec.tokenizer_json()) == json.loads(theirs)
    assert (codec.coefficients(of["eval_chunks"]) == of["eval_coeffs"]).all()
    said = codec.encode(of["eval_chunks"])
    assert said == split(of["eval_tokens"], of["eval_tokens_len"])
    assert said == codec.encode(of["eval_chunks"])  # of pieces that are known
    np.testing.assert_allclose(codec.decode(said), of["eval_decoded"], atol=1e-6)
    used = {i for ids in codec.encode(of["train_chunks"]) for i in ids}
    dead = set(range(len(codec.pairs))) - used
    assert sorted(dead) == of["dead_ids"].tolist() and dead >= set(codec.pairs.dead.tolist())
    for i, numbers in enumerate(split(of["token_codepoints"], of["token_codepoints_len"])):
        if bpe.REPLACEMENT in numbers:
            with pytest.raises(ValueError, match="not part of a whole number"):
                codec.pairs.numbers([i])
        else:
            assert codec.pairs.numbers([i]).tolist() == numbers
    # Their files, ours, and the asset of a run say the same.
    for again in (
        Fast.from_files(theirs, codec.processor_json()),
        Fast.from_files(codec.tokenizer_json(), codec.processor_json()),
        Fast.from_json(dataclasses.replace(codec, max_tokens=9).to_json()),
    ):
        assert again.encode(of["eval_chunks"]) == said
        for key in ("scale", "min_token", "max_token", "time_horizon", "action_dim"):
            assert getattr(again, key) == getattr(codec, key)
    assert again.max_tokens == 9


# What the original does with them, in a word; "right": what we do, too.
REFUSED = {
    "drop_last": "coefficients instead of",  # zeros
    "extra_token": "coefficients instead of",  # zeros
    "empty": "^.*: 0 coefficients instead of",  # zeros
    "id_equal_vocab_len": "ids run from 0 to",  # skipped
    "id_huge": "ids run from 0 to",  # skipped
    "negative_id": "id -1 at place",  # zeros
    "wrong_time_horizon": "are for chunks of horizon",  # zeros
    "wrong_action_dim": "are for chunks of dimensions",  # zeros
    "swapped_T_D": "are for chunks of horizon",  # scrambled
    "no_shape_no_cache": "any horizon: say how many",  # AssertionError
    "lone_utf8_lead_byte": "byte 0xc2 at place 4 of",  # an action of more than 300
}
RIGHT = ("ok", "dead_alphabet_id", "non_canonical")


@pytest.mark.parametrize("name", SETS)
def test_what_cannot_be_decoded_is_refused(name):
    of, codec = golden(name), fitted(name)
    shapeless = dataclasses.replace(codec, time_horizon=None, action_dim=None)
    for case, there in CASES[name]["decode"].items():
        if "tokens" not in there:
            continue
        asked = [there["tokens"]], there["time_horizon"], there["action_dim"]
        if case in RIGHT:
            values = codec.decode(*asked)
            np.testing.assert_allclose(values, of[f"edge/{case}/decoded"], atol=1e-6)
            continue
        asks = shapeless if there["time_horizon"] is None else codec
        with pytest.raises(ValueError, match=REFUSED[case]):
            asks.decode(*asked)
    # A codec that is for any shape keeps none from the last call.
    (ids,) = codec.encode(of["eval_chunks"][:1])
    T, D = of["eval_chunks"].shape[1:]
    assert shapeless.decode([ids], T, D).shape == (1, T, D)
    assert shapeless.decode([ids], D, T).shape == (1, D, T)
    assert "coefficients instead of" in shapeless.fault(ids, T - 1, D)


NO_TOKEN = {  # the original saturates, drops, or fails inside of the tokenizer
    "below_min_token": "action dimension 0 at frequency 0 has no FAST token: they are for -",
    "above_max_token": "action dimension 0 at frequency 0 has no FAST token",
    "coefficient_400": "coefficient 400 of action dimension 0",
    "surrogate_range": "coefficient 55552 of action dimension 0",
    "beyond_unicode": "coefficient 2000000 of action dimension 0",
    "nan": "action value nan of dimension",
    "inf": "action value inf of dimension",
    "one_dim_input": "expected .B, horizon, action_dim",
    "four_dims": "expected .B, horizon, action_dim",
}


@pytest.mark.parametrize("name", SETS)
def test_what_has_no_token_is_refused(name):
    of, codec = golden(name), fitted(name)
    for case, there in CASES[name]["encode"].items():
        if f"enc/{case}/chunk" not in of:
            continue
        chunks = of[f"enc/{case}/chunk"][None]
        # Where the original's tokens say the chunk they are right, beyond what was fitted, too.
        lost = case == "below_min_token" or there.get("decoded_all_zero") and case != "zeros"
        if "tokens" in there and not lost:
            assert codec.encode(chunks) == [there["tokens"]]
            continue
        with pytest.raises(ValueError, match=NO_TOKEN[case]):
            codec.encode(chunks)
    chunks, scale = of["train_chunks"], float(of["scale"])
    reach = int(of["max_token"] - of["min_token"])
    least = Fast.fit(chunks, scale=scale, vocab_size=reach)
    assert len(least.pairs) == CASES[name]["encode"]["fit_vocab_just_range"]["actual_vocab_len"]
    with pytest.raises(ValueError, match=f"over more than vocab_size={reach - 1} numbers"):
        Fast.fit(chunks, scale=scale, vocab_size=reach - 1)
    for match, bad, scale in (
        ("there is none", chunks[:0], 10.0),
        ("scale=nan must be positive", chunks, np.nan),
        ("up to 3e.38 are too large", np.full_like(chunks, 3e38), 10.0),
        ("dtype complex64, not of real", chunks + 0j, 10.0),
    ):
        with pytest.raises(ValueError, match=match):
            Fast.fit(bad, scale=scale)
    assert codec.encode(chunks[:0]) == [] and codec.decode([]).shape == (0, *chunks.shape[1:])
    with pytest.raises(ValueError, match="id 1.5 at place 0"):
        codec.decode([[1.5]])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_chunk_in_range_survives(data):
    """Numbers of every class of characters, of one to three bytes."""
    scale = data.draw(st.sampled_from([3.0, 40.0, 900.0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    T, D = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    chunks = rng.uniform(-1, 1, (6, T, D)) * rng.uniform(0, 1, (6, 1, D))
    chunks = np.concatenate([chunks, 0.5 * chunks])
    # Parts of several chunks are as good as single ones, and few are enough for the range.
    parts = [chunks[:5], chunks[5], chunks[6:]]
    codec = Fast.fit(parts, scale=scale, vocab_size=9000, every_byte=True, most=2)
    codec = Fast.from_json(codec.to_json())
    said = codec.encode(chunks)
    decoded = codec.decode(said)
    assert np.abs(decoded - chunks).max() <= 0.5 * np.sqrt(T) / scale + 1e-9
    assert (codec.coefficients(decoded) == codec.coefficients(chunks)).all()
    assert codec.encode(decoded) == said
    assert all(codec.fault(ids[:-1]) for ids in said)


def test_files_of_other_tokenizers_are_refused():
    codec = fitted("small")
    good = json.loads(codec.tokenizer_json())

    def refuse(match, *path, value):
        bad = json.loads(json.dumps(good))
        at = functools.reduce(lambda found, key: found[key], path[:-1], bad)
        at[path[-1]] = value
        with pytest.raises(ValueError, match=match):
            Fast.from_files(json.dumps(bad).encode(), codec.processor_json())

    refuse("a tokenizer of .'Unigram'", "model", "type", value="Unigram")
    refuse("add_prefix_space is True", "pre_tokenizer", "add_prefix_space", value=True)
    refuse("unk_token is '<unk>', it must be None", "model", "unk_token", value="<unk>")
    refuse("added_tokens is", "added_tokens", value=[{"id": 200, "content": "<pad>"}])
    refuse("are not 0, 1, 2", "model", "vocab", value={"a": 0, "b": 2})
    refuse("is not of two of its tokens", "model", "merges", 0, value="no merge")
    refuse("is not in the vocabulary", "model", "merges", 0, value=["1", "8"])
    refuse("'vocab' is missing", "model", value={"type": "BPE"})
    refuse("vocab must be a mapping", "model", "vocab", value=["a"])
    refuse("the merge .3, .4.. is not of two", "model", "merges", 0, value=[3, [4]])
    for match, numbers in {
        "min_token is None, not an integer": {"scale": 10},
        "min_token is -3.5, not an integer": {"scale": 10, "min_token": -3.5},
        "scale is True, not a number": {"scale": True, "min_token": -3},
        "scale=0 must be positive": {"scale": 0, "min_token": -3},
        "time_horizon is -4": {"scale": 10, "min_token": -3, "time_horizon": -4},
        "are no mapping": [],
    }.items():
        with pytest.raises(ValueError, match=match):
            Fast.from_files(codec.tokenizer_json(), json.dumps(numbers).encode())
    # Merges as files of earlier versions have them are the same ones.
    lines = [" ".join(pair) for pair in good["model"]["merges"]]
    good["model"]["merges"] = lines
    again = Fast.from_files(json.dumps(good).encode(), codec.processor_json())
    assert again.tokenizer_json() == codec.tokenizer_json()
