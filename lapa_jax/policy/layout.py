"""How an example becomes tokens, and examples become the rows of a batch.

A position has a token id and a modality: each modality has its own ids, from 0. A row holds one
example, or several (packing), told apart by segment ids from 1; segment 0 is padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lapa_jax.policy.modality import ACTION, FILL, IMAGE, LATENT, MODALITIES, TEXT
from lapa_jax.policy.text import TextTokenizer

LEGACY_PROMPT = (
    "You are a helpful assistant. USER: What action should the robot take to `{instruction}` "
    "ASSISTANT:"
)
LEGACY_END_OF_FRAME, LEGACY_END_OF_VISION = 8192, 8193  # of the image vocabulary


def _none() -> np.ndarray:
    return np.zeros(0, np.int32)


@dataclass(frozen=True)
class Example:
    """Tokens of one example. The output at `target_slots[i]` predicts `targets[i]`; so do
    `text_slots` for text ids, where text is trained on."""

    tokens: np.ndarray  # int32 (n,)
    modality: np.ndarray  # int8 (n,)
    target_slots: np.ndarray = field(default_factory=_none)  # int32 (L,)
    targets: np.ndarray = field(default_factory=_none)  # int32 (L,)
    text_slots: np.ndarray = field(default_factory=_none)  # int32 (M,)
    text_targets: np.ndarray = field(default_factory=_none)  # int32 (M,)


class Layout:
    """[begin, instruction][image tokens][targets but the last]."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        head: str,
        text_length: int,
        num_images: int,
        tokens_per_image: int,
        image_vocab: int,
        num_targets: int,
    ):
        self.tokenizer, self.text_length = tokenizer, text_length
        self.head = MODALITIES.index(head)
        self.num_images, self.tokens_per_image = num_images, tokens_per_image
        self.image_vocab, self.num_targets = image_vocab, num_targets

    @property
    def num_text_targets(self) -> int:
        return 0

    @property
    def prompt_length(self) -> int:
        """Tokens before the first target, at most."""
        return self.text_length + self.num_images * self.tokens_per_image

    @property
    def example_length(self) -> int:
        """Tokens of an example, at most."""
        return self.prompt_length + self.num_targets - 1

    def prompt(self, instruction: str, image_ids: np.ndarray | None = None) -> Example:
        """Everything before the first target. `image_ids` int (images, tokens an image), or None:
        left to the front-end."""
        return _join([(self.text(instruction), TEXT), (self._image(image_ids).reshape(-1), IMAGE)])

    def example(
        self, instruction: str, image_ids: np.ndarray | None, targets: np.ndarray
    ) -> Example:
        """The prompt and its targets int (L,)."""
        prompt = self.prompt(instruction, image_ids)
        joined = _join([prompt, (targets[:-1], self.head)])
        slots = len(prompt.tokens) - 1 + np.arange(len(targets), dtype=np.int32)
        return Example(joined.tokens, joined.modality, slots, targets)

    def text(self, instruction: str) -> np.ndarray:
        """Text tokens int32 (n,) before the image. Raises ValueError for more than text_length."""
        text = np.concatenate([[self.tokenizer.bos], self.tokenizer.ids(instruction)])
        return self._checked(text, instruction)

    def _checked(self, text: np.ndarray, instruction: str) -> np.ndarray:
        if len(text) > self.text_length:
            raise ValueError(
                f"the instruction needs {len(text)} tokens, more than "
                f"model.text_length={self.text_length}: {instruction!r}"
            )
        return text

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

    where tags are plain text pieces. Text is trained on from the opening tag of the targets on.
    """

    TAGS = {LATENT: "delta", ACTION: "action"}

    @property
    def num_text_targets(self) -> int:
        opening, closing = self._tags(self.TAGS[self.head])
        return len(opening) + self.num_targets + len(closing) + 1

    @property
    def prompt_length(self) -> int:
        tags = len(self._tags("vision")[1]) + len(self._tags(self.TAGS[self.head])[0])
        return self.text_length + self.num_images * (self.tokens_per_image + 1) + tags

    @property
    def example_length(self) -> int:
        return self.prompt_length + self.num_targets + len(self._tags(self.TAGS[self.head])[1])

    def prompt(self, instruction: str, image_ids: np.ndarray | None = None) -> Example:
        text, vision_closing = self.text(instruction), self._tags("vision")[1]
        self._check_image_ids(LEGACY_END_OF_FRAME, LEGACY_END_OF_VISION)
        marks = np.full((self.num_images, 1), LEGACY_END_OF_FRAME, np.int32)
        marks[-1] = LEGACY_END_OF_VISION
        image = np.concatenate([self._image(image_ids), marks], axis=1).reshape(-1)
        opening = self._tags(self.TAGS[self.head])[0]
        return _join([(text, TEXT), (image, IMAGE), (vision_closing, TEXT), (opening, TEXT)])

    def text(self, instruction: str) -> np.ndarray:
        ids = self.tokenizer.ids(LEGACY_PROMPT.format(instruction=instruction))
        bos, opening = self.tokenizer.bos, self._tags("vision")[0]
        return self._checked(np.concatenate([[bos, bos], ids, opening]), instruction)

    def example(
        self, instruction: str, image_ids: np.ndarray | None, targets: np.ndarray
    ) -> Example:
        prompt = self.prompt(instruction, image_ids)
        opening, closing = self._tags(self.TAGS[self.head])
        joined = _join([prompt, (targets, self.head), (closing, TEXT)])
        first, L = len(prompt.tokens) - 1, len(targets)
        # The original's text loss takes in the target positions too, with the id 0 (a misplaced
        # bracket in its mask).
        text_targets = [opening, np.zeros(L), closing, [self.tokenizer.eos]]
        text_targets = np.concatenate(text_targets).astype(np.int32)
        text_slots = first - len(opening) + np.arange(len(text_targets), dtype=np.int32)
        slots = first + np.arange(L, dtype=np.int32)
        return Example(joined.tokens, joined.modality, slots, targets, text_slots, text_targets)

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

    rows: tokens, segments int32 (R, T), modality int8 (R, T), target_slots, targets int32 (R, k·L)
    and, where examples have them, text_slots, text_targets int32 (R, k·M). order (B,): the example
    at each place, row by row. Long examples are put together with short ones; which ones is a
    function of their lengths alone.
    """
    B, k = len(examples), examples_per_row
    if B % k:
        raise ValueError(f"{B} examples a host do not fill rows of model.examples_per_row={k} each")
    order = _balanced(np.array([len(e.tokens) for e in examples]), k)
    rows = _empty(B // k, length)
    found: dict[str, list[list[np.ndarray]]] = {
        name: [[] for _ in range(B // k)]
        for name in ("target_slots", "targets", "text_slots", "text_targets")
    }
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
            for name in found:
                value = getattr(e, name)
                found[name][r].append(value + start if name.endswith("slots") else value)
            start = stop
    for name, values in found.items():
        stacked = np.stack([np.concatenate(v) for v in values]).astype(np.int32)
        if stacked.size:
            rows[name] = stacked
    return rows, order


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
