"""The folder of an evaluation: its settings, and a line of JSON for each finished episode."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines import storage
from data_pipelines.storage import places

SETTINGS, EPISODES = "settings.json", "episodes.jsonl"

# What results are made of; of an episode that ended in an error there is `error` instead.
RECORDED = (
    *("instruction", "success", "steps", "clipped", "latency_ms", "latency_max_ms"),
    *("reset_s", "simulator_s", "policy_s", "total_s"),
)


class Records:
    """What is there is read; `append` adds to it, on the disk before it returns."""

    def __init__(self, out: Path, settings: Mapping[str, Any]):
        """settings: of JSON's types. ValueError where the folder is of other ones."""
        self.out, self.found = out, {}
        settings = json.loads(json.dumps(settings))
        path, episodes = out / SETTINGS, out / EPISODES
        data = episodes.read_bytes() if episodes.exists() else b""
        whole = data.rfind(b"\n") + 1
        if not whole:  # there are none, of whatever settings
            storage.write_text(path, json.dumps(settings, indent=1) + "\n")
        elif path.is_file():
            _same(out, places.read_json(path, f"take another folder than {out}"), settings)
        else:
            raise ValueError(f"--out {out} has {EPISODES} and no {SETTINGS}: take another folder")
        self._file = os.open(episodes, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if whole < len(data):  # a line that was being written when all ended
            os.ftruncate(self._file, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            one = _episode(line)
            if one is None:
                raise ValueError(
                    f"{episodes}: line {number} is no episode of this version: take another folder"
                )
            self.found[one["task"], one["number"]] = one

    def append(self, one: Mapping[str, Any]) -> None:
        data = json.dumps(one).encode() + b"\n"
        try:
            if os.write(self._file, data) < len(data):
                raise OSError(28, "No space left on device")
            os.fsync(self._file)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}; {len(self.found)} episodes are kept: the same command goes on",
                str(self.out / EPISODES),
            ) from error
        self.found[one["task"], one["number"]] = dict(one)

    def close(self) -> None:
        os.close(self._file)


@contextlib.contextmanager
def opened(out: Path, settings: Mapping[str, Any]) -> Iterator[Records]:
    """Held by one process at a time."""
    storage.make_directory(out)
    with storage.Lock(out / ".lock", out):
        records = Records(out, settings)
        try:
            yield records
        finally:
            records.close()


def _episode(line: bytes) -> dict[str, Any] | None:
    try:
        one = json.loads(line)
    except ValueError:
        return None
    if not isinstance(one, dict):
        return None
    wanted = {"task", "number", *(() if "error" in one else RECORDED)}
    return one if one.keys() >= wanted else None


def _same(out: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    differ = [
        f"{name} {json.dumps(theirs.get(name))} there, {json.dumps(ours.get(name))} here"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if differ:
        raise ValueError(
            f"--out {out} holds episodes of other settings ({'; '.join(differ)}): take another "
            "folder, or these settings"
        )
