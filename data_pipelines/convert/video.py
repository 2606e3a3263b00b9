"""A folder tree of videos -> an RLDS corpus without actions (`lapa data convert video`).

Files are taken in the order of their sorted paths. One that cannot be converted whole is left out
and named with its reason.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.convert import conversion, decode, reading
from data_pipelines.rlds import schema


class VideoSource(conversion.Source):
    """Video files below `root`, the names of the units."""

    noun = "video"

    @property
    def place(self) -> str:
        return f"below {self.root}"

    def caption(self, unit: conversion.Unit) -> str:
        return unit.work

    def read(self, unit: conversion.Unit) -> Iterator[conversion.Found]:
        caption = self.caption(unit)
        for number, clip in enumerate(decode.read_clips(self.root / unit.name, self.settings)):
            episode = schema.Episode(
                images=clip.images,
                actions=None,
                instruction=caption,
                episode_id=f"{unit.name}#{number:04d}" if self.settings.is_cut else unit.name,
                file_path=unit.name,
                fps=self.settings.fps,
                terminal=False,
            )
            yield conversion.Found(episode, clip.repeated)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(conversion.Options):
    """Of `convert_videos`.

    source: folder, searched for .mp4, .mkv, .webm, .avi, .mov
    captions: .csv or .jsonl with file (relative path) and caption
    clip_seconds: cut into episodes (default: 0, whole)
    split_scenes: begin another episode where the video cuts to another scene (0.3 if no number is
        given; default: off)
    source_fps: for files without time stamps and rate
    fps: frames per second
    """

    source: str | Path = conversion.option(positional=True, metavar="folder")
    captions: str | Path | None = None
    clip_seconds: float = 0.0
    split_scenes: float = conversion.option(0.0, nargs="?", const=0.3, metavar="DISTANCE")
    source_fps: float = 0.0
    fps: float = 10.0


def convert_videos(options: Options) -> conversion.Report:
    """Converts every video below a folder into one split of a corpus."""
    source, captions = Path(options.source), options.captions
    settings = decode.VideoSettings.of(
        options,
        options.fps,
        clip_seconds=options.clip_seconds,
        source_fps=options.source_fps,
        cut_threshold=options.split_scenes,
    )
    files = find_videos(source)
    texts = read_captions(captions) if captions else {}
    used = texts.keys() & set(files)
    if texts and not used:
        raise ValueError(
            f"{captions}: no caption is for a video below {source}; its column `file` must hold"
            f" paths relative to that folder, such as {files[0]!r} (it has {next(iter(texts))!r})"
        )
    wanted = {file: texts.get(file, "") for file in files}
    report = convert_files(source, wanted, settings, options, language=bool(texts))
    if texts:
        report.notes["captions unused"] = len(texts) - len(used)
    return report


def convert_files(
    root: Path,
    captions: dict[str, Any],
    settings: decode.VideoSettings,
    options: conversion.Options,
    *,
    language: bool,
    kind: type[VideoSource] = VideoSource,
) -> conversion.Report:
    """Converts the files {path below root: what `kind` makes the caption of} in their order."""
    return conversion.convert(
        kind(root, settings, options.spec(settings.fps, language=language)),
        [
            conversion.Unit(file, caption, size=reading.size_of(root / file))
            for file, caption in captions.items()
        ],
        options,
        {
            **dataclasses.asdict(settings),
            "videos": len(captions),
            "source_hash": reading.hash_of_files(root, captions),
            "captions_hash": reading.hash_of(captions.items()),
        },
    )


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
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    elif path.suffix == ".jsonl":
        rows = [row for _, row in reading.json_lines(path)]
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
