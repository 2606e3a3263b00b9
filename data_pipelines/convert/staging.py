"""Finished shards of a conversion that is still running, so that a restart skips them.

`DIR/.staging-<split>/` holds one file per finished shard and manifest.jsonl: first the settings of
the conversion, then one line per finished shard. Lines are only appended, each after its shard is
safely on disk, so every prefix of the manifest is a valid state.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from data_pipelines import schema, writer

_PUBLISHING = "publishing"


class Staging:
    """The staging area of one split. The caller holds the lock of the output directory."""

    def __init__(self, directory: Path, split: str, settings: dict):
        self.directory = directory
        self.folder = directory / f".staging-{split}"
        self.split = split
        self.results: dict[int, dict] = {}
        self._manifest = self.folder / "manifest.jsonl"
        self._publishing = False
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))  # tuples compare equal to what JSON gives back
        lines = self._read_lines()
        if not lines:
            self._append({"settings": settings})
            return
        self._check_settings(lines[0]["settings"], settings)
        self._publishing = any(_PUBLISHING in line for line in lines)
        for line in lines[1:]:
            if "shard" in line and (self._publishing or self._is_intact(line)):
                self.results[line["shard"]] = line

    def shard_path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.tfrecord"

    def record(self, result: dict) -> None:
        """Notes a finished shard: {"shard", "episodes", "payload_bytes", "size", ...}."""
        self._append(result)
        self.results[result["shard"]] = result

    def publish(self, *, name: str, spec: schema.EpisodeSpec, version: str) -> None:
        """Turns the shards into a split of the corpus and removes the staging area."""
        shards = [
            writer.Shard(self.shard_path(number), result["episodes"], result["payload_bytes"])
            for number, result in sorted(self.results.items())
        ]
        if not self._publishing:
            self._append({_PUBLISHING: True})
        writer.publish_split(
            self.directory, name=name, spec=spec, split=self.split, version=version, shards=shards
        )
        shutil.rmtree(self.folder)

    @property
    def is_publishing(self) -> bool:
        """Whether an earlier run was stopped while it published."""
        return self._publishing

    def _read_lines(self) -> list[dict]:
        if not self._manifest.exists():
            return []
        text = self._manifest.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):  # a line that was cut off when the run was stopped
            os.truncate(self._manifest, whole)
        try:
            return [json.loads(line) for line in text[:whole].splitlines()]
        except ValueError as error:
            raise ValueError(
                f"{self._manifest} is damaged: {error}; delete {self.folder}"
            ) from error

    def _append(self, line: dict) -> None:
        with writer.explain_full_disk(self._manifest), self._manifest.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _is_intact(self, result: dict) -> bool:
        path = self.shard_path(result["shard"])
        return path.exists() and path.stat().st_size == result["size"]

    def _check_settings(self, old: dict, new: dict) -> None:
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            listing = "; ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
            raise ValueError(
                f"{self.folder} holds an unfinished conversion with other settings ({listing}); "
                "use the same settings to continue it, or delete that folder to start again"
            )
