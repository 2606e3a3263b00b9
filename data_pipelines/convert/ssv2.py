"""Something-Something V2 -> an RLDS corpus without actions (`lapa data convert ssv2`).

The official label files are JSON lists: train.json and validation.json of {id, label, template,
placeholders}, test.json of {id} alone. The instruction is the template with its bracketed places
filled by the placeholders, in order; the clip is `<videos>/<id>.webm` (qualcomm.com, "Something
Something v2 Dataset").
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from data_pipelines.convert import conversion, decode, video

_PLACE = re.compile(r"\[[^\]]*\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(conversion.Options):
    """Of `convert_ssv2`.

    videos: with the .webm files
    labels: train.json, validation.json or test.json
    fps: frames per second
    """

    videos: str | Path = conversion.option(positional=True, metavar="folder")
    labels: str | Path
    fps: float = 12.0


def convert_ssv2(options: Options) -> conversion.Report:
    """Converts the clips that one label file names into one split of a corpus.

    A clip that is missing or cannot be converted, or whose template cannot be filled, is left out
    and named. Raises ValueError for a label file without usable ids.
    """
    videos, labels = Path(options.videos), Path(options.labels)
    settings = decode.VideoSettings.of(options, options.fps)
    if not videos.is_dir():
        raise FileNotFoundError(f"folder {videos} does not exist (the .webm files of SSv2)")
    report = video.convert_files(
        videos,
        {f"{clip}.webm": row for clip, row in read_labels(labels).items()},
        settings,
        options,
        language=True,
        kind=LabelledClips,
    )
    report.notes["label file"] = str(labels)
    return report


class LabelledClips(video.VideoSource):
    """The work of a unit is the row of the label file."""

    def caption(self, unit: conversion.Unit) -> str:
        return instruction(unit.work)


def read_labels(path: Path) -> dict[str, dict]:
    """id -> row of an official label file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(
            f"{path} is not a list of labels; give train.json, validation.json or test.json of SSv2"
        )
    found: dict[str, dict] = {}
    for number, row in enumerate(rows):
        clip = str(row.get("id", "")) if isinstance(row, dict) else ""
        if not re.fullmatch(r"\w+", clip):
            raise ValueError(f"{path}, entry {number}: needs an 'id', has {row}")
        if clip in found:
            raise ValueError(f"{path}, entry {number}: second label for id {clip!r}")
        found[clip] = row
    return found


def instruction(row: dict) -> str:
    """The filled template; the label where there is no template; "" where there is neither."""
    template, values = row.get("template"), row.get("placeholders")
    if not template:
        return str(row.get("label", "")).strip()
    places = _PLACE.findall(template)
    if not isinstance(values, list) or len(places) != len(values):
        raise conversion.RecordingError(
            f"template {template!r} has {len(places)} places, its placeholders are {values!r}"
        )
    filling = iter(values)
    return _PLACE.sub(lambda match: str(next(filling)), template).strip()
