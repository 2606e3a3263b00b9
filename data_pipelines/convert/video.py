"""A folder tree of videos -> an RLDS corpus without actions (`lapa data convert video`).

Files are taken in the order of their sorted paths. One that cannot be converted whole is left out
and named with its reason. Stretches of a video with captions of their own are its episodes, and
videos of several cameras may make one corpus.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.convert import captions as captioning
from data_pipelines.convert import conversion, decode, folders, pictures, reading
from data_pipelines.convert.captions import Caption
from data_pipelines.rlds import schema

MAX_MISSING = 1  # steps by which stretches and cameras may be too short


@dataclasses.dataclass(frozen=True)
class VideoSource(conversion.Source):
    """Videos, and folders of pictures, below `root`. The work of a unit is (what it says, files of
    all cameras)."""

    picture_fps: float = 0.0
    cameras: tuple[str, ...] = ()
    noun = "video"

    @property
    def place(self) -> str:
        return f"below {self.root}"

    def captions(self, unit: conversion.Unit) -> Sequence[Caption]:
        return unit.work[0]

    def read(
        self, unit: conversion.Unit
    ) -> Iterator[conversion.Found | conversion.Bad | conversion.Note]:
        notes: set[tuple[str, str]] = set()  # (file, what is to be told of it)
        yield from self._episodes(unit, notes)
        yield from (conversion.Note(*note) for note in sorted(notes))

    def _episodes(
        self, unit: conversion.Unit, notes: set[tuple[str, str]]
    ) -> Iterator[conversion.Found | conversion.Bad]:
        captions, files = self.captions(unit), unit.work[1]
        if len(files) == len(captions) == 1 and captions[0].is_whole:
            for number, clip in enumerate(self._clips(files[0])):
                yield self._found(unit, captions[0], number, [clip.images], clip.repeated)
                notes |= {(files[0], text) for text in clip.notes}
            return
        readers = [self._stretches(file, captions, notes) for file in files]
        if len(readers) == 1:
            for number, stretch in readers[0]:
                yield from self._stretch(unit, captions[number], [stretch])
            return
        of_cameras = [self._all(*pair) for pair in zip(files, readers, strict=True)]
        for number, caption in enumerate(captions):
            yield from self._stretch(unit, caption, [one[number] for one in of_cameras])

    def _all(self, file: str, reader: Iterator[tuple[int, tuple]]) -> dict[int, tuple]:
        try:
            return dict(reader)
        except conversion.RecordingError as error:
            raise conversion.RecordingError(f"{file}: {error}") from error

    def _clips(self, file: str) -> Iterator[decode.Clip]:
        if self._is_pictures(file):
            return (clip for _, clip, _ in self._spans(file, (decode.Span(),)) if clip)
        return decode.read_clips(self.root / file, self.settings)

    def _is_pictures(self, file: str) -> bool:
        return bool(self.picture_fps) and (self.root / file).is_dir()

    def _spans(
        self, file: str, spans: Sequence[decode.Span]
    ) -> Iterator[tuple[int, decode.Clip | None, int]]:
        if self._is_pictures(file):
            return pictures.read_spans(self.root / file, self.picture_fps, self.settings, spans)
        return decode.read_spans(self.root / file, self.settings, spans)

    def _stretches(
        self, file: str, captions: Sequence[Caption], notes: set[tuple[str, str]]
    ) -> Iterator[tuple[int, tuple[list[decode.Clip], int]]]:
        """(number, (its clips, steps that are missing at its end)) of each stretch."""
        clips: list[list[decode.Clip]] = [[] for _ in captions]
        for number, clip, missing in self._spans(file, [one.span for one in captions]):
            if clip is None:
                yield number, (clips[number], missing)
                clips[number] = []
            else:
                clips[number].append(clip)
                notes |= {(file, text) for text in clip.notes}

    def _stretch(
        self, unit: conversion.Unit, caption: Caption, views: list[tuple[list[decode.Clip], int]]
    ) -> Iterator[conversion.Found | conversion.Bad]:
        """The episodes of a stretch, of its clips by each camera."""
        counts = [sum(len(clip.images) for clip in clips) for clips, _ in views]
        reason = ""
        if not min(counts):
            reason = "the video ends before it begins"
        elif max(missing for _, missing in views) > MAX_MISSING:
            reason = f"the video ends {max(missing for _, missing in views)} steps before it does"
        elif max(counts) - min(counts) > MAX_MISSING:
            reason = f"the cameras {', '.join(self.cameras)} have {counts} frames"
        if reason:
            yield conversion.Bad(unit.name + caption.suffix, reason)
            return
        first = views[0][0]
        if len(views) == 1:
            for number, clip in enumerate(first):
                yield self._found(unit, caption, number, [clip.images], clip.repeated)
            return
        images = [[image for clip in clips for image in clip.images] for clips, _ in views]
        size = self.settings.clip_frames or max(counts)
        for number, start in enumerate(range(0, min(counts), size)):
            stop = min(start + size, min(counts))
            repeated = first[number].repeated
            yield self._found(unit, caption, number, [one[start:stop] for one in images], repeated)

    def _found(
        self,
        unit: conversion.Unit,
        caption: Caption,
        number: int,
        views: list[list[bytes]],
        repeated: int,
    ) -> conversion.Found:
        name = unit.name + caption.suffix
        episode = schema.Episode(
            images=views[0],
            actions=None,
            instruction=caption.text,
            episode_id=f"{name}#{number:04d}" if self.settings.is_cut else name,
            file_path=unit.name,
            camera=",".join(self.cameras),
            fps=self.settings.fps,
            terminal=False,
            views=dict(zip(self.spec.cameras, views[1:], strict=True)),
        )
        return conversion.Found(episode, repeated)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(conversion.Options):
    """Of `convert_videos`.

    source: folder, searched for videos of all usual endings, through links to folders too
    captions: .csv or .jsonl with file (path below the folder) and caption; with start and end
        (seconds, or H:MM:SS) each row is an episode of its own
    instruction_key: columns of the captions; of several the first that is not blank
    clip_seconds: cut into episodes (default: 0, whole)
    split_scenes: begin another episode where the video cuts to another scene (0.3 if no number is
        given; default: off)
    source_fps: for files without time stamps and rate
    picture_fps: folders of numbered pictures (.jpg, .png) are clips of so many a second (default:
        0, they are passed over)
    cameras: words in the paths, such as front,wrist, that tell the videos of one recording apart,
        which then have several cameras (default: every video stands for itself)
    fps: frames per second
    """

    source: str | Path = conversion.option(positional=True, metavar="folder")
    captions: str | Path | None = None
    instruction_key: str = "caption"
    clip_seconds: float = 0.0
    split_scenes: float = conversion.option(0.0, nargs="?", const=0.3, metavar="DISTANCE")
    source_fps: float = 0.0
    picture_fps: float = 0.0
    cameras: tuple[str, ...] = ()
    fps: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.picture_fps < float("inf"):
            raise ValueError(f"--picture_fps {self.picture_fps} must be a rate, or 0")
        if not all(self.cameras):
            raise ValueError(f"--cameras {','.join(self.cameras)!r} holds an empty word")
        for flag in ("picture_fps", "cameras"):
            if self.split_scenes and getattr(self, flag):
                raise ValueError(f"--split_scenes cannot be used with --{flag}")


def convert_videos(options: Options) -> conversion.Report:
    """Converts every video below a folder into one split of a corpus."""
    source = Path(options.source)
    settings = decode.VideoSettings.of(
        options,
        options.fps,
        clip_seconds=options.clip_seconds,
        source_fps=options.source_fps,
        cut_threshold=options.split_scenes,
    )
    found = folders.find(source, options.captions)
    files = sorted(found.videos + (found.picture_folders if options.picture_fps else []))
    if not files:
        told = f"; {len(found.picture_folders)} folders of pictures (--picture_fps)"
        raise FileNotFoundError(
            f"no video below {source}; looked for files ending in {', '.join(decode.EXTENSIONS)}"
            + (told if found.picture_folders else "")
        )
    recordings, bad, others = [(file,) for file in files], {}, []
    if options.cameras:
        recordings, bad, others = folders.by_camera(files, options.cameras)
        if not recordings:
            raise ValueError(
                f"--cameras {','.join(options.cameras)}: below {source} there is no recording by "
                f"all of them; a path is {files[0]!r} ({next(iter(bad.values()), 'of no camera')})"
            )
    texts, columns = {}, []
    if options.captions:
        texts, columns = captioning.read(options.captions, options.instruction_key)
    used = texts.keys() & set(files)
    if texts and not used:
        raise ValueError(
            f"{options.captions}: no caption is for a video below {source}; its column `file` must "
            f"hold paths relative to that folder, such as {files[0]!r} (it has "
            f"{next(iter(texts))!r})"
        )
    whole = (Caption(""),)
    report = convert_files(
        source,
        {one: next((texts[f] for f in one if f in texts), whole) for one in recordings},
        settings,
        options,
        language=bool(texts),
        kind=VideoSource,
        picture_fps=options.picture_fps,
        cameras=options.cameras,
        bad=bad,
    )
    if texts:
        report.notes["captions unused"] = len(texts) - len(used)
    report.passed_over |= {"videos of no camera": others, "columns of the captions": columns}
    if not options.picture_fps:
        report.passed_over["folders of pictures (--picture_fps)"] = found.picture_folders
    report.passed_over |= found.passed_over
    if again := _again(source, files):
        report.seen["the same file as one before it, converted again"] = again
    return report


def _again(source: Path, files: Sequence[str]) -> list[str]:
    """Those that are links to a file which another of them is, or is a link to."""
    there: set[tuple[int, int]] = set()
    found = []
    for file in files:
        try:
            state = (source / file).stat()
        except OSError:
            continue  # for the conversion to count
        if (state.st_dev, state.st_ino) in there:
            found.append(file)
        there.add((state.st_dev, state.st_ino))
    return found


def convert_files(
    root: Path,
    said: Mapping[tuple[str, ...], Any],
    settings: decode.VideoSettings,
    options: conversion.Options,
    *,
    language: bool,
    kind: type[VideoSource],
    cameras: Sequence[str] = (),
    bad: Mapping[str, str] | None = None,
    **of_source: Any,
) -> conversion.Report:
    """Converts recordings {files below root, by camera: what `kind` makes captions of} in their
    order. bad: file → why it cannot be used."""
    units = []
    for files, one in said.items():
        count = len(one) if isinstance(one, tuple) else 1
        size = sum(reading.size_of(root / file) for file in files)
        units.append(conversion.Unit(files[0], (one, files), count, size))
    units += [conversion.Unit(file, bad=reason) for file, reason in (bad or {}).items()]
    spec = options.spec(settings.fps, language=language, cameras=cameras)
    hashed = {files[0]: _plain(one) for files, one in said.items()}
    report = conversion.convert(
        kind(root, settings, spec, cameras=tuple(cameras), **of_source),
        sorted(units, key=lambda unit: unit.name) if bad else units,
        options,
        {
            **dataclasses.asdict(settings),
            "videos": len(said),
            "source_hash": reading.hash_of_files(root, [f for files in said for f in files]),
            "captions_hash": reading.hash_of(hashed.items()),
            **{key: value for key, value in of_source.items() if value},
            **({"cameras": list(cameras)} if cameras else {}),
        },
    )
    if (count := sum(unit.recordings for unit in units)) != len(units):
        report.notes["stretches"] = count
        report.found = len(units)
    return report


def _plain(said: Any) -> Any:
    """For a hash; a caption of a whole video is its text."""
    whole = isinstance(said, tuple) and len(said) == 1 and said[0].is_whole
    return said[0].text if whole else said
