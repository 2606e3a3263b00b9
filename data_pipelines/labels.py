"""Label sets: the latent actions of a corpus by one quantizer, in sidecars keyed by frame row.

Writing goes shard by shard, by several hosts if wanted, and continues where it stopped; `finish`
joins the shards under <sidecar_dir>/labels/<name>/. A row without a label is all -1. Opening
refuses an unfinished set and a set that was made for another corpus.
"""

import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import sidecar
from data_pipelines.index import CorpusIndex

FORMAT = 1
RELABEL = "`lapa label`"
REQUIRED = ("quantizer_hash", "window_seconds", "codebook_size", "code_length", "code_version")


def label_folder(sidecar_dir: str | os.PathLike, name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ValueError(f"label set name {name!r} must consist of letters, digits, _ . -")
    return Path(sidecar_dir) / "labels" / name


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}: {saved.get(key)!r} → {now.get(key)!r}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    )


class LabelSetWriter:
    """Writes a label set; every host that writes gives the same arguments."""

    def __init__(
        self,
        sidecar_dir: str | os.PathLike,
        name: str,
        index: CorpusIndex,
        *,
        provenance: dict[str, Any],
    ):
        missing = [key for key in REQUIRED if key not in provenance]
        if missing:
            raise ValueError(f"the provenance of label set {name!r} lacks {missing}")
        if not 1 <= provenance["codebook_size"] <= 2**15 or provenance["code_length"] < 1:
            raise ValueError(
                f"label set {name!r}: codebook_size is {provenance['codebook_size']} "
                f"(must be 1 to {2**15}, labels are int16), code_length is "
                f"{provenance['code_length']} (must be at least 1)"
            )
        self.index, self.name = index, name
        self.folder = label_folder(sidecar_dir, name)
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
                    f"{_differences(saved['provenance'], self.provenance)}); choose another label "
                    "set name or delete the folder"
                )
            self.complete = saved["complete"]
        else:
            sidecar.write_json(self._manifest, self._entry(complete=False))
            self.complete = False

    def _entry(self, **more: Any) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "num_shards": len(self.index.shards),
            "provenance": self.provenance,
            **more,
        }

    def _part(self, shard: int) -> Path:
        return self.folder / f"{self.index.split}-{shard:05d}.npy"

    def _shape(self, shard: int) -> tuple[int, int]:
        rows = self.index.rows_of_shard(shard)
        return rows.stop - rows.start, self.provenance["code_length"]

    def write_shard(self, shard: int, labels: np.ndarray) -> None:
        """Labels of all rows of a shard, integers (rows, code_length); -1 rows are unlabelled."""
        where = f"labels of shard {shard} of {self.index.directory}"
        if self.complete:
            raise sidecar.SidecarError(f"{self.folder} is finished; choose another label set name")
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != self._shape(shard):
            raise ValueError(
                f"{where} are {labels.dtype}{labels.shape}, expected integers "
                f"{self._shape(shard)} (rows of the shard, code_length)"
            )
        self._check_values(labels, where)
        sidecar.write_array(self._part(shard), labels.astype(np.int16))

    def _check_values(self, labels: np.ndarray, where: str) -> None:
        size = self.provenance["codebook_size"]
        if labels.size and (labels.min() < -1 or labels.max() >= size):
            raise ValueError(
                f"{where} run from {labels.min()} to {labels.max()}; codebook_size is {size}"
            )
        mixed = np.flatnonzero((labels < 0).any(1) & (labels >= 0).any(1))
        if len(mixed):
            raise ValueError(
                f"{where}: row {mixed[0]} is {labels[mixed[0]].tolist()}; a row is "
                "labelled as a whole or not at all (-1 everywhere)"
            )

    def done_shards(self) -> list[int]:
        """Shards that need no labelling any more."""
        shards = range(len(self.index.shards))
        return list(shards) if self.complete else [n for n in shards if self._part(n).is_file()]

    def finish(self) -> None:
        """Checks that every shard is there and whole, and makes the set usable; one host calls."""
        if self.complete:
            return
        missing = sorted(set(range(len(self.index.shards))) - set(self.done_shards()))
        if missing:
            raise sidecar.SidecarError(
                f"label set {self.folder} lacks shards {missing[:20]} of "
                f"{len(self.index.shards)}: continue with {RELABEL}"
            )
        parts = []
        for shard in range(len(self.index.shards)):
            part = sidecar.map_array(self._part(shard))
            if part.shape != self._shape(shard) or part.dtype != np.int16:
                raise sidecar.SidecarError(
                    f"{self._part(shard)} holds {part.dtype}{part.shape}, expected "
                    f"int16{self._shape(shard)}: delete it and continue with {RELABEL}"
                )
            self._check_values(part, str(self._part(shard)))
            parts.append(part)
        labels = np.concatenate(parts)
        sidecar.write_array(self.folder / f"{self.index.split}.npy", labels)
        sidecar.write_json(
            self._manifest,
            self._entry(
                complete=True,
                num_labelled=int((labels[:, 0] >= 0).sum()),
                digest=sidecar.array_digest(labels),
            ),
        )
        self.complete = True
        for shard in range(len(self.index.shards)):
            self._part(shard).unlink()


class LabelSet:
    """A finished label set of an index."""

    def __init__(self, folder: Path, rows: np.ndarray, manifest: dict[str, Any]):
        self.folder, self._rows, self._manifest = folder, rows, manifest

    @classmethod
    def open(cls, sidecar_dir: str | os.PathLike, name: str, index: CorpusIndex) -> "LabelSet":
        folder = label_folder(sidecar_dir, name)
        path = folder / f"{index.split}.manifest.json"
        if not path.is_file():
            known = sorted(
                item.parent.name for item in folder.parent.glob(f"*/{index.split}.manifest.json")
            )
            raise FileNotFoundError(
                f"there is no label set {name!r} of split {index.split!r} in "
                f"{folder.parent} (known: {known or 'none'}): make it with "
                f"{RELABEL}"
            )
        manifest = sidecar.read_json(path)
        saved = manifest["provenance"]
        if manifest["format"] != FORMAT:
            raise sidecar.SidecarError(
                f"{path} has format {manifest['format']}, this version "
                f"reads {FORMAT}: make it again with {RELABEL}"
            )
        if saved["corpus_hash"] != index.hash:
            raise sidecar.SidecarError(
                f"label set {folder} was made for corpus {saved['corpus_hash']} (image_key "
                f"{saved['image_key']!r}, {saved['num_frames']} frames), but {index.directory} "
                f"with image_key {index.image_key!r} is {index.hash} ({index.num_frames} frames): "
                f"make a new one with {RELABEL}"
            )
        if not manifest["complete"]:
            missing = [
                number
                for number in range(manifest["num_shards"])
                if not (folder / f"{index.split}-{number:05d}.npy").is_file()
            ]
            raise sidecar.SidecarError(
                f"label set {folder} is not finished: shards {missing[:20]} of "
                f"{manifest['num_shards']} are missing; continue with {RELABEL}"
            )
        rows = sidecar.map_array(folder / f"{index.split}.npy")
        if sidecar.array_digest(rows) != manifest["digest"]:
            raise sidecar.SidecarError(
                f"{folder}/{index.split}.npy is damaged (its digest is not "
                f"the manifest's): make it again with {RELABEL}"
            )
        return cls(folder, rows, manifest)

    @property
    def provenance(self) -> dict[str, Any]:
        return self._manifest["provenance"]

    @property
    def code_length(self) -> int:
        return self.provenance["code_length"]

    @property
    def hash(self) -> str:
        """Of the labels and of where they come from."""
        return sidecar.value_hash([self._manifest["digest"], self.provenance])

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Latent actions of frame rows, int32 (n, code_length); -1 where there is none."""
        return self._rows[rows].astype(np.int32)

    @cached_property
    def valid(self) -> np.ndarray:
        """Which rows have a label, bool (num_frames,)."""
        return self._rows[:, 0] >= 0
