"""The loader: the examples of a step as NumPy arrays, for one host, by random access or ahead.

What step k holds is a pure function of (seed, k, mixture, index); hosts, threads and backends only
decide who computes it. The one thing to save is the step; `fingerprint` proves that a resumed run
sees the same data. Bad images are replaced by the next sample of their corpus and reported.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.loader import ahead, frames
from data_pipelines.loader.bad_examples import BadExample, BadExamples, BadExamplesError
from data_pipelines.loader.blocks import BlockCache
from data_pipelines.loader.columns import COLUMNS
from data_pipelines.loader.corpus import Corpus
from data_pipelines.loader.frames import BadImage, ImageSizeError, Place, ShardFiles, read_jpeg
from data_pipelines.loader.mixture import Mixture, open_mixture
from data_pipelines.loader.opening import wrong_size
from data_pipelines.loader.order import Order
from data_pipelines.loader.settings import DataSettings
from data_pipelines.loader.windowed import open_windowed

_MAX_ATTEMPTS = 64
_CHUNK = 16  # examples that a thread decodes in one go, about


class FingerprintError(ValueError):
    """A run would resume with other data than it was started with."""


class Loader:
    """Batches of `fields` for host `host` of `num_hosts`. data: `config.data`, or `DataSettings`.

    A batch has the fields and position int64 (b,), where b is global_batch / num_hosts:

        frames         uint8 (b, num_images, H, W, 3)
        image_tokens   int32 (b, num_images, tokens)
        instruction    str objects (b,)
        action         float32 (b, A); (b, n, A) where data.action_horizon is n > 1, which adds
        action_mask    bool (b, n), False where a chunk is padded
        state          float32 (b, S), of the current frame; NaN of corpora without
        state_ahead    float32 (b, n, S), of the n steps after it; NaN where there is none
        corpus         int32 (b,), the number of its corpus, by name
        control_hz     float32 (b,), steps a second
        action_known   bool (b,); who asks for it gets examples without an action, too
        latent_action  int32 (b, L); float32 (b, L, width) of a quantizer that has no codes
        flow           float32 (b, cells, 2), pixels to the right and down, of the first pair

    The images of an example are those of its frames, earliest first, of a frame those of its
    cameras in their order. `prepare` maps that dict to what goes to the devices; it runs in the
    loader's threads and must be a pure function. `mixture`: of these data and fields, if it is
    open.
    """

    def __init__(
        self,
        data: Any,
        *,
        fields: Sequence[str],
        global_batch: int,
        seed: int,
        host: int = 0,
        num_hosts: int = 1,
        prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        mixture: Mixture | None = None,
    ):
        self.settings = data = DataSettings.of(data)
        self.mixture = mixture or open_mixture(data, fields)
        self.chain_pairs = data.chain_pairs  # examples of a sample, which lie side by side
        if global_batch < 1 or global_batch % num_hosts:
            raise ValueError(
                f"global_batch {global_batch} is not a multiple of the {num_hosts} "
                "hosts; change the batch size or the number of hosts"
            )
        if global_batch // num_hosts % self.chain_pairs:
            raise ValueError(
                f"global_batch {global_batch} on {num_hosts} hosts is {global_batch // num_hosts} "
                f"each, not a multiple of data.chain_pairs={self.chain_pairs}"
            )
        if not 0 <= host < num_hosts:
            raise ValueError(f"host is {host}; it must be 0 to {num_hosts - 1}")
        self.backend = "threads" if data.decode == "auto" else data.decode
        self.seed, self.global_batch = int(seed), int(global_batch)
        self._mine = slice(host * global_batch // num_hosts, (host + 1) * global_batch // num_hosts)
        self._prepare = prepare
        self._buffers = ahead.Buffers(data.prefetch_batches)
        self._has_frames = "frames" in fields
        self._bad = BadExamples(data.max_bad_fraction)
        self._files: ShardFiles | BlockCache = ShardFiles()
        samples = self.global_batch // self.chain_pairs
        if data.access == "windowed":
            mine = np.arange(self.global_batch)[self._mine] // self.chain_pairs
            self.order, blocks = open_windowed(data, self.mixture, self.seed, samples, mine)
            if self._has_frames:
                shards = [corpus.index.shards for corpus in self.mixture.corpora]
                self._files = BlockCache(self._files, blocks, shards)
        else:
            self.order = Order(self.mixture.sizes, self.mixture.weights, self.seed, samples)

    # ------------------------------------------------------------ batches

    def batch(self, step: int) -> dict[str, Any]:
        """This host's batch of any step."""
        plan = self.plan(step)
        plan.fill(0, plan.size)
        return plan.finish()

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, Any]]:
        """Batches from start_step on, prepared ahead; endless. `.close()` stops the threads."""
        how = start_step, self.settings.num_threads, self.settings.prefetch_batches
        by_tensorflow = self.backend == "tf" and self._has_frames
        by = ahead.by_tensorflow if by_tensorflow else ahead.by_threads
        return by(self._begin, *how)

    def close(self) -> None:
        """Closes the shards; a loader can be used again afterwards."""
        self._files.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def plan(self, step: int) -> "Plan":
        return Plan(self, self._positions(step)[self._mine])

    def _begin(self, step: int) -> "Plan":
        """`plan` of steps in a row: whole blocks are read for them and for those to come."""
        plan = self.plan(step)
        if isinstance(self._files, BlockCache):
            self._files.hold(
                self.order.windows(plan.positions[:: self.chain_pairs] // self.chain_pairs)
            )
        return plan

    @property
    def num_images(self) -> int:
        """Of an example: one of each frame by each camera."""
        return self.mixture.num_frames * self.mixture.num_cameras

    def _frames_shape(self, size: int) -> tuple[int, ...]:
        return (size, self.num_images, *self.mixture.image_size, 3)

    def _positions(self, step: int) -> np.ndarray:
        """Of the global batch of a step, int64 (global_batch,)."""
        samples = self.order.positions(step)[:, None] * self.chain_pairs
        return (samples + np.arange(self.chain_pairs)).reshape(-1)

    def _rows(self, positions: np.ndarray, attempt: int = 0) -> tuple[np.ndarray, np.ndarray]:
        place, member = np.divmod(positions, self.chain_pairs)
        corpus, epoch, sample = self.order.samples_at(place, attempt)
        rows = np.empty((len(positions), self.mixture.num_frames), np.int64)
        for number in np.unique(corpus):
            mine = corpus == number
            rows[mine] = self.mixture.corpora[number].frame_rows(
                sample[mine], epoch[mine], self.seed, member[mine]
            )
        return corpus, rows

    def _places(self, corpus: np.ndarray, rows: np.ndarray) -> list[list[Place]]:
        found: list[list[Place]] = [[] for _ in corpus]
        if not self._has_frames:
            return found
        for number in np.unique(corpus):
            mine = np.flatnonzero(corpus == number)
            flat = rows[mine].reshape(-1)
            cameras = self.mixture.corpora[number].cameras
            by_camera = [frames.places(camera, flat) for camera in cameras]
            images = [place for frame in zip(*by_camera, strict=True) for place in frame]
            for i, example in enumerate(mine.tolist()):
                found[example] = images[i * self.num_images : (i + 1) * self.num_images]
        return found

    # ------------------------------------------------------------ what a step holds

    @property
    def bad_examples(self) -> list[BadExample]:
        """Every frame that was replaced so far on this host."""
        return self._bad.all()

    def describe(self, step: int) -> list[dict[str, Any]]:
        """Where each example of the GLOBAL batch of a step comes from, before replacements."""
        positions = self._positions(step)
        found, ids = [], {}
        for position, number, rows in zip(positions, *self._rows(positions), strict=True):
            corpus = self.mixture.corpora[number]
            index = corpus.index
            file, episode, _ = index.place(rows[0])
            if (number, episode) not in ids:
                ids[number, episode] = index.metadata(episode).get("episode_id")
            images = itertools.product(rows.tolist(), range(self.mixture.num_cameras))
            reasons = [self._bad.reason(corpus, camera, row) for row, camera in images]
            found.append(
                {
                    "position": int(position),
                    "corpus": corpus.name,
                    "file": file,
                    "episode": episode,
                    "record": int(index.record_of_episode[episode]),
                    "steps": (rows - index.episode_start[episode]).tolist(),
                    "episode_id": ids[number, episode],
                    "instruction": index.instruction(episode),
                    "bad": [reason for reason in reasons if reason is not None],
                }
            )
        return found

    def fingerprint(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps, to prove on resume that the data are the same."""
        return {
            "step": int(step),
            "seed": self.seed,
            "global_batch": self.global_batch,
            "mixture_hash": self.mixture.hash,
            "index_hash": self.mixture.index_hash,
        }


class Plan:
    """The examples of one host at one step; reading them may replace bad ones."""

    def __init__(self, loader: Loader, positions: np.ndarray):
        self._loader, self._lock = loader, threading.Lock()
        self.positions = positions  # int64 (b,)
        self.corpus, self.rows = loader._rows(positions)  # int32 (b,), int64 (b, num_frames)
        self.places = loader._places(self.corpus, self.rows)  # of the images of each example
        self.frames: np.ndarray | None = None  # uint8 (b, num_images, H, W, 3)

    @property
    def size(self) -> int:
        return len(self.positions)

    def chunks(self) -> list[tuple[int, int]]:
        """(start, stop) of examples for a thread: whole chains."""
        length = self._loader.chain_pairs
        length *= max(1, _CHUNK // length)
        return [(i, min(i + length, self.size)) for i in range(0, self.size, length)]

    def fill(self, start: int, stop: int) -> None:
        """Reads and decodes the examples [start, stop)."""
        loader = self._loader
        if not loader._has_frames:
            return
        with self._lock:
            if self.frames is None:
                self.frames = loader._buffers.take(loader._frames_shape(self.size))

        for i in range(start, stop):
            self._read(i)

    def finish(self) -> dict[str, Any]:
        """The batch, once the frames are there."""
        loader = self._loader
        batch: dict[str, Any] = {"position": self.positions}
        if loader._has_frames:
            batch["frames"] = self.frames
        for name in loader.mixture.columns:
            batch[name] = self._gather(COLUMNS[name])
        return loader._prepare(batch) if loader._prepare else batch

    def _gather(self, column: Callable[[Corpus, np.ndarray], np.ndarray]) -> np.ndarray:
        out = None
        for number in np.unique(self.corpus):
            mine = self.corpus == number
            values = column(self._loader.mixture.corpora[number], self.rows[mine])
            if out is None:
                out = np.empty((self.size, *values.shape[1:]), values.dtype)
            out[mine] = values
        return out

    def _read(self, i: int) -> None:
        """The images of example i; where one is bad, those of the next sample instead."""
        loader = self._loader
        files, bad, cameras = loader._files, loader._bad, loader.mixture.num_cameras
        corpus = loader.mixture.corpora[self.corpus[i]]

        def where(image: int) -> tuple[Corpus, int, int]:
            frame, camera = divmod(image, cameras)
            return corpus, camera, int(self.rows[i, frame])

        bad.count_seen()
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            image = 0
            try:
                for image, out in enumerate(self.frames[i]):
                    if bad.is_any:
                        bad.refuse(*where(image))
                    if image < cameras and self._follows(i):
                        out[:] = self.frames[i - 1, image - cameras]
                    else:
                        frames.decode_jpeg(read_jpeg(files, self.places[i][image]), out)
                return
            except BadImage as error:
                bad.report(*where(image), str(error))
            except ImageSizeError as error:
                raise wrong_size(corpus.name, error.found, loader.mixture.image_size) from error
            _, rows = loader._rows(self.positions[i : i + 1], attempt)
            self.rows[i] = rows[0]
            self.places[i] = loader._places(self.corpus[i : i + 1], rows)[0]
        raise BadExamplesError(
            f"corpus {corpus.name!r}: {_MAX_ATTEMPTS} examples in a row are bad; the last ones: "
            f"{loader.bad_examples[-3:]}"
        )

    def _follows(self, i: int) -> bool:
        """Whether an example begins with the last frame of the one before, in the same chain."""
        pairs = self._loader.chain_pairs
        return bool(
            pairs > 1
            and self.positions[i] % pairs
            and self.corpus[i] == self.corpus[i - 1]
            and self.rows[i, 0] == self.rows[i - 1, -1]
        )


def check_fingerprint(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises FingerprintError unless a resumed run sees the data that it was started with."""
    differing = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    if differing:
        hints = {
            "mixture_hash": "config.data, its weights, keys, windows or label sets",
            "index_hash": "the contents of the shards",
            "seed": "config.seed",
            "global_batch": "the batch size",
        }
        raise FingerprintError(
            "the data differ from those of the checkpoint: "
            + "; ".join(
                f"{key} {saved.get(key)!r} → {now.get(key)!r}"
                + (f" ({hints[key]})" if key in hints else "")
                for key in differing
            )
        )
