"""Any RLDS data set -> a corpus of this project's schema (`lapa data convert tfds`).

Read are the TFRecord shards that TFDS writes, by this project's codec. A record is an episode and a
unit of work. One camera becomes `image`; numbers and texts may lie under any keys (fields.py), by
default those of the Open X-Embodiment table (open_x.py). An episode whose instruction changes gives
an episode for each stretch of one instruction.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from data_pipelines.convert import conversion, decode, reading
from data_pipelines.rlds import fields, open_x, schema, shards, tfrecord


@dataclasses.dataclass(frozen=True)
class RldsSource(conversion.Source):
    """The work of a unit is (shard file, record number, offset) of an episode."""

    image_key: str
    action_key: str
    state_key: str
    instruction_key: str

    def read(self, unit: conversion.Unit) -> Iterator[conversion.Found]:
        shard, number, offset = unit.work
        try:
            record = tfrecord.read_payload(self.root / shard, number, offset)
            features = tfrecord.parse_example(record)
            yield from self._episodes(unit.name, shard, record, features)
        except (tfrecord.RecordError, fields.FieldError) as error:
            raise conversion.RecordingError(str(error)) from error

    def _episodes(
        self, name: str, shard: str, record: bytes, features: fields.Features
    ) -> Iterator[conversion.Found]:
        spans = fields.images(features, self.image_key)
        if not spans:
            raise conversion.RecordingError(f"it has no images {self.image_key}")
        steps, reformatter, images = len(spans), VideoReformatter(), []
        for step, (start, size) in enumerate(spans):
            picture = record[start : start + size]
            try:
                images.append(decode.convert_picture(picture, self.settings, reformatter))
            except decode.VideoError as error:
                raise conversion.RecordingError(
                    f"{self.image_key} of step {step}: {error}"
                ) from error
        actions, states = (
            fields.numbers(features, record, steps, key)
            for key in (self.action_key, self.state_key)
        )
        texts = fields.texts(features, record, steps, self.instruction_key)
        reward = _reward(features, record, steps)
        terminal = features.get(schema.IS_TERMINAL)
        ends = terminal.ints(record)[-1:] if terminal and terminal.kind == tfrecord.INT64 else ()
        path = fields.scalar(features, record, schema.METADATA + "file_path")
        fps = 0.0 if self.spec.fps else _fps(features, record)
        different = set(texts) - {""}
        if len(different) <= 1:  # a blank is no other instruction
            texts = [*different, ""][:1] * steps
        episode = schema.Episode(
            images=images,
            actions=actions,
            states=states,
            instruction=texts[0],
            episode_id=name,
            file_path=path if path and isinstance(path, str) else shard,
            camera=self.image_key,
            fps=fps,
            reward=reward,
            terminal=bool(ends[0] if len(ends) else True),
        )
        yield from conversion.stretches(episode, texts, texts, all_end=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(conversion.Options):
    """Of `convert_rlds`. Keys are those of `open_x.Keys`.

    source: directory with the TFRecord shards, or name of a data set
    data_dir: where TFDS keeps a data set that is given by name
    source_split: the split to read (default: --split)
    image_key: camera, below steps/observation/ (default: that of the data set where it is known)
    action_key: numbers below steps/, several keys joined by commas, '' for none (default: that of
        the data set where it is known)
    instruction_key: text below steps/, '' for none (default: that of the data set where it is
        known)
    state_key: numbers below steps/ (default: none)
    fps: steps per second (default: that of the data set where it is known, else of its episodes)
    """

    source: str | Path = conversion.option(positional=True)
    data_dir: str | Path | None = None
    source_split: str = ""
    image_key: str | None = None
    action_key: str | None = None
    instruction_key: str | None = None
    state_key: str = ""
    fps: float = 0.0


def convert_rlds(options: Options) -> conversion.Report:
    """Converts one split and camera of an RLDS data set into one split of a corpus.

    Left out and named: damaged records, pictures that cannot be decoded, actions that are not
    finite. Raises ValueError, with what there is, where a key is not in the data.
    """
    split = options.source_split or options.split
    directory = find_directory(options.source, options.data_dir)
    files = shards.find_shards(directory, split)
    known = open_x.keys_of(directory, split)
    table = known or open_x.Keys()
    units = list(find_units(files))
    first = tfrecord.first_example(files)
    if first is None:
        raise ValueError(f"{directory}: none of its {len(units)} records can be read")
    *_, record, features = first
    whats = ("image", "action", "instruction", "state")
    keys = {what: getattr(options, f"{what}_key") for what in whats}
    keys |= {what: getattr(table, what) for what, key in keys.items() if key is None}
    widths = _check_keys(open_x.name_of(directory, split), keys, record, features)
    fps = float(options.fps or table.fps)
    if not fps and not _fps(features, record):
        table_says = "its name is not in the table of Open X-Embodiment"
        if known:
            table_says = "sources on this data set disagree"
        raise ValueError(
            f"{directory} does not say how many steps a second has: its episodes lack {schema.FPS},"
            f" and {table_says} (--fps)"
        )
    settings = decode.VideoSettings.of(options, fps or 1.0)
    spec = options.spec(
        fps, actions=widths["action"], states=widths["state"], language=bool(keys["instruction"])
    )
    named = {f"{what}_key": key for what, key in keys.items()}
    report = conversion.convert(
        RldsSource(directory, settings, spec, **named),
        units,
        options,
        {
            **dataclasses.asdict(settings),
            **named,
            "source_split": split,
            "source_hash": reading.hash_of_files(directory, [path.name for path in files]),
        },
    )
    report.notes |= {
        "keys": "of Open X-Embodiment's table, where not given" if known else "given or standard",
        "image": keys["image"],
        "action": f"{keys['action']} ({widths['action']} numbers)" if widths["action"] else "none",
        "instruction": keys["instruction"] or "none",
        "fps": fps or f"of {schema.FPS}",
    }
    if other := [key for key in fields.cameras(features, record) if key != keys["image"]]:
        report.notes["other cameras"] = ", ".join(other)
    return report


def find_directory(source: str | Path, data_dir: str | Path | None = None) -> Path:
    """Of the shards; a data set that is given by name is looked up by TFDS."""
    directory = Path(source)
    if directory.is_dir():
        return directory
    if data_dir is None:
        raise FileNotFoundError(
            f"{source} is no directory; for a data set by name say where TFDS keeps it (--data_dir)"
        )
    try:
        from tensorflow_datasets.core import DatasetNotFoundError, read_only_builder
    except ImportError as error:
        raise ValueError(
            f"finding {source!r} by name needs tensorflow-datasets ({error}); give the directory "
            "with its shards instead"
        ) from error
    try:  # not tfds.builder: it asks the network for the sets that it knows
        found = read_only_builder.builder_from_files(str(source), data_dir=os.fspath(data_dir))
    except DatasetNotFoundError as error:
        raise FileNotFoundError(f"TFDS finds no {source!r} in {data_dir} (--data_dir)") from error
    return Path(found.data_dir)


def find_units(files: list[Path]) -> Iterator[conversion.Unit]:
    """An episode each; what cannot be found in a damaged shard is one bad unit."""
    for path in files:
        number = -1
        try:
            data = tfrecord.map_file(path)
            for number, offset, length in tfrecord.iterate_records(data, path=path, verify=False):
                work = (path.name, number, offset)
                yield conversion.Unit(f"{path.name}:{number}", work, size=length)
        except tfrecord.RecordError as error:
            yield conversion.Unit(f"{path.name}:{number + 1} and what follows", bad=error.reason)


def _check_keys(
    data_set: str, keys: dict[str, str], record: bytes, features: fields.Features
) -> dict[str, int]:
    """Numbers a step of action and state. Raises ValueError for what is not there."""

    def fail(what: str, reason: str) -> ValueError:
        return ValueError(
            f"--{what}_key {keys[what]!r}: {reason} in {data_set!r}, which has "
            f"{fields.listing(features, record)}"
        )

    if keys["image"] not in fields.cameras(features, record):
        raise fail("image", "no such images")
    steps = len(fields.images(features, keys["image"]))
    widths = {}
    for what in ("action", "state"):
        try:
            values = fields.numbers(features, record, steps, keys[what])
        except fields.FieldError as error:
            raise fail(what, str(error)) from error
        if values is None and keys[what]:
            raise fail(what, 'no such numbers ("" for none)')
        widths[what] = 0 if values is None else values.shape[1]
    if keys["instruction"] and "steps/" + keys["instruction"] not in features:
        raise fail("instruction", 'no such texts ("" for none)')
    return widths


def _reward(features: fields.Features, record: bytes, steps: int) -> np.ndarray | None:
    feature = features.get(schema.REWARD)
    if feature is None or feature.kind != tfrecord.FLOAT:
        return None
    values = feature.floats(record)
    return values if len(values) == steps else None


def _fps(features: fields.Features, record: bytes) -> float:
    """By the metadata, 0 where they do not say."""
    found = fields.scalar(features, record, schema.FPS)
    return 0.0 if found is None or isinstance(found, str) else float(found)
