"""Reading shards in whole blocks, for storage where many small reads are slow.

A block is a run of consecutive episodes of one shard, about so many bytes, and is read by one range
request. `BlockCache` stands in for `ShardFiles`: what lies in a block that it holds is served from
memory, and anything else is read as ever, so it decides how fast a frame comes and never which.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_pipelines.loader.corpus import Corpus
from data_pipelines.loader.frames import ShardFiles
from data_pipelines.storage import Location

_READERS = 8  # blocks that are read at once
WINDOWS = 2  # that are held of a lane of a corpus: the open one and the next

Owner = tuple[int, int]  # corpus, lane
Window = tuple[tuple[int, int], list[int]]  # (epoch, number), block numbers


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a corpus that hold samples, in shard order."""

    shard: np.ndarray  # int32 (N,)
    offset: np.ndarray  # int64 (N,) in the shard
    length: np.ndarray  # int64 (N,)
    first_sample: np.ndarray  # int64 (N + 1,): block i has the samples first[i] to first[i + 1]

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.first_sample)


def find_blocks(corpus: Corpus, block_bytes: int) -> Blocks:
    """Cuts shards where an episode is the first to begin in another multiple of `block_bytes`, so
    that a block is shorter than that and an episode together."""
    index = corpus.index
    samples = corpus.samples_of_episode
    episode = np.flatnonzero(samples)
    begin = index.record_offset[episode].astype(np.int64)
    end = begin + index.record_length[episode].astype(np.int64)
    shard = index.shard_of_episode[episode]
    cut = (np.diff(shard) != 0) | (np.diff(begin // block_bytes) != 0)
    first = np.concatenate([[0], np.flatnonzero(cut) + 1])
    last = np.append(first[1:], len(episode)) - 1
    starts = np.concatenate([[0], np.cumsum(samples[episode])])
    return Blocks(
        shard[first],
        begin[first],
        end[last] - begin[first],
        np.append(starts[first], starts[-1]),
    )


class BlockCache:
    """Blocks of the windows that `hold` was last told of, two for each lane of a corpus; safe to
    use from several threads."""

    def __init__(
        self, files: ShardFiles, blocks: Sequence[Blocks], shards: Sequence[Sequence[Location]]
    ):
        self._files, self._blocks, self._shards = files, blocks, shards
        self._lock, self._pool = threading.Lock(), None
        self._windows: dict[Owner, OrderedDict[tuple[int, int], list[int]]] = {}
        self._held: dict[tuple[int, int], Future] = {}  # corpus, block → bytes
        # Of each file: corpus, its first block there, where blocks begin.
        self._of_file: dict[Location, list[tuple[int, int, list[int]]]] = defaultdict(list)
        for corpus, (found, paths) in enumerate(zip(blocks, shards, strict=True)):
            cuts = np.searchsorted(found.shard, np.arange(len(paths) + 1))
            for path, start, stop in zip(paths, cuts[:-1], cuts[1:], strict=True):
                self._of_file[path].append((corpus, int(start), found.offset[start:stop].tolist()))

    @property
    def resident_bytes(self) -> int:
        """Bytes of the blocks that are held or being read."""
        with self._lock:
            return sum(int(self._blocks[corpus].length[block]) for corpus, block in self._held)

    def hold(self, windows: Mapping[Owner, Sequence[Window]]) -> None:
        """Begins to read what is not held yet, and drops what is older than two windows."""
        with self._lock:
            for owner, wanted in windows.items():
                kept = self._windows.setdefault(owner, OrderedDict())
                for key, blocks in wanted:
                    kept[key] = blocks
                    kept.move_to_end(key)
                while len(kept) > WINDOWS:
                    kept.popitem(last=False)
            needed = {
                (corpus, block): None
                for (corpus, _), kept in self._windows.items()
                for blocks in kept.values()
                for block in blocks
            }
            self._held = {key: self._held.get(key) or self._read(*key) for key in needed}

    def _read(self, corpus: int, block: int) -> Future:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="lapa-blocks")
        found = self._blocks[corpus]
        path = self._shards[corpus][found.shard[block]]
        length, offset = int(found.length[block]), int(found.offset[block])
        return self._pool.submit(self._files.pread, path, length, offset)

    def pread(self, path: Location, length: int, offset: int) -> bytes:
        """Up to `length` bytes of a file from `offset` on."""
        for corpus, first, begins in self._of_file.get(path, ()):
            place = bisect_right(begins, offset) - 1
            held = self._held.get((corpus, first + place)) if place >= 0 else None
            start = offset - begins[place]
            if held and start + length <= self._blocks[corpus].length[first + place]:
                return held.result()[start : start + length]
        return self._files.pread(path, length, offset)

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
            self._windows.clear()
            self._held.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        self._files.close()
