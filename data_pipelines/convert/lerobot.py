"""LeRobot data sets, v2.0, v2.1 and v3.0 -> an RLDS corpus (`lapa data convert lerobot`).

v2 has a parquet file and, for each camera, an mp4 per episode, v3 many episodes in each; pictures
may lie in the parquet files instead. A file of the first camera is the unit of work: it is read
once, from start to end, and the frames of a video are given to the rows of the parquet files by
time. Steps are those of the data set (no other frame rate), the instruction is the task of a row;
an episode whose task changes gives an episode for each stretch of one task.
Layout: `meta/info.json`, `meta/tasks.*`, `meta/episodes*` of the `lerobot` package, 0.4.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.convert import conversion, decode, reading
from data_pipelines.convert import lerobot_layout as layout
from data_pipelines.rlds import schema, selection
from data_pipelines.rlds.selection import FieldError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_JPEG_BYTES = decode.MAX_EPISODE_BYTES


@dataclasses.dataclass(frozen=True)
class LeRobotSource(conversion.Source):
    """The work of a unit is a tuple of recordings, in the order of its file."""

    fields: layout.Fields

    def read(
        self, unit: conversion.Unit
    ) -> Iterator[conversion.Found | conversion.Bad | conversion.Note]:
        views = [_Frames(self.root, self.settings) for _ in self.fields.cameras]
        read_table = functools.lru_cache(maxsize=1)(self._table)  # many episodes lie in one
        for one in unit.work:
            try:
                shown = [
                    place and view.of(place, one.length, 0.5 / self.spec.fps)
                    for view, place in zip(views, one.places, strict=True)
                ]
                yield from self._episodes(one, shown, read_table(one.data))
            except (conversion.RecordingError, FieldError) as error:
                yield conversion.Bad(one.name, str(error))
        for view in views:
            yield from (conversion.Note(*note) for note in sorted(view.notes))

    def _table(self, file: str) -> pa.Table:
        fields = self.fields
        columns = {"episode_index", *fields.texts, *fields.pictures}
        columns |= {"frame_index"} & {*layout.column_names(self.root, file)}
        if fields.pictures != fields.cameras:
            columns.add("timestamp")
        columns |= {part.path for part in fields.actions + fields.states}
        if layout.TASK in columns:
            columns = columns - {layout.TASK} | {"task_index"}
        return layout.read_parquet(self.root, file, sorted(columns))

    def _episodes(
        self,
        one: layout.Recording,
        shown: list[tuple[np.ndarray, list[bytes]] | None],
        table: pa.Table,
    ) -> Iterator[conversion.Found]:
        fields = self.fields
        rows = np.flatnonzero(table.column("episode_index").to_numpy() == one.number)
        for place, frames in zip(one.places, shown, strict=True):
            count = len(rows) if frames is None else len(frames[1])
            if not 0 < len(rows) == count == one.length:
                told = f", {count} frames in {place.video}" if place else ""
                raise conversion.RecordingError(
                    f"{one.length} steps by the metadata, {len(rows)} rows in {one.data}{told}"
                )
        if (np.diff(rows) != 1).any():
            raise conversion.RecordingError(f"its rows in {one.data} are not together")
        table, views = table.slice(rows[0], len(rows)), []
        if "frame_index" in table.column_names:
            if not (np.diff(table.column("frame_index").to_numpy()) > 0).all():
                raise conversion.RecordingError(
                    f"its rows in {one.data} are not in the order of frame_index"
                )
        for camera, place, frames in zip(fields.cameras, one.places, shown, strict=True):
            if frames is None:
                views.append(self._pictures(table, camera))
            else:
                self._check_times(table, place, frames[0])
                views.append(frames[1])
        actions, states = (
            self._numbers(table, parts) if parts else None
            for parts in (fields.actions, fields.states)
        )
        if actions is not None:
            selection.check_finite(actions, "action")
        texts = _texts(table, fields)
        first = one.places[0]
        episode = schema.Episode(
            images=views[0],
            actions=actions,
            states=states,
            instruction=texts[0],
            episode_id=one.name,
            file_path=first.video if first else one.data,
            camera=",".join(fields.cameras),
            views=dict(zip(self.spec.cameras, views[1:], strict=True)),
        )
        labels = table.column("task_index").to_pylist() if fields.texts == (layout.TASK,) else texts
        yield from conversion.stretches(episode, labels, texts, all_end=True)

    def _check_times(self, table: pa.Table, place: layout.Place, times: np.ndarray) -> None:
        wanted = place.start + table.column("timestamp").to_numpy()
        late = np.flatnonzero(~(np.abs(times - wanted) <= 0.5 / self.spec.fps))  # NaN, too
        if len(late):
            step = late[0]
            raise conversion.RecordingError(
                f"step {step} is at {wanted[step]:.3f} s of {place.video} by its timestamp, its "
                f"frame at {times[step]:.3f} s"
            )

    def _pictures(self, table: pa.Table, camera: str) -> list[bytes]:
        """The JPEGs of a column of pictures: bytes, or dictionaries of bytes and path."""
        found = []
        for step, value in enumerate(table.column(camera).to_pylist()):
            data = value.get("bytes") if isinstance(value, dict) else value
            if data is None and isinstance(value, dict) and value.get("path"):
                raise conversion.RecordingError(
                    f"{camera} of step {step} is only a path, {value['path']!r}: the parquet file "
                    "must hold the picture itself"
                )
            if not isinstance(data, bytes):
                raise conversion.RecordingError(f"{camera} of step {step} is no picture")
            try:
                found.append(decode.convert_picture(data, self.settings))
            except decode.VideoError as error:
                raise conversion.RecordingError(f"{camera} of step {step}: {error}") from error
        return found

    def _numbers(self, table: pa.Table, parts: Sequence[selection.Part]) -> np.ndarray:
        """float32 (rows, A) of columns of numbers or lists of them."""
        from pyarrow import FixedSizeListArray, LargeListArray, ListArray, compute

        lists = (ListArray, LargeListArray, FixedSizeListArray)
        found = []
        for key, stop in parts:
            column, width = table.column(key).combine_chunks(), self.fields.sizes[key]
            while isinstance(column, lists) and not column.null_count:
                sizes = compute.list_value_length(column).unique().to_pylist()
                if len(sizes) > 1:
                    raise conversion.RecordingError(
                        f"{key} has {min(sizes)} to {max(sizes)} values a row, not as many"
                    )
                column = column.flatten()
            if column.null_count or len(column) != table.num_rows * width:
                raise conversion.RecordingError(
                    f"{key} has {len(column)} numbers in {table.num_rows} rows, "
                    f"{column.null_count} of them empty; the data set says {width} in each"
                )
            values = selection.as_float32(column.to_numpy(zero_copy_only=False), key)
            found.append(values.reshape(-1, width)[:, :stop])
        return np.concatenate(found, axis=1)


def _texts(table: pa.Table, fields: layout.Fields) -> list[str]:
    """The first text of each row that is not blank."""
    columns = []
    for name in fields.texts:
        if name == layout.TASK:
            numbers = table.column("task_index").to_pylist()
            for number in numbers:
                if not isinstance(number, int | float) or number not in fields.tasks:
                    raise conversion.RecordingError(f"task {number} is not in the list of tasks")
            columns.append([fields.tasks[number] for number in numbers])
        else:
            columns.append([_text(value, name) for value in table.column(name).to_pylist()])
    rows = zip(*columns, strict=True) if columns else [()] * table.num_rows
    return [next(filter(None, row), "") for row in rows]


def _text(value: object, name: str) -> str:
    """Of a text, nothing, or several texts."""
    texts = value if isinstance(value, list) else [value]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise conversion.RecordingError(f"{name} holds {value!r}, not text")
    return next(filter(None, ((text or "").strip() for text in texts)), "")


class _Frames:
    """The frames of one camera, handed out in order, from one video after the other. What breaks a
    video breaks all that comes after in it."""

    def __init__(self, root: Path, settings: decode.VideoSettings):
        self._root, self._settings = root, settings
        self._video, self._passed = "", 0.0
        self.notes: set[tuple[str, str]] = set()  # (video, what is to be told of it)

    def _open(self, video: str) -> None:
        if not (self._root / video).is_file():
            raise conversion.RecordingError(f"{self._root / video} is missing")
        self._frames = decode.read_frames(self._root / video, self._settings)
        self._video, self._waiting, self._error, self._start = video, None, None, None

    def of(self, place: layout.Place, length: int, margin: float) -> tuple[np.ndarray, list[bytes]]:
        """(seconds since the first frame, JPEGs) of the frames of an episode, `length` of them
        where the video breaks there. A frame belongs to the nearest step: `margin` is half of
        one."""
        if place.video != self._video or place.start < self._passed:
            self._open(place.video)
        self._passed = place.start
        times, images, size = [], [], 0
        try:
            while frame := self._waiting or next(self._frames, None):
                self._waiting = None
                self.notes |= {(self._video, text) for text in frame.notes}
                if self._start is None:
                    self._start = frame.time
                time = frame.time - self._start
                if time < place.start - margin:  # of an episode that is not in this unit
                    continue
                if time >= place.end - margin:
                    self._waiting = frame
                    break
                times.append(time)
                images.append(frame.jpeg)
                size += len(frame.jpeg)
                if size > MAX_JPEG_BYTES:
                    raise conversion.RecordingError("an episode above 1 GiB of JPEG")
        except decode.VideoError as error:
            self._error = error
        if self._error is not None and len(images) != length:
            raise self._error
        return np.array(times), images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(conversion.Options):
    """Of `convert_lerobot`. Keys are selections: names of features, joined by commas, '' for none.

    root: with meta, data and videos
    camera: such as observation.images.top; several give a corpus of several cameras (default: the
        only one there is)
    action_key: those of several features stand side by side
    state_key: (default: observation.state where there is one)
    instruction_key: task is that of the data set's list; of several texts the first that is not
        blank
    """

    root: str | Path = conversion.option(positional=True, metavar="folder")
    camera: str = ""
    action_key: str = "action"
    state_key: str = "observation.state"
    instruction_key: str = layout.TASK


def convert_lerobot(options: Options) -> conversion.Report:
    """Converts a LeRobot data set into one split of a corpus.

    Left out and named: episodes whose metadata, rows and frames disagree in number or time, actions
    that are not finite, unknown tasks.
    """
    root = Path(options.root)
    info = layout.read_info(root)
    fps = float(info["fps"])
    fields = layout.find_fields(root, info, options)
    settings = decode.VideoSettings.of(options, fps, source_fps=fps)
    spec = options.spec(
        fps,
        actions=fields.width(fields.actions),
        states=fields.width(fields.states),
        language=bool(fields.texts),
        cameras=fields.cameras,
    )
    recordings = layout.find_recordings(root, info, fields.cameras)
    if not recordings:
        raise ValueError(f"{root} has no episodes")
    by_file: dict[str, list[layout.Recording]] = {}
    for one in recordings:
        by_file.setdefault(one.places[0].video if one.places[0] else one.data, []).append(one)
    units = []
    for file, ones in by_file.items():
        name = file if len(ones) > 1 else ones[0].name
        work = tuple(sorted(ones, key=lambda one: one.places[0].start if one.places[0] else 0))
        units.append(conversion.Unit(name, work, len(ones), reading.size_of(root / file)))
    places = [(one, place or ("", 0.0)) for one in recordings for place in one.places]
    files = {file: None for one, place in places for file in (place[0], one.data) if file}
    report = conversion.convert(
        LeRobotSource(root, settings, spec, fields),
        units,
        options,
        {
            **dataclasses.asdict(settings),
            "camera": ",".join(fields.cameras),
            "action_key": options.action_key,
            "state_key": options.state_key if fields.states else "",
            "tasks_hash": reading.hash_of(
                [*fields.tasks.items(), *(name for name in fields.texts if name != layout.TASK)]
            ),
            "episodes_hash": reading.hash_of(
                (one.number, one.length, one.data, *place[:2]) for one, place in places
            ),
            "source_hash": reading.hash_of_files(root, files),
        },
    )
    report.notes |= {"camera": ", ".join(fields.cameras), "version": info["codebase_version"]}
    used = {part.path for part in fields.actions + fields.states} | {*fields.cameras, *fields.texts}
    unused = [name for name in info["features"] if name not in used | layout.OWN]
    if other := [name for name in unused if layout.is_camera(info["features"][name])]:
        report.notes["other cameras"] = ", ".join(other)
    report.passed_over["fields"] = [name for name in unused if name not in other]
    return report
