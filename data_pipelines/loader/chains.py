"""Where examples stand in an episode: at every eligible step, or in chains of pairs.

A chain is K pairs (t, t + H), (t + H, t + 2H), ... of one episode, from K + 1 frames. Every H-th
pair of an episode makes a row, of which an episode has H. Each row is cut into chains of K; what is
left over, fewer than K pairs, lies at its ends, and each epoch divides it anew between them. So no
pair comes twice an epoch, and every pair of a row of at least K comes in some epochs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipelines.loader import order

_SHIFT_SALT = 0x636861696E


@dataclass(frozen=True, eq=False)
class Chains:
    """The chains of a corpus; those of length 1 are its single examples, in the order of time.

    Examples of episode e may stand at the steps skip[e] to skip[e] + counts[e].
    """

    length: int  # pairs of a chain
    window: np.ndarray  # int64 (E,): H; of no meaning where length is 1
    skip: np.ndarray  # int64 (E,)
    examples: np.ndarray  # int64 (E,)

    @cached_property
    def counts(self) -> np.ndarray:
        """Chains of each episode, int64 (E,)."""
        if self.length == 1:
            return self.examples
        short, longer = np.divmod(self.examples, self.window)  # pairs of a row; rows of one more
        rest = self.window - longer
        return longer * ((short + 1) // self.length) + rest * (short // self.length)

    @cached_property
    def starts(self) -> np.ndarray:
        """Chains of the episodes before, int64 (E,)."""
        return np.cumsum(self.counts) - self.counts

    @property
    def num_in_none(self) -> int:
        """Examples that are in no chain in any epoch."""
        if self.length == 1:
            return 0
        short, longer = np.divmod(self.examples, self.window)
        short_rows = np.where(short < self.length, self.window - longer, 0)
        longer_rows = np.where(short + 1 < self.length, longer, 0)
        return int((short_rows * short + longer_rows * (short + 1)).sum())

    def first_steps(
        self, episode: np.ndarray, place: np.ndarray, epoch_key: np.ndarray | None
    ) -> np.ndarray:
        """Where chains begin, int64 steps of their episodes. place: number of the chain there.
        epoch_key: uint64, scalar or of each; None leaves the rest of every row at its end."""
        if self.length == 1:
            return self.skip[episode] + place
        window = self.window[episode]
        short, longer = np.divmod(self.examples[episode], window)
        of_longer, of_short = (short + 1) // self.length, short // self.length
        past = place - longer * of_longer  # of the chains in rows of one more
        row, number = np.where(
            past < 0,
            np.divmod(place, np.maximum(of_longer, 1)),
            np.divmod(past, np.maximum(of_short, 1)),
        )
        row += np.where(past < 0, 0, longer)
        first = row + window * self.length * number
        if epoch_key is not None:
            pairs = short + (row < longer)
            rest = (pairs % self.length + 1).astype(np.uint64)
            shift = order.mix(_SHIFT_SALT, epoch_key, episode, row) % rest
            first += window * shift.astype(np.int64)
        return self.skip[episode] + first
