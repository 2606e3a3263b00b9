"""From actions to z: what a policy of actions does, in the words of a world model.

`Imagination.step` goes on by z of a window, a policy says the actions of its steps. The map between
them is fitted on windows whose true actions and z are both known: all actions of a window side by
side, in order, to z; a multinomial logistic regression for each code, a ridge regression for
vectors. The z of a window also tells what moved otherwise, which no action says: what is lost is in
`report`.

Shape suffixes: N, B windows, W steps of a window, D dimensions of an action, L codes or vectors of
a z.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from data_pipelines.index import CorpusIndex
from data_pipelines.index.labels import LATENT_ACTIONS, LabelSet, known_sets
from data_pipelines.progress import Progress
from lapa_jax.diagnostics.code_probes import CodeClassifier, code_report, fit_classifier
from lapa_jax.diagnostics.codebook import check_codes
from lapa_jax.diagnostics.probes import Probe, fit_probe, held_episodes, linear_probe
from lapa_jax.runs import examples
from lapa_jax.runs.loaded import LoadedQuantizer
from lapa_jax.world.imagination import Imagination, quantizers_of

MAX_WINDOWS = 20_000  # evenly spread: a map of a few numbers has learnt what there is long before


@dataclass(frozen=True)
class ActionMap:
    """z of the actions of windows; `fit` and `open_action_map` make one.

    steps: W of a window. dim: D of an action. shape: of one z, (L,) of codes, (L, width) of
    vectors. report: on episodes that a map was not fitted on, of codes that of
    `code_probes.code_report` (`accuracy`, `modal_accuracy`, `explained_bits`, ...), of vectors that
    of `probes.linear_probe` (`r2` of each number, `r2_mean`, ...); the map itself is then fitted on
    all of them.
    """

    steps: int
    dim: int
    shape: tuple[int, ...]
    fitted: tuple[CodeClassifier, ...] | Probe
    report: Mapping[str, Any]

    def map(self, actions_BWD: np.ndarray) -> np.ndarray:
        """z int32 (B, L), the likeliest codes, or float32 (B, L, width), of actions in the units of
        the corpus. Raises ValueError for other steps or dimensions, and for what is not finite."""
        x = _features(actions_BWD)
        if np.shape(actions_BWD)[1:] != (self.steps, self.dim):
            raise ValueError(
                f"actions of shape {list(np.shape(actions_BWD))} must be (B, {self.steps}, "
                f"{self.dim}): the {self.steps} steps of a window of the corpus that the map was "
                f"fitted on, {self.dim} numbers each"
            )
        if isinstance(self.fitted, Probe):
            return self.fitted(x).reshape(len(x), *self.shape).astype(np.float32)
        return np.stack([one(x).argmax(1) for one in self.fitted], 1).astype(np.int32)


def fit(
    actions_NWD: np.ndarray,
    z: np.ndarray,
    *,
    episode: np.ndarray,
    codes: int = 0,
    seed: int = 0,
) -> ActionMap:
    """The map of true actions (N, W, D) and z of the same windows: int (N, L) below `codes`, or,
    with 0 of these, float (N, L, width). episode: int (N,), of each window; at least 4 different
    ones. Raises ValueError for other shapes, and for what is not finite."""
    x, z, episode = _features(actions_NWD), np.asarray(z), np.asarray(episode)
    if z.ndim != (2 if codes else 3) or len(z) != len(x) or episode.shape != (len(x),):
        raise ValueError(
            f"need actions (N, W, D), z ({'N, L' if codes else 'N, L, width'}) and episode (N,), "
            f"got {np.shape(actions_NWD)}, {z.shape}, {episode.shape}"
        )
    if len(np.unique(episode)) < 4:
        raise ValueError(
            f"windows of {len(np.unique(episode))} episodes: a map from actions to z takes at "
            "least 4 to be fitted, chosen and tested on others"
        )
    shape = np.shape(actions_NWD)[1:]
    if codes:
        z = check_codes(z, codes)
        report = code_report(x, z, episode, codes, kind="logistic", seed=seed)
        held = held_episodes(episode, seed=seed)
        slots = [fit_classifier(x, slot, held, codebook_size=codes) for slot in z.T]
        return ActionMap(*shape, z.shape[1:], tuple(slots), report)
    y = z.reshape(len(z), -1).astype(np.float64)
    report = linear_probe(x, y, episode, seed=seed)
    return ActionMap(*shape, z.shape[1:], fit_probe(x, y, episode, seed=seed), report)


def open_action_map(
    imagination: Imagination,
    index: CorpusIndex,
    *,
    quantizer: LoadedQuantizer | None = None,
    most: int = MAX_WINDOWS,
    seed: int = 0,
) -> ActionMap:
    """The map of a corpus with actions and a label set by the quantizer that imagines, or that a
    dynamics model learnt from. Where there is no such set z is read by `quantizer`, of a quantizer
    by itself. At most so many windows, evenly spread; those with actions that are not finite are
    left out and counted in the log. Raises ValueError where actions, windows of one number of
    steps, or z are missing."""
    if index.actions is None:
        raise ValueError(f"{index.directory} has no actions: no map from actions to z can be made")
    labels = label_set_of(imagination, index)
    if quantizer is None and isinstance(imagination.model, LoadedQuantizer):
        quantizer = imagination.model
    if labels is not None:
        rows = np.flatnonzero(labels.valid)
        steps = steps_of(index, labels.provenance["window_seconds"])
        end = (index.episode_start + index.episode_length)[index.episode_of_rows(rows)]
        rows = usable(index, rows[rows + steps < end], steps, most)
        z = labels.labels(rows)
    elif quantizer is not None:
        corpus = {name: str(getattr(index, name)) for name in ("split", "image_key", "sidecar_dir")}
        source = examples.Pairs(quantizer.config, {"path": str(index.directory), **corpus})
        steps = steps_of(index, source.window_seconds)
        rows = usable(index, source.rows[:, 0], steps, most)
        rows, z = _read(quantizer, source, np.stack([rows, rows + steps], axis=1))
    else:
        raise ValueError(
            f"{index.directory} has no label set by the quantizer that {imagination.model.workdir} "
            "learnt from: name the quantizer, or make one with `lapa label`"
        )
    if z.shape[1:] != imagination.shape:
        raise ValueError(
            f"z of {index.directory} have shape {list(z.shape[1:])}, those that "
            f"{imagination.model.workdir} goes on by {list(imagination.shape)}"
        )
    actions = index.actions[rows[:, None] + np.arange(steps)]
    episode = index.episode_of_rows(rows)
    return fit(actions, z, episode=episode, codes=imagination.codes, seed=seed)


def label_set_of(imagination: Imagination, index: CorpusIndex) -> LabelSet | None:
    """The label set of a corpus by the quantizer that imagines, or, of a dynamics model, that it
    learnt from; None where there is none."""
    hashes = quantizers_of(imagination.model)
    for name in known_sets(index.sidecar_dir, LATENT_ACTIONS, index.image_key, index.split):
        labels = LabelSet.open(index.sidecar_dir, name, index)
        if labels.provenance["quantizer_hash"] in hashes:
            return labels
    return None


def _features(actions_NWD: np.ndarray) -> np.ndarray:
    """All actions of a window side by side, float64 (N, W D)."""
    x = np.asarray(actions_NWD)
    if x.ndim != 3 or x.dtype.kind not in "fiu" or not x.size:
        raise ValueError(f"actions {x.dtype}{list(x.shape)} must be numbers of shape (N, W, D)")
    if not np.isfinite(x).all():
        raise ValueError("actions hold values that are not finite: drop those windows first")
    return x.reshape(len(x), -1).astype(np.float64)


def steps_of(index: CorpusIndex, seconds: float) -> int:
    """Of a window of so many seconds, the same in all episodes."""
    rates = np.unique(index.fps)
    steps = np.unique(np.rint(seconds * rates))
    if len(steps) != 1 or not (np.isfinite(steps) & (steps >= 1)).all():
        raise ValueError(
            f"{index.directory} has episodes of {', '.join(f'{rate:g}' for rate in rates)} steps a "
            f"second (episode_metadata/fps): a window of {seconds:g} s must be the same number of "
            "steps, 1 at least, in all of them"
        )
    return int(steps[0])


def usable(index: CorpusIndex, rows: np.ndarray, steps: int, most: int) -> np.ndarray:
    """Of first rows of windows at most so many, with finite actions."""
    rows = rows[:: max(1, -(-len(rows) // most))]
    finite = np.isfinite(index.actions[rows[:, None] + np.arange(steps)]).all(axis=(1, 2))
    if not finite.any():
        raise ValueError(f"no window of {steps} steps of {index.directory} has z and actions")
    if not finite.all():
        told = "%s: %d of %d windows have actions that are not finite and are left out"
        logging.warning(told, index.directory, int((~finite).sum()), len(rows))
    return rows[finite]


def _read(
    quantizer: LoadedQuantizer, source: examples.Pairs, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(first rows of the pairs that can be decoded, their z)."""
    read, has_codes = jax.jit(quantizer.stage.read), quantizer.stage.model_config.has_codes
    kept, found = [], []
    with Progress(f"read {Path(source.index.directory).name}", len(rows), unit="pair") as bar:
        bar.waits()
        for batch in source.batches(rows):
            said = read(quantizer.params, quantizer.variables, batch.first, batch.last)
            z = np.asarray(said.z_BL if has_codes else said.received_BLQ)
            kept.append(batch.rows[batch.good, 0])
            found.append(z[: batch.size][batch.good])
            bar.update(batch.size)
    return np.concatenate(kept), np.concatenate(found)
