"""Whether a corpus is sound: every record, image, action, instruction, id and sidecar is looked at.

`verify_corpus` reads all shards of any RLDS directory and returns what is wrong, by record. A fault
of a record is mended by leaving the record out of the index (`exclude_list`), which is what the
loader reads; the others say what to do.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import sidecar
from data_pipelines.checks import statistics
from data_pipelines.checks.verify_shard import Fault, Record, ShardReader
from data_pipelines.index import CorpusIndex, load_index
from data_pipelines.index.labels import IMAGE_TOKENS, LATENT_ACTIONS, LabelSet, known_sets
from data_pipelines.progress import Progress
from data_pipelines.rlds.declared import declaration_of
from data_pipelines.rlds.shards import announced_lengths, find_shards, index_folder
from data_pipelines.storage import locate

KINDS = {
    "shard": "a file cannot be read to its end, or has another number of records: restore it",
    "checksum": "a record's bytes are not those that were written",
    "proto": "a record is no tf.train.Example",
    "lengths": "lists of an episode's steps differ in length, or are missing",
    "image": "images cannot be decoded",
    "image_size": "images are not of the corpus' most common size",
    "instruction": "it is empty though others are not, it changes, or it is not text",
    "action": "it is not finite, no float32, or has not as many dimensions as most",
    "constant_action": "it is the same at every step",
    "duplicate_id": "an episode before has the same episode_id (a number: the same file_path, too)",
    "index": "the index does not fit the shards: run `lapa data index`",
    "labels": "a label or token set does not fit the index, or is damaged: run `lapa label`",
}
MAX_SHOWN = 20
BINS = 256  # of an action dimension, for its error as tokens
_DAMAGED = (sidecar.SidecarError, FileNotFoundError)


@dataclass
class Report:
    """What was read, and what is wrong with it."""

    directory: str
    shards: int = 0
    episodes: int = 0
    images: int = 0
    faults: list[Fault] = field(default_factory=list)  # of records that an index does not leave out
    left_out: list[Fault] = field(default_factory=list)  # of records that each index leaves out
    excluded: list[tuple[str, int]] = field(default_factory=list)  # (shard, record), likewise
    notes: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)  # that a training should know of

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"counts": dict(Counter(fault.kind for fault in self.faults))}


def verify_corpus(
    directory: str | os.PathLike,
    *,
    splits: Sequence[str] = ("train",),
    image_keys: Sequence[str] = ("image",),
    action_key: str = "action",
    instruction_key: str = "language_instruction",
    sidecar_dir: str | os.PathLike | None = None,
    allow: Collection[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Reads, parses and decodes everything; keys as of `build_index`.

    allow: KINDS that are no faults here. workers: threads (default: one per core). Raises
    ValueError where there are no images of a key at all.
    """
    unknown = sorted(set(allow) - set(KINDS))
    if unknown:
        raise ValueError(f"allow is {unknown}; the kinds of faults are {list(KINDS)}")
    directory, report = Path(locate(directory)), Report(str(directory))
    faults: list[Fault] = []
    records: list[Record] = []
    jobs = []
    for split in splits:
        shards = find_shards(directory, split)
        report.shards += len(shards)
        declared = declaration_of(directory)
        reader = ShardReader(split, tuple(image_keys), action_key, instruction_key, declared)
        reader.check_keys(shards)
        indexes, excluded = {}, []
        for key in image_keys:
            manifest = index_folder(directory, key, split, sidecar_dir) / "manifest.json"
            if not manifest.is_file():
                report.notes.append(f"split {split} has no index of image_key {key}")
                continue
            try:
                excluded.append(set(map(tuple, sidecar.read_json(manifest)["exclude"])))
                where = dict(split=split, sidecar_dir=sidecar_dir, image_key=key)
                indexes[key] = load_index(directory, **where)
                faults += _label_faults(indexes[key])
                if len(indexes) == 1:
                    report.facts += (f"split {split}: {told}" for told in _facts(indexes[key]))
            except _DAMAGED as error:
                faults.append(Fault("index", split, "", None, str(error)))
        if excluded:  # by every index
            report.excluded += sorted(set.intersection(*excluded))
        untold = [None] * len(shards)
        lengths = announced_lengths(directory, split) or untold
        if len(lengths) != len(shards):
            reason = f"dataset_info.json announces {len(lengths)} shards, there are {len(shards)}"
            faults.append(Fault("shard", split, "", None, reason))
            lengths = untold
        found = zip(shards, lengths, strict=True)
        jobs += [(reader, path, length, indexes) for path, length in found]
    sizes = [job[1].stat().st_size for job in jobs]
    with (
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
        Progress("verify", sum(sizes), unit="B", show=progress) as bar,
    ):
        read = pool.map(lambda job: job[0].read(*job[1:]), jobs)
        for size, one in zip(sizes, read, strict=True):
            faults += one.faults
            records += one.records
            report.episodes += one.episodes
            report.images += one.images
            bar.update(size)
    faults += _beside_the_others(records)
    excluded = set(report.excluded)
    for fault in faults:
        if fault.kind not in allow:
            out = (fault.shard, fault.record) in excluded
            (report.left_out if out else report.faults).append(fault)
    return report


def _facts(index: CorpusIndex) -> Iterator[str]:
    """What the length of a history, of a text and of chunks must fit; what of actions is easily
    lost in tokens."""
    yield f"episodes of {index.episode_length.min()} to {index.episode_length.max()} steps"
    if index.instructions:
        words = [len(text.split()) for text in index.instructions]
        longest = int(np.argmax(words))
        episode = int(np.flatnonzero(index.instruction_of_episode == longest)[0])
        shard, number = index.shard_of_episode[episode], index.record_of_episode[episode]
        yield (
            f"{len(words)} different instructions, the longest of {words[longest]} words, first at "
            f"{index.shards[shard].name}:{number}"
        )
    if index.actions is not None:
        try:
            found, _ = statistics.survey(index, BINS)
        except ValueError as error:  # there is no action but last ones
            yield f"no statistics of actions: {error}"
        else:
            yield from statistics.peculiarities(found, found["largest_error"], f"{BINS} bins")


def _label_faults(index: CorpusIndex) -> Iterator[Fault]:
    """What is wrong with the label sets of an index."""
    key, split = index.image_key, index.split
    for kind in (LATENT_ACTIONS, IMAGE_TOKENS):
        for name in known_sets(index.sidecar_dir, kind, key, split):
            path = kind.folder(index.sidecar_dir, name, key) / f"{split}.manifest.json"
            try:
                # Label sets of all cameras lie in one folder.
                if sidecar.read_json(path)["provenance"]["image_key"] == key:
                    LabelSet.open(index.sidecar_dir, name, index, kind)
            except _DAMAGED as error:
                yield Fault("labels", split, "", None, str(error))


def _beside_the_others(records: list[Record]) -> Iterator[Fault]:
    """Faults of records that are seen among all records."""
    sizes = Counter(size for record in records for size in record.sizes)
    common: dict[str, tuple[int, int]] = {}
    for (key, size), _ in sizes.most_common():
        common.setdefault(key, size)
    dimensions = Counter(r.action_dim for r in records if r.action_dim is not None)
    action_dim = dimensions.most_common(1)[0][0] if dimensions else None
    with_text = any(record.with_text for record in records)
    first: dict[str, str] = {}
    for record in records:
        place = (record.split, record.shard, record.number)
        for key, size in record.sizes:
            if size != common[key]:
                reason = f"{key} of {size[0]}x{size[1]}, most are {common[key][0]}x{common[key][1]}"
                yield Fault("image_size", *place, reason)
        if record.action_dim not in (action_dim, None):
            reason = f"{record.action_dim} dimensions, most episodes have {action_dim}"
            yield Fault("action", *place, reason)
        if with_text and not record.with_text:
            yield Fault("instruction", *place, "it is empty")
        if record.episode_id in first:
            reason = f"{record.episode_id!r} is also {first[record.episode_id]}"
            yield Fault("duplicate_id", *place, reason)
        elif record.episode_id:
            first[record.episode_id] = f"{record.shard}:{record.number}"


# ---------------------------------------------------------------- what is told


def exclude_list(report: Report) -> str:
    """Lines `SHARD:RECORD  # why` for `lapa data index --exclude_file`: what has a fault, and what
    the indexes leave out already."""
    reasons: dict[tuple[str, int], str] = {place: "left out before" for place in report.excluded}
    for fault in report.left_out + report.faults:
        if fault.record is not None:
            reasons[fault.shard, fault.record] = f"{fault.kind}: {fault.reason}"
    lines = [
        f"{shard}:{number}  # {' '.join(why.split())}"
        for (shard, number), why in sorted(reasons.items())
    ]
    return "".join(line + "\n" for line in lines)


def to_text(report: Report) -> str:
    """The report for a terminal."""
    lines = [
        f"{report.directory}: {report.shards} shards, {report.episodes} episodes, "
        f"{report.images} images"
    ]
    counts = Counter(fault.kind for fault in report.faults)
    lines += [f"{counts[kind]:>8} {kind:<16} {KINDS[kind]}" for kind in KINDS if counts[kind]]
    for fault in report.faults[:MAX_SHOWN]:
        lines.append(f"{fault.kind:<16} {fault.split} {fault.place or '-'}  {fault.reason}")
    if len(report.faults) > MAX_SHOWN:
        lines.append(f"... and {len(report.faults) - MAX_SHOWN} more (--json tells all)")
    lines += report.notes + report.facts
    if report.left_out:
        lines.append(f"{len(report.left_out)} faults are of episodes that the index leaves out")
    lines.append("sound" if not report.faults else f"{len(report.faults)} faults")
    return "\n".join(lines)
