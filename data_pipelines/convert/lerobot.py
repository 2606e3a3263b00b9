"""LeRobot data sets, v2.0, v2.1 and v3.0 -> an RLDS corpus (`lapa data convert lerobot`).

v2 has a parquet file and, for each camera, an mp4 per episode, v3 many episodes in each. An mp4 is
the unit of work: it is read once, from start to end, and its frames are given to the rows of the
parquet files by time. Steps are those of the data set (no other frame rate), the instruction is the
task of a row; an episode whose task changes gives an episode for each stretch of one task.
Layout: `meta/info.json`, `meta/tasks.*`, `meta/episodes*` of the `lerobot` package, 0.4.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.convert import conversion, decode, reading
from data_pipelines.rlds import schema

VERSIONS = ("v2.0", "v2.1", "v3.0")
MAX_JPEG_BYTES = decode.MAX_EPISODE_BYTES


@dataclasses.dataclass(frozen=True)
class Recording:
    """An episode of the data set, and where it lies."""

    number: int
    length: int
    data: str  # parquet file below the root
    video: str
    start: float  # seconds into the video

    @property
    def name(self) -> str:
        return f"episode_{self.number:06d}"


@dataclasses.dataclass(frozen=True)
class LeRobotSource(conversion.Source):
    """The work of a unit is a tuple of the recordings of one mp4 by time."""

    camera: str
    action_key: str
    state_key: str  # "": none
    tasks: dict[int, str]

    def read(self, unit: conversion.Unit) -> Iterator[conversion.Found | conversion.Bad]:
        frames = _Frames(decode.read_frames(self.root / unit.work[0].video, self.settings))
        ends = [one.start for one in unit.work[1:]] + [float("inf")]
        read_table = functools.lru_cache(maxsize=1)(self._table)  # many episodes lie in one
        for one, end in zip(unit.work, ends, strict=True):
            try:
                # A frame belongs to the nearest step, so half a step before the next episode.
                times, images = frames.until(end - 0.5 / self.spec.fps, one.length)
                yield from self._episodes(one, times, images, read_table(one.data))
            except conversion.RecordingError as error:
                yield conversion.Bad(one.name, str(error))

    def _table(self, file: str) -> pa.Table:
        columns = ["episode_index", "timestamp", "task_index", self.action_key, self.state_key]
        return _read_parquet(self.root / file, [column for column in columns if column])

    def _episodes(
        self, one: Recording, times: np.ndarray, images: list[bytes], table: pa.Table
    ) -> Iterator[conversion.Found]:
        rows = np.flatnonzero(table.column("episode_index").to_numpy() == one.number)
        if not len(rows) == len(images) == one.length:
            raise conversion.RecordingError(
                f"{one.length} steps by the metadata, {len(rows)} rows in {one.data}, "
                f"{len(images)} frames in {one.video}"
            )
        if (np.diff(rows) != 1).any():
            raise conversion.RecordingError(f"its rows in {one.data} are not together")
        table = table.slice(rows[0], len(rows))
        wanted = one.start + table.column("timestamp").to_numpy()
        late = np.flatnonzero(np.abs(times - wanted) > 0.5 / self.spec.fps)
        if len(late):
            step = late[0]
            raise conversion.RecordingError(
                f"step {step} is at {wanted[step]:.3f} s of {one.video} by its timestamp, its "
                f"frame at {times[step]:.3f} s"
            )
        actions = _matrix(table, self.action_key, self.spec.action_dim)
        states = _matrix(table, self.state_key, self.spec.state_dim) if self.state_key else None
        numbers = table.column("task_index").to_pylist()
        unknown = sorted(set(numbers) - self.tasks.keys())
        if unknown:
            raise conversion.RecordingError(f"task {unknown[0]} is not in the list of tasks")
        texts = [self.tasks[number] for number in numbers]
        episode = schema.Episode(
            images=images,
            actions=actions,
            states=states,
            instruction=texts[0],
            episode_id=one.name,
            file_path=one.video,
            camera=self.camera,
        )
        yield from conversion.stretches(episode, numbers, texts, all_end=True)


class _Frames:
    """The frames of a video, handed out in order. What breaks it breaks all that comes after."""

    def __init__(self, frames: Iterator[tuple[float, bytes]]):
        self._frames, self._waiting = frames, None
        self._error: decode.VideoError | None = None
        self._start: float | None = None

    def until(self, end: float, length: int) -> tuple[np.ndarray, list[bytes]]:
        """(seconds since the first frame, JPEGs) of the next frames before `end`, `length` of them
        where the video breaks there."""
        times, images, size = [], [], 0
        try:
            while frame := self._waiting or next(self._frames, None):
                self._waiting = None
                if self._start is None:
                    self._start = frame[0]
                time = frame[0] - self._start
                if time >= end:
                    self._waiting = frame
                    break
                times.append(time)
                images.append(frame[1])
                size += len(frame[1])
                if size > MAX_JPEG_BYTES:
                    raise conversion.RecordingError("an episode above 1 GiB of JPEG")
        except decode.VideoError as error:
            self._error = error
        if self._error is not None and len(images) != length:
            raise self._error
        return np.array(times), images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(conversion.Options):
    """Of `convert_lerobot`.

    root: with meta, data and videos
    camera: the feature, such as observation.images.top (default: the only one there is)
    action_key: the feature
    state_key: the feature, '' for none (default: observation.state where there is one)
    """

    root: str | Path = conversion.option(positional=True, metavar="folder")
    camera: str = ""
    action_key: str = "action"
    state_key: str = "observation.state"


def convert_lerobot(options: Options) -> conversion.Report:
    """Converts one camera of a LeRobot data set into one split of a corpus.

    Each camera becomes a corpus of its own with the same episode ids. Left out and named: episodes
    whose metadata, rows and frames disagree in number or time, actions that are not finite, unknown
    tasks.
    """
    root, camera = Path(options.root), options.camera
    action_key, state_key = options.action_key, options.state_key
    info = _info(root)
    features, fps = info["features"], float(info["fps"])
    cameras = [key for key, feature in features.items() if feature["dtype"] == "video"]
    if not camera and len(cameras) == 1:
        camera = cameras[0]
    if camera not in cameras:
        images = [key for key, feature in features.items() if feature["dtype"] == "image"]
        raise ValueError(
            f"--camera {camera!r}: the cameras of {root} are {cameras}"
            + (f"; {images} are pictures in parquet files, which are not read" if images else "")
        )
    if state_key == "observation.state" and state_key not in features:
        state_key = ""
    settings = decode.VideoSettings.of(options, fps, source_fps=fps)
    spec = options.spec(
        fps,
        actions=_width(root, features, action_key, "--action_key"),
        states=_width(root, features, state_key, "--state_key") if state_key else 0,
    )
    tasks = _tasks(root)
    recordings = _recordings(root, info, camera)
    if not recordings:
        raise ValueError(f"{root} has no episodes")
    by_video: dict[str, list[Recording]] = {}
    for one in recordings:
        by_video.setdefault(one.video, []).append(one)
    units = []
    for video, ones in by_video.items():
        name = video if len(ones) > 1 else ones[0].name
        work = tuple(sorted(ones, key=lambda one: one.start))
        units.append(conversion.Unit(name, work, len(ones), reading.size_of(root / video)))
    report = conversion.convert(
        LeRobotSource(root, settings, spec, camera, action_key, state_key, tasks),
        units,
        options,
        {
            **dataclasses.asdict(settings),
            "camera": camera,
            "action_key": action_key,
            "state_key": state_key,
            "tasks_hash": reading.hash_of(tasks.items()),
            "episodes_hash": reading.hash_of(map(dataclasses.astuple, recordings)),
            "source_hash": reading.hash_of_files(
                root, {file: None for one in recordings for file in (one.video, one.data)}
            ),
        },
    )
    report.notes |= {"camera": camera, "version": info["codebase_version"]}
    if other := [key for key in cameras if key != camera]:
        report.notes["other cameras"] = ", ".join(other)
    return report


def _info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {root} is not a LeRobot data set")
    info = json.loads(path.read_text(encoding="utf-8"))
    needed = ("codebase_version", "fps", "features", "data_path", "video_path")
    missing = [key for key in needed if key not in info]
    if missing:
        raise ValueError(f"{path} lacks {missing}")
    if info["codebase_version"] not in VERSIONS:
        raise ValueError(
            f"{path}: codebase_version is {info['codebase_version']!r}, known are {VERSIONS}; "
            "convert the data set with the `lerobot` package first"
        )
    return info


def _width(root: Path, features: dict, key: str, flag: str) -> int:
    """The size of a feature that is a vector of floats."""
    if key not in features:
        raise ValueError(f"{flag} {key!r}: the features of {root} are {list(features)}")
    feature = features[key]
    if not feature["dtype"].startswith("float") or len(feature["shape"]) != 1:
        raise ValueError(
            f"{flag} {key!r} is {feature['dtype']}{feature['shape']}, not a vector of floats"
        )
    return feature["shape"][0]


def _tasks(root: Path) -> dict[int, str]:
    meta = root / "meta"
    if (meta / "tasks.jsonl").is_file():  # v2
        rows = _read_lines(meta / "tasks.jsonl", "task_index", "task")
        return {number: text.strip() for number, text in rows}
    table = _read_parquet(meta / "tasks.parquet")
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:  # the index of a data frame
        raise ValueError(
            f"{meta / 'tasks.parquet'} has columns {table.column_names}, not task_index and a text"
        )
    numbers, names = table["task_index"].to_pylist(), table[texts[0]].to_pylist()
    return {number: text.strip() for number, text in zip(numbers, names, strict=True)}


def _recordings(root: Path, info: dict[str, Any], camera: str) -> list[Recording]:
    """All episodes, by number."""
    if info["codebase_version"].startswith("v2"):
        found = []
        rows = _read_lines(root / "meta" / "episodes.jsonl", "episode_index", "length")
        for number, length in rows:
            keys = dict(
                episode_index=number, episode_chunk=number // info["chunks_size"], video_key=camera
            )
            files = info["data_path"].format(**keys), info["video_path"].format(**keys)
            found.append(Recording(number, length, *files, 0.0))
        return sorted(found, key=lambda one: one.number)
    prefix = f"videos/{camera}/"
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [prefix + name for name in ("chunk_index", "file_index", "from_timestamp")]
    found = []
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        for row in _read_parquet(path, columns).to_pylist():
            data = info["data_path"].format(
                chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
            )
            video = info["video_path"].format(
                video_key=camera,
                chunk_index=row[prefix + "chunk_index"],
                file_index=row[prefix + "file_index"],
            )
            start = row[prefix + "from_timestamp"]
            found.append(Recording(row["episode_index"], row["length"], data, video, start))
    return sorted(found, key=lambda one: one.number)


def _read_lines(path: Path, *keys: str) -> Iterator[tuple]:
    """These values of every line of a .jsonl file."""
    for number, row in reading.json_lines(path):
        missing = [key for key in keys if key not in row]
        if missing:
            raise ValueError(f"{path}, line {number} lacks {missing}")
        yield tuple(row[key] for key in keys)


def _read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise conversion.RecordingError(f"{path}: {error}") from error


def _matrix(table: pa.Table, key: str, width: int) -> np.ndarray:
    """float32 (rows, width) of a column of lists."""
    column = table.column(key).combine_chunks()
    if not pa.types.is_floating(column.type):
        column = column.flatten()
    if column.null_count or len(column) != table.num_rows * width:
        raise conversion.RecordingError(
            f"{key} has {len(column)} numbers in {table.num_rows} rows, {column.null_count} of "
            f"them empty; the data set says {width} in each"
        )
    return column.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
