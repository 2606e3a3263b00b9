"""Games of imagined frames as a corpus that training takes: a policy sees them, a person corrects
what it says, and what was chosen at each frame is its label.

An episode is a game: the frame that it begins with and each that was imagined, an instruction, and
where all of it is from. There are two label sets, as of the quantizer whose z they are: of every z
that was chosen, and (`_person`) of those alone that are not what the policy said. Of a frame under
an instruction the z counts that was chosen last: earlier games lose their label of it, and those
that have none left go. The corpus is written anew beside the old one, which it then replaces: it is
there whole, before or after.

Shape suffixes: K steps, H, W image rows and columns, L codes or vectors of a z.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from data_pipelines.convert.decode import encode_jpeg
from data_pipelines.index import load_index
from data_pipelines.index.build import build_index
from data_pipelines.index.labels import LATENT_ACTIONS, LabelSet, LabelSetWriter, Values
from data_pipelines.rlds import schema, writer
from data_pipelines.storage import Lock, make_directory
from lapa_jax.version import __version__

CORPUS = "corrections"  # the folder of the corpus, and its name
PERSON = "_person"  # after the name of a label set
MOST_FRAMES = 20_000  # of a corpus, which each save writes anew
BY = {True: "person", False: "policy"}
_EXTRAS = {"chosen_by": "string", "told": "string"}


class FullError(ValueError):
    """A corpus would have more than MOST_FRAMES."""


@dataclass(frozen=True)
class Of:
    """What all games of a corpus share.

    image_size: (rows, columns). window_seconds: between a frame and the next. shape: of a z. codes:
    values of a code, 0 where z is of vectors. quantizer_hash: whose z they are. label_set: name.
    """

    image_size: tuple[int, int]
    window_seconds: float
    shape: tuple[int, ...]
    codes: int
    quantizer_hash: str
    label_set: str

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the label sets, but for the version of the code."""
        size = {"codebook_size": self.codes} if self.codes else {"width": self.shape[1]}
        return {
            "quantizer_hash": self.quantizer_hash,
            "window_seconds": self.window_seconds,
            "code_length": self.shape[0],
            **size,
        }

    @property
    def spec(self) -> schema.EpisodeSpec:
        shape, fps = (*self.image_size, 3), 1.0 / self.window_seconds
        return schema.EpisodeSpec(shape, 0, True, "imagined", fps, extras=_EXTRAS)


@dataclass(frozen=True)
class Game:
    """frames: uint8, the first and those that z led to. z: int, or float (K, L, width). by_person:
    bool, whether it is not what the policy said. told: where it is from, as JSON values."""

    frames_KHWC: np.ndarray  # K + 1 of them
    z_KL: np.ndarray
    by_person_K: np.ndarray
    instruction: str
    told: dict[str, Any]


@dataclass(frozen=True)
class Counts:
    """Of a corpus: games, pairs of a frame and a z, and how many of these a person chose."""

    episodes: int
    pairs: int
    corrected: int


@dataclass
class _Episode:
    """As it is written. keys: of each frame, under its instruction."""

    record: bytes
    keys: list[tuple]
    z: np.ndarray  # (K + 1, ...), -1 or NaN where there is no label
    by_person: np.ndarray  # bool (K + 1,)

    @property
    def labelled(self) -> np.ndarray:
        first = self.z.reshape(len(self.z), -1)[:, 0]
        return ~np.isnan(first) if self.z.dtype.kind == "f" else first >= 0


class Corrections:
    """The corpus FOLDER/corrections."""

    def __init__(self, folder: str | Path, of: Of):
        """Raises ValueError where it is there and of other z, or no such corpus."""
        self.folder, self.of = Path(folder), of
        self.path = self.folder / CORPUS
        self._values = Values.of(LATENT_ACTIONS, of.label_set, self._provenance(person=False))
        make_directory(self.folder)
        with self._locked():
            self._recover()
            self._read()

    def add(self, games: Sequence[Game]) -> Counts:
        """Adds games in their order; counts what is there then. Raises FullError before anything is
        written, ValueError for a game of other shapes."""
        made = [self._episode(game) for game in games]
        with self._locked():
            self._recover()
            kept = _latest([*self._read(), *made])
            frames = sum(len(episode.keys) for episode in kept)
            if frames > MOST_FRAMES:
                raise FullError(f"{frames} frames of corrections: at most {MOST_FRAMES}")
            self._replace(kept)
        pairs = sum(int(episode.labelled.sum()) for episode in kept)
        corrected = sum(int((episode.labelled & episode.by_person).sum()) for episode in kept)
        return Counts(len(kept), pairs, corrected)

    # --- Episodes ---

    def _episode(self, game: Game) -> _Episode:
        K = len(game.z_KL)
        frames = (K + 1, *self.of.image_size, 3)
        shapes = (
            ("frames", game.frames_KHWC.shape, frames),
            ("z", game.z_KL.shape, (K, *self.of.shape)),
            ("by_person", game.by_person_K.shape, (K,)),
        )
        for what, there, wanted in shapes:
            if there != wanted:
                raise ValueError(f"{what} of a game are {list(there)}, expected {list(wanted)}")
        if not K or not game.instruction:
            raise ValueError("a game to be saved has a step and an instruction")
        images = [encode_jpeg(frame) for frame in game.frames_KHWC]
        by_person = np.append(game.by_person_K, False)
        extras = {
            "chosen_by": " ".join(BY[bool(person)] for person in game.by_person_K),
            "told": json.dumps(game.told, sort_keys=True),
        }
        z = self._values.given(np.full((K + 1, *self.of.shape), self._values.absent))
        z[:-1] = game.z_KL
        named = [game.instruction.encode(), game.z_KL.tobytes(), *images]
        hashed = hashlib.blake2b(b"".join(named), digest_size=8)
        episode = schema.Episode(
            images=images,
            actions=None,
            instruction=game.instruction,
            episode_id=f"game-{hashed.hexdigest()}",
            camera="imagined",
            terminal=False,
            extras=extras,
        )
        record = schema.encode_episode(episode, self.of.spec)
        found = [(google_crc32c.value(image), len(image)) for image in images]
        return _Episode(record, [(game.instruction, *one) for one in found], z, by_person)

    def _read(self) -> list[_Episode]:
        """Those that are there."""
        if not self.path.exists():
            return []
        info = writer.read_info(self.path)
        if not info or info["name"] != CORPUS:
            raise ValueError(f"{self.path} is no corpus of corrections: choose another folder")
        index = load_index(self.path, image_key="image")
        sets = []
        for name in (self.of.label_set, self.of.label_set + PERSON):
            try:
                labels = LabelSet.open(index.sidecar_dir, name, index)
            except FileNotFoundError as error:
                raise ValueError(
                    f"{self.path} has no label set {name!r}, in which those of this policy would "
                    "be: choose another folder"
                ) from error
            for key, ours in self.of.provenance.items():
                if labels.provenance.get(key) != ours:
                    raise ValueError(
                        f"{self.path} has corrections whose {key} is {labels.provenance.get(key)}, "
                        f"not {ours}: choose another folder"
                    )
            sets.append(labels)
        data, found = index.shards[0].read_bytes(), []
        for number in range(index.num_episodes):
            offset, length = int(index.record_offset[number]), int(index.record_length[number])
            first = int(index.episode_start[number])
            rows = np.arange(first, first + int(index.episode_length[number]))
            text = index.instruction(number)
            keys = [(text, int(index.frame_crc[r]), int(index.frame_length[r])) for r in rows]
            record = data[offset : offset + length]
            found.append(_Episode(record, keys, sets[0].labels(rows), sets[1].valid[rows]))
        return found

    # --- Writing ---

    def _provenance(self, *, person: bool) -> dict[str, Any]:
        by = "person" if person else "policy and person"
        return self.of.provenance | {"chosen_by": by, "code_version": __version__}

    def _locked(self) -> Lock:
        return Lock(self.folder / f".{CORPUS}.lock", self.path, wait=True)

    def _beside(self, what: str) -> Path:
        return self.folder / f".{CORPUS}.{what}"

    def _recover(self) -> None:
        """After a process that was stopped."""
        if self._beside("old").exists():
            if not self.path.exists():
                self._beside("old").rename(self.path)
            else:
                shutil.rmtree(self._beside("old"))
        if self._beside("new").exists():
            shutil.rmtree(self._beside("new"))

    def _replace(self, episodes: list[_Episode]) -> None:
        fresh = self._beside("new")
        fresh.mkdir()
        shard = writer.ShardFile(fresh / f"{CORPUS}{writer.INCOMPLETE}")
        try:
            for episode in episodes:
                shard.append(episode.record)
        except BaseException:
            shard.discard()
            raise
        writer.Output(fresh, CORPUS, self.of.spec).publish([shard.close()])
        build_index(fresh, progress=False)
        index = load_index(fresh, image_key="image")
        z = np.concatenate([episode.z for episode in episodes])
        by_person = np.concatenate([episode.by_person for episode in episodes])
        absent = self._values.given(np.full(z.shape, self._values.absent))
        only = by_person.reshape(-1, *[1] * (z.ndim - 1))
        for name, labels in (("", z), (PERSON, np.where(only, z, absent))):
            provenance = self._provenance(person=bool(name))
            given = index.sidecar_dir, self.of.label_set + name, index
            with LabelSetWriter(*given, provenance=provenance) as labelled:
                labelled.write_shard(0, labels)
                labelled.finish()
        if self.path.exists():
            self.path.rename(self._beside("old"))
        fresh.rename(self.path)
        if self._beside("old").exists():
            shutil.rmtree(self._beside("old"))


def _latest(episodes: list[_Episode]) -> list[_Episode]:
    """Each with its labels of those frames that no later one labels, where it has any left."""
    taken: dict[tuple, None] = {}
    for episode in reversed(episodes):
        here = episode.labelled
        earlier = np.array([key in taken for key in episode.keys])
        absent = np.nan if episode.z.dtype.kind == "f" else -1
        episode.z = episode.z.copy()
        episode.z[here & earlier] = absent
        taken |= dict.fromkeys(key for key, one in zip(episode.keys, here, strict=True) if one)
    return [episode for episode in episodes if episode.labelled.any()]
