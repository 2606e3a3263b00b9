"""The original implementation's .jsonl files -> a corpus with label sets (`lapa data convert
lapa_jsonl`).

A row is one frame. Pre-training rows hold `instruction` (within a prompt), `vision` (image tokens),
`delta` (the latent action), `image` (a path) and `fields`; fine-tuning rows hold `raw_actions`
(floats), `action` (their bins) and maybe `vision`. Numbers may be strings. A row belongs to episode
and step by its `id`, "<episode>_<step>", or else by its `image`, "<episode>/<letters><step>.jpg".
`raw_actions` become the actions of the corpus, `delta` a label set, `vision` an image token set;
`action` is not kept, for bins belong to a policy. Rows may stand in any order; where each lies is
kept in memory, about 95 bytes a row.
"""

from __future__ import annotations

import dataclasses
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import index, sidecar
from data_pipelines.convert import conversion, decode, reading
from data_pipelines.index import labels
from data_pipelines.rlds import schema, shards, writer

IMAGE_CODEBOOK_SIZE, IMAGE_STRIDE = 8192, 16  # of LWM's VQGAN: codes, pixels a token is wide
PLACEHOLDER_SIZE = 16

_ID = re.compile(r"(?P<episode>.+)_(?P<step>\d+)")
_IMAGE = re.compile(r"(?P<episode>.+)/[^/\d]*(?P<step>\d+)\.\w+")


@dataclasses.dataclass(frozen=True)
class Form:
    """What every row of a file has: how many numbers of each kind, 0 where there are none."""

    vision: int
    delta: int
    raw_actions: int

    @classmethod
    def of(cls, row: dict) -> Form:
        lengths = {}
        for field in dataclasses.fields(cls):
            values = row.get(field.name, [])
            if not isinstance(values, list):
                raise conversion.RecordingError(f"{field.name} is {values!r}, not a list")
            lengths[field.name] = len(values)
        return cls(**lengths)


@dataclasses.dataclass(frozen=True)
class RowsSource(conversion.Source):
    """The episodes of one file; the work of a unit is int64 (rows, 3): step, offset and line number
    of each row."""

    form: Form
    codes: dict[str, int]  # of `delta` and `vision`, where there: the size of their codebook
    prompt: str
    images: Path | None

    def read(self, unit: conversion.Unit) -> Iterator[conversion.Found]:
        rows = self.rows(unit)
        texts = {instruction_of(row, self.prompt) for row in rows}
        if len(texts) > 1:
            raise conversion.RecordingError(f"it has several instructions: {sorted(texts)[:2]}")
        for key in self.codes:
            self.codes_of(rows, key)
        actions = numbers(rows, "raw_actions", np.float32) if self.form.raw_actions else None
        yield conversion.Found(
            schema.Episode(
                images=[self._image(row) for row in rows],
                actions=actions,
                instruction=texts.pop(),
                episode_id=unit.name,
                file_path=self.root.name,
            )
        )

    def rows(self, unit: conversion.Unit) -> list[dict]:
        """The rows of an episode by step, checked to be all there and of one form."""
        steps, offsets, lines = unit.work.T
        jump = np.flatnonzero(np.diff(steps) != 1)
        if len(jump):
            before, after = steps[jump[0]], steps[jump[0] + 1]
            raise conversion.RecordingError(
                f"step {before} comes twice (lines {lines[jump[0]]} and {lines[jump[0] + 1]})"
                if before == after
                else f"step {before + 1} is missing (step {after} is on line {lines[jump[0] + 1]})"
            )
        rows = []
        with self.root.open("rb") as file:
            for offset, line in zip(offsets, lines, strict=True):
                file.seek(offset)
                row = reading.json_object(self.root, line, file.readline())
                form = Form.of(row)
                if form != self.form:
                    raise conversion.RecordingError(
                        f"line {line} has {form}, the first good row of the file {self.form}"
                    )
                rows.append(row)
        return rows

    def codes_of(self, rows: list[dict], key: str) -> np.ndarray:
        """int64 (rows, length), all in the codebook."""
        found = numbers(rows, key, _integer)
        if found.min() < 0 or found.max() >= self.codes[key]:
            raise conversion.RecordingError(
                f"{key} runs from {found.min()} to {found.max()}, its codebook has "
                f"{self.codes[key]} codes"
            )
        return found

    def _image(self, row: dict) -> bytes:
        if self.images is None:
            return decode.encode_jpeg(np.zeros(self.spec.image_shape, np.uint8))  # a placeholder
        name = row.get("image")
        if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
            raise conversion.RecordingError(f"image is {name!r}, not a path below {self.images}")
        try:
            return decode.convert_picture((self.images / name).read_bytes(), self.settings)
        except (OSError, ValueError) as error:
            raise conversion.RecordingError(f"image {name}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(conversion.Options):
    """Of `convert_lapa_jsonl`. Corpora of a mixture must agree in quantizer and image_tokenizer.

    file: .jsonl
    fps: rows of an episode per second
    images: folder that the paths of `image` start from
    no_images: black placeholders, for training from the image tokens of the rows alone
    window_seconds: of the quantizer that made `delta`
    codebook_size: of that quantizer
    quantizer: what to call it (default: hash of the file)
    image_tokenizer: what to call that of `vision` (default: as above)
    label_set: name for `delta`
    image_token_set: name for `vision`
    """

    file: str | Path = conversion.option(positional=True)
    fps: float
    images: str | Path | None = None
    no_images: bool = False
    window_seconds: float = 0.0
    codebook_size: int = 8
    quantizer: str = ""
    image_tokenizer: str = ""
    label_set: str = "lapa"
    image_token_set: str = "lapa"

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.images) == self.no_images:
            raise ValueError("give either the folder of the images (--images) or --no_images")


@dataclasses.dataclass(frozen=True)
class CodeSet:
    """What becomes of `delta` or `vision`."""

    name: str
    kind: labels.Kind
    provenance: dict[str, Any]

    def writer(self, found: index.CorpusIndex) -> labels.LabelSetWriter:
        return labels.LabelSetWriter(
            found.sidecar_dir, self.name, found, provenance=self.provenance, kind=self.kind
        )


def code_sets(options: Options, form: Form, file_hash: str, code_version: str) -> dict:
    """The `CodeSet` of each key that rows have."""
    shared = {"file_hash": file_hash, "code_version": code_version}
    sets = {}
    if form.delta:
        provenance = {
            "quantizer_hash": options.quantizer or file_hash,
            "window_seconds": options.window_seconds,
            "codebook_size": options.codebook_size,
            "code_length": form.delta,
        }
        sets["delta"] = CodeSet(options.label_set, labels.LATENT_ACTIONS, provenance | shared)
    if form.vision:
        side = IMAGE_STRIDE * round(form.vision**0.5)
        provenance = {
            "tokenizer_hash": options.image_tokenizer or file_hash,
            "image_size": [side, side],
            "codebook_size": IMAGE_CODEBOOK_SIZE,
            "tokens_per_frame": form.vision,
        }
        sets["vision"] = CodeSet(options.image_token_set, labels.IMAGE_TOKENS, provenance | shared)
    return sets


def convert_lapa_jsonl(
    options: Options, *, prompt: str, code_version: str = ""
) -> conversion.Report:
    """Converts a file into one split of a corpus, its index and its label sets.

    prompt: what stands around an instruction, with {instruction} in it. A bad row leaves its
    episode out; a stop anywhere is continued by the same command.
    """
    file, out = Path(options.file), Path(options.out)
    images = Path(options.images) if options.images else None
    if images is None:
        options = dataclasses.replace(options, size=(PLACEHOLDER_SIZE, PLACEHOLDER_SIZE))
    settings = decode.VideoSettings.of(options, options.fps)
    units, form = scan(file)
    if form.delta and not options.window_seconds > 0:
        raise ValueError(
            f"{file} has latent actions (`delta`): give the window of their quantizer in seconds "
            f"(--window_seconds {options.window_seconds})"
        )
    if images is None and not form.vision:
        raise ValueError(f"{file} has no image tokens (`vision`): give the images (--images)")
    spec = options.spec(options.fps, actions=form.raw_actions)
    origin = {k: v for k, v in shards.shard_fingerprint(file).items() if k != "name"}
    file_hash = "lapa_jsonl:" + sidecar.value_hash(origin)
    sets = code_sets(options, form, file_hash, code_version)
    codes = {key: one.provenance["codebook_size"] for key, one in sets.items()}
    source = RowsSource(file, settings, spec, form, codes, prompt, images)
    episodes = {unit.name: unit for unit in units if not unit.bad}
    if sets and _is_published(out, options.split):
        found = _load_index(out, options)
        _rows_of_episode(found, 0, episodes, source)  # before anything is written
        report = conversion.Report(str(out), options.split, source.noun, len(units))
        report.episodes, report.frames = found.num_episodes, found.num_frames
        report.notes["corpus"] = "from an earlier run; its report was shown then"
        complete = [one.writer(found).complete for one in sets.values()]
        if all(complete):
            raise FileExistsError(
                f"{out} already holds a finished split {options.split!r} and its label sets; "
                "choose another output directory or split, or delete it"
            )
    else:
        report = conversion.convert(
            source,
            units,
            options,
            {**dataclasses.asdict(settings), "images": str(images), **origin},
        )
    found = _load_index(out, options)
    for key, one in sets.items():
        _write_set(one.writer(found), key, episodes, source)
        report.notes[one.kind.what] = one.name
    if images is None:
        report.notes["images"] = "placeholders: train from image tokens"
    if form.raw_actions:
        report.notes["actions"] = "that of each last row is kept, but RLDS gives it no meaning"
    return report


def scan(file: Path) -> tuple[list[conversion.Unit], Form]:
    """The episodes of a file in the order of their first rows, then its bad rows; and its form."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    names: dict[str, int] = {}
    columns = [array("q") for _ in range(4)]  # episode, step, offset, line number
    bad, form, offset = [], None, 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                row = reading.json_object(file, number, line)
                episode, step = place_of(row)
                form = form or Form.of(row)
            except ValueError as error:
                bad.append(conversion.Unit(f"{file.name}, line {number}", bad=str(error)))
                continue
            row = (names.setdefault(episode, len(names)), step, start, number)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    if form is None:
        reasons = "; ".join(f"{unit.name}: {unit.bad}" for unit in bad[:5])
        raise ValueError(f"{file} holds no row that can be read ({reasons or 'it is empty'})")
    episodes, *rest = (np.frombuffer(column, np.int64) for column in columns)
    order = np.lexsort((rest[2], rest[0], episodes))
    rows = np.stack([column[order] for column in rest], axis=1)
    ends = np.cumsum(np.bincount(episodes, minlength=len(names)))
    parts = np.split(rows, ends[:-1])
    units = [conversion.Unit(name, part) for name, part in zip(names, parts, strict=True)]
    return units + bad, form


def place_of(row: dict) -> tuple[str, int]:
    """(episode, step) of a row."""
    for key, pattern in (("id", _ID), ("image", _IMAGE)):
        match = pattern.fullmatch(str(row.get(key, "")))
        if match:
            return match["episode"], int(match["step"])
    raise conversion.RecordingError(
        f"neither its id {row.get('id')!r} (<episode>_<step>) nor its image {row.get('image')!r} "
        "(<episode>/<letters><step>.jpg) tells episode and step"
    )


def instruction_of(row: dict, prompt: str) -> str:
    """The instruction of a row without the prompt around it; a bare one is taken as it is."""
    text = row.get("instruction")
    if not isinstance(text, str):
        raise conversion.RecordingError(f"instruction is {text!r}, not a text")
    text = text.strip().removeprefix("<s>").strip()
    before, after = (part.strip(" ") for part in prompt.split("{instruction}"))
    if text.startswith(before) and text.endswith(after):
        return text[len(before) : len(text) - len(after)].strip()
    if text.endswith(after.split()[-1]):
        raise conversion.RecordingError(f"instruction {text!r} is not in the prompt {prompt!r}")
    return text


def numbers(rows: Sequence[dict], key: str, convert: Callable) -> np.ndarray:
    """A field of the rows (rows, length); its numbers may be strings."""
    try:
        return np.array([[convert(value) for value in row[key]] for row in rows])
    except (TypeError, ValueError) as error:
        raise conversion.RecordingError(f"{key} holds something else: {error}") from error


def _integer(value: Any) -> int:
    number = int(value)
    if isinstance(value, float) and number != value:
        raise ValueError(f"{value} is no integer")
    return number


def _is_published(out: Path, split: str) -> bool:
    info = writer.read_info(out)
    return bool(info) and any(entry["name"] == split for entry in info["splits"])


def _load_index(out: Path, options: conversion.Options) -> index.CorpusIndex:
    try:
        return index.load_index(out, split=options.split)
    except FileNotFoundError:
        index.build_index(
            out, split=options.split, progress=options.progress, workers=options.workers
        )
        return index.load_index(out, split=options.split)


def _write_set(
    out: labels.LabelSetWriter, key: str, episodes: dict[str, conversion.Unit], source: RowsSource
) -> None:
    """Labels every row of the corpus from the rows of the file."""
    found = out.index
    for shard in out.missing_shards():
        codes = [
            source.codes_of(_rows_of_episode(found, int(episode), episodes, source), key)
            for episode in np.flatnonzero(found.shard_of_episode == shard)
        ]
        out.write_shard(shard, np.concatenate(codes))
    out.finish()


def _rows_of_episode(
    found: index.CorpusIndex,
    episode: int,
    episodes: dict[str, conversion.Unit],
    source: RowsSource,
) -> list[dict]:
    name = found.metadata(episode)["episode_id"]
    if name not in episodes or len(episodes[name].work) != found.episode_length[episode]:
        raise ValueError(
            f"episode {name!r} of {found.directory} is not one of {source.root}: choose another "
            "output directory or split"
        )
    return source.rows(episodes[name])
