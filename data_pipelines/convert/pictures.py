"""A folder of numbered pictures as a clip of a given rate: JPEG or PNG, img_0001.jpg, ..."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from data_pipelines.convert import decode
from data_pipelines.rlds import schema

EXTENSIONS = (".jpg", ".jpeg", ".png")


def read_spans(
    folder: Path, rate: float, settings: decode.VideoSettings, spans: Sequence[decode.Span]
) -> Iterator[tuple[int, decode.Clip | None, int]]:
    """As `decode.read_spans`; pictures follow each other by their numbers, 1/rate seconds apart.

    A JPEG of the right size keeps its bytes.
    """
    files = in_order(folder)
    size = None

    def frames() -> Iterator[tuple[Fraction, tuple[Path, int]]]:
        for number, file in enumerate(files):
            yield Fraction(number) / Fraction(str(rate)), (file, 0)

    def encode(file: Path) -> bytes:
        nonlocal size
        data = file.read_bytes()
        try:
            if 2 <= (turned := _orientation(data)) <= 8:  # others are reserved
                raise decode.VideoError(f"is marked as turned (EXIF {turned}): turn its pixels")
            found = _size(data)
            if found != (size := size or found):
                raise decode.VideoError(f"is {found[0]}x{found[1]}, others {size[0]}x{size[1]}")
            return decode.convert_picture(data, settings)
        except ValueError as error:
            raise decode.VideoError(f"picture {file.name}: {error}") from error

    yield from decode.clips_of(frames(), Fraction(0), encode, settings, spans, _gaps(files))


def in_order(folder: Path) -> list[Path]:
    """The pictures of a folder by the numbers in their names; all names are alike but for these."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS]
    alike = sorted({re.sub(r"\d+", "#", path.name) for path in files})
    if len(alike) > 1:
        raise decode.VideoError(f"pictures of several kinds in one folder: {', '.join(alike[:5])}")
    return sorted(files, key=_numbers)


def _numbers(path: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", path.name)], path.name


def _gaps(files: Sequence[Path]) -> set[str]:
    """What is to be told where their numbers do not rise evenly."""
    columns = zip(*(_numbers(file)[0] for file in files), strict=True)
    moving = [column for column in columns if len(set(column)) > 1]
    if len(moving) == 1 and len({b - a for a, b in itertools.pairwise(moving[0])}) > 1:
        return {"numbers of pictures leave gaps: shown one step apart all the same"}
    return set()


def _size(data: bytes) -> tuple[int, int]:
    """(height, width) by the header."""
    if schema.picture_kind(data) == "png":
        return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    return schema.jpeg_size(data)[:2]


def _orientation(data: bytes) -> int:
    """What EXIF says of a JPEG, 1 where it is as it is stored."""
    start = data[:4096].find(b"Exif\0\0")
    if schema.picture_kind(data) != "jpeg" or start < 0:
        return 1
    tiff = data[start + 6 : start + 6 + 65536]
    order = "little" if tiff[:2] == b"II" else "big"
    at = int.from_bytes(tiff[4:8], order)
    for entry in range(int.from_bytes(tiff[at : at + 2], order)):
        field = tiff[at + 2 + 12 * entry :][:12]
        if int.from_bytes(field[:2], order) == 0x0112:
            return int.from_bytes(field[8:10], order)
    return 1
