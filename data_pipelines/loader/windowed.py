"""The order of examples that reads whole blocks: as `order.Order` a pure function of (seed,
position), for storage where only large reads are fast.

The rows of the global batch belong to lanes, an equal share of neighbours to each. An epoch of a
corpus is its blocks in a permuted order, cut into equal parts (to one sample), one for each lane,
which reads it in windows of a few blocks whose samples are permuted. So a host reads the blocks of
the lanes of its rows, and the same positions hold the same samples on any number of hosts.

A batch takes the next run of the table of the mixture, as in random order. The lanes share it in
parts, and take turns: after `period` steps a batch takes the same run again, and then every lane
the part of its neighbour. So in the long run all lanes draw equally from every corpus. A lane has
its own count of epochs: every sample comes exactly once per epoch, and lanes differ by some ten
samples in when they enter one.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from data_pipelines.loader.blocks import WINDOWS, Blocks, Owner, Window, find_blocks
from data_pipelines.loader.mixture import Mixture
from data_pipelines.loader.order import TABLE_SIZE, Order, mix, permute
from data_pipelines.loader.settings import DataSettings

_BLOCK_SALT = 0x626C6F636B
_TURN_SALT = 0x7475726E
_MAX_TABLE = 2**26
_KEPT_EPOCHS = 64


class _Part(NamedTuple):
    """Ranks of one corpus that lie in one epoch; arrays over them. Places count the samples of the
    epoch in the order of its blocks."""

    epoch: int
    which: np.ndarray  # of the ranks
    blocks: np.ndarray  # of the epoch, in order
    starts: np.ndarray  # places where they begin, and the end
    place: np.ndarray
    window: np.ndarray  # number in its lane
    first: np.ndarray  # its first block, by order ...
    last: np.ndarray  # ... and the one after its last
    begin: np.ndarray  # its first place ...
    end: np.ndarray  # ... and the one after its last


class WindowedOrder(Order):
    """position → (corpus, epoch, sample), and what has to be read for it."""

    def __init__(
        self,
        blocks: Sequence[Blocks],
        weights: Sequence[float],
        seed: int,
        global_batch: int,
        *,
        lanes: int,
        window_blocks: int,
    ):
        super().__init__([found.first_sample[-1] for found in blocks], weights, seed, global_batch)
        if lanes < 1 or global_batch % lanes:
            raise ValueError(
                f"data.lanes is {lanes}; windowed access needs a divisor of the global batch "
                f"({global_batch} examples, or chains of them)"
            )
        if window_blocks < 1:
            raise ValueError(f"data.window_blocks is {window_blocks}; it must be at least 1")
        if self.sizes.min() < lanes:
            raise ValueError(
                f"data.lanes is {lanes}, but the smallest corpus has {self.sizes.min()} samples; "
                "each lane needs one: use fewer lanes, or data.access='random'"
            )
        self._blocks, self._lanes, self._window_blocks = blocks, lanes, window_blocks
        self._share = global_batch // lanes
        self._period = TABLE_SIZE // math.gcd(global_batch, TABLE_SIZE)
        self._count_parts()
        self._epochs: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def _count_parts(self) -> None:
        """Tables of how often a corpus comes in the parts of the runs of a period."""
        corpora, parts = len(self.sizes), self._period * self._lanes
        if parts * corpora > _MAX_TABLE:
            raise ValueError(
                f"data.lanes {self._lanes} with a global batch of {self.global_batch} and {corpora}"
                " corpora would need too large tables: make data.lanes a power of two"
            )
        slots = np.zeros((TABLE_SIZE + 1, corpora), np.int64)  # of each corpus before a slot
        slots[1:] = np.cumsum(self._corpus_of_slot[:, None] == np.arange(corpora), axis=0)
        self._before_slot = slots
        cycle, slot = np.divmod(np.arange(parts + 1) * self._share, TABLE_SIZE)
        counts = np.diff(cycle[:, None] * self.quotas + slots[slot], axis=0)
        phase = np.arange(self._period)
        self._turn = (mix(_TURN_SALT, phase) % np.uint64(self._lanes)).astype(np.int64)
        part = (np.arange(self._lanes) + self._turn[:, None]) % self._lanes
        counts = counts.reshape(self._period, self._lanes, corpora)[phase[:, None], part]
        self._of_period = counts.sum(axis=(0, 1))
        # By phase and turn: before that phase. By turn: in all phases of the turns before, twice
        # round.
        self._before_phase = (np.cumsum(counts, axis=0) - counts).astype(np.int32)
        whole = np.concatenate([counts.sum(axis=0)] * 2)
        self._before_turn = np.cumsum(whole, axis=0) - whole

    def lanes(self, positions: np.ndarray) -> np.ndarray:
        """The lane of each position."""
        return positions % self.global_batch // self._share

    def samples_at(
        self, positions: np.ndarray, attempt: int | np.ndarray = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As in random order; what stands in for bad samples is of the same lanes, too."""
        corpus, lane, rank = self._ranks(np.asarray(positions, np.int64))
        epoch, sample = np.empty_like(rank), np.empty_like(rank)
        for number in np.unique(corpus):
            mine = np.flatnonzero(corpus == number)
            first_sample = self._blocks[number].first_sample
            for part in self._parts(number, lane[mine], rank[mine] + attempt):
                here = mine[part.which]
                key = mix(self.seed, number, part.epoch, lane[here], part.window)
                found = permute(part.place - part.begin, part.end - part.begin, key) + part.begin
                block = np.searchsorted(part.starts, found, side="right") - 1
                sample[here] = first_sample[part.blocks[block]] + found - part.starts[block]
                epoch[here] = part.epoch
        return corpus, epoch, sample

    def windows(self, positions: np.ndarray) -> dict[Owner, list[Window]]:
        """What to hold for positions: the windows they lie in, and those half a window later."""
        corpus, lane, rank = self._ranks(np.asarray(positions, np.int64))
        found: dict[Owner, list[Window]] = {}
        for number in np.unique(corpus).tolist():
            mine = corpus == number
            lanes, ranks = lane[mine], rank[mine]
            later = np.empty_like(ranks)
            for part in self._parts(number, lanes, ranks):
                later[part.which] = ranks[part.which] + (part.end - part.begin) // 2
                self._collect(found, number, lanes, part)
            for part in self._parts(number, lanes, later):
                self._collect(found, number, lanes, part)
        return found

    def _collect(
        self, found: dict[Owner, list[Window]], number: int, lanes: np.ndarray, part: _Part
    ) -> None:
        rows = np.stack([lanes[part.which], part.window, part.first, part.last], axis=1)
        for lane, window, first, last in np.unique(rows, axis=0).tolist():
            listed = found.setdefault((number, lane), [])
            entry = ((part.epoch, window), part.blocks[first:last].tolist())
            if entry not in listed:
                listed.append(entry)

    def _ranks(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(corpus, lane, rank): how often the corpus came before in the lane."""
        step, row = np.divmod(positions, self.global_batch)
        lane, place = np.divmod(row, self._share)
        period, phase = np.divmod(step, self._period)
        round_, turn = np.divmod(period, self._lanes)
        mine = (lane + turn) % self._lanes
        part = (mine + self._turn[phase]) % self._lanes
        first = step * self.global_batch + part * self._share
        slot = (first + place) % TABLE_SIZE
        corpus = self._corpus_of_slot[slot]
        first_cycle, first_slot = np.divmod(first, TABLE_SIZE)
        within = (first + place) // TABLE_SIZE * self.quotas[corpus] + self._rank_of_slot[slot]
        within -= first_cycle * self.quotas[corpus] + self._before_slot[first_slot, corpus]
        turns = self._before_turn[lane + turn, corpus] - self._before_turn[lane, corpus]
        rank = round_ * self._of_period[corpus] + turns + self._before_phase[phase, mine, corpus]
        rank += within
        return corpus, lane, rank

    def _parts(self, number: int, lane: np.ndarray, rank: np.ndarray) -> Iterator[_Part]:
        size = self.sizes[number]
        lane_begin, lane_end = lane * size // self._lanes, (lane + 1) * size // self._lanes
        epochs, place = np.divmod(rank, lane_end - lane_begin)
        place += lane_begin
        for epoch in np.unique(epochs).tolist():
            which = np.flatnonzero(epochs == epoch)
            blocks, starts = self._epoch(number, epoch)

            def block_at(places: np.ndarray, starts: np.ndarray = starts) -> np.ndarray:
                return np.searchsorted(starts, places, side="right") - 1

            first = block_at(lane_begin[which])
            count = block_at(lane_end[which] - 1) + 1 - first  # blocks of the lane
            windows = -(-count // self._window_blocks)  # as equal as they can be
            window = ((block_at(place[which]) - first + 1) * windows - 1) // count
            last = first + (window + 1) * count // windows
            first = first + window * count // windows
            yield _Part(
                epoch,
                which,
                blocks,
                starts,
                place[which],
                window,
                first,
                last,
                np.maximum(starts[first], lane_begin[which]),
                np.minimum(starts[last], lane_end[which]),
            )

    def _epoch(self, number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(blocks in the order of an epoch, places where they begin)."""
        found = self._epochs.get((number, epoch))
        if found is None:
            counts = self._blocks[number].counts
            key = mix(self.seed, number, epoch, _BLOCK_SALT)
            blocks = permute(np.arange(len(counts)), len(counts), key)
            found = blocks, np.concatenate([[0], np.cumsum(counts[blocks])])
            self._epochs[number, epoch] = found
            while len(self._epochs) > max(_KEPT_EPOCHS, 2 * len(self.sizes)):
                self._epochs.popitem(last=False)
        return found


def open_windowed(
    data: DataSettings, mixture: Mixture, seed: int, global_batch: int, mine: np.ndarray
) -> tuple[WindowedOrder, list[Blocks]]:
    """The order of `config.data` and the blocks of each corpus. mine: rows of the global batch of
    samples that this host reads."""
    blocks = [find_blocks(corpus, int(data.block_mib * 2**20)) for corpus in mixture.corpora]
    order = WindowedOrder(
        blocks,
        mixture.weights,
        seed,
        global_batch,
        lanes=data.lanes,
        window_blocks=data.window_blocks,
    )
    lanes, shares = np.unique(order.lanes(mine), return_counts=True)
    held = sum(int(found.length.max()) for found in blocks) * WINDOWS * data.window_blocks
    logging.info(
        "Windowed access: %d blocks, %d of %d lanes on this host, which hold up to %.2f GiB.",
        sum(len(found.shard) for found in blocks),
        len(lanes),
        data.lanes,
        held * len(lanes) / 2**30,
    )
    if shares.min() < global_batch // data.lanes:
        logging.warning(
            "data.lanes is %d, not a multiple of the hosts: hosts share lanes, and each of them "
            "reads their blocks.",
            data.lanes,
        )
    return order, blocks
