"""Finished parts of a conversion that is still running, and the shards that they become.

`DIR/.staging-<split>/` holds settings.json, and for each finished part part-NNNNN.tfrecord with its
manifest part-NNNNN.json, which is written last: what has a manifest is done, and a restart skips
it. When all are there, plan.json says which bytes of which parts make each shard; shards are joined
beside the parts, each with a manifest, too, and published together.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines import sidecar, storage
from data_pipelines.convert import executors, reading
from data_pipelines.rlds import tfrecord, writer


class Piece(NamedTuple):
    """Bytes [start, stop) of a part."""

    part: int
    start: int
    stop: int


class PlannedShard(NamedTuple):
    """Records in a row, and where they lie."""

    episodes: int
    payload_bytes: int
    pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class JoinJob(executors.Job):
    """All that is needed to write one shard."""

    shard: int
    pieces: tuple[tuple[Path, int, int], ...]


def plan_by_size(records: Sequence[tuple[int, Sequence[int]]], target: int) -> list[PlannedShard]:
    """Shards of about equal size, as near to `target` bytes as their number allows.

    records: (part, payload bytes of each of its records), in order. Depends on nothing else; a
    shard is larger or smaller than the others by less than one record.
    """
    framing = tfrecord.HEADER_BYTES + tfrecord.FOOTER_BYTES
    total = sum(size + framing for _, sizes in records for size in sizes)
    count = max(1, round(total / target))
    shards: list[list[tuple[int, int, int]]] = [[] for _ in range(count)]
    position = 0
    for part, sizes in records:
        start = 0
        for size in sizes:
            shards[position * count // total].append((part, start, size))
            position, start = position + size + framing, start + size + framing
    return [_planned(shard, framing) for shard in shards if shard]


def _planned(records: list[tuple[int, int, int]], framing: int) -> PlannedShard:
    pieces: list[Piece] = []
    for part, start, size in records:
        stop = start + size + framing
        if pieces and (pieces[-1].part, pieces[-1].stop) == (part, start):
            pieces[-1] = Piece(part, pieces[-1].start, stop)
        else:
            pieces.append(Piece(part, start, stop))
    return PlannedShard(len(records), sum(size for *_, size in records), tuple(pieces))


def join(job: JoinJob) -> dict[str, Any]:
    """Writes a shard from its pieces."""
    with writer.explain_full_disk(job.path), storage.atomic_path(job.path) as unfinished:
        with unfinished.open("wb") as out:
            for path, start, stop in job.pieces:
                part = tfrecord.map_file(path)
                if len(part) < stop:
                    raise ValueError(f"{path} ends at byte {len(part)}, {stop} were written")
                out.write(part[start:stop])
            size = out.tell()
    result = {"shard": job.shard, "size": size}
    sidecar.write_json(job.manifest, result)
    return result


def folder(directory: Path, split: str) -> Path:
    """Where the staging area of a split is."""
    return directory / f".staging-{split}"


class Staging:
    """The staging area of one split. The caller holds the lock of the output directory."""

    def __init__(self, directory: Path, split: str, settings: dict):
        self.directory = directory
        self.folder = folder(directory, split)
        self.split = split
        self.plan: list[PlannedShard] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_settings(json.loads(json.dumps(settings)))  # as JSON gives it back
        if (self.folder / "plan.json").exists():
            self.plan = [
                PlannedShard(episodes, size, tuple(Piece(*piece) for piece in pieces))
                for episodes, size, pieces in sidecar.read_json(self.folder / "plan.json")
            ]
        self.results: dict[int, dict] = {}
        for manifest in sorted(self.folder.glob("part-*.json")):
            result = sidecar.read_json(manifest)
            size = reading.size_of(self.part_path(result["part"]))
            if self.plan is not None or size == result["size"]:
                self.results[result["part"]] = result
            else:
                manifest.unlink()

    def part_path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.tfrecord"

    def write_plan(self, plan: list[PlannedShard]) -> None:
        """From now on no part is written any more."""
        self.plan = plan
        sidecar.write_json(self.folder / "plan.json", plan)

    def join_jobs(self) -> list[JoinJob]:
        """What is to be joined yet; a shard that is one whole part is only renamed, here."""
        names = f"*-{self.split}.tfrecord-*-of-{len(self.plan):05d}"
        published = {path.name.split("-")[-3] for path in self.directory.glob(names)}
        needs = {
            number: planned
            for number, planned in enumerate(self.plan)
            if f"{number:05d}" not in published and not self._shard_path(number).exists()
        }
        self._shards_of_part = {part: set() for part in self.results}
        for number, planned in needs.items():
            for piece in planned.pieces:
                self._shards_of_part[piece.part].add(number)
        for part, shards in self._shards_of_part.items():
            if not shards:
                self.part_path(part).unlink(missing_ok=True)
        jobs = []
        for number, planned in needs.items():
            path = self._shard_path(number)
            pieces = tuple((self.part_path(p.part), p.start, p.stop) for p in planned.pieces)
            ((part, start, stop), *others) = pieces
            if not others and start == 0 and stop == part.stat().st_size:
                os.replace(part, path)
            else:
                jobs.append(JoinJob(path, number, pieces))
                jobs[-1].manifest.unlink(missing_ok=True)
        return jobs

    def joined(self, shard: int) -> None:
        """Frees the space of parts that no other shard needs."""
        for piece in self.plan[shard].pieces:
            left = self._shards_of_part[piece.part]
            left.discard(shard)
            if not left:
                self.part_path(piece.part).unlink(missing_ok=True)

    def publish(self, output: writer.Output) -> None:
        """Turns the shards into a split of the corpus and removes the staging area."""
        shards = [
            writer.Shard(self._shard_path(number), planned.episodes, planned.payload_bytes)
            for number, planned in enumerate(self.plan)
        ]
        output.publish(shards)
        shutil.rmtree(self.folder)

    def _shard_path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.tfrecord"

    def _check_settings(self, new: dict) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            sidecar.write_json(path, new)
            return
        old = sidecar.read_json(path)
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            listing = "; ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
            raise ValueError(
                f"{self.folder} holds an unfinished run with other settings ({listing}); "
                "use the same settings to continue it, or delete that folder to start again"
            )
