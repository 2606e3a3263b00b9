"""What lies below a folder of videos: files, folders of pictures, and what is passed over."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.convert import decode, pictures
from data_pipelines.storage import given_folder


@dataclasses.dataclass
class Found:
    """Sorted paths below the folder. passed_over: kind → what is no clip, or was seen before."""

    videos: list[str] = dataclasses.field(default_factory=list)
    picture_folders: list[str] = dataclasses.field(default_factory=list)
    passed_over: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def find(source: Path, used: str | Path | None = None) -> Found:
    """Looks through a folder and those below it, also through links to folders, each once: where
    it really lies, if that is below the folder, else by the first link to it. used: a file that is
    no clip, but not passed over either."""
    given_folder(source, f"a folder of videos ({', '.join(decode.EXTENSIONS)})")
    found = Found()
    seen: set[tuple[int, int]] = set()
    todo = [source]
    while todo:
        links: list[Path] = []
        for place in todo:
            for folder, names in _walk(place, seen, links, source, found):
                _sort(source, folder, names, found)
        todo = sorted(links)
    for names in (found.videos, found.picture_folders, *found.passed_over.values()):
        names.sort()
    if used is not None and Path(used).resolve().is_relative_to(source.resolve()):
        name = Path(used).resolve().relative_to(source.resolve()).as_posix()
        found.passed_over = {
            kind: kept
            for kind, names in found.passed_over.items()
            if (kept := [one for one in names if one != name])
        }
    return found


def _walk(
    place: Path, seen: set[tuple[int, int]], links: list[Path], source: Path, found: Found
) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of a place and the real folders below it; adds the links."""

    def unreadable(error: OSError) -> None:
        _pass_over(found, "folders that cannot be read", Path(error.filename), source)

    for name, folders, files in os.walk(place, onerror=unreadable):
        folder = Path(name)
        state = folder.stat()
        if (state.st_dev, state.st_ino) in seen:
            _pass_over(found, "links to folders seen before", folder, source)
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        links += [folder / one for one in folders if (folder / one).is_symlink()]
        yield folder, files


def _sort(source: Path, folder: Path, names: list[str], found: Found) -> None:
    stills = []
    for name in names:
        path = folder / name
        ending = path.suffix.lower()
        if name.startswith("._"):
            _pass_over(found, "attributes that macOS wrote", path, source)
        elif ending in decode.EXTENSIONS:
            found.videos.append(path.relative_to(source).as_posix())
        elif path.is_symlink() and not path.exists():
            _pass_over(found, "links to nothing", path, source)
        elif ending in pictures.EXTENSIONS:
            stills.append(path)
        else:
            _pass_over(found, f"files ending in {ending}" if ending else "files", path, source)
    if stills:
        found.picture_folders.append(folder.relative_to(source).as_posix())


def _pass_over(found: Found, kind: str, path: Path, source: Path) -> None:
    found.passed_over.setdefault(kind, []).append(path.relative_to(source).as_posix())


def by_camera(
    files: Sequence[str], cameras: Sequence[str]
) -> tuple[list[tuple[str, ...]], dict[str, str], list[str]]:
    """(files of each recording, by camera; file → why it belongs to none; files of no camera).

    Paths that differ in nothing but the word of the camera, a whole word anywhere in them, and in
    their endings belong together.
    """
    names = "|".join(map(re.escape, sorted(cameras, key=len, reverse=True)))
    word = re.compile(rf"(?<![^\W_])({names})(?![^\W_])")
    groups: dict[str, dict[str, str]] = {}
    bad, others = {}, []
    for file in files:
        stem = file.removesuffix(Path(file).suffix)
        there = sorted(set(word.findall(stem)))
        if not there:
            others.append(file)
        elif len(there) > 1:
            bad[file] = f"its path holds {there}, not one camera"
        else:
            (name,), group = there, groups.setdefault(word.sub("*", stem), {})
            if name in group:
                bad[file] = f"{group[name]} is of the same recording and camera"
            else:
                group[name] = file
    whole = []
    for group in groups.values():
        if missing := [name for name in cameras if name not in group]:
            bad[next(iter(group.values()))] = f"there is no video of {missing} beside it"
        else:
            whole.append(tuple(group[name] for name in cameras))
    return sorted(whole), bad, others
