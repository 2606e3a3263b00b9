"""What `lapa data bench` compares: endless streams of batches uint8 (B, 2, H, W, 3) of frame pairs.

Ours, the decoders alone, and the pipelines of others, written from their public descriptions: as
their users run them, on the same shards (Grain: on the same frames), with the same batch.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.bench import corpus
from data_pipelines.index import load_index
from data_pipelines.loader import Loader
from data_pipelines.rlds import schema

_RESIDENT = 1024  # JPEGs in memory that the limits decode
_SHUFFLE = 4096  # encoded pairs; octo's own are larger, which costs memory alone


@dataclass(frozen=True)
class Setting:
    directory: Path
    data: Any  # config.data of the quantizer stage with this one corpus
    batch: int
    threads: int
    window: int  # steps between the frames of a pair
    array_record: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.data.image_size)

    @property
    def shards(self) -> list[str]:
        return [str(path) for path in sorted(self.directory.glob("*.tfrecord-*"))]


Batches = Iterator[np.ndarray]


# ---------------------------------------------------------------- ours


def ours(
    setting: Setting,
    decode: str,
    start_step: int = 0,
    fields: tuple[str, ...] = ("frames", "action", "instruction"),
) -> Batches:
    data = setting.data.copy_and_resolve_references()
    data.decode, data.num_threads = decode, setting.threads
    loader = Loader(data, fields=fields, global_batch=setting.batch, seed=0)
    for batch in loader.iterate(start_step):
        yield batch["frames"]


# ---------------------------------------------------------------- the decoders alone


def _resident(setting: Setting) -> list[bytes]:
    index = load_index(setting.directory)
    rows = np.random.default_rng(0).choice(index.num_frames, min(_RESIDENT, index.num_frames))
    return corpus.jpegs(index, rows)


def tfdata_limit(setting: Setting) -> Batches:
    """TensorFlow's decoder, with the accurate DCT as simplejpeg, in a pipeline of tf.data."""
    import tensorflow as tf

    jpegs = tf.constant(_resident(setting), tf.string)
    pair_count = 2 * setting.batch

    def load(step: Any) -> Any:
        chosen = (step * pair_count + tf.range(pair_count, dtype=tf.int64)) % len(jpegs)
        frames = tf.map_fn(
            lambda jpeg: tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE"),
            tf.gather(jpegs, chosen),
            fn_output_signature=tf.TensorSpec((*setting.size, 3), tf.uint8),
        )
        return tf.reshape(frames, (setting.batch, 2, *setting.size, 3))

    dataset = tf.data.Dataset.range(np.iinfo(np.int64).max)
    dataset = dataset.map(load, num_parallel_calls=setting.threads, deterministic=True).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = setting.threads
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options).as_numpy_iterator()


def threads_limit(setting: Setting) -> Batches:
    """The decoder of ours, simplejpeg, into one buffer, by as many threads."""
    import simplejpeg

    jpegs = _resident(setting)
    buffer = np.empty((2 * setting.batch, *setting.size, 3), np.uint8)

    def decode(first: int, places: range) -> None:
        for place in places:
            jpeg = jpegs[(first + place) % len(jpegs)]
            simplejpeg.decode_jpeg(jpeg, "RGB", buffer=buffer[place])

    parts = [range(n, len(buffer), setting.threads) for n in range(setting.threads)]
    with ThreadPoolExecutor(setting.threads) as pool:
        for first in itertools.count(0, len(buffer)):
            list(pool.map(lambda part, first=first: decode(first, part), parts))
            yield buffer.reshape(setting.batch, 2, *setting.size, 3)


# ---------------------------------------------------------------- RLDS as octo and OpenVLA read it


def octo(setting: Setting, resize: bool = True) -> Batches:
    """Trajectories of all features, cut into pairs with their action and instruction, shuffled as
    encoded frames, then decode_image and a Lanczos resize with antialiasing, which is done whether
    or not the size is right already."""
    import tensorflow as tf

    def decode(jpeg: Any) -> Any:
        image = tf.io.decode_image(jpeg, expand_animations=False, dtype=tf.uint8)
        if resize:
            image = tf.image.resize(image, setting.size, method="lanczos3", antialias=True)
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return tf.ensure_shape(image, (*setting.size, 3))

    def cut(steps: dict[str, Any]) -> dict[str, Any]:
        count = tf.shape(steps["image"])[0] - setting.window
        image = tf.stack([steps["image"][:count], steps["image"][setting.window :]], axis=1)
        return {"image": image, "action": steps["action"][:count], "text": steps["text"][:count]}

    examples = _episodes(setting).map(cut, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
    decoded = examples.shuffle(_SHUFFLE).map(
        lambda one: one | {"image": tf.stack([decode(one["image"][0]), decode(one["image"][1])])},
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return (batch["image"] for batch in _batches(setting, decoded))


def whole_episode(setting: Setting) -> Batches:
    """Every frame of an episode decoded, for one pair of it."""
    import tensorflow as tf

    def one(steps: dict[str, Any]) -> Any:
        frames = tf.map_fn(
            tf.io.decode_jpeg,
            steps["image"],
            fn_output_signature=tf.TensorSpec((*setting.size, 3), tf.uint8),
        )
        last = tf.shape(frames)[0] - setting.window
        first = tf.random.uniform((), 0, last, tf.int32)
        return tf.stack([frames[first], frames[first + setting.window]])

    pairs = _episodes(setting).map(one, num_parallel_calls=tf.data.AUTOTUNE).shuffle(setting.batch)
    return _batches(setting, pairs)


def _episodes(setting: Setting) -> Any:
    """{image: encoded, action, text} of all steps of an episode, endlessly, in a random order of
    the shards. Every feature of a record is parsed, as TFDS does."""
    import tensorflow as tf

    types = {
        schema.IMAGE: ((), tf.string),
        schema.ACTION: ((corpus.ACTION_DIM,), tf.float32),
        schema.INSTRUCTION: ((), tf.string),
        schema.REWARD: ((), tf.float32),
        schema.DISCOUNT: ((), tf.float32),
    } | {key: ((), tf.int64) for key in (schema.IS_FIRST, schema.IS_LAST, schema.IS_TERMINAL)}
    features = {
        key: tf.io.FixedLenSequenceFeature(shape, dtype, allow_missing=True)
        for key, (shape, dtype) in types.items()
    }

    def parse(record: Any) -> dict[str, Any]:
        found = tf.io.parse_single_example(record, features)
        kept = {"image": schema.IMAGE, "action": schema.ACTION, "text": schema.INSTRUCTION}
        return {name: found[key] for name, key in kept.items()}

    shards = tf.data.Dataset.from_tensor_slices(setting.shards).shuffle(len(setting.shards))
    records = shards.repeat().interleave(
        tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE
    )
    return records.map(parse, num_parallel_calls=tf.data.AUTOTUNE).filter(
        lambda steps: tf.shape(steps["image"])[0] > setting.window
    )


def _batches(setting: Setting, pairs: Any) -> Batches:
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = False
    options.threading.private_threadpool_size = setting.threads
    dataset = pairs.batch(setting.batch, drop_remainder=True).prefetch(2).with_options(options)
    return dataset.as_numpy_iterator()


# ---------------------------------------------------------------- Grain


class _Pairs:
    """Random access to decoded pairs, as Grain's sources are: both frames by one read."""

    def __init__(self, setting: Setting):
        import simplejpeg
        from grain.sources import ArrayRecordDataSource

        index = load_index(setting.directory)
        row = np.arange(index.num_frames)
        episode = index.episode_of_rows(row)
        last = index.episode_start[episode] + index.episode_length[episode] - 1
        self._first = np.flatnonzero(row + setting.window <= last)
        self._window, self._size = setting.window, setting.size
        self._decode = simplejpeg.decode_jpeg
        self._source = ArrayRecordDataSource([str(setting.array_record)])

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, number: int) -> np.ndarray:
        row = int(self._first[number])
        pair = np.empty((2, *self._size, 3), np.uint8)
        jpegs = self._source.__getitems__([row, row + self._window])
        for image, jpeg in zip(pair, jpegs, strict=True):
            self._decode(jpeg, "RGB", buffer=image)
        return pair


def grain(setting: Setting) -> Batches:
    """ArrayRecord of frames, uncompressed, a record each, read and decoded by threads."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # which Grain wants to have been done
    pairs = grain.MapDataset.source(_Pairs(setting)).seed(0).shuffle().repeat().batch(setting.batch)
    return iter(pairs.to_iter_dataset(grain.ReadOptions(setting.threads, 2 * setting.threads)))


@dataclass(frozen=True)
class Arm:
    what: str
    batches: Callable[[Setting], Batches]
    needs: tuple[str, ...]  # packages


ARMS = {
    "tfdata": Arm("ours, data.decode=tf", partial(ours, decode="tf"), ("tensorflow",)),
    "threads": Arm("ours, data.decode=threads", partial(ours, decode="threads"), ("simplejpeg",)),
    "octo": Arm("octo/OpenVLA style: decode, Lanczos resize, shuffle", octo, ("tensorflow",)),
    "octo_no_resize": Arm(
        "the same without its resize", partial(octo, resize=False), ("tensorflow",)
    ),
    "tfdata_limit": Arm("tf.io.decode_jpeg of frames in memory", tfdata_limit, ("tensorflow",)),
    "threads_limit": Arm("simplejpeg of frames in memory", threads_limit, ("simplejpeg",)),
    "grain": Arm("Grain, ArrayRecord of frames, simplejpeg", grain, ("grain", "array_record")),
    "whole_episode": Arm("decode an episode, use one pair", whole_episode, ("tensorflow",)),
}
