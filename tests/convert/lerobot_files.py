"""Small LeRobot data sets in the documented layouts, written by hand with pyarrow and PyAV.

The `lerobot` package itself wants another torch and PyAV than this project, so it cannot write them
here; golden/lerobot_v2 and golden/lerobot_v3 are small sets that it wrote elsewhere.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import video_files as files

FPS = 10
CAMERA = "observation.images.top"
TASKS = ["push the block", "open the drawer ", "wave"]
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def actions(episode: int, length: int) -> np.ndarray:
    steps = np.arange(length, dtype=np.float32)[:, None]
    return np.concatenate([steps + 100 * episode, -steps, np.full_like(steps, 0.5)], axis=1)


def columns(episode: int, length: int, tasks: list[int] | None = None) -> dict:
    steps = np.arange(length)
    return {
        "action": list(actions(episode, length)),
        "observation.state": list(actions(episode, length)[:, :2] + 1),
        "timestamp": (steps / FPS).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, episode),
        "index": steps,
        "task_index": np.array(tasks or [episode % len(TASKS)] * length),
    }


def write_parquet(path: Path, parts: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    joined = {key: [value for part in parts for value in part[key]] for key in parts[0]}
    arrays = {
        key: pa.array([v.tolist() for v in values], pa.list_(pa.float32()))
        if isinstance(values[0], np.ndarray)
        else pa.array(values)
        for key, values in joined.items()
    }
    pq.write_table(pa.table(arrays), path)


def info(version: str, cameras: tuple[str, ...]) -> dict:
    vector = lambda *shape: {"dtype": "float32", "shape": list(shape), "names": None}  # noqa: E731
    v3 = version == "v3.0"
    return {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 2,
        "data_path": V3_DATA if v3 else V2_DATA,
        "video_path": V3_VIDEO if v3 else V2_VIDEO,
        "features": {
            "action": vector(3),
            "observation.state": vector(2),
            "timestamp": vector(1),
            **{key: {"dtype": "video", "shape": [48, 64, 3]} for key in cameras},
        },
    }


def write_v2(root: Path, parts: list[dict], frames: list[int] | None = None) -> Path:
    """One episode per part; frames: of each video (default: as many as rows)."""
    meta = root / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(info("v2.1", (CAMERA,))))
    lines = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    (meta / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with (meta / "episodes.jsonl").open("w") as file:
        for number, part in enumerate(parts):
            length = len(part["timestamp"])
            line = {"episode_index": number, "tasks": ["?"], "length": length}
            file.write(json.dumps(line) + "\n")
            keys = dict(episode_index=number, episode_chunk=number // 2, video_key=CAMERA)
            write_parquet(root / V2_DATA.format(**keys), [part])
            shown = files.grey_frames(frames[number] if frames else length)
            files.write_video(root / V2_VIDEO.format(**keys), shown, fps=FPS)
    return root


def write_v3(
    root: Path,
    parts: list[dict],
    *,
    per_video: int = 2,
    per_data: int = 3,
    frames: list[int] | None = None,
    cameras: tuple[str, ...] = (CAMERA, "observation.images.wrist"),
    codec: str = "libx264",
) -> Path:
    """`per_video` episodes in an mp4, `per_data` in a parquet file; the second camera shows black
    in videos of other bounds."""
    meta = root / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(info("v3.0", cameras)))
    tasks = {"task_index": list(range(len(TASKS))), "__index_level_0__": TASKS}
    pq.write_table(pa.table(tasks), meta / "tasks.parquet")
    lengths = frames or [len(part["timestamp"]) for part in parts]
    rows = []
    for number, part in enumerate(parts):
        row = {"episode_index": number, "tasks": ["?"], "length": len(part["timestamp"])}
        row |= {"data/chunk_index": 0, "data/file_index": number // per_data}
        for i, camera in enumerate(cameras):
            start = number - number % (per_video + i)
            seconds = sum(lengths[start:number]) / FPS
            row |= {
                f"videos/{camera}/chunk_index": 0,
                f"videos/{camera}/file_index": number // (per_video + i),
                f"videos/{camera}/from_timestamp": seconds,
                f"videos/{camera}/to_timestamp": seconds + lengths[number] / FPS,
            }
        rows.append(row)
    half = len(rows) // 2  # the metadata is in several files, too
    for number, group in enumerate((rows[:half], rows[half:])):
        path = meta / "episodes" / "chunk-000" / f"file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(group), path)
    for start in range(0, len(parts), per_data):
        path = root / V3_DATA.format(chunk_index=0, file_index=start // per_data)
        write_parquet(path, parts[start : start + per_data])
    for i, camera in enumerate(cameras):
        for start in range(0, len(parts), per_video + i):
            shown = []
            for length in lengths[start : start + per_video + i]:
                shown += [(1 - i) * image for image in files.grey_frames(length)]
            keys = dict(video_key=camera, chunk_index=0, file_index=start // (per_video + i))
            files.write_video(root / V3_VIDEO.format(**keys), shown, fps=FPS, codec=codec)
    return root


def write_columns(root: Path, features: dict, columns: dict, tasks: bool = True) -> Path:
    """v3.0 without videos: two episodes of as many rows in one parquet file. features: dtype and
    shape of each; columns: its values, as pyarrow takes them."""
    (root / "meta").mkdir(parents=True)
    rows = len(next(iter(columns.values())))
    described = info("v3.0", ()) | {"video_path": None}
    described["features"] = {
        name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, *shape) in features.items()
    }
    (root / "meta" / "info.json").write_text(json.dumps(described))
    if tasks:
        table = {"task_index": list(range(len(TASKS))), "__index_level_0__": TASKS}
        pq.write_table(pa.table(table), root / "meta" / "tasks.parquet")
    episodes = [
        {
            "episode_index": number,
            "length": rows // 2,
            "data/chunk_index": 0,
            "data/file_index": 0,
        }
        for number in range(2)
    ]
    path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(episodes), path)
    path = root / V3_DATA.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    own = {
        "episode_index": [step * 2 // rows for step in range(rows)],
        "timestamp": [step % (rows // 2) / FPS for step in range(rows)],
        "task_index": [0] * rows,
    }
    pq.write_table(pa.table(own | columns), path)
    return root
