"""Something-Something V2 -> an RLDS corpus without actions (`lapa data convert ssv2`).

The official label files are JSON lists: train.json and validation.json of {id, label, template,
placeholders}, test.json of {id} alone. The instruction is the template with its bracketed places
filled by the placeholders, in order; the clip is `<videos>/<id>.webm` (qualcomm.com, "Something
Something v2 Dataset").
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.convert import conversion, decode, video
from data_pipelines.convert.captions import Caption
from data_pipelines.rlds import selection

_PLACE = re.compile(r"\[[^\]]*\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(conversion.Options):
    """Of `convert_ssv2`.

    videos: with the .webm files
    labels: train.json, validation.json or test.json
    instruction_key: fields of a label, joined by commas, of which the first that is not blank
        counts; template is the filled one; '' for none
    fps: frames per second
    """

    videos: str | Path = conversion.option(positional=True, metavar="folder")
    labels: str | Path
    instruction_key: str = "template,label"
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
    rows, keys = read_labels(labels), tuple(selection.paths(options.instruction_key))
    known = {key for row in rows.values() for key in row} | {"template", "label"}
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(
            f"--instruction_key {options.instruction_key!r}: no label of {labels} has {unknown}; "
            f"they have {sorted(known)}"
        )
    report = video.convert_files(
        videos,
        {(f"{clip}.webm",): row for clip, row in rows.items()},
        settings,
        options,
        language=bool(keys),
        kind=LabelledClips,
        **({} if keys == LabelledClips.keys else {"keys": keys}),
    )
    report.notes["label file"] = str(labels)
    named = {f"{clip}.webm" for clip in rows}
    report.passed_over["files without a label"] = sorted(set(os.listdir(videos)) - named)
    return report


@dataclasses.dataclass(frozen=True)
class LabelledClips(video.VideoSource):
    """What a unit says is the row of the label file, its instruction the first of `keys`."""

    keys: tuple[str, ...] = ("template", "label")

    def captions(self, unit: conversion.Unit) -> Sequence[Caption]:
        return (Caption(instruction(unit.work[0], self.keys)),)


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


def instruction(row: dict, keys: Sequence[str] = LabelledClips.keys) -> str:
    """The first field of a label that is not blank, the template filled; "" where there is none."""
    texts = (_filled(row) if key == "template" else str(row.get(key) or "").strip() for key in keys)
    return next(filter(None, texts), "")


def _filled(row: dict) -> str:
    template, values = row.get("template"), row.get("placeholders")
    if not template:
        return ""
    places = _PLACE.findall(template)
    if not isinstance(values, list) or len(places) != len(values):
        raise conversion.RecordingError(
            f"template {template!r} has {len(places)} places, its placeholders are {values!r}"
        )
    filling = iter(values)
    return _PLACE.sub(lambda match: str(next(filling)), template).strip()
