"""A model over a corpus → labels of its frames in sidecar files, shard by shard.

A quantizer gives latent actions, codes or the vectors of one that has none: every start frame that
has a later frame one window away gets its own, the others stay unlabelled. An image tokenizer gives
the tokens of every frame, an inverse dynamics model the action at the first frame of each pair. A
run that was stopped continues with the shards that are missing. Several hosts share a corpus: shard
n is that of the host with n mod COUNT = INDEX, and whoever writes the last joins them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging

from data_pipelines.index import load_index
from data_pipelines.index.labels import ACTIONS, IMAGE_TOKENS, LabelSetWriter
from data_pipelines.progress import Progress
from lapa_jax.parallel import sharding
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.runs import examples
from lapa_jax.runs.loaded import LoadedImageTokenizer, LoadedPolicy, LoadedQuantizer, Model, require
from lapa_jax.version import __version__

IMAGES = 32  # in a batch of the image tokenizer, whose first level keeps every pixel


@dataclasses.dataclass(frozen=True)
class Share:
    """The shards n with n mod count = index."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"--index {self.index} must be from 0 to --count {self.count} - 1")


ALL = Share(0, 1)


def label(run: Model, name: str, corpus: dict, share: Share = ALL) -> dict[str, int]:
    """Labels a share of a corpus (keys as under data.corpora); returns counts: of all `rows`, those
    `labelled`, by this call or, once the set is finished, in all, and those that it found `bad`. A
    quantizer without codes gives what its decoder receives in
    evaluation, float32 (code_length, quant_dim): of a normal its mean, without noise.

    Raises ValueError when more pairs are undecodable than data.max_bad_fraction of the run allows,
    and when another process writes the same share.
    """
    require(run, LoadedQuantizer)
    model = run.stage.model_config

    def act(*held, frames: jax.Array) -> jax.Array:
        read = run.stage.read(*held, frames[:, 0], frames[:, 1])
        return read.z_BL if model.has_codes else read.received_BLQ

    encode = Encoder(run, act)
    source = examples.Pairs(run.config, corpus, batch=encode.batch(examples.BATCH))
    index = source.index
    provenance = {
        "quantizer_hash": run.params_hash,
        "quantizer_step": run.step,
        "window_seconds": source.window_seconds,
        "tail": run.config.data.tail,
        "code_length": model.code_length,
        "code_version": __version__,
    }
    if model.has_codes:
        provenance["codebook_size"] = model.codebook_size
    else:
        provenance["width"] = model.quant_dim
    with LabelSetWriter(index.sidecar_dir, name, index, provenance=provenance) as writer:
        return write(writer, source, source.rows, encode, run.config.data.max_bad_fraction, share)


def label_actions(run: Model, name: str, corpus: dict, share: Share = ALL) -> dict[str, int]:
    """Writes the actions that an inverse dynamics model says were done at a share of a corpus (keys
    as of `label`), in the units of the data; returns counts and raises as `label`, and for
    another policy."""
    require(run, LoadedPolicy)
    stage = run.stage
    if not stage.inverse_dynamics:
        raise ValueError(f"{run.workdir} has model.inverse_dynamics=False: it sees no later frame")

    def act(*held, frames: jax.Array) -> jax.Array:
        return stage.act(*held, stage.prompts([""] * len(frames)), frames)

    encode = Encoder(run, act)
    source = examples.Pairs(run.config, corpus, batch=encode.batch(examples.BATCH))
    index = source.index
    provenance = {
        "policy_hash": run.params_hash,
        "policy_step": run.step,
        "window_seconds": source.window_seconds,
        "tail": run.config.data.tail,
        "actions": 1,
        "width": stage.head.describe()["dim"],
        "code_version": __version__,
    }
    with LabelSetWriter(
        index.sidecar_dir, name, index, provenance=provenance, kind=ACTIONS
    ) as writer:
        return write(writer, source, source.rows, encode, run.config.data.max_bad_fraction, share)


def label_images(run: Model, name: str, corpus: dict, share: Share = ALL) -> dict[str, int]:
    """Writes the image tokens of every frame of a share of a corpus (keys path, split, sidecar_dir
    and image_key as under data.corpora), row by row of the image; returns counts as `label`.

    Raises ValueError when more frames are undecodable than data.max_bad_fraction of the run allows,
    and when another process writes the same share.
    """
    require(run, LoadedImageTokenizer)
    index = load_index(
        corpus["path"],
        split=corpus["split"],
        sidecar_dir=corpus["sidecar_dir"] or None,
        image_key=corpus["image_key"],
    )
    if index.image_size is None:
        raise ValueError(f"no first frame of {index.directory} can be read: its size is unknown")
    rows, columns = run.stage.model_config.grid(index.image_size)
    provenance = {
        "tokenizer_hash": run.params_hash,
        "image_size": index.image_size,
        "codebook_size": run.stage.model_config.codebook_size,
        "tokens_per_frame": rows * columns,
        "code_version": __version__,
    }
    encode = Encoder(run, lambda *held, frames: run.stage.encode(*held, frames[:, 0]))
    source = examples.Frames(index, index.image_size, batch=encode.batch(IMAGES))
    with LabelSetWriter(
        index.sidecar_dir, name, index, provenance=provenance, kind=IMAGE_TOKENS
    ) as writer:
        every = np.arange(index.num_frames)[~np.repeat(index.of_other_size, index.episode_length)]
        if len(every) < index.num_frames:
            logging.warning(
                "%s: %d of %d frames are of episodes with images of another size than %dx%d; they "
                "get no tokens",
                *(index.directory, index.num_frames - len(every), index.num_frames),
                *index.image_size,
            )
        return write(
            writer, source, every[:, None], encode, run.config.data.max_bad_fraction, share
        )


class Encoder:
    """`function(params, variables, frames=...)` of a run on all devices of this process, which
    share each batch and hold all parameters."""

    def __init__(self, run: Model, function: Callable[..., jax.Array]):
        self.run, devices = run, jax.local_devices()
        mesh = make_mesh({"data": len(devices), "fsdp": 1, "seq": 1, "tensor": 1}, devices)
        self._devices = len(devices)
        self._split = sharding.batch_sharding(mesh)
        self._held = jax.device_put((run.params, run.variables), sharding.replicated(mesh))
        self._function = jax.jit(lambda held, frames: function(*held, frames=frames))

    def batch(self, least: int) -> int:
        """The next larger batch that the devices can share."""
        return -(-least // self._devices) * self._devices

    def put(self, frames: np.ndarray) -> jax.Array:
        return jax.device_put(frames, self._split)

    def __call__(self, frames: np.ndarray | jax.Array) -> jax.Array:
        """Starts; whoever reads the result waits for it."""
        return self._function(self._held, self.put(frames))


def write(
    writer: LabelSetWriter,
    source: examples.Frames,
    rows: np.ndarray,
    encode: Callable[[np.ndarray], jax.Array],
    max_bad_fraction: float,
    share: Share = ALL,
) -> dict[str, int]:
    """Labels examples, int64 rows (N, n), ascending by their first, which gets the codes that
    `encode` makes of the frames uint8 (B, n, H, W, 3).

    While the devices work on a batch the next is decoded, over the ends of shards. Whoever finds
    that the last shard is there joins them and checks how many rows have labels.
    """
    index = source.index
    shards = range(len(index.shards))[share.index :: share.count]
    todo = writer.claim([n for n in writer.missing_shards() if n in shards])
    parts: list[tuple[int, bool, np.ndarray]] = []  # (shard, whether its last, rows) of a batch
    for shard in todo:
        here = index.rows_of_shard(shard)
        mine = source.split(rows[slice(*np.searchsorted(rows[:, 0], [here.start, here.stop]))])
        parts += [(shard, batch is mine[-1], batch) for batch in mine]
        if not mine:
            writer.write_shard(shard, writer.unlabelled(shard))
    counts = {"rows": index.num_frames, "labelled": 0, "bad": 0}
    allowed = max(10, int(max_bad_fraction * len(rows)))
    labels: dict[int, np.ndarray] = {}  # of the shard that is being labelled

    def settle(shard: int, last: bool, batch: examples.Batch, codes: jax.Array) -> None:
        if shard not in labels:
            labels[shard] = writer.unlabelled(shard)
        found = np.asarray(codes).reshape(len(batch.frames), *writer.values.shape)[: batch.size]
        if not np.isfinite(found[batch.good]).all():
            raise ValueError(f"the model gives labels of {index.directory} that are not finite")
        first = index.rows_of_shard(shard).start
        labels[shard][batch.rows[batch.good, 0] - first] = found[batch.good]
        counts["labelled"] += int(batch.good.sum())
        counts["bad"] += int((~batch.good).sum())
        bar.update(batch.size)
        if not last:
            return
        if counts["bad"] > allowed:
            raise ValueError(
                f"{counts['bad']} of {len(rows)} examples of {index.directory} cannot be "
                f"decoded; data.max_bad_fraction of the run allows {allowed}"
            )
        writer.write_shard(shard, labels.pop(shard))

    name, total = f"label {Path(index.directory).name}", sum(len(batch) for *_, batch in parts)
    with Progress(name, total, unit="example") as bar:
        if parts:
            bar.waits()
        started: tuple | None = None  # the batch that the devices work on
        batches = source.stream([batch for *_, batch in parts])
        for (shard, last, _), batch in zip(parts, batches, strict=True):
            before, started = started, (shard, last, batch, encode(batch.frames))
            if before:
                settle(*before)
        if started:
            settle(*started)
    told = "%s %r of %s: %d of %d rows labelled now, %d could not be decoded; "
    counted = counts["labelled"], counts["rows"], counts["bad"]
    if missing := writer.missing_shards():
        state = f"{len(missing)} shards are left to other processes"
    else:
        writer.finish(least=len(rows) - allowed, most=len(rows))
        counts["labelled"] = writer.num_labelled
        state = f"it is finished, and {writer.num_labelled} rows have labels"
    logging.info(told + "%s", writer.kind.what, writer.name, index.directory, *counted, state)
    return counts
