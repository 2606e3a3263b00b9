"""Writes RLDS corpora (TFRecord shards, features.json, dataset_info.json) without TensorFlow.

`tfds.builder_from_directory(DIR)` reads the result. A split appears all at once: shards carry the
suffix `.incomplete` until the writer closes, and dataset_info.json, written last, is what makes the
split exist. An interrupted or failed run leaves finished splits as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from data_pipelines import storage
from data_pipelines.rlds import schema, tfrecord
from data_pipelines.storage import Lock

FEATURES_FILE = "features.json"
INFO_FILE = "dataset_info.json"
LOCK_FILE = ".lock"
INCOMPLETE = ".incomplete"
DEFAULT_SHARD_BYTES = 256 << 20
DEFAULT_VERSION = "1.0.0"

_DESCRIPTION = "RLDS corpus from {}."
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_WORD = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_MAX_RECORD_BYTES = (1 << 31) - 1


class NoSpaceError(OSError):
    """The disk (or the quota) is full."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard file that is not published yet."""

    path: Path
    num_episodes: int
    payload_bytes: int  # of the records without their framing, as TFDS counts


class ShardFile:
    """An open shard: records are appended, and may be taken back up to a mark."""

    def __init__(self, path: Path):
        self.path = path
        self.size = self.num_episodes = self.payload_bytes = 0
        with explain_full_disk(path):
            self._file = path.open("wb")

    def append(self, record: bytes) -> None:
        if len(record) > _MAX_RECORD_BYTES:
            raise ValueError(
                f"{self.path}: an episode of {len(record)} bytes; a tf.train.Example must stay"
                " below 2 GiB: split the episode"
            )
        with explain_full_disk(self.path):
            self.size += tfrecord.write_record(self._file, record)
        self.num_episodes += 1
        self.payload_bytes += len(record)

    def mark(self) -> tuple[int, int, int]:
        return self.size, self.num_episodes, self.payload_bytes

    def rollback(self, mark: tuple[int, int, int]) -> None:
        """Removes the records that were appended since `mark`."""
        self.size, self.num_episodes, self.payload_bytes = mark
        with explain_full_disk(self.path):
            self._file.seek(self.size)
            self._file.truncate()

    def close(self) -> Shard:
        with explain_full_disk(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return Shard(self.path, self.num_episodes, self.payload_bytes)

    def discard(self) -> None:
        # Closing flushes, which fails once more on a full disk; the file goes away in any case.
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Output:
    """A split that is to be, of a dataset in a directory."""

    directory: Path
    name: str
    spec: schema.EpisodeSpec
    split: str = "train"
    version: str = DEFAULT_VERSION

    def check(self, *, resuming: bool = False) -> None:
        """Raises unless the split may be added; resuming: after a publication that was cut short,
        too."""
        directory, name, split, spec = self.directory, self.name, self.split, self.spec
        for key, value, pattern in (
            ("name", self.name, _WORD),
            ("split", self.split, _WORD),
            ("version", self.version, _VERSION),
        ):
            if not pattern.fullmatch(value):
                raise ValueError(
                    f"{key}={value!r} does not match {pattern.pattern}, which TFDS needs"
                )
        info = read_info(directory)
        if info:
            if (info["name"], info["version"]) != (name, self.version):
                raise ValueError(
                    f"{directory / INFO_FILE} is of dataset {info['name']!r} {info['version']}; a "
                    f"split of {name!r} {self.version} cannot be added to it: use that name or "
                    "another directory"
                )
            for finished in info["splits"]:
                if finished["name"] == split:
                    episodes = sum(int(length) for length in finished["shardLengths"])
                    raise FileExistsError(
                        f"{directory} already holds a finished split {split!r} of {episodes} "
                        "episodes; choose another output directory or split, or delete it"
                    )
        features_path = directory / FEATURES_FILE
        if features_path.exists() and _read_json(features_path) != features_json(spec):
            raise ValueError(
                f"{features_path} differs from the features of split {split!r} (image_shape "
                f"{spec.image_shape}, cameras {spec.cameras}, action_dim {spec.action_dim}, "
                f"state_dim {spec.state_dim}, camera_motion_dim {spec.camera_motion_dim}, "
                f"extras {spec.extras}): all splits of a corpus have the same features"
            )
        unlisted = sorted(directory.glob(f"{name}-{split}.tfrecord-?????-of-?????"))
        if unlisted and not resuming:
            raise FileExistsError(
                f"{directory} holds {len(unlisted)} shards of split {split!r} "
                f"({unlisted[0].name}, ...) that {INFO_FILE} does not list: a run was stopped "
                "while it published them. Delete them"
            )

    def is_finished(self) -> bool:
        """Whether the corpus has the split."""
        info = read_info(self.directory)
        return bool(info) and any(one["name"] == self.split for one in info["splits"])

    def publish(self, shards: Sequence[Shard]) -> None:
        """Gives the shards their final names and lists the split; can be repeated after a stop.

        The caller holds the lock and has called `check`.
        """
        directory, name, split, spec = self.directory, self.name, self.split, self.spec
        shards = [shard for shard in shards if shard.num_episodes]
        if not shards:
            raise ValueError(f"split {split!r} of {directory} has no episode; nothing is written")
        _write_json(directory / FEATURES_FILE, features_json(spec))
        for number, shard in enumerate(shards):
            final = directory / f"{name}-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
            if shard.path.exists() or not final.exists():
                os.replace(shard.path, final)
        _sync_directory(directory)
        info = read_info(directory) or {
            "description": _DESCRIPTION.format(spec.source),
            "fileFormat": "tfrecord",
            "name": name,
            "splits": [],
            "version": self.version,
        }
        info["splits"].append(
            {
                "filepathTemplate": _TEMPLATE,
                "name": split,
                "numBytes": str(sum(shard.payload_bytes for shard in shards)),
                "shardLengths": [str(shard.num_episodes) for shard in shards],
            }
        )
        _write_json(directory / INFO_FILE, info)
        _sync_directory(directory)


class RldsWriter:
    """Writes one split of a corpus, episode by episode; a context manager.

    Leaving the block normally publishes the split; leaving it by an exception removes what this
    writer wrote. Further splits are written by further writers with the same name, version and
    spec. `spec` decides the features, so both splits must agree in it.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        name: str,
        spec: schema.EpisodeSpec,
        split: str = "train",
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        version: str = DEFAULT_VERSION,
    ):
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes={shard_bytes} must be at least 1")
        self.directory, self.split, self.spec = Path(directory), split, spec
        self._output = Output(self.directory, name, spec, split, version)
        self.num_episodes = self.num_frames = 0
        self._shard_bytes = shard_bytes
        self._shards: list[Shard] = []
        self._open: ShardFile | None = None
        self._active = True
        self._lock = lock_output(self.directory)
        try:
            self._output.check()
            self._remove_leftovers()
        except BaseException:
            self._lock.release()
            raise

    def write(self, episode: schema.Episode) -> None:
        """Appends one episode (checked against the spec)."""
        if not self._active:
            raise ValueError(f"the writer of split {self.split!r} in {self.directory} is closed")
        record = schema.encode_episode(episode, self.spec)
        if self._open is None:
            self._open = ShardFile(self._unfinished(f"{len(self._shards):05d}"))
        self._open.append(record)
        self.num_episodes += 1
        self.num_frames += episode.num_steps
        if self._open.size >= self._shard_bytes:
            self._close_shard()

    def close(self) -> None:
        """Publishes the split. An empty split is an error."""
        if not self._active:
            return
        try:
            if self._open is not None:
                self._close_shard()
            self._output.publish(self._shards)
            self._shards = []
        finally:
            self.abort()

    def abort(self) -> None:
        """Removes the unpublished shards of this writer, and lets others write."""
        if not self._active:
            return
        self._active = False
        if self._open is not None:
            self._open.discard()
        for shard in self._shards:
            shard.path.unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> RldsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _close_shard(self) -> None:
        self._shards.append(self._open.close())
        self._open = None

    def _unfinished(self, number: str) -> Path:
        name = f"{self._output.name}-{self.split}.tfrecord-{number}{INCOMPLETE}"
        return self.directory / name

    def _remove_leftovers(self) -> None:
        leftovers = sorted(self.directory.glob(self._unfinished("*").name))
        for path in leftovers:
            path.unlink()
        if leftovers:
            logging.warning(
                "%s: removed %d unfinished shards of an interrupted run (split %s)",
                self.directory,
                len(leftovers),
                self.split,
            )


def lock_output(directory: Path) -> Lock:
    """Creates the output directory and takes its lock."""
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"output {directory} is not a directory")
    return Lock(directory / LOCK_FILE, directory)


def read_info(directory: Path) -> dict | None:
    """dataset_info.json of a corpus, None if there is none."""
    path = Path(directory) / INFO_FILE
    if not path.exists():
        return None
    info = _read_json(path)
    missing = [key for key in ("name", "version", "splits") if key not in info]
    if missing:
        raise ValueError(f"{path} lacks {missing}; it is not a TFDS dataset_info.json")
    return info


def is_from(directory: Path, source: str) -> bool:
    """Whether it is a corpus that was written here from this `EpisodeSpec.source`."""
    info = read_info(directory)
    return info is not None and info.get("description") == _DESCRIPTION.format(source)


def features_json(spec: schema.EpisodeSpec) -> dict:
    """features.json as TFDS writes it for this schema."""
    shape = {"dimensions": [str(size) for size in spec.image_shape]}
    content = {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"}
    image = _node("image_feature.Image", image=content)
    observation = {name: image for name in ("image", *spec.cameras)}
    if spec.state_dim:
        observation["state"] = _vector(spec.state_dim)
    if spec.camera_motion_dim:
        observation["camera_motion"] = _vector(spec.camera_motion_dim)
    steps = {
        "observation": _features_dict(observation),
        "language_instruction": _leaf("string"),
        "is_first": _leaf("bool"),
        "is_last": _leaf("bool"),
        "is_terminal": _leaf("bool"),
        "reward": _leaf("float32"),
        "discount": _leaf("float32"),
    }
    if spec.action_dim:
        steps["action"] = _vector(spec.action_dim)
    sequence = {"feature": _features_dict(steps), "length": "-1"}
    metadata = {**schema.METADATA_DTYPES, **spec.extras}
    return _features_dict(
        {
            "steps": _node("dataset_feature.Dataset", sequence=sequence),
            "episode_metadata": _features_dict({key: _leaf(d) for key, d in metadata.items()}),
        }
    )


def _node(kind: str, **content: dict) -> dict:
    return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", **content}


def _features_dict(features: dict) -> dict:
    return _node("features_dict.FeaturesDict", featuresDict={"features": features})


def _vector(size: int) -> dict:
    content = {"shape": {"dimensions": [str(size)]}, "dtype": "float32", "encoding": "none"}
    return _node("tensor_feature.Tensor", tensor=content)


def _leaf(dtype: str) -> dict:
    if dtype == "string":
        return _node("text_feature.Text", text={})
    return _node("scalar.Scalar", tensor={"shape": {}, "dtype": dtype, "encoding": "none"})


@contextlib.contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turns a full disk or quota into an error that says what happened to the data."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(
            error.errno,
            f"no space left while writing {path}: this shard is not finished, what was finished"
            " before is intact. Free some space or choose another output directory",
        ) from error


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


def _write_json(path: Path, value: dict) -> None:
    """Atomic: readers see the old file or the new one."""
    with explain_full_disk(path):
        storage.write_text(path, json.dumps(value, indent=2, sort_keys=True))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
