"""Where things stand in the policy's sequence: [text slots][image tokens][target slots].

Slots are static. The last target is predicted but never fed, so the sequence is one shorter than
its slots.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    text_length: int
    num_image_tokens: int
    num_targets: int

    def __post_init__(self) -> None:
        for name in ("text_length", "num_image_tokens", "num_targets"):
            if getattr(self, name) < 1:
                raise ValueError(f"layout {name}={getattr(self, name)} must be at least 1")

    @property
    def text(self) -> slice:
        return slice(0, self.text_length)

    @property
    def image(self) -> slice:
        return slice(self.text_length, self.text_length + self.num_image_tokens)

    @property
    def fed_targets(self) -> slice:
        """Slots whose input is a target (all but the last target)."""
        return slice(self.image.stop, self.sequence_length)

    @property
    def predicting(self) -> slice:
        """Slots whose output predicts a target: the last image token, then the fed targets."""
        return slice(self.image.stop - 1, self.sequence_length)

    @property
    def sequence_length(self) -> int:
        return self.image.stop + self.num_targets - 1

    def mask(self, text_mask: np.ndarray) -> np.ndarray:
        """Mask bool (B, sequence_length) of the slots that hold something."""
        rest = self.sequence_length - self.text_length
        return np.concatenate([text_mask, np.ones((len(text_mask), rest), bool)], axis=1)

    def positions(self, text_mask: np.ndarray) -> np.ndarray:
        """Position ids int32 (B, sequence_length), which skip padding."""
        return np.maximum(np.cumsum(self.mask(text_mask), axis=1) - 1, 0).astype(np.int32)
