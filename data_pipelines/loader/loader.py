"""The loader: the examples of a step as NumPy arrays, for one host, by random access or ahead.

What step k holds is a pure function of (seed, k, mixture, index); hosts, threads and backends only
decide who computes it. The one thing to save is the step; `fingerprint` proves that a resumed run
sees the same data. Bad images are replaced by the next sample of their corpus and reported.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.loader import frames
from data_pipelines.loader.bad_examples import BadExample, BadExamples, BadExamplesError
from data_pipelines.loader.blocks import BlockCache
from data_pipelines.loader.frames import (
    BadImage,
    Buffers,
    ImageSizeError,
    Place,
    ShardFiles,
    places,
    read_jpeg,
)
from data_pipelines.loader.mixture import Corpus, Mixture, open_mixture, wrong_size
from data_pipelines.loader.order import Order
from data_pipelines.loader.windowed import open_windowed
from data_pipelines.sidecar import take

__all__ = [
    "BadExample",
    "BadExamplesError",
    "FingerprintError",
    "Loader",
    "check_fingerprint",
    "open_mixture",
]

_MAX_ATTEMPTS = 64


class FingerprintError(ValueError):
    """A run would resume with other data than it was started with."""


@dataclass
class Plan:
    """The examples of one host at one step; `fill` may replace bad ones."""

    positions: np.ndarray  # int64 (b,)
    corpus: np.ndarray  # int32 (b,)
    rows: np.ndarray  # int64 (b, num_frames)
    places: list[list[Place]]  # of the images of each example
    frames: np.ndarray | None  # uint8 (b, num_images, H, W, 3)

    @property
    def size(self) -> int:
        return len(self.positions)


class Loader:
    """Batches of `fields` for host `host` of `num_hosts`.

    batch keys: the fields (frames uint8 (b, num_images, H, W, 3), image_tokens int32 (b,
    num_images, tokens), instruction str objects (b,), action float32 (b, A), latent_action int32
    (b, L)) and position int64 (b,), where b is global_batch / num_hosts. The images of an example
    are those of its frames, earliest first, of a frame those of its cameras in their order.
    `prepare` maps that dict to what goes to the devices; it runs in the loader's threads and must
    be a pure function.
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
    ):
        self.mixture: Mixture = open_mixture(data, fields)
        self.chain_pairs = data.chain_pairs  # examples of a sample, which lie side by side
        if global_batch % num_hosts == 0 and global_batch // num_hosts % self.chain_pairs:
            raise ValueError(
                f"global_batch {global_batch} on {num_hosts} hosts is {global_batch // num_hosts} "
                f"each, not a multiple of data.chain_pairs={self.chain_pairs}"
            )
        if global_batch < 1 or global_batch % num_hosts:
            raise ValueError(
                f"global_batch {global_batch} is not a multiple of the {num_hosts} "
                "hosts; change the batch size or the number of hosts"
            )
        if not 0 <= host < num_hosts:
            raise ValueError(f"host is {host}; it must be 0 to {num_hosts - 1}")
        for key in ("num_threads", "prefetch_batches"):
            if getattr(data, key) < 1:
                raise ValueError(f"data.{key} is {getattr(data, key)}; it must be at least 1")
        self.fields = tuple(fields)
        self.backend = frames.backend_name(data.decode)
        self.seed, self.global_batch = int(seed), int(global_batch)
        self._mine = slice(host * global_batch // num_hosts, (host + 1) * global_batch // num_hosts)
        self._num_threads, self._prefetch = data.num_threads, data.prefetch_batches
        self._prepare = prepare
        self._buffers = Buffers(data.prefetch_batches)
        self._decode = frames.make_decoder(self.backend) if "frames" in fields else None
        self._lock = threading.Lock()
        self._bad = BadExamples(data.max_bad_fraction)
        self._files: ShardFiles | BlockCache = ShardFiles()
        samples = self.global_batch // self.chain_pairs
        if data.access == "windowed":
            mine = np.arange(self.global_batch)[self._mine] // self.chain_pairs
            self.order, blocks = open_windowed(data, self.mixture, self.seed, samples, mine)
            if self._decode is not None:
                shards = [corpus.index.shards for corpus in self.mixture.corpora]
                self._files = BlockCache(self._files, blocks, shards)
        else:
            self.order = Order(self.mixture.sizes, self.mixture.weights, self.seed, samples)

    # ------------------------------------------------------------ batches

    def batch(self, step: int) -> dict[str, Any]:
        """This host's batch of any step."""
        plan = self.plan(step)
        self.fill(plan, 0, plan.size)
        return self.finish(plan)

    def iterate(self, start_step: int = 0) -> Iterator[dict[str, Any]]:
        """Batches from start_step on, prepared ahead; endless. `.close()` stops the threads."""
        if self.backend == "threads" or "frames" not in self.fields:
            return frames.iterate_threads(self, start_step, self._num_threads, self._prefetch)
        return frames.iterate_tensorflow(
            self,
            start_step,
            self._num_threads,
            self._prefetch,
            self._frames_shape(self._mine.stop - self._mine.start),
            shared=self.chain_pairs > 1,
        )

    def close(self) -> None:
        """Closes the shards; a loader can be used again afterwards."""
        self._files.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def plan(self, step: int) -> Plan:
        positions = self._positions(step)[self._mine]
        corpus, rows = self._rows(positions)
        return Plan(positions, corpus, rows, self._places(corpus, rows), None)

    @property
    def chunk(self) -> int:
        """Examples that a thread decodes in one go: whole chains, about 16."""
        return self.chain_pairs * max(1, 16 // self.chain_pairs)

    def begin(self, step: int) -> Plan:
        """`plan` of steps in a row: whole blocks are read for them and for those to come."""
        plan = self.plan(step)
        if isinstance(self._files, BlockCache):
            self._files.hold(
                self.order.windows(plan.positions[:: self.chain_pairs] // self.chain_pairs)
            )
        return plan

    def read(self, plan: Plan) -> list[bytes]:
        """The JPEGs of a plan, unreadable ones and those known to be bad replaced."""
        jpegs: list[bytes] = []

        def read(plan: Plan, i: int, image: int) -> bytes:
            if self._is_shared(plan, i, image):
                return jpegs[-1]  # the last of the example before
            return read_jpeg(self._files, plan.places[i][image])

        for i in range(plan.size):
            jpegs += self._try(plan, i, read)
        return jpegs

    def fill(self, plan: Plan, start: int, stop: int) -> None:
        """Reads and decodes the examples [start, stop) of a plan."""
        if self._decode is None:
            return
        with self._lock:
            if plan.frames is None:
                plan.frames = self._buffers.take(self._frames_shape(plan.size))
        for i in range(start, stop):
            self._try(plan, i, self._decode_example)

    def finish(self, plan: Plan) -> dict[str, Any]:
        batch: dict[str, Any] = {"position": plan.positions}
        if "frames" in self.fields:
            batch["frames"] = plan.frames
        for name, values in (
            ("instruction", _instructions),
            ("action", _actions),
            ("latent_action", _latent_actions),
            ("image_tokens", _image_tokens),
        ):
            if name in self.fields:
                batch[name] = self._gather(plan, values)
        return self._prepare(batch) if self._prepare else batch

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
        corpus, epoch, sample = self.order.replacements(place, attempt)
        rows = np.empty((len(positions), self.mixture.num_frames), np.int64)
        for number in np.unique(corpus):
            mine = corpus == number
            rows[mine] = self.mixture.corpora[number].frame_rows(
                sample[mine], epoch[mine], self.seed, member[mine]
            )
        return corpus, rows

    def _places(self, corpus: np.ndarray, rows: np.ndarray) -> list[list[Place]]:
        found: list[list[Place]] = [[] for _ in corpus]
        if self._decode is None:
            return found
        for number in np.unique(corpus):
            mine = np.flatnonzero(corpus == number)
            flat = rows[mine].reshape(-1)
            by_camera = [places(camera, flat) for camera in self.mixture.corpora[number].cameras]
            images = [place for frame in zip(*by_camera, strict=True) for place in frame]
            for i, example in enumerate(mine.tolist()):
                found[example] = images[i * self.num_images : (i + 1) * self.num_images]
        return found

    def _gather(self, plan: Plan, take: Callable[[Corpus, np.ndarray], np.ndarray]) -> np.ndarray:
        out = None
        for number in np.unique(plan.corpus):
            mine = plan.corpus == number
            values = take(self.mixture.corpora[number], plan.rows[mine])
            if out is None:
                out = np.empty((plan.size, *values.shape[1:]), values.dtype)
            out[mine] = values
        return out

    # ------------------------------------------------------------ single examples

    def _try(self, plan: Plan, i: int, act: Callable[[Plan, int, int], Any]) -> list:
        """Acts on the images of example i; on a bad one, on those of the next sample instead."""
        self._bad.count_seen()
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            results, image = [], 0
            try:
                for image in range(self.num_images):
                    if self._bad:
                        self._check_known(plan, i, image)
                    results.append(act(plan, i, image))
                return results
            except BadImage as error:
                self._bad.report(*self._identity(plan, i, image), str(error))
            except ImageSizeError as error:
                name = self.mixture.corpora[plan.corpus[i]].name
                raise wrong_size(name, error.found, self.mixture.image_size) from error
            _, rows = self._rows(plan.positions[i : i + 1], attempt)
            plan.rows[i] = rows[0]
            plan.places[i] = self._places(plan.corpus[i : i + 1], rows)[0]
        raise BadExamplesError(
            f"corpus {self.mixture.corpora[plan.corpus[i]].name!r}: {_MAX_ATTEMPTS} examples in a "
            f"row are bad; the last ones: {self.bad_examples[-3:]}"
        )

    def _identity(self, plan: Plan, i: int, image: int) -> tuple[Corpus, int, int]:
        """(corpus, camera, row) of an image."""
        frame, camera = divmod(image, self.mixture.num_cameras)
        return self.mixture.corpora[plan.corpus[i]], camera, int(plan.rows[i, frame])

    def _check_known(self, plan: Plan, i: int, image: int) -> None:
        reason = self._bad.reason(*self._identity(plan, i, image))
        if reason is not None:
            raise BadImage(reason)

    def _is_shared(self, plan: Plan, i: int, image: int) -> bool:
        """Whether an image is the last one of the example before, in the same chain."""
        follows = image == 0 and plan.positions[i] % self.chain_pairs > 0
        return bool(
            follows
            and plan.corpus[i] == plan.corpus[i - 1]
            and plan.rows[i, 0] == plan.rows[i - 1, -1]
        )

    def _decode_example(self, plan: Plan, i: int, image: int) -> None:
        if self._is_shared(plan, i, image):
            plan.frames[i, 0] = plan.frames[i - 1, -1]
            return
        self._decode(read_jpeg(self._files, plan.places[i][image]), plan.frames[i, image])

    # ------------------------------------------------------------ what a step holds

    @property
    def bad_examples(self) -> list[BadExample]:
        """Every frame that was replaced so far on this host."""
        return self._bad.all()

    def describe(self, step: int) -> list[dict[str, Any]]:
        """Where each example of the GLOBAL batch of a step comes from, before replacements."""
        positions = self._positions(step)
        numbers, rows = self._rows(positions)
        found, ids = [], {}
        for position, number, example in zip(positions, numbers, rows, strict=True):
            corpus = self.mixture.corpora[number]
            where = _location(corpus, example)
            key = corpus.number, where["episode"]
            if key not in ids:
                ids[key] = corpus.index.metadata(where["episode"]).get("episode_id")
            found.append(
                {
                    "position": int(position),
                    "corpus": corpus.name,
                    **where,
                    "episode_id": ids[key],
                    "instruction": corpus.index.instruction(where["episode"]),
                    "bad": [
                        reason
                        for row in example.tolist()
                        for camera in range(self.mixture.num_cameras)
                        if (reason := self._bad.reason(corpus, camera, row)) is not None
                    ],
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


def _location(corpus: Corpus, rows: np.ndarray) -> dict[str, Any]:
    index = corpus.index
    episode = int(index.episode_of_rows(rows[0]))
    return {
        "file": str(index.shards[index.shard_of_episode[episode]]),
        "episode": episode,
        "record": int(index.record_of_episode[episode]),
        "steps": (rows - index.episode_start[episode]).tolist(),
    }


def _instructions(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    episodes = corpus.index.episode_of_rows(rows[:, 0])
    return np.array([corpus.index.instruction(episode) for episode in episodes], object)


def _actions(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    return take(corpus.index.actions, rows[:, corpus.frames.current])


def _latent_actions(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    return corpus.labels.labels(rows[:, corpus.frames.current])


def _image_tokens(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    found = np.stack([tokens.labels(rows) for tokens in corpus.tokens], axis=2)
    return found.reshape(len(rows), -1, found.shape[-1])


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
