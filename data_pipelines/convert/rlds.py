"""Any RLDS data set -> a corpus of this project's schema (`lapa data convert tfds`).

Read are the TFRecord shards that TFDS writes, by this project's codec. A record is an episode and a
unit of work. Keys are selections (fields.py), by default those of the Open X-Embodiment table
(open_x.py). The first camera becomes `image`. An episode whose instruction changes gives an episode
for each stretch of one instruction.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.convert import action_forms, conversion, decode, reading
from data_pipelines.rlds import fields, open_x, overview, schema, selection, shards, tfrecord
from data_pipelines.rlds.declared import Declaration, declaration_of


@dataclasses.dataclass(frozen=True)
class RldsSource(conversion.Source):
    """The work of a unit is (shard file, record number, offset) of an episode."""

    image_key: str
    action_key: str
    state_key: str
    instruction_key: str
    declared: Declaration
    action_forms: tuple[str, ...] = ()

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
        cameras = selection.paths(self.image_key)
        views = [self._images(path, record, features) for path in cameras]
        images, of = views[0], self.declared
        steps = len(images)
        actions = fields.actions(features, record, steps, self.action_key, of)
        states = fields.numbers(features, record, steps, self.state_key, of)
        if actions is not None:
            fields.check_actions(features, record, actions)
            try:
                actions = action_forms.formed(self.action_forms, actions, states)
            except ValueError as error:
                raise conversion.RecordingError(str(error)) from error
        texts = fields.texts(features, record, steps, self.instruction_key, of)
        reward = _reward(features, record, steps, of)
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
            views=dict(zip(self.spec.cameras, views[1:], strict=True)),
        )
        yield from conversion.stretches(episode, texts, texts, all_end=False)

    def _images(
        self,
        path: str,
        record: bytes,
        features: fields.Features,
    ) -> list[bytes]:
        """The JPEGs of one camera."""
        pictures = fields.pictures(features, record, path, self.declared)
        if not pictures:
            raise conversion.RecordingError(f"it has no images {path}")
        found = []
        for step, picture in enumerate(pictures):
            try:
                found.append(decode.convert_picture(picture, self.settings))
            except decode.VideoError as error:
                raise conversion.RecordingError(f"{path} of step {step}: {error}") from error
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(conversion.Options):
    """Of `convert_rlds`. Keys are selections: paths of fields with "/", joined by commas, '' for
    none.

    source: directory with the TFRecord shards, or name of a data set
    data_dir: where TFDS keeps a data set that is given by name
    source_split: the split to read (default: --split)
    image_key: camera, below steps/observation/ or steps/; observation may itself be the image;
        several give a corpus of several cameras (default: that of the data set where it is known,
        else image, else the only one)
    action_key: numbers below steps/; those of several fields stand side by side (default: that of
        the data set where it is known, else action)
    instruction_key: text below steps/ or episode_metadata/; of several the first that is not blank
        (default: that of the data set where it is known, else language_instruction)
    state_key: numbers below steps/ (default: none)
    action_forms: conventions that actions are brought to, joined by commas, in this order:
        state_differences (the first six numbers become what the state's do until the next step),
        binary_gripper (the last number 0 or 1), event_gripper (events, 1 to close and -1 to open,
        become 0: closed, 1: open), inverted_gripper (1 - it), signed_gripper (0..1 becomes -1..1)
        (default: as they are)
    fps: steps per second (default: that of the data set where it is known, else of its episodes)
    """

    source: str | Path = conversion.option(positional=True)
    data_dir: str | Path | None = None
    source_split: str = ""
    image_key: str | None = None
    action_key: str | None = None
    instruction_key: str | None = None
    state_key: str = ""
    action_forms: tuple[str, ...] = ()
    fps: float = 0.0


def convert_rlds(options: Options) -> conversion.Report:
    """Converts one split of an RLDS data set into one split of a corpus.

    Left out and named: damaged records, pictures that cannot be decoded, actions that are not
    finite. Raises ValueError, with what there is, where a key is not in the data.
    """
    split = options.source_split or options.split
    directory = find_directory(options.source, options.data_dir)
    files = shards.find_shards(directory, split)
    known = open_x.keys_of(directory, split)
    table = known or open_x.Keys()
    units = list(find_units(files))
    first = tfrecord.first_example(files, overview.has_steps) or tfrecord.first_example(files)
    if first is None:
        raise ValueError(f"{directory}: none of its {len(units)} records can be read")
    *_, record, features = first
    whats = ("image", "action", "instruction", "state")
    keys = {what: getattr(options, f"{what}_key") for what in whats}
    keys |= {what: getattr(table, what) for what, key in keys.items() if key is None}
    declared = declaration_of(directory)
    cameras = overview.cameras(features, record, declared)
    if options.image_key is None and not known and keys["image"] not in cameras:
        keys["image"] = cameras[0] if len(cameras) == 1 else keys["image"]
    name = open_x.name_of(directory, split)
    widths = _check_keys(name, keys, record, features, declared)
    forms = tuple(options.action_forms)
    action_forms.check(forms, widths["action"], widths["state"])
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
        fps,
        actions=widths["action"],
        states=widths["state"],
        language=bool(keys["instruction"]),
        cameras=selection.paths(keys["image"]),
    )
    named = {f"{what}_key": key for what, key in keys.items()}
    report = conversion.convert(
        RldsSource(directory, settings, spec, **named, declared=declared, action_forms=forms),
        units,
        options,
        {
            **dataclasses.asdict(settings),
            **named,
            **({"action_forms": forms} if forms else {}),
            "source_split": split,
            "source_hash": reading.hash_of_files(directory, [path.name for path in files]),
        },
    )
    if forms:
        report.notes["action forms"] = ", ".join(forms)
    report.notes |= {
        "keys": "of Open X-Embodiment's table, where not given" if known else "given or standard",
        "image": keys["image"],
        "action": f"{keys['action']} ({widths['action']} numbers)" if widths["action"] else "none",
        "instruction": keys["instruction"] or "none",
        "fps": fps or f"of {schema.FPS}",
    }
    if fields.several_texts(features, keys["instruction"], declared):
        report.notes["instruction"] += " (of several texts the first that is not blank)"
    unused = overview.unused(features, record, declared, *keys.values())
    if other := unused.pop("cameras"):
        report.notes["other cameras"] = ", ".join(other)
    report.passed_over |= unused | {"splits": shards.other_splits(directory, split)}
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
    data_set: str,
    keys: dict[str, str],
    record: bytes,
    features: fields.Features,
    declared: Declaration,
) -> dict[str, int]:
    """Numbers a step of action and state. Raises ValueError for what is not there."""

    def fail(what: str, reason: str) -> ValueError:
        return ValueError(
            f"--{what}_key {keys[what]!r}: {reason} in {data_set!r}, which has "
            f"{overview.listing(features, record, declared)}"
        )

    widths, steps = {}, 0
    for what in keys:
        try:
            if what == "image":
                pictures = [
                    fields.pictures(features, record, path, declared)
                    for path in selection.paths(keys[what])
                ]
                if not pictures or not all(pictures):
                    raise fail(what, "no such images")
                steps = len(pictures[0])
            elif what == "instruction":
                overview.require(features, keys[what])
                fields.texts(features, record, steps, keys[what], declared)
            else:
                overview.require(features, keys[what])
                read = fields.actions if what == "action" else fields.numbers
                values = read(features, record, steps, keys[what], declared)
                if values is None and keys[what]:
                    raise fields.FieldError("it holds no numbers")
                widths[what] = 0 if values is None else values.shape[1]
        except fields.FieldError as error:
            none = "" if what == "image" else " ('' for none)"
            raise fail(what, f"{error}{none}") from error
    return widths


def _reward(
    features: fields.Features, record: bytes, steps: int, declared: Declaration
) -> np.ndarray | None:
    try:
        values = fields.numbers(features, record, steps, "reward", declared)
    except fields.FieldError:
        return None
    return values[:, 0] if values is not None and values.shape[1] == 1 else None


def _fps(features: fields.Features, record: bytes) -> float:
    """By the metadata, 0 where they do not say."""
    found = fields.scalar(features, record, schema.FPS)
    return 0.0 if found is None or isinstance(found, str) else float(found)
