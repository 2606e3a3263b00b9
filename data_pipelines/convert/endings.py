"""Whether a video file is all there, for containers that FFmpeg reads to wherever they end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT, _VOID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\xec"
_MAX_OGG_PAGE = 27 + 255 + 255 * 255
_UNKNOWN_RIFF = (0, 0xFFFFFFFF)  # of recorders that could not go back to the size
# Of GIF: what begins with a byte is followed by so many bytes, then by blocks that tell their size.
_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B


def missing(path: Path) -> str:
    """What the container says is not there any more; "" if nothing, or if it does not say.

    Matroska, AVI, GIF and Ogg are looked at. MPEG streams do not say where they end, of the others
    FFmpeg tells.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(4)
        file.seek(0)
        if start == _EBML:
            end = _end_of_matroska(file, size)
        elif start == b"RIFF":
            end = _end_of_riff(file, size)
        elif start == b"OggS":
            end = _end_of_ogg(file, size)
        elif start == b"GIF8":
            return "" if _gif_ends(file) else "its end is missing"
        else:
            return ""
    return f"{size:,} of {end:,} bytes are there" if end > size else ""


def _end_of_matroska(file: BinaryIO, size: int) -> int:
    """Of the last of the elements that follow each other; an unknown size reaches to the end."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        name = head[: 1 if head[:1] == _VOID else 4]
        first = head[len(name) : len(name) + 1]
        if name not in (_EBML, _SEGMENT, _VOID) or not first or not first[0]:
            break
        length = 9 - first[0].bit_length()  # of the number that tells the size
        value = int.from_bytes(head[len(name) :][:length])
        known = value & ((1 << 7 * length) - 1)
        if known == (1 << 7 * length) - 1:
            return size
        at += len(name) + length + known
    return at


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """Of the last of the RIFF chunks that follow each other; the last byte may be padding."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in _UNKNOWN_RIFF:
            return size
        if at + 8 + length > size:
            return at + 8 + length
        at += 8 + length + length % 2
    return size


def _end_of_ogg(file: BinaryIO, size: int) -> int:
    """Of the last page."""
    at = max(0, size - _MAX_OGG_PAGE)
    file.seek(at)
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[26] if len(page) > 26 else 0
    end = 27 + segments + sum(page[27 : 27 + segments])
    return size - len(page) + end if page[:4] == b"OggS" else size


def _gif_ends(file: BinaryIO) -> bool:
    """Whether its blocks lead to the byte that ends it."""
    _skip_colours(file, file.read(13)[10:11])
    while mark := file.read(1):
        if mark[0] == _GIF_END:
            return True
        if mark[0] == _GIF_IMAGE:
            _skip_colours(file, file.read(9)[8:9])
        elif mark[0] != _GIF_EXTENSION:
            return True  # no GIF that is known: FFmpeg has the say
        file.read(1)  # the kind of extension, or the size of codes
        while (length := file.read(1)) and length[0]:
            file.seek(length[0], os.SEEK_CUR)
    return False


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)
