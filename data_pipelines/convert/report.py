"""What a conversion did, as a table and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

_NAMES = 5  # of what was not used that are shown


@dataclasses.dataclass
class Report:
    """What a conversion did. `bad` and `short` list (recording or part of it, reason); `notes` are
    further counts of the source, `passed_over` what of it was not used: kind → names, and `seen`
    what is to be told of recordings that were converted: what → their names."""

    directory: str
    split: str
    noun: str
    found: int
    shards: int = 0
    episodes: int = 0
    frames: int = 0
    hours: float = 0.0
    repeated_frames: int = 0
    episodes_with_language: int = 0
    resumed_parts: int = 0
    cameras: list[str] = dataclasses.field(default_factory=lambda: ["image"])
    passed_over: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    seen: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    short: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict:
        passed_over = {
            kind: {"count": len(names), "first": names[:_NAMES]}
            for kind, names in self.passed_over.items()
            if names
        }
        return dataclasses.asdict(self) | {"passed_over": passed_over}

    def table(self, max_entries: int = 20) -> str:
        """The report as text."""
        rows = [
            ("corpus", f"{self.directory} (split {self.split})"),
            (f"{self.noun}s found", self.found),
            ("episodes", self.episodes),
            ("with language", self.episodes_with_language),
            ("frames", self.frames),
            ("hours", f"{self.hours:.3f}"),
            ("shards", self.shards),
            ("parts from before", self.resumed_parts),
            ("frames shown twice", f"{self.repeated_frames} (source slower than the corpus)"),
            ("unconvertible", len(self.bad)),
            ("too short", len(self.short)),
            *self.notes.items(),
        ]
        if len(self.cameras) > 1:
            rows.insert(2, ("cameras", ", ".join(self.cameras)))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        for title, entries in (("unconvertible", self.bad), ("too short", self.short)):
            for name, reason in entries[:max_entries]:
                lines.append(f"  {title}: {printable(name)}: {reason}")
            if len(entries) > max_entries:
                lines.append(f"  {title}: ... and {len(entries) - max_entries} more")
        lines += [
            f"  not used: {k}: {_first(names)}" for k, names in self.passed_over.items() if names
        ]
        lines += [f"  {what}: {_first(names)}" for what, names in self.seen.items()]
        return "\n".join(lines)


def _first(names: list[str]) -> str:
    """How many there are, and the names of some."""
    shown = ", ".join(map(printable, names[:_NAMES]))
    return f"{len(names)} ({shown}{', ...' if len(names) > _NAMES else ''})"


def printable(text: str) -> str:
    """With names of files that are not UTF-8 written out."""
    return text.encode("utf-8", "backslashreplace").decode()
