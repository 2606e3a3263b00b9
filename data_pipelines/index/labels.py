"""Label sets: what one model says of the frames of a corpus, in sidecars keyed by frame row.

There are three kinds: the latent actions by a quantizer, the image tokens by an image tokenizer, a
set of one name for every camera, and the actions by an inverse dynamics model. A label is codes, or
the vectors of a quantizer that has none. Writing goes shard by shard, by several hosts if wanted,
each of which claims its own, and continues where it stopped; `finish` joins the shards. Each has a
digest until then, written last: a shard without one, or of another digest, is not believed. A row
without a label is -1, or NaN, everywhere. Opening refuses an unfinished set and a set that was made
for another corpus.
"""

import errno
import fcntl
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import sidecar
from data_pipelines.index import CorpusIndex

FORMAT = 2  # 1 is that of sets of codes from before there were vectors
VECTORS = ("float32", "float16")


@dataclass(frozen=True)
class Kind:
    """`pattern`: the folder of a set below the sidecar_dir. `dtype`: of codes. `length`: the key in
    the provenance of how many codes, or vectors, a row has."""

    what: str
    pattern: str
    dtype: type[np.integer]
    length: str
    required: tuple[str, ...]
    command: str

    def folder(self, sidecar_dir: str | os.PathLike, name: str, image_key: str) -> Path:
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise ValueError(f"{self.what} name {name!r} must consist of letters, digits, _ . -")
        camera = image_key.replace("/", ".")
        return Path(sidecar_dir) / self.pattern.format(name=name, camera=camera)


@dataclass(frozen=True)
class Values:
    """What a row holds: codes below codebook_size, or vectors where that is None."""

    dtype: np.dtype
    shape: tuple[int, ...]  # (codes,) or (vectors, width)
    codebook_size: int | None

    @classmethod
    def of(cls, kind: Kind, name: str, provenance: dict[str, Any]) -> "Values":
        """Of a set that is to be written: vectors where the provenance has a width."""
        vectors = "width" in provenance
        required = [key for key in kind.required if key != "codebook_size" or not vectors]
        missing = [key for key in required if key not in provenance]
        if missing:
            raise ValueError(f"the provenance of {kind.what} {name!r} lacks {missing}")
        dtype, shape, size = np.dtype(kind.dtype), (provenance[kind.length],), None
        if vectors:
            dtype, shape = (
                np.dtype(provenance.get("dtype", "float32")),
                (*shape, provenance["width"]),
            )
            valid, told = dtype.name in VECTORS, f"dtype is {dtype} (must be one of {VECTORS})"
        else:
            size, limits = provenance["codebook_size"], np.iinfo(dtype)
            most = int(limits.max) + (limits.min < 0)
            valid = 1 <= size <= most
            told = f"codebook_size is {size} (must be 1 to {most}, stored as {dtype})"
        if not valid or min(shape) < 1:
            raise ValueError(
                f"{kind.what} {name!r}: {told}, {kind.length} is {shape[0]} (must be at least 1)"
                + (f", width is {shape[1]} (must be at least 1)" if vectors else "")
            )
        return cls(dtype, shape, size)

    @property
    def absent(self) -> np.generic:
        """In every place of a row without a label: NaN, or the integer that -1 is stored as, which
        is no code."""
        return np.array(np.nan if self.codebook_size is None else -1).astype(self.dtype)[()]

    def given(self, stored: np.ndarray) -> np.ndarray:
        """Stored values as labels: int32, -1 where there is none, or float32, NaN there."""
        if self.codebook_size is None:
            return stored.astype(np.float32)
        return np.where(stored == self.absent, np.int32(-1), stored.astype(np.int32))

    def labelled(self, stored: np.ndarray) -> np.ndarray:
        """Which rows have a label, bool (rows,)."""
        first = stored[(slice(None), *[0] * len(self.shape))]
        return ~np.isnan(first) if self.codebook_size is None else first != self.absent

    def check(self, labels: np.ndarray, where: str) -> None:
        """Refuses labels, as `given`, that are none."""
        size, flat = self.codebook_size, labels.reshape(len(labels), -1)
        if size is None:
            missing, most = np.isnan(flat), float(np.finfo(self.dtype).max)
            least, limit = -most, f"the largest {self.dtype} is {most:g}"
        else:
            missing, least, most = flat == -1, 0, size - 1
            limit = f"codebook_size is {size}"
        if (~missing & ((flat < least) | (flat > most))).any():
            low, high = np.nanmin(flat), np.nanmax(flat)
            raise ValueError(f"{where} run from {low} to {high}; {limit}")
        mixed = np.flatnonzero(missing.any(1) & ~missing.all(1))
        if len(mixed):
            raise ValueError(
                f"{where}: row {mixed[0]} is {labels[mixed[0]].tolist()}; a row is "
                f"labelled as a whole or not at all ({-1 if size else np.nan} everywhere)"
            )


LATENT_ACTIONS = Kind(
    "label set",
    "labels/{name}",
    np.int16,
    "code_length",
    ("quantizer_hash", "window_seconds", "codebook_size", "code_length", "code_version"),
    "`lapa label`",
)
IMAGE_TOKENS = Kind(
    "image token set",
    "image_tokens/{name}/{camera}",
    np.uint16,
    "tokens_per_frame",
    ("tokenizer_hash", "codebook_size", "tokens_per_frame", "image_size", "code_version"),
    "`lapa label --what image_tokens`",
)


ACTIONS = Kind(
    "action set",
    "actions/{name}",
    np.int16,
    "actions",
    ("policy_hash", "window_seconds", "actions", "width", "code_version"),
    "`lapa label --what actions`",
)


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}: {saved.get(key)!r} → {now.get(key)!r}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    )


class LabelSetWriter:
    """Writes a label set; every host that writes gives the same arguments. `close` (or the end of
    the process) gives back what was claimed."""

    def __init__(
        self,
        sidecar_dir: str | os.PathLike,
        name: str,
        index: CorpusIndex,
        *,
        provenance: dict[str, Any],
        kind: Kind = LATENT_ACTIONS,
    ):
        self.values = Values.of(kind, name, provenance)
        self.index, self.name, self.kind = index, name, kind
        self.folder = kind.folder(sidecar_dir, name, index.image_key)
        self.provenance = {
            **json.loads(json.dumps(provenance)),
            "corpus_hash": index.hash,
            "image_key": index.image_key,
            "num_frames": index.num_frames,
        }
        self._manifest = self.folder / f"{index.split}.manifest.json"
        if self._manifest.is_file():
            saved = sidecar.read_json(self._manifest)
            if saved["provenance"] != self.provenance:
                raise sidecar.SidecarError(
                    f"{self.folder} already holds labels of another origin ("
                    f"{_differences(saved['provenance'], self.provenance)}); choose another name "
                    "or delete the folder"
                )
            self.complete = saved["complete"]
            if self.complete:
                LabelSet.open(sidecar_dir, name, index, kind)  # raises where it is damaged
        else:
            self._write_manifest(complete=False)
            self.complete = False
        self._lock: int | None = None
        self._lock_file = self.folder / f".{self.index.split}.lock"

    @property
    def num_labelled(self) -> int:
        """Rows of the finished set that have a label."""
        return sidecar.read_json(self._manifest)["num_labelled"]

    def claim(self, shards: Sequence[int]) -> list[int]:
        """Locks shards until `close` and returns those of them that are still to be written; raises
        SidecarError where another process writes one.

        Byte n of the lock file is locked for shard n: POSIX record locks, which the kernel takes
        from a process that dies, and which network file systems know.
        """
        for shard in shards:
            try:
                self._lock_byte(shard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                self.close()
                raise sidecar.SidecarError(
                    f"shard {shard} of {self.kind.what} {self.folder} is being written by another "
                    "process: give each its own --index of --count, or wait for it"
                ) from error
        missing = set(self.missing_shards())
        return [shard for shard in shards if shard in missing]

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "LabelSetWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _lock_byte(self, number: int, how: int) -> None:
        if self._lock is None:
            self._lock = os.open(self._lock_file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        fcntl.lockf(self._lock, how, 1, number)

    def _write_manifest(self, **more: Any) -> None:
        manifest = {
            "format": FORMAT,
            "dtype": self.values.dtype.name,
            "shape": list(self.values.shape),
            "num_shards": len(self.index.shards),
            "provenance": self.provenance,
        }
        sidecar.write_json(self._manifest, manifest | more)

    def _part(self, shard: int) -> Path:
        return self.folder / f"{self.index.split}-{shard:05d}.npy"

    def _digest(self, shard: int) -> Path:
        return _digest_file(self.folder, self.index.split, shard)

    def _shape(self, shard: int) -> tuple[int, ...]:
        rows = self.index.rows_of_shard(shard)
        return rows.stop - rows.start, *self.values.shape

    def unlabelled(self, shard: int) -> np.ndarray:
        """Labels of a shard in which no row has one: int32, -1, or float32, NaN."""
        return self.values.given(np.full(self._shape(shard), self.values.absent))

    def write_shard(self, shard: int, labels: np.ndarray) -> None:
        """Labels of all rows of a shard: integers (rows, codes of a row), -1 where there is none,
        or floats (rows, vectors of a row, width), NaN there."""
        where = f"labels of shard {shard} of {self.index.directory}"
        if self.complete:
            raise sidecar.SidecarError(f"{self.folder} is finished; choose another name")
        vectors = self.values.codebook_size is None
        kind = np.floating if vectors else np.integer
        if not np.issubdtype(labels.dtype, kind) or labels.shape != self._shape(shard):
            raise ValueError(
                f"{where} are {labels.dtype}{labels.shape}, expected "
                f"{'floats' if vectors else 'integers'} {self._shape(shard)} (rows of the shard, "
                f"{self.kind.length}{', width' if vectors else ''})"
            )
        self.values.check(labels, where)
        stored = labels.astype(self.values.dtype)
        self._digest(shard).unlink(missing_ok=True)
        sidecar.write_array(self._part(shard), stored)
        sidecar.write_json(self._digest(shard), sidecar.array_digest(stored))

    def missing_shards(self) -> list[int]:
        """Shards that nobody has written yet."""
        missing = [n for n in range(len(self.index.shards)) if not self._digest(n).is_file()]
        if missing and not self.complete:  # unless another host finished meanwhile
            self.complete = sidecar.read_json(self._manifest)["complete"]
        return [] if self.complete else missing

    def _is_whole(self, shard: int) -> bool:
        try:
            digest = sidecar.read_json(self._digest(shard))
            return sidecar.file_digest(self._part(shard)) == digest
        except (sidecar.SidecarError, FileNotFoundError):
            return False

    def finish(self, least: int = 0, most: int | None = None) -> None:
        """Checks that every shard is there and whole and that `least` to `most` rows are labelled,
        and makes the set usable. Several hosts may call: one does it, the others wait for it."""
        if self.complete:
            return
        self._lock_byte(len(self.index.shards), fcntl.LOCK_EX)
        try:
            self.complete = sidecar.read_json(self._manifest)["complete"]
            if not self.complete:
                self._join(least, most)
        finally:
            self._lock_byte(len(self.index.shards), fcntl.LOCK_UN)

    def _join(self, least: int, most: int | None) -> None:
        if missing := self.missing_shards():
            raise sidecar.SidecarError(
                f"{self.kind.what} {self.folder} lacks shards {missing[:20]} of "
                f"{len(self.index.shards)}: continue with {self.kind.command}"
            )
        parts = []
        for shard in range(len(self.index.shards)):
            if not self._is_whole(shard):
                self._digest(shard).unlink()  # so that it is made again
                raise sidecar.SidecarError(
                    f"{self._part(shard)} is damaged (its digest is not that of what was written): "
                    f"{self.kind.command} makes it again"
                )
            parts.append(sidecar.map_array(self._part(shard)))
        labelled = sum(int(self.values.labelled(part).sum()) for part in parts)
        if labelled < least or (most is not None and labelled > most):
            raise sidecar.SidecarError(
                f"{self.kind.what} {self.folder} has {labelled} labelled rows of "
                f"{self.index.num_frames}, expected {least} to {most}: delete the folder and make "
                f"it again with {self.kind.command}"
            )
        path = self.folder / f"{self.index.split}.npy"
        sidecar.join_arrays(path, parts)
        digest = sidecar.array_digest(sidecar.map_array(path))
        self._write_manifest(complete=True, num_labelled=labelled, digest=digest)
        self.complete = True
        for shard in range(len(self.index.shards)):
            self._part(shard).unlink()
            self._digest(shard).unlink()
        self._lock_file.unlink()  # from here on the manifest says that there is nothing to lock


def _digest_file(folder: Path, split: str, shard: int) -> Path:
    return folder / f"{split}-{shard:05d}.json"


class LabelSet:
    """A finished label set of an index."""

    def __init__(self, folder: Path, rows: np.ndarray, manifest: dict[str, Any], kind: Kind):
        self.folder, self._rows, self._manifest, self.kind = folder, rows, manifest, kind
        self.codebook_size: int | None = self.provenance.get("codebook_size")  # None: vectors
        self.values = Values(rows.dtype, rows.shape[1:], self.codebook_size)

    @classmethod
    def open(
        cls,
        sidecar_dir: str | os.PathLike,
        name: str,
        index: CorpusIndex,
        kind: Kind = LATENT_ACTIONS,
    ) -> "LabelSet":
        folder = kind.folder(sidecar_dir, name, index.image_key)
        path = folder / f"{index.split}.manifest.json"
        if not path.is_file():
            known = known_sets(sidecar_dir, kind, index.image_key, index.split)
            raise FileNotFoundError(
                f"there is no {kind.what} {name!r} of image_key {index.image_key!r}, split "
                f"{index.split!r} in {sidecar_dir} (known: {known or 'none'}): make it with "
                f"{kind.command}"
            )
        manifest = sidecar.read_json(path)
        saved = manifest["provenance"]
        if manifest["format"] not in (1, FORMAT):
            raise sidecar.SidecarError(
                f"{path} has format {manifest['format']}, this version "
                f"reads 1 and {FORMAT}: make it again with {kind.command}"
            )
        if saved["corpus_hash"] != index.hash:
            raise sidecar.SidecarError(
                f"{kind.what} {folder} was made for corpus {saved['corpus_hash']} (image_key "
                f"{saved['image_key']!r}, {saved['num_frames']} frames), but {index.directory} "
                f"with image_key {index.image_key!r} is {index.hash} ({index.num_frames} frames): "
                f"make a new one with {kind.command}"
            )
        if not manifest["complete"]:
            missing = [
                number
                for number in range(manifest["num_shards"])
                if not _digest_file(folder, index.split, number).is_file()
            ]
            raise sidecar.SidecarError(
                f"{kind.what} {folder} is not finished: shards {missing[:20]} of "
                f"{manifest['num_shards']} are missing; continue with {kind.command}"
            )
        rows = sidecar.map_array(folder / f"{index.split}.npy")
        if sidecar.file_digest(folder / f"{index.split}.npy") != manifest["digest"]:
            raise sidecar.SidecarError(
                f"{folder}/{index.split}.npy is damaged (its digest is not "
                f"the manifest's): delete {folder}/{index.split}.* and make it again with "
                f"{kind.command}"
            )
        return cls(folder, rows, manifest, kind)

    @property
    def provenance(self) -> dict[str, Any]:
        return self._manifest["provenance"]

    @property
    def code_length(self) -> int:
        """Codes, or vectors, of a row."""
        return self.values.shape[0]

    @property
    def hash(self) -> str:
        """Of the labels and of where they come from."""
        return sidecar.value_hash([self._manifest["digest"], self.provenance])

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Of frame rows (...): codes int32 (..., code_length), -1 where there is none, or vectors
        float32 (..., code_length, width), NaN there."""
        return self.values.given(sidecar.take(self._rows, rows))

    @cached_property
    def valid(self) -> np.ndarray:
        """Which rows have a label, bool (num_frames,)."""
        if self._manifest["num_labelled"] == len(self._rows):
            return np.ones(len(self._rows), bool)  # without a look at each page of a large set
        return self.values.labelled(self._rows)


def known_sets(sidecar_dir: str | os.PathLike, kind: Kind, image_key: str, split: str) -> list[str]:
    """Names of the sets of a kind."""
    camera, folder = image_key.replace("/", "."), Path(sidecar_dir)
    pattern = kind.pattern.format(name="*", camera=camera) + f"/{split}.manifest.json"
    return sorted(path.relative_to(folder).parts[1] for path in folder.glob(pattern))
