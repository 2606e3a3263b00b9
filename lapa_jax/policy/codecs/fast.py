"""FAST: chunks of actions as few tokens, whose number varies (Pertsch et al. 2025, 2501.09747).

A chunk (T, D) of normalised actions becomes its cosine transform over time (DCT-II, orthonormal),
times `scale`, rounded half to even; the integers, all dimensions of the lowest frequency first, are
encoded by byte pairs (bpe.py). Vocabulary, tokens and files are those of the published processor.
Where that one clamps, drops or says zeros, this one raises ValueError.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.fft import dct, idct

from lapa_jax.policy.codecs.bpe import BytePairs
from lapa_jax.policy.codecs.codec import check_actions

PROCESSORS = ("processor_config.json", "preprocessor_config.json")  # beside a tokenizer.json
_COUNTS = ("vocab_size", "time_horizon", "action_dim", "max_tokens")
_NUMBERS = ("scale", "min_token", *_COUNTS[:3])  # of the published processor


@dataclasses.dataclass(frozen=True, eq=False)
class Fast:
    """`min_token`: the coefficient of number 0; `max_token`: the largest that is allowed.
    `time_horizon` and `action_dim`: of chunks; None: of any. `max_tokens`: of the longest chunk
    that it was fitted on; 0: unknown."""

    pairs: BytePairs
    scale: float
    min_token: int
    max_token: int
    vocab_size: int = 0  # that was asked for; there may be more tokens, or fewer
    time_horizon: int | None = None
    action_dim: int | None = None
    max_tokens: int = 0

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if self.max_token < self.min_token:
            raise ValueError(f"FAST coefficients from {self.min_token} to {self.max_token}")

    @classmethod
    def fit(
        cls,
        chunks: Iterable[np.ndarray],
        *,
        scale: float = 10.0,
        vocab_size: int = 1024,
        every_byte: bool = False,
        most: int = 0,
    ) -> "Fast":
        """Of normalised chunks, float (T, D) each, or parts (n, T, D) of them.

        With the defaults the vocabulary is that of the original. `every_byte`: every coefficient
        between the least and the greatest can be encoded, whether it comes or not. `most`: the
        merges are learnt of no more than twice so many chunks, evenly taken; 0: of all.
        """
        _check_scale(scale)
        low, high, seen, step = np.inf, -np.inf, 0, 1
        kept: list[np.ndarray] = []
        shapes = set()
        used: set[int] = set()
        for part in chunks:
            part = _finite(part)
            shapes.add(part.shape[-2:])
            found = np.around(_transformed(part) * scale)
            if not found.size:
                continue
            if not np.isfinite(found).all():
                raise ValueError(f"actions up to {np.abs(part).max():g} are too large for FAST")
            low, high = min(low, found.min()), max(high, found.max())
            if high - low > vocab_size:
                raise ValueError(
                    f"coefficients run from {low:.0f} to {high:.0f}, over more than vocab_size="
                    f"{vocab_size} numbers: raise it, lower scale={scale}, or normalise the actions"
                )
            rows = found.astype(np.int64).reshape(-1, found.shape[-2] * found.shape[-1])
            used.update(np.unique(rows).tolist())
            kept.extend(row.copy() for row in rows[-seen % step :: step])  # not all of the part
            seen += len(rows)
            while most and len(kept) > 2 * most:
                kept, step = kept[::2], 2 * step
        if not kept:
            raise ValueError("FAST tokens are fitted on chunks of actions, and there is none")
        low, high = int(low), int(high)
        alphabet = range(high - low + 1)
        numbers = alphabet if every_byte else [c - low for c in used]
        needed = {byte for n in numbers for byte in chr(n).encode("utf-8", "surrogatepass")}
        rows = (row - low for row in kept)
        pairs = BytePairs.fit(rows, vocab_size, alphabet, more_bytes=needed)
        horizon, dim = next(iter(shapes)) if len(shapes) == 1 else (None, None)
        return cls(pairs, scale, low, high, vocab_size, horizon, dim)

    # --- Chunks → tokens ---

    def coefficients(self, chunks: np.ndarray) -> np.ndarray:
        """Normalised chunks float (..., T, D) → integers int64 (..., T, D), all of which have
        tokens. ValueError for NaN, infinities and what has none, by dimension and frequency."""
        chunks = _finite(chunks)
        self._shape(*chunks.shape[-2:])
        found = np.around(self.transformed(chunks))
        known = self.pairs.encodable
        numbers = found - self.min_token
        inside = (numbers >= 0) & (numbers < len(known))
        inside &= known[np.where(inside, numbers, 0).astype(np.int64)]
        bad = np.argwhere(~inside)
        if len(bad):
            *_, frequency, dimension = map(int, bad[0])
            raise ValueError(
                f"the coefficient {found[tuple(bad[0])]:.0f} of action dimension {dimension} at "
                f"frequency {frequency} has no FAST token: they are for {self.min_token} to "
                f"{self.max_token} ({len(bad)} such coefficients). Fit the tokens on these data, "
                "or clip normalised actions"
            )
        return found.astype(np.int64)

    def encode(self, chunks: np.ndarray) -> list[list[int]]:
        """Normalised chunks float (B, T, D) → ids, B lists."""
        chunks = np.asarray(chunks)
        if chunks.ndim != 3:
            raise ValueError(f"chunks of shape {chunks.shape}, expected (B, horizon, action_dim)")
        found = self.coefficients(chunks)
        return self.said(found)

    def said(self, coefficients: np.ndarray) -> list[list[int]]:
        """As `encode`, of what `coefficients` gave, int (B, T, D)."""
        B, T, D = coefficients.shape
        return self.pairs.encode(coefficients.reshape(B, T * D) - self.min_token)

    # --- Tokens → chunks ---

    def decode(
        self,
        sequences: Sequence[Sequence[int]],
        horizon: int | None = None,
        dim: int | None = None,
    ) -> np.ndarray:
        """Ids, B lists → normalised chunks float64 (B, T, D). `horizon` and `dim` where the codec
        is for chunks of any. ValueError for ids that do not say exactly T x D coefficients."""
        T, D = self._shape(horizon, dim)
        found = np.empty((len(sequences), T * D), np.int64)
        for number, ids in enumerate(sequences):
            if reason := self.fault(ids, T, D):
                raise ValueError(f"sequence {number} of FAST tokens cannot be decoded: {reason}")
            found[number] = self.pairs.numbers(ids) + self.min_token
        return self.restored(found.reshape(-1, T, D))

    def fault(self, ids: Iterable[int], horizon: int | None = None, dim: int | None = None) -> str:
        """Why ids cannot be decoded; empty where they can."""
        T, D = self._shape(horizon, dim)
        try:
            found = self.pairs.numbers(ids) + self.min_token
        except ValueError as error:
            return str(error)
        if len(found) != T * D:
            return f"{len(found)} coefficients instead of {T} x {D}"
        least, most = found.min(), found.max()
        if most > max(self.max_token, self.min_token + len(self.pairs.encodable) - 1):
            return f"a coefficient of {most}: they run to {self.max_token}"
        return "" if least >= self.min_token else f"a coefficient of {least}"

    def transformed(self, chunks: np.ndarray) -> np.ndarray:
        """Normalised chunks float (..., T, D) → coefficients before they are rounded."""
        return _transformed(chunks) * self.scale

    def restored(self, coefficients: np.ndarray) -> np.ndarray:
        """Integers (..., T, D) → normalised chunks float64 (..., T, D)."""
        return idct(coefficients / self.scale, axis=-2, norm="ortho")

    def _shape(self, horizon: int | None, dim: int | None) -> tuple[int, int]:
        pairs = (("horizon", self.time_horizon, horizon), ("dimensions", self.action_dim, dim))
        for what, own, given in pairs:
            if own is None and given is None:
                raise ValueError(f"these FAST tokens are for chunks of any {what}: say how many")
            if own is not None and given not in (None, own):
                raise ValueError(f"these FAST tokens are for chunks of {what} {own}, not {given}")
        return tuple(given if own is None else own for _, own, given in pairs)

    # --- Files ---

    def tokenizer_json(self) -> bytes:
        """The published processor's `tokenizer.json`."""
        return json.dumps(self.pairs.to_json()).encode()

    def processor_json(self) -> bytes:
        """The published processor's settings, as they stand in its processor_config.json."""
        return json.dumps({name: getattr(self, name) for name in _NUMBERS}).encode()

    @classmethod
    def from_files(cls, tokenizer: bytes, processor: bytes) -> "Fast":
        """From what the two files of a published processor hold."""
        return cls.of(json.loads(tokenizer), json.loads(processor))

    @classmethod
    def of(cls, tokenizer: Mapping[str, Any], numbers: Mapping[str, Any]) -> "Fast":
        """From what the two files hold, read; `numbers` may also have those of `to_json`."""
        if not isinstance(numbers, Mapping):
            raise ValueError(f"the settings of FAST tokens are no mapping: {numbers!r:.80}")
        scale = numbers.get("scale")
        if not isinstance(scale, int | float) or isinstance(scale, bool):
            raise ValueError(f"the settings of FAST tokens: scale is {scale!r}, not a number")
        whole: dict[str, Any] = {}
        for name in ("min_token", "max_token", *_COUNTS):
            whole[name] = value = numbers.get(name)
            given = isinstance(value, int) and not isinstance(value, bool)
            if value is None and name != "min_token":
                continue
            if not given or name in _COUNTS and value < 0:
                kind = "a number of something" if name in _COUNTS else "an integer"
                raise ValueError(f"the settings of FAST tokens: {name} is {value!r}, not {kind}")
        pairs = BytePairs.from_json(tokenizer)
        low, most = whole["min_token"], whole["max_token"]
        if most is None:  # the file says it by its first alphabet: all numbers from 0 on
            most = low + next(n for n in range(len(pairs) + 1) if chr(n) not in set(pairs.names))
            most = max(low, most - 1)
        # The original takes 0 for "not said", too.
        shape = whole["time_horizon"] or None, whole["action_dim"] or None
        counts = whole["vocab_size"] or 0, *shape, whole["max_tokens"] or 0
        return cls(pairs, scale, low, most, *counts)

    def to_json(self) -> bytes:
        numbers = {name: getattr(self, name) for name in (*_NUMBERS, "max_token", "max_tokens")}
        return json.dumps({"kind": "fast"} | numbers | {"tokenizer": self.pairs.to_json()}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Fast":
        """What `to_json` gave."""
        values = json.loads(data)
        if not isinstance(values, dict) or values.get("kind") != "fast":
            raise ValueError("these are no FAST tokens: their kind is not 'fast'")
        return cls.of(values["tokenizer"], values)


def _transformed(chunks: np.ndarray) -> np.ndarray:
    return dct(chunks, axis=-2, norm="ortho")


def _check_scale(scale: float) -> None:
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"FAST scale={scale} must be positive")


def _finite(chunks: np.ndarray) -> np.ndarray:
    """float (..., T, D), of NumPy's float32 or float64."""
    chunks = np.asarray(chunks)
    if chunks.dtype.kind not in "fiu":
        raise ValueError(f"chunks of actions have dtype {chunks.dtype}, not of real numbers")
    if chunks.ndim < 2 or 0 in chunks.shape[-2:]:
        raise ValueError(f"a chunk of shape {chunks.shape}, expected (horizon, action_dim)")
    chunks = check_actions(chunks, chunks.shape[-1])
    return chunks if chunks.dtype == np.float32 else chunks.astype(np.float64)
