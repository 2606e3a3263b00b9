"""Rows of tokens: the native and the original's layout, packing, padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.policy.layout import Example, Layout, LegacyLayout, Slots, by_row, left_pad, pack
from lapa_jax.policy.modality import ACTION, FILL, IMAGE, LATENT, MODALITIES, TEXT
from lapa_jax.policy.text import TextTokenizer, train

TEXTS = [f"push the {c} cube to the {s}" for c in ("red", "blue") for s in ("left", "right")]
TOKENIZER = TextTokenizer(train(TEXTS, 320))


def layout(kind=Layout, **changes):
    settings = dict(slots=[Slots("latent", 4)], text_length=120, num_images=1, tokens_per_image=3)
    settings |= dict(image_vocab=8448)
    return kind(TOKENIZER, **settings | changes)


def test_native_row():
    text = TOKENIZER.ids(TEXTS[0])
    e = layout().example(TEXTS[0], None, [np.array([5, 6, 7, 0], np.int32)])
    n = 1 + len(text) + 3
    assert e.tokens.tolist() == [1, *text, FILL, FILL, FILL, 5, 6, 7]
    assert e.modality.tolist() == [TEXT] * (n - 3) + [IMAGE] * 3 + [LATENT] * 3
    assert e.slots.keys() == {"latent"} and not layout().text_targets.size
    assert e.slots["latent"].tolist() == [n - 1, n, n + 1, n + 2]
    assert MODALITIES[LATENT] == "latent"
    prompt = layout().prompt(TEXTS[0], np.array([[9, 8, 7]]))
    assert prompt.tokens.tolist() == [1, *text, 9, 8, 7]


def test_the_originals_row():
    """bos, the prompt (which begins with <s>), tagged image with its end marks, tagged targets,
    eos: inputs are all but the last, targets all but the first."""
    ids = TOKENIZER.ids
    prompt = ids(
        "You are a helpful assistant. USER: What action should the robot take to "
        f"`{TEXTS[1]}` ASSISTANT:"
    )
    frames = np.array([[9, 8, 7], [6, 5, 4]])
    z = np.array([3, 2, 1, 0], np.int32)
    before = [1, 1, *prompt, *ids("<vision>")]
    image = [9, 8, 7, 8192, 6, 5, 4, 8193]
    after = [*ids("</vision>"), *ids("<delta>")]
    row = [*before, *image, *after, *z, *ids("</delta>"), TOKENIZER.eos]
    one = layout(LegacyLayout, num_images=2)
    e = one.example(TEXTS[1], frames, [z])
    assert e.tokens.tolist() == row[:-1]
    start = len(before) + len(image) + len(after)
    kinds = np.full(len(row) - 1, TEXT)
    kinds[len(before) : len(before) + len(image)] = IMAGE
    kinds[start : start + 4] = LATENT
    assert e.modality.tolist() == kinds.tolist()
    assert [row[i + 1] for i in e.slots["latent"]] == z.tolist()
    # text: everything from <delta> on, and 0 at the latent positions
    wanted = [*ids("<delta>"), 0, 0, 0, 0, *ids("</delta>"), TOKENIZER.eos]
    assert one.text_targets.tolist() == wanted
    assert [row[i + 1] for i in e.slots["text"]] == [*ids("<delta>"), *z, *ids("</delta>"), 2]
    assert one.prompt(TEXTS[1], frames).tokens.tolist() == row[:start]
    action = layout(LegacyLayout, slots=[Slots("action", 7)])
    e = action.example(TEXTS[1], frames[:1], [np.arange(7, dtype=np.int32)])
    assert (e.modality == ACTION).sum() == 7 and len(e.tokens) <= action.example_length


@pytest.mark.parametrize("kind", [Layout, LegacyLayout])
def test_what_does_not_fit_is_an_error(kind):
    with pytest.raises(ValueError, match="needs .* tokens, more than model.text_length=4"):
        layout(kind, text_length=4).prompt(TEXTS[0])
    with pytest.raises(ValueError, match=r"image ids of shape \(1, 2\)"):
        layout(kind).prompt(TEXTS[0], np.zeros((1, 2), np.int32))
    with pytest.raises(ValueError, match="run from 0 to 8448; model.image_vocab=8448"):
        layout(kind).prompt(TEXTS[0], np.array([[0, 8448, 1]]))
    with pytest.raises(ValueError, match="image tokens run from .*; model.image_vocab=5"):
        layout(kind, image_vocab=5).prompt(TEXTS[0], np.array([[9, 3, 4]]))
    examples = [layout(kind).prompt(TEXTS[0])] * 4
    n = len(examples[0].tokens)
    with pytest.raises(ValueError, match=f"do not fit a row of model.sequence_length={2 * n - 1}"):
        pack(examples, examples_per_row=2, length=2 * n - 1)
    with pytest.raises(ValueError, match="4 examples .* model.examples_per_row=3"):
        pack(examples, examples_per_row=3, length=3 * n)


def test_prompts_end_at_the_last_slot():
    prompts = [layout().prompt(text) for text in (TEXTS[0], "push")]
    rows = left_pad(prompts, layout().prompt_length)
    for r, prompt in enumerate(prompts):
        n = len(prompt.tokens)
        assert rows["tokens"][r, -n:].tolist() == prompt.tokens.tolist()
        assert rows["segments"][r].tolist() == [0] * (123 - n) + [1] * n


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packing_loses_and_mixes_nothing(lengths, per_row, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.tile(lengths, per_row))
    examples = [
        Example(
            np.arange(n, dtype=np.int32) + 100 * i,
            np.full(n, i % 4, np.int8),
            {"latent": np.array([n - 1], np.int32)},
        )
        for i, n in enumerate(lengths)
    ]
    length = int(max(lengths)) * per_row
    rows, order = pack(examples, examples_per_row=per_row, length=length)
    targets = by_row(np.arange(len(examples))[:, None], order, per_row)
    assert sorted(order) == list(range(len(examples)))
    for place, i in enumerate(order):
        r, segment = divmod(place, per_row)
        mine = rows["segments"][r] == segment + 1
        assert rows["tokens"][r][mine].tolist() == examples[i].tokens.tolist()
        assert rows["modality"][r][mine].tolist() == examples[i].modality.tolist()
        slot = rows["latent_slots"][r, segment]
        assert rows["tokens"][r, slot] == examples[i].tokens[-1]
        assert targets[r, segment] == i
    assert (rows["segments"] > 0).sum() == sum(lengths)
    if per_row == 1:
        assert order.tolist() == list(range(len(examples)))
