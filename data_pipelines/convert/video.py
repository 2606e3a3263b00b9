"""A folder tree of videos -> an RLDS corpus without actions (`lapa data convert video`).

The work unit is a shard: `videos_per_shard` files in the order of their sorted paths. Finished
shards survive a stop (staging.py), and the result depends neither on stops nor on `workers`.
Files that cannot be converted are skipped, named with their reason, up to `max_bad_fraction`.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path

from tqdm import tqdm

from data_pipelines import schema, writer
from data_pipelines.convert import decode, staging

MIN_STEPS = 2  # a frame pair needs two


class TooManyBadFilesError(ValueError):
    """More files than allowed could not be converted."""


@dataclasses.dataclass
class Report:
    """What a conversion did. `bad` and `short` list (file or clip, reason)."""

    directory: str
    split: str
    fps: float
    videos: int
    shards: int = 0
    episodes: int = 0
    frames: int = 0
    repeated_frames: int = 0
    episodes_with_language: int = 0
    resumed_shards: int = 0
    unused_captions: int = 0
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    short: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @property
    def hours(self) -> float:
        return self.frames / self.fps / 3600

    def to_json(self) -> dict:
        return {**dataclasses.asdict(self), "hours": self.hours}

    def table(self, max_files: int = 20) -> str:
        """The report as text."""
        rows = [
            ("corpus", f"{self.directory} (split {self.split})"),
            ("videos found", self.videos),
            ("episodes", self.episodes),
            ("with language", self.episodes_with_language),
            ("frames", f"{self.frames} at {self.fps:g} fps"),
            ("hours", f"{self.hours:.3f}"),
            ("shards", f"{self.shards} ({self.resumed_shards} from an earlier run)"),
            ("frames shown twice", f"{self.repeated_frames} (source slower than {self.fps:g} fps)"),
            ("unconvertible files", len(self.bad)),
            ("too short", len(self.short)),
        ]
        if self.unused_captions:
            rows.append(("captions unused", f"{self.unused_captions} (no such video)"))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        for title, entries in (("unconvertible", self.bad), ("too short", self.short)):
            for file, reason in entries[:max_files]:
                lines.append(f"  {title}: {_printable(file)}: {reason}")
            if len(entries) > max_files:
                lines.append(f"  {title}: ... and {len(entries) - max_files} more")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _ShardJob:
    """All that a worker process needs to write one shard."""

    shard: int
    path: Path
    root: Path
    files: tuple[str, ...]
    captions: dict[str, str]
    settings: decode.VideoSettings
    spec: schema.EpisodeSpec


def convert_videos(
    source: str | Path,
    out: str | Path,
    *,
    fps: float = 10.0,
    size: tuple[int, int] = (64, 64),
    fit: str = "crop",
    quality: int = 92,
    name: str | None = None,
    split: str = "train",
    captions: str | Path | None = None,
    clip_seconds: float = 0.0,
    source_fps: float = 0.0,
    max_bad_fraction: float = 0.1,
    videos_per_shard: int = 256,
    workers: int = 1,
    progress: bool = True,
) -> Report:
    """Converts every video below `source` into one split of the corpus directory `out`.

    captions: a .csv with the columns file, caption or a .jsonl with these keys; file is the path
    relative to `source`. clip_seconds cuts videos into episodes of that length (0: one episode per
    video). source_fps is used for files with neither time stamps nor a frame rate.
    """
    source, out = Path(source), Path(out)
    settings = decode.VideoSettings(
        fps=fps,
        height=size[0],
        width=size[1],
        fit=fit,
        quality=quality,
        clip_seconds=clip_seconds,
        source_fps=source_fps,
    )
    if not 0 <= max_bad_fraction <= 1:
        raise ValueError(f"max_bad_fraction={max_bad_fraction} must lie in 0..1")
    if videos_per_shard < 1 or workers < 1:
        raise ValueError(
            f"videos_per_shard={videos_per_shard} and workers={workers} must be at least 1"
        )
    name = name or default_name(out)
    files = find_videos(source)
    texts = read_captions(captions) if captions else {}
    used = texts.keys() & set(files)
    if texts and not used:
        raise ValueError(
            f"{captions}: no caption is for a video below {source}; its column `file` must hold"
            f" paths relative to that folder, such as {files[0]!r} (it has {next(iter(texts))!r})"
        )
    spec = schema.EpisodeSpec(
        image_shape=(*size, 3), action_dim=0, language=bool(texts), source=name, fps=fps
    )
    lock = writer.lock_output(out)
    try:
        stage_settings = {
            **dataclasses.asdict(settings),
            "name": name,
            "videos_per_shard": videos_per_shard,
            "videos": len(files),
            "source_hash": _hash((file, os.stat(source / file).st_size) for file in files),
            "captions_hash": _hash(sorted(texts.items())),
        }
        resuming = (out / f".staging-{split}").exists()
        check = dict(name=name, spec=spec, split=split, version=writer.DEFAULT_VERSION)
        writer.check_output(out, **check, resuming=resuming)
        stage = staging.Staging(out, split, stage_settings)
        groups = [
            tuple(files[start : start + videos_per_shard])
            for start in range(0, len(files), videos_per_shard)
        ]
        jobs = [
            _ShardJob(
                shard,
                stage.shard_path(shard),
                source,
                group,
                {file: texts[file] for file in group if file in texts},
                settings,
                spec,
            )
            for shard, group in enumerate(groups)
        ]
        report = Report(
            str(out),
            split,
            fps,
            len(files),
            unused_captions=len(texts) - len(used),
            resumed_shards=len(stage.results),
        )
        _run(jobs, stage, workers, progress, max_bad_fraction, source)
        _summarise(report, stage)
        if not report.episodes:
            reasons = Counter(reason for _, reason in report.bad + report.short)
            raise ValueError(f"no video below {source} gave an episode: {dict(reasons)}")
        stage.publish(name=name, spec=spec, version=writer.DEFAULT_VERSION)
        return report
    finally:
        lock.release()


def find_videos(source: Path) -> list[str]:
    """Sorted relative paths of the video files below a folder."""
    looked_for = ", ".join(decode.EXTENSIONS)
    if not source.is_dir():
        raise FileNotFoundError(
            f"video folder {source} does not exist (looked for {looked_for} in it)"
        )
    found = [
        (Path(folder) / file).relative_to(source).as_posix()
        for folder, _, names in os.walk(source)
        for file in names
        if Path(file).suffix.lower() in decode.EXTENSIONS
    ]
    if not found:
        raise FileNotFoundError(f"no video below {source}; looked for files ending in {looked_for}")
    return sorted(found)


def read_captions(path: str | Path) -> dict[str, str]:
    """file -> caption of a .csv (columns file, caption) or .jsonl (the same keys)."""
    path = Path(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            rows: Iterator[dict] = csv.DictReader(file)
        elif path.suffix == ".jsonl":
            rows = (_json_line(path, n, line) for n, line in enumerate(file, 1) if line.strip())
        else:
            raise ValueError(f"captions {path} must end in .csv or .jsonl")
        captions: dict[str, str] = {}
        for number, row in enumerate(rows, 1):
            key, text = row.get("file"), row.get("caption")
            if not isinstance(key, str) or not isinstance(text, str):
                raise ValueError(
                    f"{path}, entry {number}: needs the text fields 'file' and 'caption', has {row}"
                )
            key = Path(key).as_posix()
            if key in captions:
                raise ValueError(f"{path}, entry {number}: second caption for {key!r}")
            captions[key] = text.strip()
    if not captions:
        raise ValueError(f"{path} holds no captions")
    return captions


def default_name(out: Path) -> str:
    """The dataset name that TFDS accepts, made from the name of the output directory."""
    word = "".join(c if c.isascii() and c.isalnum() else "_" for c in out.resolve().name)
    return word if word[:1].isalpha() else f"corpus_{word}"


def _run(
    jobs: Sequence[_ShardJob],
    stage: staging.Staging,
    workers: int,
    progress: bool,
    max_bad_fraction: float,
    source: Path,
) -> None:
    total = sum(len(job.files) for job in jobs)
    finished = sum(len(job.files) for job in jobs if job.shard in stage.results)
    todo = [job for job in jobs if job.shard not in stage.results]
    with tqdm(total=total, initial=finished, unit="video", disable=not progress) as bar:

        def check_bad() -> None:
            bad = [entry for result in stage.results.values() for entry in result["bad"]]
            if len(bad) > max_bad_fraction * total:
                listing = "; ".join(f"{_printable(file)}: {reason}" for file, reason in bad[:5])
                raise TooManyBadFilesError(
                    f"{len(bad)} of {total} videos below {source} cannot be converted, more than "
                    f"max_bad_fraction={max_bad_fraction} (--max_bad_fraction): {listing}"
                    + (", ..." if len(bad) > 5 else "")
                )

        check_bad()
        if workers == 1:
            for job in todo:
                stage.record(_write_shard(job, bar.update))
                check_bad()
            return
        # Spawned, not forked: the parent may hold threads (JAX, tqdm).
        pool = futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
        try:
            running = [pool.submit(_write_shard, job) for job in todo]
            for future in futures.as_completed(running):
                try:
                    result = future.result()
                except (writer.NoSpaceError, decode.UnknownFpsError) as error:
                    # The user's business: shown without the traces of two processes.
                    raise error.with_traceback(None) from None
                stage.record(result)
                bar.update(len(jobs[result["shard"]].files))
                check_bad()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_shard(job: _ShardJob, advance: Callable[[int], object] = lambda n: None) -> dict:
    """Converts the videos of one shard; the file gets its name once it is whole."""
    unfinished = job.path.with_name(job.path.name + writer.INCOMPLETE)
    result = {
        "shard": job.shard,
        "frames": 0,
        "repeated_frames": 0,
        "episodes_with_language": 0,
        "bad": [],
        "short": [],
    }
    shard = writer.ShardFile(unfinished)
    try:
        for file in job.files:
            _write_video(job, file, shard, result)
            advance(1)
        finished = shard.close()
    except BaseException:
        shard.discard()
        raise
    os.replace(unfinished, job.path)
    return {
        **result,
        "episodes": finished.num_episodes,
        "payload_bytes": finished.payload_bytes,
        "size": shard.size,
    }


def _write_video(job: _ShardJob, file: str, shard: writer.ShardFile, result: dict) -> None:
    """Appends the episodes of one video, or none of them and the reason."""
    mark = shard.mark()
    caption = job.captions.get(file, "")
    episodes = frames = repeated = 0
    short = []
    try:
        try:
            file.encode()
        except UnicodeEncodeError as error:
            raise decode.VideoError("file name is not UTF-8") from error
        for number, clip in enumerate(decode.read_clips(job.root / file, job.settings)):
            clip_id = f"{file}#{number:04d}" if job.settings.clip_frames else file
            if len(clip.images) < MIN_STEPS:
                short.append(
                    (
                        clip_id,
                        f"{len(clip.images)} frame at {job.settings.fps:g} fps, "
                        f"an episode needs {MIN_STEPS}",
                    )
                )
                continue
            episode = schema.Episode(
                images=clip.images,
                actions=None,
                instruction=caption,
                episode_id=clip_id,
                file_path=file,
                fps=job.settings.fps,
                terminal=False,
            )
            shard.append(schema.encode_episode(episode, job.spec))
            episodes, frames = episodes + 1, frames + len(clip.images)
            repeated += clip.repeated
    except decode.VideoError as error:
        shard.rollback(mark)
        result["bad"].append((file, str(error)))
        return
    result["short"] += short
    result["frames"] += frames
    result["repeated_frames"] += repeated
    result["episodes_with_language"] += episodes * bool(caption)


def _summarise(report: Report, stage: staging.Staging) -> None:
    for _, result in sorted(stage.results.items()):
        report.shards += result["episodes"] > 0
        for key in ("episodes", "frames", "repeated_frames", "episodes_with_language"):
            setattr(report, key, getattr(report, key) + result[key])
        report.bad += [tuple(entry) for entry in result["bad"]]
        report.short += [tuple(entry) for entry in result["short"]]


def _json_line(path: Path, number: int, line: str) -> dict:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line {number}: not a JSON object")
    return value


def _hash(items: Iterator | Sequence) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:16]


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
