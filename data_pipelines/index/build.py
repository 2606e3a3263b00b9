"""Building the frame index: reads shards in parallel, checks them, joins their parts.

A shard that is finished leaves <split>.incomplete/<shard>.npz, so that a build which was stopped
continues with the others. Damaged shards raise an error that names file, record and offset.
"""

import json
import multiprocessing
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from absl import logging

from data_pipelines import sidecar, storage
from data_pipelines.progress import Progress
from data_pipelines.rlds import fields, overview, schema, tfrecord
from data_pipelines.rlds.declared import declaration_of
from data_pipelines.rlds.shards import (
    announced_lengths,
    find_shards,
    index_folder,
    shard_fingerprint,
)
from data_pipelines.storage import Location, Lock

FORMAT = 1
_REWRITE = "the loader reads JPEG: rewrite the corpus with `lapa data convert tfds`"
REBUILD = "run `lapa data index`"
_EPISODE = [  # of each, in the order in which a shard is read
    ("record_of_episode", np.int32),
    ("episode_length", np.int64),
    ("fps", np.float32),
    ("record_offset", np.uint64),
    ("record_length", np.uint64),
    ("instruction_of_episode", np.int32),
]
_FRAME = [("frame_offset", np.uint64), ("frame_length", np.uint32), ("frame_crc", np.uint32)]
_IN_PROCESS_BYTES = 2**30  # about a second; worker processes take as long to start


def build_index(
    directory: str | os.PathLike,
    *,
    split: str = "train",
    sidecar_dir: str | os.PathLike | None = None,
    image_key: str = "image",
    action_key: str = "action",
    instruction_key: str = "language_instruction",
    state_key: str = "",
    fps: float = 0.0,
    progress: bool = True,
    exclude: Collection[tuple[str, int]] | None = None,
    workers: int | None = None,
) -> Path:
    """Reads all shards of a split and writes its index; returns the index's folder.

    image_key, action_key, instruction_key: selections (fields.py); the standard ones may be absent,
    others must be there. state_key: likewise; "": the standard one, which is left out, with the
    reason in the manifest, where the shards do not hold it as numbers. fps: of episodes whose
    metadata do not tell it (0: unknown). exclude: (shard file name, record number) of episodes to
    leave out, for example damaged ones; their contents are not even looked at. workers: processes
    to read with (default: one per core). A directory behind a URL needs a local sidecar_dir, and
    each worker then holds the shard that it reads.
    """
    directory = storage.locate(directory)
    shards = find_shards(directory, split)
    left_out = sorted({(str(name), int(number)) for name, number in exclude or ()})
    unknown = {name for name, _ in left_out} - {path.name for path in shards}
    if unknown:
        raise ValueError(
            f"exclude names {sorted(unknown)}, which are no shards of {directory}, split {split!r}"
        )
    settings = {
        "split": split,
        "image_key": image_key,
        "action_key": action_key,
        "instruction_key": instruction_key,
        "state_key": state_key,
        "fps": float(fps),
        "exclude": [list(episode) for episode in left_out],
    }
    for key in (action_key, instruction_key, state_key):
        fields.parts(key)
    if not (np.isfinite(fps) and fps >= 0):
        raise ValueError(f"fps is {fps}; it must be positive, or 0 where it is unknown")
    folder = Path(index_folder(directory, image_key, split, sidecar_dir))  # local, or an error
    unfinished = folder.with_name(f"{split}.incomplete")
    with Lock(folder.with_name(f".{split}.lock"), f"index {folder}"):
        jobs = _jobs(directory, shards, unfinished, settings)
        parts = {job.target: _load_part(job) for job in jobs}
        todo = [job for job in jobs if parts[job.target] is None]
        if done := len(jobs) - len(todo):
            logging.info(
                "Index of %s: %d of %d shards were finished before.", directory, done, len(jobs)
            )
        size = sum(job.settings["shard"]["bytes"] for job in todo)
        workers = workers or (1 if size < _IN_PROCESS_BYTES else os.cpu_count() or 1)
        title = f"index {directory.name} {split} {image_key}"
        with Progress(title, size, unit="B", show=progress) as bar:
            for job in _written(todo, min(workers, len(todo))):
                parts[job.target] = _load_part(job)
                bar.update(job.settings["shard"]["bytes"])
        _join_parts(folder, shards, list(parts.values()), settings)
        shutil.rmtree(unfinished)
    return folder


# What zipfile makes of a damaged archive, besides: its checksums find what is left.
_NO_ARCHIVE = (OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class _Job(NamedTuple):
    """A shard, where its part goes, and what decides the part."""

    shard: Location
    target: Path
    settings: dict[str, Any]


def _jobs(
    directory: Location, shards: list[Location], folder: Path, settings: dict[str, Any]
) -> list[_Job]:
    announced = announced_lengths(directory, settings["split"]) or [None] * len(shards)
    if len(announced) != len(shards):
        raise ValueError(
            f"{directory}/dataset_info.json announces {len(announced)} shards of "
            f"split {settings['split']!r}, the folder has {len(shards)}"
        )
    found = []
    for number, path in enumerate(shards):
        own = {
            "format": FORMAT,
            "shard": shard_fingerprint(path),
            "exclude": [record for name, record in settings["exclude"] if name == path.name],
            "announced": announced[number],
        }
        found.append(_Job(path, folder / f"{number:05d}.npz", settings | own))
    return found


def _written(jobs: list[_Job], workers: int) -> Iterator[_Job]:
    """Reads shards and writes their parts; yields the jobs as they finish."""
    if workers <= 1:
        for job in jobs:
            _write_part(job)
            yield job
        return
    # spawn: the parent may run threads of JAX or TensorFlow, which a fork would break.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(_write_part, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            pool.shutdown(cancel_futures=True)


def _write_part(job: _Job) -> None:
    part = read_shard(job.shard, job.settings)
    part["info"] = np.frombuffer(json.dumps(part["info"]).encode(), np.uint8)
    with storage.atomic_path(job.target) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **part)


def _load_part(job: _Job) -> dict[str, Any] | None:
    """A finished shard's part, if it was made with these settings and from this very shard."""
    try:
        with np.load(job.target, allow_pickle=False) as stored:
            part: dict[str, Any] = {name: stored[name] for name in stored.files}
        part["info"] = json.loads(part["info"].tobytes())
    except FileNotFoundError:
        return None
    except (*sidecar.UNREADABLE, *_NO_ARCHIVE) as error:
        logging.warning("%s is damaged (%s); its shard is read again.", job.target, error)
        return None
    return part if part["info"]["settings"] == job.settings else None


# ---------------------------------------------------------------- one shard


def read_shard(path: Location, settings: dict[str, Any]) -> dict[str, Any]:
    """Episodes and frames of one shard, offsets relative to the shard."""
    local = isinstance(path, Path)
    data = tfrecord.map_file(path) if local else memoryview(path.read_bytes())
    reader = _EpisodeReader(path, data, settings)
    exclude = set(settings["exclude"])
    position = number = 0
    while position < len(data):
        offset, length = tfrecord.read_record(
            data, position, path=path, record=number, verify=number not in exclude
        )
        if number not in exclude:
            reader.add(number, offset, length)
        position = offset + length + tfrecord.FOOTER_BYTES
        number += 1
    if exclude and max(exclude) >= number:
        raise ValueError(f"exclude names record {max(exclude)} of {path}, which has {number}")
    if settings["announced"] is not None and number != settings["announced"]:
        raise tfrecord.RecordError(
            f"the shard has {number} records, dataset_info.json announces {settings['announced']}",
            path=path,
            offset=len(data),
        )
    return reader.part()


class _EpisodeReader:
    """Collects what the index needs of the episodes of one shard."""

    def __init__(self, path: Location, data: memoryview, settings: dict[str, Any]):
        self.path, self.data, self.settings = path, data, settings
        self.declared = declaration_of(path.parent)
        self.episodes: list[tuple] = []
        self.record_crc: list[int] = []
        self.frames: list[tuple[int, int, int]] = []
        self.actions: list[np.ndarray] = []
        self.states: list[np.ndarray] = []
        self.no_states = ""  # why there are none
        self.instructions: dict[str, int] = {}
        self.keys: dict[str, str] = {}
        self.image_size: tuple[int, int] | None = None
        self.other_sizes: dict[int, list[tuple[int, int]]] = {}  # by number of the episode here
        self.header: tuple[bytes, tuple[int, int]] = b"", (0, 0)  # of an image, and its size

    def add(self, number: int, offset: int, length: int) -> None:
        record = self.data[offset : offset + length]
        features = tfrecord.parse_example(record, path=self.path, number=number, offset=offset)

        def fail(reason: str) -> tfrecord.RecordError:
            return tfrecord.RecordError(reason, path=self.path, record=number, offset=offset)

        if not self.keys:
            self.keys = {key: feature.kind for key, feature in sorted(features.items())}
            self._check_keys(features, record, fail)
        key = fields.image_key(features, self.settings["image_key"])
        images, says = features.get(key), self.declared.get(key)
        if images is None or images.kind == tfrecord.EMPTY:
            raise fail(self._no("image", "there are no such images", features, record))
        if images.kind != tfrecord.BYTES or (says and says.encoding != "none"):
            raise fail(f"{key} holds {says or images.kind}; {_REWRITE}")
        steps = len(images.spans)
        if not steps:
            raise fail(f"{key} is empty: the episode has no steps")
        flags = features.get(schema.IS_FIRST)
        if flags is not None and len(flags.ints(record)) != steps:
            raise fail(f"{steps} images but {len(flags.ints(record))} values of {schema.IS_FIRST}")
        for step, (start, size) in enumerate(images.spans):
            if schema.picture_kind(record[start : start + size]) == "png":
                raise fail(f"{key} of step {step} is a PNG; {_REWRITE}")
            crc = google_crc32c.value(np.frombuffer(record[start : start + size], np.uint8))
            self.frames.append((offset + start, size, crc))
        self._add_sizes(record, images.spans)
        fps = fields.scalar(features, record, schema.FPS)
        self.episodes.append(
            (
                number,
                steps,
                (self.settings["fps"] or np.nan) if fps is None else fps,
                offset,
                length,
                self._instruction(features, record, steps, fail),
            )
        )
        try:
            actions = fields.actions(
                features, record, steps, self.settings["action_key"], self.declared
            )
            if actions is not None:
                fields.check_actions(features, record, actions)
                self.actions.append(self._checked(actions, fail))
        except fields.FieldError as error:
            raise fail(f"action_key is {self.settings['action_key']!r}: {error}") from error
        if len(self.actions) not in (0, len(self.episodes)):
            raise fail(
                f"action_key {self.settings['action_key']!r} is in some episodes and not in "
                "others; keep them as two corpora"
            )
        self._add_states(features, record, steps, fail)
        (crc,) = np.frombuffer(self.data[offset + length : offset + length + 4], "<u4")
        self.record_crc.append(crc)

    def _add_states(self, features: dict, record: memoryview, steps: int, fail: Callable) -> None:
        """Those of an episode; a problem with what nobody asked for by name is only noted."""
        asked = self.settings["state_key"]
        key = asked or fields.STATE
        if self.no_states:
            return
        try:
            overview.require(features, key)
            states = fields.numbers(features, record, steps, key, self.declared)
            if states is None:
                raise fields.FieldError(f"there are no numbers {key}")
            fields.check_finite(states, "state")
            if self.states and states.shape[1] != self.states[0].shape[1]:
                raise fields.FieldError(
                    f"it has {states.shape[1]} dimensions, {self.states[0].shape[1]} in the "
                    "episodes before"
                )
            self.states.append(states)
        except fields.FieldError as error:
            if asked:
                raise fail(f"state_key is {asked!r}: {error}") from error
            self.states, self.no_states = [], str(error)

    def _add_sizes(self, record: memoryview, spans: list[tuple[int, int]]) -> None:
        """Notes an episode whose images are of other sizes. Of those that have none the loader
        tells."""
        sizes: dict[tuple[int, int], None] = {}
        for start, size in spans:
            # Most begin as the one before does, up to their size.
            header, known = self.header
            if not header or record[start : start + len(header)] != header:
                jpeg = bytes(record[start : start + size])
                try:
                    found, end = schema.jpeg_header(jpeg)
                except ValueError:
                    continue
                self.header = jpeg[:end], (known := found[:2])
            sizes[known] = None
        self.image_size = self.image_size or next(iter(sizes), None)
        if set(sizes) - {self.image_size}:
            self.other_sizes[len(self.episodes)] = list(sizes)

    def _check_keys(self, features: dict, record: memoryview, fail: Callable) -> None:
        """That there is what was asked for; the standard keys only where it is."""
        for what, standard in overview.STANDARD.items():
            try:
                overview.require(features, self.settings[f"{what}_key"], standard)
            except fields.FieldError as error:
                raise fail(self._no(what, error, features, record)) from error

    def _no(self, what: str, why: object, features: dict, record: memoryview) -> str:
        there = overview.listing(features, record, self.declared)
        return f"{what}_key is {self.settings[f'{what}_key']!r}, but {why}; {there}"

    def _instruction(self, features: dict, record: memoryview, steps: int, fail: Callable) -> int:
        key = self.settings["instruction_key"]
        try:
            texts = set(fields.texts(features, record, steps, key, self.declared)) - {""}
        except fields.FieldError as error:
            raise fail(f"instruction_key is {key!r}: {error}") from error
        if len(texts) > 1:
            raise fail(
                f"{key} changes within the episode ({sorted(texts)[:3]}); "
                "an episode has one instruction: split it when converting"
            )
        return self.instructions.setdefault(texts.pop(), len(self.instructions)) if texts else -1

    def _checked(self, values: np.ndarray, fail: Callable) -> np.ndarray:
        key = f"action_key {self.settings['action_key']!r}"
        if self.actions and values.shape[1] != self.actions[0].shape[1]:
            raise fail(
                f"{key} has {values.shape[1]} dimensions, "
                f"{self.actions[0].shape[1]} in the episodes before"
            )
        return values

    def part(self) -> dict[str, Any]:
        tables = np.array(self.episodes, _EPISODE), np.array(self.frames, _FRAME)
        part = {name: table[name].copy() for table in tables for name in table.dtype.names}
        part["record_crc"] = np.array(self.record_crc, np.uint32)
        if self.actions:
            part["actions"] = np.concatenate(self.actions)
        if self.states:
            part["states"] = np.concatenate(self.states)
        part["info"] = {
            "settings": self.settings,
            "instructions": list(self.instructions),
            "keys": self.keys,
            "image_size": self.image_size,
            "other_sizes": self.other_sizes,
            "action_dim": self.actions[0].shape[1] if self.actions else 0,
            "no_states": self.no_states,
        }
        return part


# ---------------------------------------------------------------- joining


def _other_sizes(parts: list[dict], wanted: tuple[int, int] | None) -> dict[str, tuple[int, int]]:
    """Episodes that have images of another size than the first one, by number: such a size."""
    found, start = {}, 0
    for part in parts:
        own, others = part["info"]["image_size"], part["info"].get("other_sizes", {})
        count = len(part["episode_length"])
        numbers = map(int, others) if own in (wanted, None) else range(count)
        for number in numbers:
            for size in others.get(str(number), [own]):
                if size != wanted:
                    found[str(start + number)] = size
        start += count
    return found


def _join_states(
    shards: list[Location], parts: list[dict], asked: str
) -> tuple[np.ndarray | None, str]:
    """(float32 (F, S), ""), or (None, why there are none)."""
    full = [(one, shard) for one, shard in zip(parts, shards, strict=True) if len(one["fps"])]
    if why := next(filter(None, (part["info"].get("no_states") for part, _ in full)), ""):
        return None, why
    sizes = {part["states"].shape[1]: shard for part, shard in full}
    if len(sizes) > 1:
        why = f"steps/{asked or fields.STATE} has different sizes: "
        why += ", ".join(f"{dim} in {shard.name}" for dim, shard in sizes.items())
        if asked:
            raise ValueError(f"{shards[0].parent}: {why}")
        return None, why
    return np.concatenate([part["states"] for part, _ in full]), ""


def _join_parts(
    folder: Path, shards: list[Location], parts: list[dict], settings: dict[str, Any]
) -> None:
    """Writes the index of a split from its shards' parts."""
    with_actions = {
        part["info"]["action_dim"]: shard
        for part, shard in zip(parts, shards, strict=True)
        if len(part["episode_length"])
    }
    if len(with_actions) > 1:
        raise ValueError(
            f"{shards[0].parent}: steps/{settings['action_key']} has different sizes: "
            + ", ".join(f"{dim} in {shard.name}" for dim, shard in with_actions.items())
        )
    texts: dict[str, int] = {}
    for part in parts:
        for text in part["info"]["instructions"]:
            texts.setdefault(text, len(texts))
        table = np.array([texts[text] for text in part["info"]["instructions"]] + [-1], np.int32)
        part["instruction_of_episode"] = table[part["instruction_of_episode"]]
    episodes = [len(part["episode_length"]) for part in parts]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name, _ in _EPISODE + _FRAME}
    arrays["shard_of_episode"] = np.repeat(np.arange(len(parts), dtype=np.int32), episodes)
    lengths = arrays["episode_length"]
    arrays["episode_start"] = np.cumsum(lengths) - lengths
    if not len(lengths):
        raise ValueError(
            f"{shards[0].parent}, split {settings['split']!r}: the {len(shards)} "
            "shards hold no episode"
        )
    if next(iter(with_actions)):
        arrays["actions"] = np.concatenate(
            [part["actions"] for part in parts if len(part["episode_length"])]
        )
    states, no_states = _join_states(shards, parts, settings["state_key"])
    fingerprints = [part["info"]["settings"]["shard"] for part in parts]
    contents = np.concatenate([part["record_crc"] for part in parts])
    image_size = next(filter(None, (part["info"]["image_size"] for part in parts)), None)
    manifest = {
        "format": FORMAT,
        **settings,
        "shards": fingerprints,
        "num_frames": len(arrays["frame_offset"]),
        "num_episodes": len(lengths),
        "keys": next(filter(None, (part["info"]["keys"] for part in parts))),
        "image_size": image_size,
        "other_sizes": _other_sizes(parts, image_size),
        "instructions": list(texts),
        "digests": {name: sidecar.array_digest(array) for name, array in arrays.items()},
        # Earlier code makes an array of every digest.
        "states": {
            "digest": "" if states is None else sidecar.array_digest(states),
            "why": no_states,
        },
        "hash": sidecar.value_hash(
            [
                FORMAT,
                *([settings["fps"]] if settings["fps"] else []),
                settings["image_key"],
                [entry["bytes"] for entry in fingerprints],
                sidecar.array_digest(contents),
                sidecar.array_digest(lengths),
                sidecar.array_digest(arrays["record_offset"]),
                sidecar.array_digest(arrays["frame_offset"]),
            ]
        ),
    }
    fresh, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{x}") for x in ("new", "old"))
    if fresh.exists():
        shutil.rmtree(fresh)
    if states is not None:
        arrays["states"] = states
    for name, array in arrays.items():
        sidecar.write_array(fresh / f"{name}.npy", array)
    sidecar.write_json(fresh / "manifest.json", manifest)
    replaces = folder.exists()
    if replaces:
        os.rename(folder, old)
    os.rename(fresh, folder)
    if replaces:
        shutil.rmtree(old)
