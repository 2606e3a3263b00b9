"""The order of training examples: a pure function of (seed, position), with no state and no host.

Position g = step * global_batch + i. A fixed table of 4096 slots gives the corpus of g and its rank
(how often that corpus came before); rank // size is the epoch and a permutation keyed by (seed,
corpus, epoch) gives the sample. Every sample of a corpus comes exactly once per epoch.
"""

from collections.abc import Sequence

import numpy as np

TABLE_SIZE = 4096
MAX_SIZE = 2**40
_ROUNDS = 4
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(*values: int | np.ndarray) -> np.ndarray:
    """A uint64 hash of integers (int64 or uint64; SplitMix64 steps), element by element."""
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for value in values:
            value = np.asarray(value)
            if value.dtype != np.uint64:
                value = value.astype(np.int64).view(np.uint64)
            state = state ^ value
            state = state + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def permute(index: np.ndarray, size: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """A bijection of [0, size) for every key, at `index`; size and key (uint64) are scalars or per
    element.

    An alternating Feistel network over the next power of two; results outside [0, size) are
    permuted again until they fall inside (cycle walking), which keeps it a bijection.
    """
    index = np.asarray(index, np.int64)
    sizes = np.asarray(size, np.int64)
    if sizes.size and (sizes.min() < 1 or sizes.max() > MAX_SIZE):
        raise ValueError(f"size is {size}; a permutation needs 1 to 2^40 samples")
    if index.size and (index.min() < 0 or (index >= sizes).any()):
        raise ValueError(f"index runs from {index.min()} to {index.max()}, outside [0, {size})")
    shape = index.shape
    bits = np.frexp((sizes - 1).astype(np.float64))[1].astype(np.uint64)  # of the largest index
    one = np.uint64(1)
    low_bits = (bits + one) // np.uint64(2)
    table = np.stack(  # per element, or one column for all
        [low_bits, (one << low_bits) - one, (one << bits - low_bits) - one, sizes.view(np.uint64)]
    ).reshape(4, -1)
    out = index.reshape(-1).astype(np.uint64)
    keys = np.broadcast_to(mix(key), shape).reshape(-1)
    walking = np.arange(out.size)
    while walking.size:
        shift, low_mask, high_mask, limit = table if table.shape[1] == 1 else table[:, walking]
        low, high, round_key = out[walking] & low_mask, out[walking] >> shift, keys[walking]
        for _ in range(_ROUNDS):
            high ^= _scramble(low, round_key) & high_mask
            round_key = round_key + _GOLDEN
            low ^= _scramble(high, round_key) & low_mask
            round_key = round_key + _GOLDEN
        out[walking] = high << shift | low
        walking = walking[out[walking] >= limit]
    return out.astype(np.int64).reshape(shape)


def _scramble(value: np.ndarray, key: np.ndarray) -> np.ndarray:
    value = (value + key) * np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(32)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(29)
    return value


def part_of(fraction: float, episodes: int, salt: int) -> np.ndarray:
    """Which episodes belong to the fraction, bool (episodes,): those of a smaller one are among
    those of a larger."""
    if fraction == 1:
        return np.ones(episodes, bool)
    return mix(salt, np.arange(episodes)) / 2.0**64 < fraction


_FRACTION_SALT = 0x66726163


def drawn_from(fraction: float, episodes: int) -> np.ndarray:
    """Which episodes of a corpus data.corpora.<name>.fraction lets training draw from, bool
    (episodes,)."""
    return part_of(fraction, episodes, _FRACTION_SALT)


def quotas(weights: Sequence[float]) -> np.ndarray:
    """Slots of each corpus in the table: proportional to its weight, summing to TABLE_SIZE."""
    shares = np.asarray(weights, np.float64)
    if shares.ndim != 1 or not len(shares) or not np.all(np.isfinite(shares) & (shares > 0)):
        raise ValueError(
            f"weights are {list(weights)}; every corpus needs a positive weight "
            "(data.corpora.<name>.weight)"
        )
    exact = shares / shares.sum() * TABLE_SIZE
    if exact.min() < 0.5:
        raise ValueError(
            f"a weight of {shares[exact.argmin()]} in {list(weights)} is less than "
            f"1/{2 * TABLE_SIZE} of the mixture, which the order cannot represent; "
            "raise it or drop the corpus (data.corpora.<name>.weight)"
        )
    slots = np.maximum(1, np.floor(exact)).astype(np.int64)
    while (missing := TABLE_SIZE - slots.sum()) != 0:  # the largest remainders get the rest
        remainder = (exact - slots) * np.sign(missing)
        remainder[(slots == 1) & (missing < 0)] = -np.inf
        chosen = np.argsort(-remainder, kind="stable")[: abs(missing)]
        slots[chosen] += np.sign(missing)
    return slots


class Order:
    """position → (corpus, epoch, sample) for corpora of `sizes` samples, mixed by `weights`."""

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], seed: int, global_batch: int
    ):
        if len(sizes) != len(weights):
            raise ValueError(f"{len(sizes)} sizes but {len(weights)} weights")
        if global_batch < 1:
            raise ValueError(f"global_batch is {global_batch}; it must be at least 1")
        for size in sizes:
            if not 1 <= size <= MAX_SIZE:
                raise ValueError(f"sizes are {list(sizes)}; each must be 1 to 2^40 samples")
        self.sizes = np.asarray(sizes, np.int64)
        self.seed, self.global_batch = seed, global_batch
        self.quotas = quotas(weights)
        # The k-th of q slots of a corpus lies at (k + 1/2) / q of the table: shares of any prefix
        # are then within a slot or two of the weights.
        corpus = np.repeat(np.arange(len(sizes)), self.quotas)
        rank = np.concatenate([np.arange(quota) for quota in self.quotas])
        by_place = np.lexsort((corpus, (rank + 0.5) / self.quotas[corpus]))
        self._corpus_of_slot = corpus[by_place].astype(np.int32)
        self._rank_of_slot = rank[by_place]

    def positions(self, step: int) -> np.ndarray:
        """The positions of a step's global batch, int64 (global_batch,)."""
        if step < 0:
            raise ValueError(f"step is {step}; it must be 0 or more")
        return step * self.global_batch + np.arange(self.global_batch, dtype=np.int64)

    def samples(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(corpus int32, epoch int64, sample int64), each (global_batch,), of a step."""
        return self.samples_at(self.positions(step))

    def samples_at(
        self, positions: np.ndarray, attempt: int | np.ndarray = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of any positions; attempt: what stands in for bad samples, the so many next ones of the
        same corpora."""
        cycle, slot = np.divmod(np.asarray(positions, np.int64), TABLE_SIZE)
        corpus = self._corpus_of_slot[slot]
        rank = cycle * self.quotas[corpus] + self._rank_of_slot[slot] + attempt
        epoch, place = np.divmod(rank, self.sizes[corpus])
        sample = np.empty_like(rank)
        for number in np.unique(corpus):
            mine = corpus == number
            key = mix(self.seed, number, epoch[mine])
            sample[mine] = permute(place[mine], int(self.sizes[number]), key)
        return corpus, epoch, sample
