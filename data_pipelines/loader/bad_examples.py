"""What could not be read: counted, named once, and too much of it stops the run."""

import threading
from dataclasses import dataclass

from absl import logging

from data_pipelines.loader.corpus import Corpus
from data_pipelines.loader.frames import BadImage

_MIN_SEEN, _MIN_BAD = 100, 10  # up to these a fraction of bad examples says nothing


class BadExamplesError(ValueError):
    """More examples are bad than data.max_bad_fraction allows."""


@dataclass
class BadExample:
    """An image that could not be used; count says how often its example was replaced."""

    corpus: str
    file: str
    episode: int
    step: int
    image_key: str
    reason: str
    count: int = 1


class BadExamples:
    """The images that one host could not use, by corpus, camera and row; safe to use from several
    threads."""

    def __init__(self, max_fraction: float):
        self._max_fraction, self._lock = max_fraction, threading.Lock()
        self._found: dict[tuple[int, int, int], BadExample] = {}
        self._num_seen = self._num_bad = 0

    @property
    def is_any(self) -> bool:
        return bool(self._found)

    def all(self) -> list[BadExample]:
        with self._lock:
            return list(self._found.values())

    def reason(self, corpus: Corpus, camera: int, row: int) -> str | None:
        """Why an image is known to be bad."""
        known = self._found.get((corpus.number, camera, row))
        return None if known is None else known.reason

    def refuse(self, corpus: Corpus, camera: int, row: int) -> None:
        """Raises BadImage for an image that is known to be bad."""
        if (reason := self.reason(corpus, camera, row)) is not None:
            raise BadImage(reason)

    def count_seen(self) -> None:
        """One more example was asked for."""
        with self._lock:
            self._num_seen += 1

    def report(self, corpus: Corpus, camera: int, row: int, reason: str) -> None:
        """One more was bad; raises BadExamplesError where that is too many."""
        with self._lock:
            self._num_bad += 1
            bad, seen = self._num_bad, self._num_seen
            entry = self._found.get((corpus.number, camera, row))
            if entry is not None:
                entry.count += 1
            else:
                place, camera_key = corpus.index.place(row), corpus.cameras[camera].image_key
                entry = BadExample(corpus.name, *place, camera_key, reason)
                self._found[corpus.number, camera, row] = entry
                logging.warning("Bad example replaced: %s", entry)
        too_many = bad > _MIN_BAD and seen >= _MIN_SEEN and bad / seen > self._max_fraction
        if too_many or self._max_fraction == 0:
            raise BadExamplesError(
                f"{bad} of {seen} examples are bad, data.max_bad_fraction allows "
                f"{self._max_fraction}; the last one: {entry}. Leave bad episodes out with "
                "`lapa data index` (exclude), repair the shards, or raise data.max_bad_fraction"
            )
