"""What the assets of a new run are made of (policy/heads: `Sources`)."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from absl import logging

from data_pipelines import sidecar
from data_pipelines.checks import statistics
from data_pipelines.checks.vectors import grippers
from data_pipelines.loader.corpus import Corpus
from data_pipelines.loader.mixture import Mixture
from data_pipelines.normalise import Normaliser
from data_pipelines.progress import Progress

ACTION_DIM = 7  # of the stand-in actions
_PART = 2**14  # chunks


@dataclasses.dataclass(frozen=True)
class OfCorpora:
    """Those of a run's own corpora; actions of the episodes that are not left out."""

    mixture: Mixture
    inherited: Mapping[str, bytes]  # assets of the run that it starts from

    def instructions(self) -> list[str]:
        return sorted({text for c in self.mixture.corpora for text in c.index.instructions})

    def actions(self) -> np.ndarray:
        return np.concatenate([c.actions.at(rows) for c, rows in self._known()])

    def action_chunks(self, what_for: str) -> Iterator[np.ndarray]:
        known = list(self._known())
        for i, (corpus, rows) in enumerate(known):
            if corpus.actions.padding == "drop":
                known[i] = corpus, rows[corpus.actions.mask(rows).all(axis=1)]
        with Progress(what_for, sum(len(rows) for _, rows in known), unit="chunk") as bar:
            for corpus, rows in known:
                for start in range(0, len(rows), _PART):
                    found = corpus.actions.chunks(rows[start : start + _PART])
                    yield found
                    bar.update(len(found))

    def _known(self) -> Iterator[tuple[Corpus, np.ndarray]]:
        """Of each corpus that has actions the rows whose actions are known."""
        corpora = self.mixture.corpora
        for corpus in [c for c in corpora if c.actions.dim] or corpora:
            if corpus.index.actions is None and corpus.actions.said:
                rows = np.arange(corpus.index.num_frames)
            else:
                rows = statistics.valid_action_rows(corpus.index)
            rows = rows[~corpus.left_out[corpus.index.episode_of_rows(rows)]]
            yield corpus, rows[corpus.actions.mask(rows)[:, 0]]

    def states(self) -> np.ndarray:
        found = []
        for corpus in self.mixture.corpora:
            if not corpus.settings.state_key:
                continue
            index = corpus.index
            kept = np.repeat(~corpus.left_out, index.episode_length)
            found.append(index.states[kept])
        return np.concatenate(found)

    def latents(self) -> np.ndarray:
        found = []
        for corpus in self.mixture.corpora:
            valid = corpus.labels.valid & np.repeat(~corpus.left_out, corpus.index.episode_length)
            found.append(corpus.labels.labels(np.flatnonzero(valid)))
            if found[-1].dtype.kind != "f":
                key, name = corpus.settings.key("label_set"), corpus.settings.label_set
                raise ValueError(f"{key}={name!r} holds codes: they are for a head of tokens")
        width = found[0].shape[-1]
        return np.concatenate([labels.reshape(-1, width) for labels in found])

    def statistics(self, of: str, mode: str) -> Normaliser:
        corpora = self.mixture.corpora
        hashes = [c.index.hash for c in corpora]  # of one corpus as `lapa data stats` has it
        source = hashes[0] if len(hashes) == 1 else sidecar.value_hash(hashes)
        said = {"control_hz": control_hz(self.mixture), "source": source}
        if of == "action":
            told = {grippers(c.index) for c in corpora if c.index.actions is not None}
            said["grippers"] = told.pop() if len(told) == 1 else ()
        return _told(Normaliser.fit(getattr(self, f"{of}s")(), mode, **said), of)


def control_hz(mixture: Mixture) -> float:
    """Steps a second of the corpora; 0.0 where they differ, or one of them does not say it."""
    said = [c.settings.fps or c.index.fps for c in mixture.corpora]
    rates = np.unique(np.concatenate([np.atleast_1d(x) for x in said]))
    return float(rates[0]) if len(rates) == 1 and rates[0] > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What gives assets the shapes of real ones, without data."""

    horizon: int = 1  # of chunks
    inherited: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    def instructions(self) -> list[str]:
        return [f"push block {i} to the wall" for i in range(20)]

    def actions(self) -> np.ndarray:
        return np.linspace(-1.0, 1.0, 8192, dtype=np.float32)[:, None].repeat(ACTION_DIM, axis=1)

    def states(self) -> np.ndarray:
        return self.actions()

    def latents(self) -> np.ndarray:
        return self.actions()

    def statistics(self, of: str, mode: str) -> Normaliser:
        return Normaliser.fit(getattr(self, f"{of}s")(), mode)

    def action_chunks(self, what_for: str) -> Iterator[np.ndarray]:
        """Smooth ones, which begin at any of the actions."""
        time = np.linspace(0.0, 1.0, self.horizon, dtype=np.float32)[:, None]
        turn = 2.0 * np.arange(ACTION_DIM, dtype=np.float32)
        begins = self.actions()[:: 8192 // 512, None]
        yield np.cos(np.pi * begins + turn + (3.0 + begins) * time).astype(np.float32)


def _told(statistics: Normaliser, of: str) -> Normaliser:
    for line in statistics.peculiarities(of):
        logging.warning("%s", line)
    return statistics
