"""A corpus with its label sets -> the original implementation's .jsonl (`lapa data convert
to_lapa_jsonl`).

A label set gives pre-training rows (`instruction`, `vision`, `delta`), none gives fine-tuning rows
(`instruction`, `raw_actions`, `action` and, with an image token set, `vision`). lapa_jsonl.py tells
the form of a row. Numbers of `vision` and `delta` are strings, as the original writes them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines import index, storage
from data_pipelines.convert.conversion import option
from data_pipelines.index import labels
from data_pipelines.progress import Progress

IMAGE_TOKENS_PER_FRAME = 256


@dataclasses.dataclass
class Report:
    """What was written, and what was not."""

    file: str
    kind: str
    episodes: int = 0
    rows: int = 0
    images: int = 0
    episodes_without_instruction: int = 0
    episode_ids_repeated: int = 0
    rows_without_label: int = 0
    rows_without_action: int = 0

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    def table(self) -> str:
        return "\n".join(
            f"{key.replace('_', ' '):<28}  {value}" for key, value in self.to_json().items()
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of `export_lapa_jsonl`.

    corpus: corpus directory, indexed
    out: .jsonl; bins of actions go to .csv beside it
    sidecar_dir: where index and label sets lie, if elsewhere
    label_set: for `delta`; none: fine-tuning rows
    image_token_set: for `vision`
    images: copy the JPEGs of the rows to this folder, as <episode number>/img_<step>.jpg
    bins: of each action of fine-tuning rows
    bins_csv: take the bin edges from this csv of the original, do not compute them
    gripper: action dimension of 0 and 1 (default: none)
    """

    corpus: str | Path = option(positional=True)
    out: str | Path
    split: str = "train"
    sidecar_dir: str | Path | None = None
    image_key: str = "image"
    label_set: str = ""
    image_token_set: str = ""
    images: str | Path | None = None
    bins: int = 256  # these three are for who makes `action_ids`
    bins_csv: str | None = None
    gripper: int = -1
    progress: bool = option(True, flag=False)

    def index(self) -> index.CorpusIndex:
        """Of the corpus."""
        where = dict(split=self.split, sidecar_dir=self.sidecar_dir, image_key=self.image_key)
        return index.load_index(self.corpus, **where)


def export_lapa_jsonl(
    options: Options,
    *,
    prompt: str,
    action_ids: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Report:
    """Writes one split of a corpus as a file, whole or not at all.

    prompt: what stands around an instruction, with {instruction} in it. action_ids: actions (n, A)
    -> ids (n, A), for fine-tuning rows. Left out and counted: episodes without an instruction, rows
    without a label or image tokens, the last row of an episode in fine-tuning rows (RLDS gives its
    action no meaning).
    """
    out, corpus = Path(options.out), options.corpus
    label_set, image_token_set = options.label_set, options.image_token_set
    if out.exists():
        raise FileExistsError(f"{out} exists already; delete it or choose another name")
    found = options.index()
    if label_set and not image_token_set:
        raise ValueError(
            "pre-training rows need image tokens: give the set (--image_token_set) beside "
            f"--label_set {label_set}"
        )
    if not label_set and (found.actions is None or action_ids is None):
        raise ValueError(
            f"{corpus} has {'no ' if found.actions is None else ''}actions and no --label_set is "
            "given: pre-training rows need a label set, fine-tuning rows actions and their bins"
        )
    sets = {}
    if label_set:
        sets["delta"] = labels.LabelSet.open(found.sidecar_dir, label_set, found)
        if sets["delta"].codebook_size is None:
            raise ValueError(f"--label_set {label_set} holds vectors; the original reads codes")
    if image_token_set:
        sets["vision"] = labels.LabelSet.open(
            found.sidecar_dir, image_token_set, found, labels.IMAGE_TOKENS
        )
        if sets["vision"].code_length != IMAGE_TOKENS_PER_FRAME:
            raise ValueError(
                f"image token set {image_token_set!r} has {sets['vision'].code_length} tokens a "
                f"frame; the original reads {IMAGE_TOKENS_PER_FRAME}"
            )
    report = Report(str(out), "pre-training" if label_set else "fine-tuning")
    rows = _Rows(found, sets, prompt, action_ids, options.images, report)
    with storage.atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        count, show = found.num_episodes, options.progress
        with Progress("export", count, unit="episode", show=show) as bar:
            for episode in range(count):
                for row in rows.of(episode):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                bar.update()
        if not report.rows:
            raise ValueError(f"{corpus}, split {options.split!r}, gives no row: {report.to_json()}")
    return report


@dataclasses.dataclass
class _Rows:
    """Rows by episode; counts in the report."""

    found: index.CorpusIndex
    sets: dict[str, labels.LabelSet]  # by what they become: delta, vision
    prompt: str
    action_ids: Callable[[np.ndarray], np.ndarray] | None
    images: str | Path | None
    report: Report
    names: set[str] = dataclasses.field(default_factory=set)

    def of(self, episode: int) -> list[dict]:
        found, report = self.found, self.report
        instruction = found.instruction(episode)
        if not instruction:
            report.episodes_without_instruction += 1
            return []
        start, length = int(found.episode_start[episode]), int(found.episode_length[episode])
        last = "delta" if "delta" in self.sets else "action"
        if last == "action":
            length -= 1
            report.rows_without_action += 1
        name = self._name(episode)
        steps = np.arange(start, start + length)
        codes = {key: one.labels(steps) for key, one in self.sets.items()}
        rows = []
        for step in range(length):
            if any(values[step, 0] < 0 for values in codes.values()):
                report.rows_without_label += 1
                continue
            image = f"{episode:06d}/img_{step:05d}.jpg"
            row = {
                "id": f"{name}_{step}",
                "image": image,
                "instruction": "<s> " + self.prompt.format(instruction=instruction),
                **{key: [str(code) for code in values[step]] for key, values in codes.items()},
                "fields": f"[instruction],[vision],{last}",
            }
            if last == "action":
                action = found.actions[start + step]
                row["raw_actions"] = [float(value) for value in action]
                row["action"] = self.action_ids(action).tolist()
            rows.append(row)
            if self.images:
                self._copy_image(episode, start + step, Path(self.images) / image)
        report.rows += len(rows)
        report.episodes += bool(rows)
        return rows

    def _name(self, episode: int) -> str:
        """Its id, made unique: foreign corpora may give none, or one twice."""
        standard = f"{self.found.split}_{episode:06d}"
        name = str(self.found.metadata(episode).get("episode_id", standard))
        if name in self.names:
            self.report.episode_ids_repeated += 1
            name = f"{name}#{episode:06d}"
        self.names.add(name)
        return name

    def _copy_image(self, episode: int, row: int, path: Path) -> None:
        shard = self.found.shards[int(self.found.shard_of_episode[episode])]
        start = int(self.found.frame_offset[row])
        path.parent.mkdir(parents=True, exist_ok=True)
        stop = start + int(self.found.frame_length[row])
        path.write_bytes(storage.read_range(shard, start, stop))
        self.report.images += 1
