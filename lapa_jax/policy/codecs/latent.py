"""Latent actions as they are: codes of a quantizer."""

from typing import Any

import numpy as np

from lapa_jax.policy.codecs.codec import Codec


class Codes(Codec):
    """z of `length` codes below `vocab`."""

    kind = "codes"

    def __init__(self, vocab: int, length: int):
        self.vocab, self.length = vocab, length
        self.sizes = np.full(length, vocab, np.int32)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """z int32 (B, length), checked."""
        if values.dtype.kind == "f":
            raise ValueError(
                f"data.corpora.*.label_set: labels are vectors {values.dtype}{values.shape[1:]} of "
                "a quantizer without codes, but this head predicts codes: name a label set of codes"
            )
        if values.shape[-1] != self.length:
            raise ValueError(
                f"the label set has codes of length {values.shape[-1]}; "
                f"config.code_length={self.length}"
            )
        if values.min() < 0 or values.max() >= self.vocab:
            raise ValueError(
                f"latent actions run from {values.min()} to {values.max()}; "
                f"model.targets.latent.vocab={self.vocab}"
            )
        return values

    def values(self, ids: Any, xp: Any = np) -> Any:
        return ids

    def settings(self) -> dict[str, Any]:
        return {"vocab": self.vocab, "length": self.length}

    def describe(self) -> dict[str, Any]:
        return {"code_length": self.length, "codebook_size": self.vocab}
