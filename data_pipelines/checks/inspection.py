"""What is in an RLDS corpus: schema, counts, lengths, instructions, actions, images, label sets.

`inspect_corpus` reads the shards of any standard RLDS directory (checksums verified, no image
decoded) and returns plain JSON values.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import sidecar
from data_pipelines.checks.statistics import Sketch
from data_pipelines.progress import Progress
from data_pipelines.rlds import fields, overview, schema, tfrecord, writer
from data_pipelines.rlds.declared import Declaration, declaration_of
from data_pipelines.rlds.shards import find_shards
from data_pipelines.storage import given_folder, locate

MAX_EXAMPLES = 12  # instructions and file names that are shown
STRIP_EPISODES = 6
STRIP_FRAMES = 8
HISTOGRAM_BINS = 24
_EPISODES = 1000  # whose actions are taken at once


def inspect_corpus(
    directory: str | Path,
    *,
    splits: list[str] | None = None,
    sidecar_dir: str | Path | None = None,
    action_key: str = "action",
    instruction_key: str = "language_instruction",
    max_episodes: int = 0,
    strips: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Facts about a corpus; see the module docstring.

    max_episodes: read at most that many episodes of each split (0: all). strips: add the JPEG
    frames (base64) that the HTML page shows.
    """
    directory = given_folder(locate(directory), "the folder of a corpus")
    info = writer.read_info(directory) or {}
    announced = {entry["name"]: entry for entry in info.get("splits", [])}
    names = splits or list(announced) or ["train"]
    sidecars = Path(sidecar_dir or directory)
    report: dict[str, Any] = {
        "directory": str(directory),
        "name": info.get("name", ""),
        "version": info.get("version", ""),
        "features": _read_features(directory),
        "indexes": _indexes(sidecars),
        "label_sets": _label_sets(sidecars),
        "image_token_sets": _label_sets(sidecars, "image_tokens", "*/*/"),
        "action_sets": _label_sets(sidecars, "actions"),
        "splits": {},
    }
    for split in names:
        lengths = announced.get(split, {}).get("shardLengths")
        total = sum(int(length) for length in lengths) if lengths else None
        scan = _Scan(action_key, instruction_key, strips, declaration_of(directory))
        shards = find_shards(directory, split)
        expected = min(total, max_episodes) if total and max_episodes else total
        with Progress(f"inspect {split}", expected, unit="episode", show=progress) as bar:
            for episode in itertools.islice(_episodes(shards), max_episodes or None):
                scan.add(*episode)
                bar.update(1)
        if not scan.episodes:
            raise ValueError(f"split {split!r} of {directory} has no episode")
        report["splits"][split] = {
            "shards": len(shards),
            "bytes": sum(path.stat().st_size for path in shards),
            "episodes_announced": total,
            "complete_scan": not max_episodes or scan.episodes < max_episodes,
            **scan.summary(),
        }
    return report


class _Scan:
    """Running facts of one split."""

    def __init__(self, action_key: str, instruction_key: str, strips: bool, declared: Declaration):
        self.declared = declared
        self.action_key, self.instruction_key = action_key, instruction_key
        self.want_strips = strips
        self.episodes = 0
        self.lengths: list[int] = []
        self.kinds: dict[str, str] = {}
        self.fps: Counter = Counter()
        self.cameras: Counter = Counter()
        self.sources: Counter = Counter()
        self.instructions: Counter = Counter()
        self.image_sizes: dict[str, Counter] = {}
        self.image_bytes: Counter = Counter()
        self.seconds = 0.0
        self.actions = _Actions()
        self.mixed_instructions = 0
        self.strips: list[dict] = []

    def add(self, where: str, record: bytes, features: fields.Features) -> None:
        self.episodes += 1
        for key, feature in features.items():
            self.kinds.setdefault(key, feature.kind)
        steps = _num_steps(where, features, record)
        self.lengths.append(steps)
        try:
            overview.require(features, self.action_key, overview.STANDARD["action"])
            overview.require(features, self.instruction_key, overview.STANDARD["instruction"])
            of = features, record, steps
            texts = fields.texts(*of, self.instruction_key, self.declared) or [""]
            actions = fields.actions(*of, self.action_key, self.declared)
        except fields.FieldError as error:
            there = overview.listing(features, record, self.declared)
            raise ValueError(f"{where}: {error}; {there}") from error
        self.instructions[texts[0]] += 1
        self.mixed_instructions += len(set(texts)) > 1
        metadata = {
            name: fields.scalar(features, record, schema.METADATA + name)
            for name in ("fps", "camera", "source", "episode_id")
        }
        fps = metadata["fps"]
        self.fps[round(float(fps), 6) if fps else "unknown"] += 1
        self.seconds += steps / fps if fps else 0.0
        self.cameras[metadata["camera"] or ""] += 1
        self.sources[metadata["source"] or ""] += 1
        self._add_images(where, record, features, texts[0], metadata["episode_id"])
        if actions is not None:
            # RLDS: the action of the last step is invalid.
            actions = actions[: max(0, steps - 1)]
            self.actions.add(where, actions)
            if len(actions) and self.strips and self.strips[-1]["number"] == self.episodes:
                self.strips[-1]["actions"] = actions.T.tolist()

    def summary(self) -> dict[str, Any]:
        lengths = np.array(self.lengths)
        # Whole steps per bin, at most 20 bins; a bin holds the lengths low <= length < high.
        width = -(-int(np.ptp(lengths) + 1) // 20)
        bins = np.arange(lengths.min(), lengths.max() + width + 1, width)
        counts, edges = np.histogram(lengths, bins=bins)
        empty = self.instructions.pop("", 0)
        return {
            "episodes": self.episodes,
            "frames": int(lengths.sum()),
            "hours": self.seconds / 3600,
            "hours_known": "unknown" not in self.fps,
            "fps": {str(value): count for value, count in self.fps.most_common()},
            "lengths": {
                "min": int(lengths.min()),
                "median": float(np.median(lengths)),
                "mean": float(lengths.mean()),
                "max": int(lengths.max()),
                "histogram": counts.tolist(),
                "edges": edges.tolist(),
            },
            "instructions": {
                "coverage": 1 - empty / self.episodes,
                "distinct": len(self.instructions),
                "changing_within_episode": self.mixed_instructions,
                "most_common": self.instructions.most_common(MAX_EXAMPLES),
            },
            "actions": self.actions.summary(),
            "actions_not_finite": self.actions.not_finite,
            "images": {
                key: {
                    "sizes": {size: count for size, count in sizes.most_common(5)},
                    "mean_bytes": self.image_bytes[key] / int(lengths.sum()),
                }
                for key, sizes in self.image_sizes.items()
            },
            "cameras": dict(self.cameras.most_common(MAX_EXAMPLES)),
            "sources": dict(self.sources.most_common(MAX_EXAMPLES)),
            "stored_keys": self.kinds,
            "strips": self.strips,
        }

    def _add_images(
        self, where: str, record: bytes, features: fields.Features, text: str, episode_id: Any
    ) -> None:
        name = where if episode_id is None else str(episode_id)
        strip = {"episode": name, "number": self.episodes, "instruction": text, "views": {}}
        strip["actions"] = []
        for name in overview.cameras(features, record):
            images = features[fields.image_key(features, name)].byte_items(record)
            kind = size = schema.picture_kind(images[0])
            if kind == "jpeg":
                size = "x".join(map(str, schema.jpeg_size(images[0])[:2])) + " jpeg"
            self.image_sizes.setdefault(name, Counter())[size] += 1
            self.image_bytes[name] += sum(map(len, images))
            if self.want_strips and len(self.strips) < STRIP_EPISODES:
                last = len(images) - 1
                picks = np.linspace(0, last, min(len(images), STRIP_FRAMES)).astype(int)
                picks = np.unique(picks).tolist()
                shown = [base64.b64encode(images[pick]).decode() for pick in picks]
                strip["views"][name] = {"kind": kind, "steps": picks, "images": shown}
        if strip["views"]:
            self.strips.append(strip)


class _Actions:
    """A sketch of all actions, taken in large parts."""

    def __init__(self) -> None:
        self._sketch: Sketch | None = None
        self._waiting: list[np.ndarray] = []
        self.not_finite = 0  # steps

    def add(self, where: str, values: np.ndarray) -> None:
        if self._sketch is None:
            self._sketch = Sketch.empty(values.shape[1])
        if values.shape[1] != len(self._sketch.mean):
            raise ValueError(
                f"{where}: actions of {values.shape[1]} dimensions after some of "
                f"{len(self._sketch.mean)}"
            )
        finite = np.isfinite(values).all(axis=1)
        self.not_finite += int((~finite).sum())
        self._waiting.append(values[finite])
        if len(self._waiting) > _EPISODES:
            self._take()

    def _take(self) -> None:
        if self._waiting:
            self._sketch = self._sketch.merge(Sketch.of(np.concatenate(self._waiting)))
        self._waiting = []

    def summary(self) -> list[dict[str, Any]]:
        self._take()
        if self._sketch is None or not self._sketch.count:
            return []
        found = self._sketch.statistics()
        names = ("min", "q01", "q99", "max", "mean", "std", "constant")
        return [
            {"dimension": i}
            | {name: found[name][i] for name in names}
            | {"histogram": self._sketch.histogram(i, HISTOGRAM_BINS)}
            for i in range(len(found["mean"]))
        ]


def _episodes(shards: list[Path]) -> Iterator[tuple[str, bytes, fields.Features]]:
    for path in shards:
        data = tfrecord.map_file(path)
        for record, offset, length in tfrecord.iterate_records(data, path=path):
            payload = bytes(data[offset : offset + length])
            features = tfrecord.parse_example(payload, path=path, number=record, offset=offset)
            yield f"{path}, record {record}", payload, features


def _num_steps(where: str, features: fields.Features, record: bytes) -> int:
    steps = overview.num_steps(features, record)
    if steps is None:
        raise ValueError(f"{where}: neither images nor steps/is_first; this is not RLDS")
    return steps


def _read_features(directory: Path) -> dict[str, str]:
    """features.json flattened: key -> type and shape."""
    path = directory / writer.FEATURES_FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {directory} is no TFDS dataset directory")
    flat: dict[str, str] = {}

    def walk(node: dict, key: str) -> None:
        if "featuresDict" in node:
            for name, child in node["featuresDict"]["features"].items():
                walk(child, f"{key}/{name}" if key else name)
        elif "sequence" in node:
            walk(node["sequence"]["feature"], key)
        else:
            kind = node.get("pythonClassName", "?").rsplit(".", 1)[-1]
            content = node.get("tensor") or node.get("image") or {}
            shape = ",".join(content.get("shape", {}).get("dimensions", []))
            dtype = content.get("encodingFormat") or content.get("dtype", "")
            flat[key] = f"{kind} {dtype}{f'[{shape}]' if shape else ''}".strip()

    try:
        walk(json.loads(path.read_text()), "")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a TFDS features.json: {error!r}") from error
    return dict(sorted(flat.items()))


def _label_sets(directory: Path, folder: str = "labels", below: str = "*/") -> list[dict[str, Any]]:
    found = []
    for path in sorted((directory / folder).glob(f"{below}*.manifest.json")):
        manifest = sidecar.read_json(path)
        facts = {**manifest["provenance"], **manifest}
        facts = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
        split = path.name.removesuffix(".manifest.json")
        name = path.relative_to(directory / folder).parts[0]
        found.append({"name": name, "split": split, **facts})
    return found


def _indexes(directory: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((directory / "index").glob("*/*/manifest.json")):
        manifest = sidecar.read_json(path)
        keys = ("image_key", "action_key", "instruction_key", "num_episodes", "num_frames", "hash")
        found.append({"split": path.parent.name} | {key: manifest[key] for key in keys})
    return found
