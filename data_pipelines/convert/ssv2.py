"""Something-Something V2 -> an RLDS corpus without actions (`lapa data convert ssv2`).

The official label files are JSON lists: train.json and validation.json of {id, label, template,
placeholders}, test.json of {id} alone. The instruction is the template with its bracketed places
filled by the placeholders, in order; the clip is `<videos>/<id>.webm` (qualcomm.com, "Something
Something v2 Dataset").
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from data_pipelines.convert import conversion, decode, video

_PLACE = re.compile(r"\[[^\]]*\]")


def convert_ssv2(
    videos: str | Path,
    out: str | Path,
    *,
    labels: str | Path,
    fps: float = 12.0,
    size: tuple[int, int] = (64, 64),
    fit: str = "crop",
    quality: int = 92,
    name: str | None = None,
    **options,
) -> conversion.Report:
    """Converts the clips that one label file names into one split of the corpus directory `out`.

    videos: the folder with the .webm files. labels: train.json, validation.json or test.json. fps:
    the clips have 12. options: the fields of conversion.Options. A clip that is missing or cannot
    be converted, or whose template cannot be filled, is left out and named. Raises ValueError for a
    label file without usable ids.
    """
    videos, out, labels = Path(videos), Path(out), Path(labels)
    settings = decode.VideoSettings(
        fps=fps,
        height=size[0],
        width=size[1],
        fit=fit,
        quality=quality,
        clip_seconds=0.0,
        source_fps=0.0,
    )
    options = conversion.Options(**options)
    if not videos.is_dir():
        raise FileNotFoundError(f"folder {videos} does not exist (the .webm files of SSv2)")
    report = video.convert_files(
        videos,
        {f"{clip}.webm": row for clip, row in read_labels(labels).items()},
        out,
        settings,
        options,
        name=name,
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
