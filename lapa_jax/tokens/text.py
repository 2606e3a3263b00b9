"""Instructions as token ids: a SentencePiece model and a fixed number of slots."""

import hashlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece


class TextTokenizer:
    """Encodes strings to `length` slots: begin-of-sequence, pieces, padding at the right.

    `model` is the content of a SentencePiece `.model` file, which must define a bos piece.
    """

    def __init__(self, model: bytes, length: int):
        self.model, self.length = model, length
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        if self._processor.bos_id() < 0:
            raise ValueError("the SentencePiece model defines no <s> piece (bos_id)")
        self._known: dict[str, np.ndarray] = {}  # instructions repeat: one encoding each

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model).hexdigest()[:16]

    def encode(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 (B, length) and their mask bool (B, length).

        Raises ValueError naming a string that needs more than `length` slots.
        """
        rows = [self._ids(text) for text in texts]
        ids = np.zeros((len(rows), self.length), np.int32)
        mask = np.zeros((len(rows), self.length), bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, True
        return ids, mask

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def _ids(self, text: str) -> np.ndarray:
        if text not in self._known:
            ids = [self._processor.bos_id(), *self._processor.encode(text)]
            if len(ids) > self.length:
                raise ValueError(
                    f"the instruction {text!r} needs {len(ids)} tokens, more than "
                    f"model.text_length={self.length}"
                )
            self._known[text] = np.array(ids, np.int32)
        return self._known[text]


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece model of at most `vocab_size` pieces for these strings; deterministic.

    Ids are those of LLaMA: 0 unknown, 1 begin, 2 end, then 256 bytes (so that no character is
    unknown), then pieces.
    """
    texts = sorted(set(texts))
    if not texts:
        raise ValueError("no instructions to train a tokenizer on; give model.tokenizer a file")
    if vocab_size < 300:
        raise ValueError(f"vocab_size={vocab_size} must be at least 300: 259 are bytes and marks")
    for size in range(vocab_size, 299, -1):
        model = io.BytesIO()
        try:
            _train(texts, size, model)
        except RuntimeError as error:
            # A small corpus has only so many merges; the trainer says so and wants a smaller size.
            if "Vocabulary size too high" not in str(error):
                raise
        else:
            return model.getvalue()
    raise ValueError(f"{len(texts)} instructions give no vocabulary of 300 pieces: {texts[:3]} ...")


def _train(texts: list[str], vocab_size: int, model: io.BytesIO) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
