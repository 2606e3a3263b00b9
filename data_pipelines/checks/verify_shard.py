"""What is wrong with the records of one shard, each looked at by itself; see verify.py."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np

from data_pipelines.index import CorpusIndex
from data_pipelines.loader import frames
from data_pipelines.rlds import fields, overview, schema, tfrecord
from data_pipelines.rlds.declared import Declaration

MIN_CONSTANT = 3  # as many equal actions are a constant one


@dataclass(frozen=True)
class Fault:
    """`record` None: of the whole shard, or of the split where `shard` is empty."""

    kind: str
    split: str
    shard: str
    record: int | None
    reason: str

    @property
    def place(self) -> str:
        return self.shard if self.record is None else f"{self.shard}:{self.record}"


@dataclass(frozen=True)
class Record:
    """What of a record can only be judged beside the others."""

    split: str
    shard: str
    number: int
    episode_id: str
    with_text: bool
    action_dim: int | None  # 0: no actions; None: not known
    sizes: tuple[tuple[str, tuple[int, int]], ...]  # (image_key, each size of its images)


@dataclass
class ShardReport:
    faults: list[Fault]
    records: list[Record]  # that could be parsed
    episodes: int = 0
    images: int = 0


@dataclass(frozen=True)
class ShardReader:
    """Reads shards of a split; without state, so that threads may share it."""

    split: str
    image_keys: Sequence[str]
    action_key: str
    instruction_key: str
    declared: Declaration = field(default_factory=dict)

    def check_keys(self, shards: Sequence[Path]) -> None:
        """Raises ValueError where the first record has not what a key names."""
        first = tfrecord.first_example(shards)
        if first is None:
            return  # faults, which `read` reports
        path, number, record, features = first
        try:
            overview.require(features, self.action_key, overview.STANDARD["action"])
            overview.require(features, self.instruction_key, overview.STANDARD["instruction"])
        except fields.FieldError as error:
            there = overview.listing(features, record, self.declared)
            raise ValueError(f"{path}, record {number}: {error}; {there}") from error
        missing = [key for key in self.image_keys if not fields.images(features, key)]
        if missing:
            raise ValueError(
                f"{path}, record {number} has no images of image_key {missing}; "
                f"{overview.listing(features, record, self.declared)}"
            )

    def read(
        self, path: Path, announced: int | None, indexes: dict[str, CorpusIndex]
    ) -> ShardReport:
        """Everything about a shard. announced: its records by dataset_info.json. indexes: by image
        key, to compare with."""
        found, crcs = ShardReport([], []), {}
        data = tfrecord.map_file(path)

        def fault(kind: str, number: int | None, reason: str) -> None:
            found.faults.append(Fault(kind, self.split, path.name, number, reason))

        try:
            for number, offset, length in tfrecord.iterate_records(data, verify=False):
                found.episodes += 1
                for kind, why in self._record(path, data, number, offset, length, found, crcs):
                    fault(kind, number, why)
        except tfrecord.RecordError as error:
            fault("shard", None, f"from record {found.episodes} on: {error.reason}")
        else:
            if announced is not None and announced != found.episodes:
                told = f"{found.episodes} records, dataset_info.json announces {announced}"
                fault("shard", None, told)
        for key, index in indexes.items():
            number = _unlike_index(index, path, crcs, key)
            if number is not None:
                told = f"image_key {key}: the images of record {number} are not those indexed"
                fault("index", None, told)
        return found

    def _record(
        self,
        path: Path,
        data: memoryview,
        number: int,
        offset: int,
        length: int,
        found: ShardReport,
        crcs: dict[tuple[str, int], np.ndarray],
    ) -> Iterator[tuple[str, str]]:
        """(kind, reason) of its faults; adds to what is found, and the checksums of its images."""
        record = data[offset : offset + length]
        (stored,) = np.frombuffer(data[offset + length : offset + length + 4], "<u4")
        if tfrecord.masked_crc32c(record) != stored:
            yield "checksum", f"the checksum of its {length} bytes does not match"
            return
        try:
            features = tfrecord.parse_example(record, offset=offset)
        except tfrecord.RecordError as error:
            yield "proto", error.reason
            return
        steps, sizes = 0, []
        for key in self.image_keys:
            spans = fields.images(features, key)
            steps = steps or len(spans)
            if not spans or len(spans) != steps:
                yield "lengths", f"{len(spans)} images of {schema.OBSERVATION}{key}, {steps} steps"
            jpegs = [bytes(record[start : start + size]) for start, size in spans]
            crcs[key, number] = np.array([google_crc32c.value(j) for j in jpegs], np.uint32)
            found.images += len(jpegs)
            bad, seen = _decode(jpegs)
            sizes += [(key, size) for size in seen]
            if bad:
                step, reason = bad[0]
                told = f"{len(bad)} of {len(jpegs)} of {key}; the first at step {step}: {reason}"
                yield "image", told
        if not steps:
            return
        lengths = list(self._lengths(features, record, steps))
        yield from lengths
        texts, fault = self._texts(features, record, steps)
        if fault and not lengths:
            yield "instruction", fault
        action_dim = None
        try:
            actions = fields.actions(features, record, steps, self.action_key, self.declared)
            action_dim = 0 if actions is None else actions.shape[1]
        except fields.FieldError as error:
            actions = None
            if not lengths:
                yield "action", str(error)
        if actions is not None:
            yield from _action_faults(features, record, actions)
        name, seen = _id(features, record), tuple(sizes)
        of = (self.split, path.name, number)
        found.records.append(Record(*of, name, bool(texts), action_dim, seen))

    def _lengths(
        self, features: fields.Features, record: memoryview, steps: int
    ) -> Iterator[tuple[str, str]]:
        for key, feature in sorted(features.items()):
            # Ragged features have their own lengths; a list without any value is an absent one.
            if not key.startswith("steps/") or "/ragged_" in key or feature.kind == tfrecord.EMPTY:
                continue
            if key.removeprefix(schema.OBSERVATION) in self.image_keys:
                continue
            size = len(feature.spans if feature.kind == tfrecord.BYTES else feature.values(record))
            once = size == 1 and key.removeprefix("steps/") in self.instruction_key.split(",")
            if (size % steps or not size) and not once:
                yield "lengths", f"{size} values of {key}, {steps} steps"

    def _texts(
        self, features: fields.Features, record: memoryview, steps: int
    ) -> tuple[set[str], str]:
        """The instructions, and what is wrong with them."""
        try:
            of = self.instruction_key, self.declared
            texts = set(fields.texts(features, record, steps, *of)) - {""}
        except fields.FieldError as error:
            return {""}, str(error)
        return texts, f"it changes: {sorted(texts)[:3]}" if len(texts) > 1 else ""


def _decode(jpegs: list[bytes]) -> tuple[list[tuple[int, str]], list[tuple[int, int]]]:
    """((step, reason) of those that cannot be decoded, the different sizes of the others)."""
    bad, sizes = [], set()
    for step, jpeg in enumerate(jpegs):
        try:
            size = schema.jpeg_size(jpeg)[:2]
            frames.decode_jpeg(jpeg, np.empty((*size, 3), np.uint8))
            sizes.add(size)
        except ValueError as error:  # BadImage and ImageSizeError are
            bad.append((step, str(error)))
    return bad, sorted(sizes)


def _action_faults(
    features: fields.Features, record: memoryview, values: np.ndarray
) -> Iterator[tuple[str, str]]:
    """Of the actions (steps, A); that of a step `is_last` means nothing."""
    used = values[: len(values) - fields.ends_by_flag(features, record, len(values))]
    bad = np.argwhere(~np.isfinite(used))
    if len(bad):
        step, dimension = bad[0]
        where = f"step {step}, dimension {dimension}: {values[step, dimension]}"
        yield "action", f"{len(bad)} values are not finite; the first at {where}"
    elif len(values) > MIN_CONSTANT and (values[:-1] == values[0]).all():
        yield "constant_action", f"{values[0].tolist()} at all of {len(values) - 1} steps"


def _id(features: fields.Features, record: memoryview) -> str:
    """Text identifies an episode; a number does in its file (Bridge counts them so)."""

    def text(key: str) -> str:
        feature = features.get(key)
        if feature is None or feature.kind != tfrecord.BYTES:
            return ""
        return ",".join(item.decode(errors="replace") for item in feature.byte_items(record))

    feature = features.get(schema.EPISODE_ID)
    if feature is None or feature.kind != tfrecord.INT64:
        return text(schema.EPISODE_ID)
    path = text(schema.METADATA + "file_path")
    return f"{path}:{','.join(map(str, feature.ints(record)))}" if path else ""


def _unlike_index(
    index: CorpusIndex, path: Path, crcs: dict[tuple[str, int], np.ndarray], key: str
) -> int | None:
    """The first record of a shard whose images are not those that the index knows."""
    shard = [one.name for one in index.shards].index(path.name)
    for episode in np.flatnonzero(index.shard_of_episode == shard):
        number, start = int(index.record_of_episode[episode]), int(index.episode_start[episode])
        known = index.frame_crc[start : start + int(index.episode_length[episode])]
        if (key, number) in crcs and not np.array_equal(crcs[key, number], known):
            return number
    return None
