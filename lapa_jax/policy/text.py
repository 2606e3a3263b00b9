"""Instructions as token ids: a SentencePiece model."""

import functools
import hashlib
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

MARKS = 259  # bytes and marks, which every vocabulary has


class TextTokenizer:
    """Strings to piece ids. `model` is the content of a SentencePiece `.model` file, which must
    define the pieces <s> and </s>."""

    def __init__(self, model: bytes):
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(
                f"no SentencePiece model: {len(model)} bytes that begin with {model[:16]!r}. "
                "A tokenizer.json, or the tiktoken file of Llama 3, is none"
            ) from error
        self.bos, self.eos = self._processor.bos_id(), self._processor.eos_id()
        if self.bos < 0 or self.eos < 0:
            raise ValueError("the SentencePiece model must define the pieces <s> and </s>")
        # Instructions repeat: one encoding each. Bounded, as those of a server's clients are any.
        self.ids = functools.lru_cache(maxsize=16_384)(self._ids)

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model).hexdigest()[:16]

    def _ids(self, text: str) -> np.ndarray:
        """Piece ids int32 (n,), without begin and end marks."""
        return np.array(self._processor.encode(text), np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece model of at most `vocab_size` pieces for these strings; deterministic.

    Ids are those of LLaMA: 0 unknown, 1 begin, 2 end, then 256 bytes (so that no character is
    unknown), then pieces.
    """
    texts = sorted(set(texts))
    if not texts:
        raise ValueError("no instructions to train a tokenizer on; give model.tokenizer a file")
    if vocab_size < 300:
        raise ValueError(
            f"vocab_size={vocab_size} must be at least 300: {MARKS} are bytes and marks"
        )
    size = vocab_size
    while size > MARKS:
        model = io.BytesIO()
        try:
            _train(texts, size, model)
        except RuntimeError as error:
            # A small corpus has only so many merges; the trainer says so and wants a smaller size.
            if "Vocabulary size too high" not in str(error):
                raise
            size = min(size - 1, int(re.search(r"a value <= (\d+)", str(error))[1]))
        else:
            return model.getvalue()
    raise ValueError(f"{len(texts)} instructions give no vocabulary: {texts[:3]} ...")


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
