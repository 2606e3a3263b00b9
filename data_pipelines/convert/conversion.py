"""What all converters share: units of work -> shards, workers, resume, bad recordings, the report.

A source says what there is (`Unit`s, grouped into parts in a deterministic way) and turns one unit
into episodes. Finished parts survive a stop (staging.py) and are joined to shards in the end, so
the result depends neither on stops nor on where the work is done (executors.py). Recordings that
cannot be converted are left out and named with their reason, up to `max_bad_fraction`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines import sidecar, storage
from data_pipelines.convert import executors, staging
from data_pipelines.convert.executors import NeedsSettingError
from data_pipelines.convert.report import Report, printable
from data_pipelines.progress import Progress
from data_pipelines.rlds import schema, selection, writer

__all__ = ["NeedsSettingError", "Report"]

FITS = ("crop", "pad", "stretch")
MIN_STEPS = 2  # a frame pair needs two
_PICTURES = "2026-11-29"  # when pictures came to look otherwise: no corpus has both kinds
SHARD_BYTES = 256 << 20
# A part, the unit of resume and of work in parallel, ends at the first of these.
PART_RECORDINGS, PART_BYTES = 64, 64 << 20


class RecordingError(ValueError):
    """A recording cannot be converted; the message is the reason shown in the report."""


class TooManyBadError(ValueError):
    """More recordings than allowed could not be converted."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of work that is read in one go: one recording, or several in one file.

    name: stands in the report if it fails. recordings: how many; one is converted whole or not at
    all, several stand each for itself. work: what the source needs to know about it (picklable).
    size: bytes in the source, 0 where that is not known. bad: why it cannot even be read.
    """

    name: str
    work: Any = None
    recordings: int = 1
    size: int = 0
    bad: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """An episode; `repeated_frames` of its frames show a source frame once more."""

    episode: schema.Episode
    repeated_frames: int = 0


@dataclasses.dataclass(frozen=True)
class Bad:
    """One of the several recordings of a unit that cannot be converted."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Note:
    """What the report is to tell of a recording that was converted."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A format; picklable, for it goes to the worker processes. Its recordings lie in a folder or
    file, `root`, and become episodes of `spec` with pictures of `settings`."""

    root: Path
    settings: Any  # decode.VideoSettings
    spec: schema.EpisodeSpec
    noun: ClassVar[str] = "episode"  # what a recording is called

    @property
    def place(self) -> str:
        """Where they lie, for messages."""
        return f"of {self.root}"

    def read(self, unit: Unit) -> Iterator[Found | Bad | Note]:
        """Raises RecordingError where the unit as a whole is bad."""
        raise NotImplementedError


def stretches(
    episode: schema.Episode, labels: Sequence, texts: Sequence[str], *, all_end: bool
) -> Iterator[Found]:
    """An episode for each stretch of one label.

    labels, texts: one of each step; a text is the instruction where it begins a stretch. all_end:
    the task ends with each stretch, not with the last one alone.
    """
    steps = episode.num_steps
    changes = [step for step in range(1, steps) if labels[step] != labels[step - 1]]
    of_steps = {
        key: values
        for key in ("images", "actions", "states", "reward")
        if (values := getattr(episode, key)) is not None
    }
    for part, (first, last) in enumerate(itertools.pairwise([0, *changes, steps])):
        stretch = dataclasses.replace(
            episode,
            **{key: values[first:last] for key, values in of_steps.items()},
            views={name: images[first:last] for name, images in episode.views.items()},
            instruction=texts[first],
            episode_id=episode.episode_id + (f"#{part:04d}" if changes else ""),
            terminal=episode.terminal and (all_end or last == steps),
        )
        yield Found(stretch)


def _size(text: str) -> tuple[int, int]:
    """N or HEIGHTxWIDTH."""
    numbers = text.lower().split("x")
    if len(numbers) not in (1, 2) or not all(n.isdigit() and int(n) for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor HEIGHTxWIDTH")
    return int(numbers[0]), int(numbers[-1])


def option(default: Any = dataclasses.MISSING, **of_flag: Any) -> Any:
    """A field of options; of_flag: what its flag has beside type and default."""
    return dataclasses.field(default=default, metadata=of_flag)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to convert, whatever the source; sources have further ones. The lines are the help of
    `lapa data convert`.

    out: corpus directory
    name: dataset name (default: from the output directory)
    size: N or HEIGHTxWIDTH, pixels (default: 64)
    fit: how the aspect is kept
    quality: JPEG quality
    split: name of the split
    max_bad_fraction: more unconvertible recordings than this are an error
    per_shard: recordings in a shard (default: as many as make 256 MiB)
    workers: processes
    runner: of Apache Beam, such as DirectRunner, DataflowRunner, FlinkRunner, SparkRunner
        (default: none, --workers processes of this machine)
    beam_options: flags for Beam, as one text
    """

    out: str | Path
    name: str | None = None
    size: tuple[int, int] = option((64, 64), type=_size)
    fit: str = option("crop", choices=FITS)
    quality: int = 92
    split: str = "train"
    max_bad_fraction: float = 0.1
    per_shard: int = 0
    workers: int = 1
    runner: str = ""
    beam_options: str = ""
    progress: bool = option(True, flag=False)

    @property
    def dataset(self) -> str:
        """The given name, or one that TFDS accepts, from that of the output directory."""
        word = "".join(
            c if c.isascii() and c.isalnum() else "_" for c in Path(self.out).resolve().name
        )
        return self.name or (word if word[:1].isalpha() else f"corpus_{word}")

    def spec(
        self,
        fps: float,
        *,
        actions: int = 0,
        states: int = 0,
        language: bool = True,
        cameras: Sequence[str] = (),
    ) -> schema.EpisodeSpec:
        """Of what is converted; actions, states: how many numbers a step has, 0 for none; cameras:
        as they were selected, of which the first is called image."""
        return schema.EpisodeSpec(
            image_shape=(*self.size, 3),
            action_dim=actions,
            state_dim=states,
            language=language,
            source=self.dataset,
            fps=fps,
            cameras=tuple(selection.short_names(cameras)),
        )

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction} must lie in 0..1")
        if self.per_shard < 0 or self.workers < 1:
            raise ValueError(
                f"per_shard={self.per_shard} must be at least 1 (or 0: by size) and "
                f"workers={self.workers} at least 1"
            )
        if self.beam_options and not self.runner:
            raise ValueError(f"--beam_options {self.beam_options!r} need a --runner of Beam")


@dataclasses.dataclass(frozen=True)
class _PartJob(executors.Job):
    """All that is needed to write one part."""

    part: int
    source: Source
    units: tuple[Unit, ...]

    @property
    def recordings(self) -> int:
        return sum(unit.recordings for unit in self.units)


def convert(
    source: Source,
    units: Sequence[Unit],
    options: Options,
    settings: dict[str, Any],
) -> Report:
    """Converts the units, in their order, into one split of a corpus directory.

    settings: all that decides the episodes; a stopped conversion is only continued with the same.
    """
    out, split = Path(options.out), options.split
    lock = writer.lock_output(out)
    try:
        resuming = staging.folder(out, split).exists()
        output = writer.Output(out, options.dataset, source.spec, split)
        output.check(resuming=resuming)
        settings = {**settings, "name": output.name, "per_shard": options.per_shard}
        settings["made as of"] = _PICTURES
        stage = staging.Staging(out, split, settings)
        jobs = [
            _PartJob(stage.part_path(part), part, source, group)
            for part, group in enumerate(_groups(units, options.per_shard))
        ]
        total = sum(job.recordings for job in jobs)
        report = Report(str(out), split, source.noun, total, resumed_parts=len(stage.results))
        report.cameras = ["image", *source.spec.cameras]
        if stage.plan is None:
            _write_parts(source, jobs, stage, options)
            _summarise(report, stage)
            _require_episodes(report, source)
            records = [(part, result["records"]) for part, result in sorted(stage.results.items())]
            groups, target = [records], SHARD_BYTES
            if options.per_shard:  # a part is a shard
                groups, target = [[one] for one in records], 1 << 62
            plans = (staging.plan_by_size(group, target) for group in groups)
            stage.write_plan([shard for plan in plans for shard in plan])
        else:  # stopped while it published
            _summarise(report, stage)
        report.shards = len(stage.plan)
        _join_parts(stage, options)
        stage.publish(output)
        return report
    finally:
        lock.release()


def _groups(units: Sequence[Unit], per_shard: int) -> Iterator[tuple[Unit, ...]]:
    """Units in a row, for a part each (which is a shard, where `per_shard` is given)."""
    group, recordings, size = [], 0, 0
    for unit in units:
        group.append(unit)
        recordings, size = recordings + unit.recordings, size + max(unit.size, 0)
        if recordings >= (per_shard or PART_RECORDINGS) or (size >= PART_BYTES and not per_shard):
            yield tuple(group)
            group, recordings, size = [], 0, 0
    if group:
        yield tuple(group)


def _write_parts(
    source: Source, jobs: Sequence[_PartJob], stage: staging.Staging, options: Options
) -> None:
    todo = [job for job in jobs if job.part not in stage.results]
    total = sum(job.recordings for job in jobs)
    finished = total - sum(job.recordings for job in todo)
    bar = Progress("convert", total, unit=source.noun, done=finished, show=options.progress)
    bad = [entry for result in stage.results.values() for entry in result["bad"]]

    def check_bad() -> None:
        if len(bad) > options.max_bad_fraction * total:
            listing = "; ".join(f"{printable(name)}: {reason}" for name, reason in bad[:5])
            raise TooManyBadError(
                f"{len(bad)} of {total} {source.noun}s {source.place} cannot be converted, more "
                f"than max_bad_fraction={options.max_bad_fraction} (take them away, or allow more "
                f"by --max_bad_fraction of `lapa data convert`): {listing}"
                + (", ..." if len(bad) > 5 else "")
            )

    alone = options.workers == 1 and not options.runner
    work = functools.partial(_write_part, advance=bar.update) if alone else _write_part
    with bar, executors.run(work, todo, options) as results:
        check_bad()
        for result in results:
            stage.results[result["part"]] = result
            bad.extend(result["bad"])
            if not alone:
                bar.update(jobs[result["part"]].recordings)
            check_bad()


def _join_parts(stage: staging.Staging, options: Options) -> None:
    jobs = stage.join_jobs()
    progress = options.progress and bool(jobs)
    bar = Progress("join", len(jobs), unit="shard", show=progress)
    with bar, executors.run(staging.join, jobs, options) as results:
        for result in results:
            stage.joined(result["shard"])
            bar.update()


def _write_part(job: _PartJob, advance: Callable[[int], object] | None = None) -> dict:
    """Converts the units of one part; the file gets its name once it is whole."""
    result = {"part": job.part, **_nothing()}
    with storage.atomic_path(job.path) as unfinished:
        part = writer.ShardFile(unfinished)
        try:
            for unit in job.units:
                mark = part.mark()
                try:
                    added = _write_unit(job.source, unit, part)
                except RecordingError as error:
                    part.rollback(mark)
                    added = {"bad": [(unit.name, str(error))]}
                for key, value in added.items():
                    result[key] += value
                if advance is not None:
                    advance(unit.recordings)
            part.close()
        except BaseException:
            part.discard()
            raise
    result["size"] = part.size
    sidecar.write_json(job.manifest, result)
    return result


def _nothing() -> dict:
    """What a unit without episodes adds to its part, and a part to the report."""
    counts = {"frames": 0, "seconds": 0.0, "repeated_frames": 0, "episodes_with_language": 0}
    return counts | {"records": [], "bad": [], "short": [], "noted": []}


def _write_unit(source: Source, unit: Unit, part: writer.ShardFile) -> dict:
    """Appends the episodes of one unit; returns what they add to the result of the part."""
    try:
        unit.name.encode()
    except UnicodeEncodeError as error:
        raise RecordingError("file name is not UTF-8") from error
    if unit.bad:
        raise RecordingError(unit.bad)
    added = _nothing()
    for found in source.read(unit):
        if isinstance(found, Bad):
            added["bad"].append((found.name, found.reason))
            continue
        if isinstance(found, Note):
            added["noted"].append((found.name, found.text))
            continue
        episode = found.episode
        steps, fps = episode.num_steps, episode.fps or source.spec.fps
        if steps < MIN_STEPS:
            reason = f"{steps} frame at {fps:g} fps, an episode needs {MIN_STEPS}"
            added["short"].append((episode.episode_id, reason))
            continue
        try:
            record = schema.encode_episode(episode, source.spec)
        except schema.SchemaError as error:
            if unit.recordings == 1:
                raise RecordingError(str(error)) from error
            added["bad"].append((episode.episode_id, str(error)))
            continue
        part.append(record)
        added["records"].append(len(record))
        added["frames"] += steps
        added["seconds"] += steps / fps
        added["repeated_frames"] += found.repeated_frames
        added["episodes_with_language"] += bool(episode.instruction)
    return added


def _summarise(report: Report, stage: staging.Staging) -> None:
    for _, result in sorted(stage.results.items()):
        report.episodes += len(result["records"])
        for key in ("frames", "repeated_frames", "episodes_with_language"):
            setattr(report, key, getattr(report, key) + result[key])
        report.hours += result["seconds"] / 3600
        report.bad += [tuple(entry) for entry in result["bad"]]
        report.short += [tuple(entry) for entry in result["short"]]
        for name, text in result["noted"]:
            names = report.seen.setdefault(text, [])
            names += [name] if name not in names[-1:] else []


def _require_episodes(report: Report, source: Source) -> None:
    if not report.episodes:
        reasons = Counter(reason for _, reason in report.bad + report.short)
        raise ValueError(
            f"no {source.noun} {source.place} gave an episode: {dict(reasons.most_common(20))}"
        )
