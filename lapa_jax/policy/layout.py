"""How an example becomes tokens, and examples become the rows of a batch.

A position has a token id and a modality: each modality has its own ids, from 0. A row holds one
example, or several (packing), told apart by segment ids from 1; segment 0 is padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lapa_jax.policy.modality import FILL, IMAGE, MODALITIES, STATE, TEXT
from lapa_jax.policy.text import TextTokenizer

LEGACY_PROMPT = (
    "You are a helpful assistant. USER: What action should the robot take to `{instruction}` "
    "ASSISTANT:"
)
LEGACY_END_OF_FRAME, LEGACY_END_OF_VISION = 8192, 8193  # of the image vocabulary


class Slots(NamedTuple):
    """The slots of a head in the row of an example. What it gives at each is seen there, or where
    `next_token` at the token before."""

    modality: str
    count: int
    next_token: bool = True


@dataclass(frozen=True)
class Example:
    """Tokens of one example. `slots`: where heads are asked, by modality; "text" where text is
    trained on."""

    tokens: np.ndarray  # int32 (n,)
    modality: np.ndarray  # int8 (n,)
    slots: dict[str, np.ndarray] = field(default_factory=dict)  # int32 (L,) each


class Layout:
    """[begin, instruction][image tokens][state, where it is seen][tokens of each head's slots, but
    for a last one that is only predicted]."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        slots: Sequence[Slots],
        text_length: int,
        num_images: int,
        tokens_per_image: int,
        image_vocab: int,
        sees_state: bool = False,
    ):
        self.sees_state = sees_state
        self.tokenizer, self.slots, self.text_length = tokenizer, tuple(slots), text_length
        self.num_images, self.tokens_per_image = num_images, tokens_per_image
        self.image_vocab = image_vocab

    # Of what text is trained on, where it is: its ids int32 (M,), the same for all examples, and
    # the weight of its loss, which that of the heads lacks.
    text_targets = np.zeros(0, np.int32)
    text_loss_weight = 0.0

    @property
    def prompt_length(self) -> int:
        """Tokens before the first target, at most."""
        return self.text_length + self.num_images * self.tokens_per_image + self.sees_state

    @property
    def example_length(self) -> int:
        """Tokens of an example, at most."""
        return self.prompt_length + sum(own.count for own in self.slots) - self._only_predicted

    @property
    def _only_predicted(self) -> int:
        """Tokens at the end that nothing is asked at."""
        return int(bool(self.slots) and self.slots[-1].next_token)

    def prompt(self, instruction: str, image_ids: np.ndarray | None = None) -> Example:
        """Everything before the first target. `image_ids` int (images, tokens an image), or None:
        left to the front-end."""
        parts = [(self.text(instruction), TEXT), (self._image(image_ids).reshape(-1), IMAGE)]
        return _join([*parts, ([FILL], STATE)] if self.sees_state else parts)

    def example(
        self, instruction: str, image_ids: np.ndarray | None, ids: Sequence[np.ndarray]
    ) -> Example:
        """The prompt, and `ids` int (L,) of each head's slots."""
        prompt = self.prompt(instruction, image_ids)
        parts: list[tuple[np.ndarray, int]] = []
        slots, at = {}, len(prompt.tokens)
        for own, tokens in zip(self.slots, ids, strict=True):
            slots[own.modality] = at - own.next_token + np.arange(len(tokens), dtype=np.int32)
            parts.append((tokens, MODALITIES.index(own.modality)))
            at += len(tokens)
        joined = _join([prompt, *parts])
        kept = at - self._only_predicted
        return Example(joined.tokens[:kept], joined.modality[:kept], slots)

    def text(self, instruction: str) -> np.ndarray:
        """Text tokens int32 (n,) before the image. Raises ValueError for more than text_length."""
        text = self.any_text(instruction)
        if len(text) > self.text_length:
            raise ValueError(
                f"the instruction needs {len(text)} tokens, more than "
                f"model.text_length={self.text_length}: {instruction!r}"
            )
        return text

    def any_text(self, instruction: str) -> np.ndarray:
        """As `text`, however many."""
        return np.concatenate([[self.tokenizer.bos], self.tokenizer.ids(instruction)])

    def _image(self, image_ids: np.ndarray | None) -> np.ndarray:
        shape = (self.num_images, self.tokens_per_image)
        if image_ids is None:
            return np.full(shape, FILL, np.int32)
        if image_ids.shape != shape:
            raise ValueError(
                f"image ids of shape {image_ids.shape} are not (images, tokens) {shape}"
            )
        self._check_image_ids(image_ids.min(), image_ids.max())
        return image_ids

    def _check_image_ids(self, least: int, most: int) -> None:
        if least < 0 or most >= self.image_vocab:
            raise ValueError(
                f"image tokens run from {least} to {most}; model.image_vocab={self.image_vocab}"
            )


class LegacyLayout(Layout):
    """The original's rows (its `fields` "[instruction],[vision],delta" or "...,action"):

        <s><s> prompt <vision> image (8192 image)* 8193 </vision> <delta> targets </delta> </s>

    where tags are plain text pieces. With latent actions text is trained on, too, from the opening
    tag of the targets on.
    """

    TAGS = {"latent": "delta", "action": "action"}
    TEXT_LOSS_WEIGHTS = {"latent": 0.01, "action": 0.0}

    def __init__(self, tokenizer: TextTokenizer, *, slots: Sequence[Slots], **sizes: int):
        super().__init__(tokenizer, slots=slots, **sizes)
        if self.sees_state:
            raise ValueError("model.legacy=True: the original's rows have no state (model.state)")
        if len(slots) > 1:
            raise ValueError("model.legacy=True: the original's rows have one head's targets")
        modality, count, _ = slots[0] if slots else Slots("latent", 0)
        self.opening, self.closing = self._tags(self.TAGS[modality])
        # The original's text loss takes in the target positions too, with the id 0 (a misplaced
        # bracket in its mask).
        targets = [self.opening, np.zeros(count), self.closing, [tokenizer.eos]]
        self.text_targets = np.concatenate(targets).astype(np.int32)
        self.text_loss_weight = self.TEXT_LOSS_WEIGHTS[modality]

    @property
    def prompt_length(self) -> int:
        marks = len(self._tags("vision")[1]) + len(self.opening)
        return self.text_length + self.num_images * (self.tokens_per_image + 1) + marks

    @property
    def example_length(self) -> int:
        return super().example_length + len(self.closing)

    def prompt(self, instruction: str, image_ids: np.ndarray | None = None) -> Example:
        text, vision_closing = self.text(instruction), self._tags("vision")[1]
        self._check_image_ids(LEGACY_END_OF_FRAME, LEGACY_END_OF_VISION)
        marks = np.full((self.num_images, 1), LEGACY_END_OF_FRAME, np.int32)
        marks[-1] = LEGACY_END_OF_VISION
        image = np.concatenate([self._image(image_ids), marks], axis=1).reshape(-1)
        closed = [(vision_closing, TEXT), (self.opening, TEXT)]
        return _join([(text, TEXT), (image, IMAGE), *closed])

    def any_text(self, instruction: str) -> np.ndarray:
        ids = self.tokenizer.ids(LEGACY_PROMPT.format(instruction=instruction))
        bos, opening = self.tokenizer.bos, self._tags("vision")[0]
        return np.concatenate([[bos, bos], ids, opening])

    _only_predicted = 0  # after the targets comes their closing tag

    def example(
        self, instruction: str, image_ids: np.ndarray | None, ids: Sequence[np.ndarray]
    ) -> Example:
        whole = super().example(instruction, image_ids, ids)
        text = np.arange(len(self.text_targets), dtype=np.int32)
        text += len(whole.tokens) - sum(map(len, ids)) - 1 - len(self.opening)
        joined = _join([whole, (self.closing, TEXT)])
        return Example(joined.tokens, joined.modality, whole.slots | {"text": text})

    def _tags(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.tokenizer.ids(f"<{name}>"), self.tokenizer.ids(f"</{name}>")


def _join(parts: Sequence[Example | tuple[np.ndarray, int]]) -> Example:
    pairs = [
        (p.tokens, p.modality)
        if isinstance(p, Example)
        else (np.asarray(p[0], np.int32), np.full(len(p[0]), p[1], np.int8))
        for p in parts
    ]
    tokens, modality = zip(*pairs, strict=True)
    return Example(np.concatenate(tokens), np.concatenate(modality))


def pack(
    examples: Sequence[Example], *, examples_per_row: int, length: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(rows, order): `examples_per_row` examples a row of `length` tokens, padded at the right.

    rows: tokens, segments int32 (R, T), modality int8 (R, T), and MODALITY_slots int32 (R, k·L) of
    the slots that examples have. order (B,): the example at each place, row by row. Long examples
    are put together with short ones; which ones is a function of their lengths alone.
    """
    B, k = len(examples), examples_per_row
    if B % k:
        raise ValueError(f"{B} examples a host do not fill rows of model.examples_per_row={k} each")
    order = _balanced(np.array([len(e.tokens) for e in examples]), k)
    rows = _empty(B // k, length)
    slots: dict[str, list[np.ndarray]] = {name: [] for name in examples[0].slots}
    for r, members in enumerate(order.reshape(-1, k)):
        start = 0
        for segment, e in enumerate((examples[i] for i in members), 1):
            stop = start + len(e.tokens)
            if stop > length:
                raise ValueError(
                    f"{k} examples of {[len(examples[i].tokens) for i in members]} tokens do not "
                    f"fit a row of model.sequence_length={length}"
                )
            for name, value in zip(rows, (e.tokens, e.modality, segment), strict=True):
                rows[name][r, start:stop] = value
            for name, found in slots.items():
                found.append(e.slots[name] + np.int32(start))
            start = stop
    return rows | {
        f"{m}_slots": np.concatenate(x).reshape(B // k, -1) for m, x in slots.items()
    }, order


def by_row(values: np.ndarray, order: np.ndarray, examples_per_row: int) -> np.ndarray:
    """What examples have, (B, n, ...), as rows of them have it: (R, k·n, ...)."""
    values = values if examples_per_row == 1 else values[order]
    return values.reshape(len(order) // examples_per_row, -1, *values.shape[2:])


def last_tokens(rows: dict[str, np.ndarray], examples_per_row: int) -> np.ndarray:
    """Where the examples of rows end, int32 (R, k)."""
    segments, own = rows["segments"][..., None], np.arange(1, examples_per_row + 1)
    at = np.arange(segments.shape[1])[:, None]
    return np.where(segments == own, at, 0).max(axis=1).astype(np.int32)


def left_pad(prompts: Sequence[Example], length: int) -> dict[str, np.ndarray]:
    """Prompts that all end at the last of `length` slots, as tokens, modality and segments."""
    rows = _empty(len(prompts), length)
    for r, e in enumerate(prompts):
        for name, value in zip(rows, (e.tokens, e.modality, 1), strict=True):
            rows[name][r, length - len(e.tokens) :] = value
    return rows


def _empty(rows: int, length: int) -> dict[str, np.ndarray]:
    return {
        "tokens": np.zeros((rows, length), np.int32),
        "modality": np.zeros((rows, length), np.int8),
        "segments": np.zeros((rows, length), np.int32),
    }


def _balanced(lengths: np.ndarray, per_row: int) -> np.ndarray:
    """Places of examples, row by row: sorted by length, they are dealt out forth and back."""
    if per_row == 1:
        return np.arange(len(lengths))
    deal = np.argsort(-lengths, kind="stable").reshape(per_row, -1)
    deal[1::2] = deal[1::2, ::-1]
    return deal.T.reshape(-1)
