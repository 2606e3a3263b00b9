"""Where a LeRobot data set keeps what: its files, episodes, tasks and columns. See lerobot.py."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipelines.convert import conversion, reading
from data_pipelines.rlds import selection

if TYPE_CHECKING:
    import pyarrow as pa

VERSIONS = ("v2.0", "v2.1", "v3.0")
TASK = "task"  # as a field: the text of task_index
OWN = {"timestamp", "frame_index", "episode_index", "index", "task_index"}


class Place(NamedTuple):
    """Where the frames of an episode lie: seconds into a video, up to the next episode."""

    video: str
    start: float
    end: float = math.inf


@dataclasses.dataclass(frozen=True)
class Recording:
    """An episode of the data set, and where it lies."""

    number: int
    length: int
    data: str  # parquet file below the root
    places: tuple[Place | None, ...]  # by each camera; None: pictures in the parquet file

    @property
    def name(self) -> str:
        return f"episode_{self.number:06d}"


@dataclasses.dataclass(frozen=True)
class Fields:
    """What of the data set is wanted, by the names of its columns."""

    cameras: tuple[str, ...]
    pictures: tuple[str, ...]  # those of the cameras that are columns, not videos
    actions: tuple[selection.Part, ...]
    states: tuple[selection.Part, ...]
    texts: tuple[str, ...]
    sizes: dict[str, int]  # numbers in a row of each column of actions and states
    tasks: dict[int, str]

    def width(self, parts: Sequence[selection.Part]) -> int:
        return sum(part.stop or self.sizes[part.path] for part in parts)


def read_info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {root} is not a LeRobot data set")
    info = reading.json_object(path, 1, path.read_bytes())
    missing = [k for k in ("codebase_version", "fps", "features", "data_path") if k not in info]
    if missing:
        raise ValueError(f"{path} lacks {missing}")
    if info["codebase_version"] not in VERSIONS:
        raise ValueError(
            f"{path}: codebase_version is {info['codebase_version']!r}, known are {VERSIONS}; "
            "convert the data set with the `lerobot` package first"
        )
    fps, chunk = info["fps"], info.setdefault("chunks_size", 1000)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise ValueError(f"{path}: fps is {fps!r}, not a number above 0")
    if info["codebase_version"] != "v3.0" and (type(chunk) is not int or chunk < 1):
        raise ValueError(f"{path}: chunks_size is {chunk!r}, not a whole number above 0")
    if not isinstance(info["features"], dict):
        raise ValueError(f"{path}: features is {info['features']!r}, not an object")
    told = {name: _described(one) for name, one in info["features"].items()}
    return info | {"features": told}


def _described(one: Any) -> dict[str, Any]:
    """Its dtype is "?" where the description is of no use, which matters once it is selected."""
    unknown = {"dtype": "?", "shape": []}
    one = unknown | one if isinstance(one, dict) else unknown
    sized = isinstance(one["shape"], list) and all(type(size) is int for size in one["shape"])
    return one if sized and isinstance(one["dtype"], str) else unknown


def _path(root: Path, info: dict[str, Any], key: str, **numbers: object) -> str:
    """A file of the data set by its template in info.json."""
    try:
        return info[key].format(**numbers)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{root / 'meta' / 'info.json'}: {key} {info[key]!r} is no template for {numbers}"
        ) from error


def is_camera(feature: dict) -> bool:
    return feature["dtype"] in ("video", "image")


def find_fields(root: Path, info: dict[str, Any], options: Any) -> Fields:
    """The columns that the options select. Raises ValueError for what is not there."""
    features = info["features"]

    def fail(flag: str, path: str, reason: str) -> ValueError:
        there = [f"{name} ({one['dtype']}{_shape(one)})" for name, one in features.items()]
        return ValueError(
            f"--{flag} {getattr(options, flag)!r}: {path} {reason}; the features of {root} are "
            f"{', '.join(there)}, {TASK} (text)"
        )

    def find(flag: str, path: str) -> str:
        """Names are joined by points, or by "/" as elsewhere."""
        name = path if path in features else path.replace("/", ".")
        if name not in features:
            inner = [other for other in features if other.startswith(f"{name}.")]
            wanted = f"is a group: name what is wanted of {inner}"
            raise fail(flag, path, wanted if inner else "is not there ('' for none)")
        return name

    def numbers(flag: str, selected: str) -> tuple[selection.Part, ...]:
        found = []
        for path, stop in selection.parts(selected):
            name = find(flag, path)
            if not _is_number(features[name]):
                raise fail(flag, path, "does not hold numbers ('' for none)")
            if stop and stop > sizes[name]:
                raise fail(flag, path, f"has no {stop} numbers")
            found.append(selection.Part(name, stop))
        return tuple(found)

    sizes = {name: math.prod(one["shape"]) for name, one in features.items() if _is_number(one)}
    there = [name for name, feature in features.items() if is_camera(feature)]
    cameras = [find("camera", path) for path in selection.paths(options.camera)]
    cameras = cameras or (there if len(there) == 1 else [])
    if not cameras or not set(cameras) <= set(there):
        raise fail("camera", "choose", f"of the cameras {there}")
    state = options.state_key
    if state == "observation.state" and state not in features:
        state = ""
    texts = [
        path if path == TASK and path not in features else find("instruction_key", path)
        for path in selection.paths(options.instruction_key)
    ]
    for name in texts:
        if name != TASK and features[name]["dtype"] != "string":
            raise fail("instruction_key", name, "does not hold text")
    return Fields(
        tuple(cameras),
        tuple(camera for camera in cameras if features[camera]["dtype"] == "image"),
        numbers("action_key", options.action_key),
        numbers("state_key", state),
        tuple(texts),
        sizes,
        _tasks(root, info["codebase_version"]) if TASK in texts else {},
    )


def _shape(feature: dict) -> str:
    return f"[{','.join(map(str, feature['shape']))}]" if feature["shape"] else ""


def _is_number(feature: dict) -> bool:
    return feature["dtype"].startswith(("float", "int", "uint", "bool"))


def _tasks(root: Path, version: str) -> dict[int, str]:
    meta = root / "meta"
    if version.startswith("v2"):
        return _named(meta / "tasks.jsonl", _read_lines(meta / "tasks.jsonl", "task_index", "task"))
    table = read_parquet(root, "meta/tasks.parquet")
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:  # the index of a data frame
        raise ValueError(
            f"{meta / 'tasks.parquet'} has columns {table.column_names}, not task_index and a text"
        )
    numbers, names = table["task_index"].to_pylist(), table[texts[0]].to_pylist()
    return _named(meta / "tasks.parquet", zip(numbers, names, strict=True))


def _named(path: Path, rows: Iterable[tuple]) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for number, text in rows:
        if type(number) is not int or not isinstance(text, str):
            raise ValueError(f"{path}: task {number!r} is {text!r}, not a number and a text")
        if tasks.setdefault(number, text.strip()) != text.strip():
            raise ValueError(f"{path}: task {number} is {tasks[number]!r} and {text.strip()!r}")
    return tasks


def find_recordings(root: Path, info: dict[str, Any], cameras: Sequence[str]) -> list[Recording]:
    """All episodes, by number."""
    videos = [camera for camera in cameras if info["features"][camera]["dtype"] == "video"]
    if videos and not info.get("video_path"):
        raise ValueError(f"{root / 'meta' / 'info.json'} lacks 'video_path', where {videos} lie")
    found = []
    if info["codebase_version"].startswith("v2"):
        rows = _read_lines(root / "meta" / "episodes.jsonl", "episode_index", "length")
        for number, length in rows:
            _check_number(root, number)
            keys = dict(episode_index=number, episode_chunk=number // info["chunks_size"])
            places = {
                camera: Place(_path(root, info, "video_path", **keys, video_key=camera), 0.0)
                for camera in videos
            }
            data = _path(root, info, "data_path", **keys)
            found.append(Recording(number, length, data, tuple(map(places.get, cameras))))
        return _in_order(root, found)
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for camera in videos:
        names = ("chunk_index", "file_index", "from_timestamp")
        columns += [f"videos/{camera}/{name}" for name in names]
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root / 'meta' / 'episodes'} has no parquet files")
    for path in files:
        for row in read_parquet(root, path.relative_to(root).as_posix(), columns).to_pylist():
            _check_number(root, row["episode_index"])
            at = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
            data = _path(root, info, "data_path", **at)
            places = {}
            for camera in videos:
                at = {k.rpartition("/")[2]: row[k] for k in columns if f"/{camera}/" in k}
                start = at.pop("from_timestamp")
                if not isinstance(start, float) or not math.isfinite(start):
                    raise ValueError(
                        f"{path}: episode {row['episode_index']} starts at {start} of {camera}"
                    )
                places[camera] = Place(
                    _path(root, info, "video_path", video_key=camera, **at), start
                )
            places = tuple(map(places.get, cameras))
            found.append(Recording(row["episode_index"], row["length"], data, places))
    return _with_ends(_in_order(root, found))


def _check_number(root: Path, number: object) -> None:
    if type(number) is not int:
        raise ValueError(
            f"{root / 'meta'}: the number of an episode is {number!r}, not a whole one"
        )


def _in_order(root: Path, recordings: list[Recording]) -> list[Recording]:
    found = sorted(recordings, key=lambda one: one.number)
    for one, after in itertools.pairwise(found):
        if one.number == after.number:
            raise ValueError(f"{root / 'meta'} has episode {one.number} twice")
    return found


def _with_ends(recordings: list[Recording]) -> list[Recording]:
    """Each place ends where the next episode of its video starts."""
    starts: dict[str, list[float]] = {}
    for place in (place for one in recordings for place in one.places if place):
        starts.setdefault(place.video, []).append(place.start)

    def ended(place: Place | None) -> Place | None:
        if place is None:
            return None
        later = [start for start in starts[place.video] if start > place.start]
        return place._replace(end=min(later, default=math.inf))

    return [dataclasses.replace(one, places=tuple(map(ended, one.places))) for one in recordings]


def _read_lines(path: Path, *keys: str) -> Iterator[tuple]:
    """These values of every line of a .jsonl file."""
    for number, row in reading.json_lines(path):
        missing = [key for key in keys if key not in row]
        if missing:
            raise ValueError(f"{path}, line {number} lacks {missing}")
        yield tuple(row[key] for key in keys)


def _pyarrow() -> ModuleType:
    """A light installation has none; other sources need none."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError("LeRobot's tables need pyarrow: pip install pyarrow") from None
    return pyarrow


def column_names(root: Path, file: str) -> list[str]:
    """The columns of a parquet file."""
    if not (root / file).is_file():
        raise conversion.RecordingError(f"{root / file} is missing")
    pa = _pyarrow()
    try:
        return pa.parquet.read_schema(root / file).names
    except (OSError, pa.ArrowException) as error:
        raise conversion.RecordingError(f"{root / file}: {error}") from error


def read_parquet(root: Path, file: str, columns: list[str] | None = None) -> pa.Table:
    there = column_names(root, file)
    if missing := [column for column in columns or () if column not in there]:
        raise conversion.RecordingError(
            f"{root / file} lacks the columns {missing}; it has {there}"
        )
    pa = _pyarrow()
    try:
        return pa.parquet.read_table(root / file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise conversion.RecordingError(f"{root / file}: {error}") from error
