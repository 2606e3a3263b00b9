"""A verifier for chunks: they are acted on while the world goes as it was imagined.

A policy says the actions of many steps at once. At every window of the model that imagines, the
frame that these actions should have led to is compared with the one that is seen; where they differ
by more than true actions are wont to, the rest of the chunk is dropped and the policy asked again.
The idea is that of FFDC ("When to Trust Imagination"); here a window is imagined from the frame
that was seen a window ago, so that what the model draws wrong does not add up, and two frames are
compared by what an encoder of frame pairs says of each with the frame before: how the scene moved,
not how it looks.

Shape suffixes: B, N windows side by side, H, W image rows and columns, A dimensions of an action, k
steps of a window, n of a chunk.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from scipy.stats import mannwhitneyu

from data_pipelines.index import CorpusIndex
from data_pipelines.progress import Progress
from lapa_jax.diagnostics.statistics import wilson_interval
from lapa_jax.runs import examples
from lapa_jax.runs.loaded import LoadedQuantizer, Model
from lapa_jax.world.action_map import MAX_WINDOWS, ActionMap
from lapa_jax.world.imagination import Imagination

MIN_BEYOND = 5  # held-out windows that must lie above a threshold: else it is the largest few


@dataclasses.dataclass(frozen=True)
class Verifier:
    """`Calibration.at` makes one. actions: from those of a window to z. reader: the quantizer whose
    encoder compares. threshold: a distance above it ends a chunk. report: of its calibration."""

    imagination: Imagination
    actions: ActionMap
    reader: LoadedQuantizer
    threshold: float = np.inf
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def every(self) -> int:
        """Steps of a window."""
        return self.actions.steps

    def distances(
        self, before_BHWC: np.ndarray, actions_BkA: np.ndarray, seen_BHWC: np.ndarray
    ) -> np.ndarray:
        """float32 (B,): between what these actions should have led to from the frames before, and
        what is seen, both uint8: the squared distance of the encoder's latents of (before,
        imagined) and of (before, seen). Raises ValueError as `ActionMap.map` and `Imagination`."""
        state = self.imagination.start(before_BHWC)
        imagined = self.imagination.step(state, self.actions.map(actions_BkA))[1]
        held = self.reader.params, self.reader.variables
        return np.asarray(_apart(self.reader.stage, *held, before_BHWC, imagined, seen_BHWC))

    def watch(self) -> "Watch":
        return Watch(self)


@partial(jax.jit, static_argnums=0)
def _apart(stage, params, variables, before_BHWC, imagined_BHWC, seen_BHWC) -> jax.Array:
    def moved(after):
        return stage.read(params, variables, before_BHWC, after).latent_BLQ

    apart = moved(imagined_BHWC) - moved(seen_BHWC)
    return jnp.square(apart).reshape(len(apart), -1).sum(1)


class Watch:
    """The verifier over episodes side by side: a `Check` of envs/checked.py."""

    def __init__(self, verifier: Verifier):
        self.verifier, self.every = verifier, verifier.every
        self.before_NHWC = self.chunks_NnA = np.empty(0)

    def asked(self, t: int, images: np.ndarray, chunks: np.ndarray, due: np.ndarray) -> None:
        self.before_NHWC = images if not len(self.before_NHWC) else self._now(images, due)
        self.chunks_NnA = chunks

    def drops(self, t: int, images: np.ndarray, looks: np.ndarray) -> np.ndarray:
        first = (np.maximum(looks, 1) - 1) * self.every
        steps = first[:, None] + np.arange(self.every)
        acted = np.take_along_axis(self.chunks_NnA, steps[..., None], axis=1)
        apart = self.verifier.distances(self.before_NHWC, acted, images)
        self.before_NHWC = self._now(images, looks > 0)
        return (looks > 0) & (apart > self.verifier.threshold)

    def _now(self, images: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.where(of[:, None, None, None], images, self.before_NHWC)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Distances of held-out windows, of which `at` makes verifiers. true: with their own actions,
    other: with those of another window, float32 (N,) each. episodes: how many these are of."""

    verifier: Verifier  # without a threshold
    true: np.ndarray
    other: np.ndarray
    episodes: int
    where: str

    def at(self, false_alarms: float) -> Verifier:
        """A verifier whose threshold such a share of true windows lies above.

        Its report has the threshold, the share of true windows above it, and how well it tells
        apart windows with the actions of others: the share of these above it (`caught`, with its
        Wilson interval) and the chance that one of them is farther apart than a true one (`auc`).
        Raises ValueError for no share, and where the windows are too few for it.
        """
        if not 0.0 < false_alarms < 1.0:
            raise ValueError(f"--false_alarms {false_alarms}: it must be above 0 and below 1")
        windows = len(self.true)
        if windows * false_alarms < MIN_BEYOND:
            raise ValueError(
                f"--false_alarms {false_alarms:g} of {windows} windows of {self.where}: "
                f"{MIN_BEYOND} at least must lie above the threshold, so it takes "
                f"{int(np.ceil(MIN_BEYOND / false_alarms))} windows, or a larger share"
            )
        threshold = float(np.quantile(self.true, 1.0 - false_alarms))
        caught = int((self.other > threshold).sum())
        above = mannwhitneyu(self.other, self.true).statistic
        report = {
            "false_alarms": false_alarms,
            "threshold": threshold,
            "windows": windows,
            "episodes": self.episodes,
            "window_steps": self.verifier.every,
            "above": float((self.true > threshold).mean()),
            "caught": wilson_interval(caught, windows).as_dict(),
            "auc": float(above / windows**2),
        }
        return dataclasses.replace(self.verifier, threshold=threshold, report=report)


def calibrate(
    imagination: Imagination,
    actions: ActionMap,
    reader: LoadedQuantizer,
    held_out: CorpusIndex,
    *,
    others: tuple[Model, ...] = (),
    most: int = MAX_WINDOWS,
    seed: int = 0,
) -> Calibration:
    """Distances of true windows of a corpus with actions, and of the same frames with the actions
    of another window, drawn by `seed`: of at most so many windows, evenly spread, of episodes that
    neither the models here nor `others` learnt from. Raises ValueError where actions are missing or
    of another form, and where all episodes were learnt from."""
    if held_out.actions is None or held_out.actions.shape[1] != actions.dim:
        dims = 0 if held_out.actions is None else held_out.actions.shape[1]
        raise ValueError(
            f"{held_out.directory} has actions of {dims} dimensions, the policy says {actions.dim}"
        )
    source = _windows(reader, held_out)
    drawn = np.zeros(held_out.num_episodes, bool)
    for model in (imagination.model, reader, *others):
        drawn |= examples.drawn_in_training(model.config, held_out)
    rows = source.rows[~drawn[held_out.episode_of_rows(source.rows[:, 0])]]
    rows = rows[rows[:, 1] - rows[:, 0] == actions.steps]
    acted = held_out.actions[rows[:, :1] + np.arange(actions.steps)]
    finite = np.isfinite(acted).all(axis=(1, 2))
    if not finite.any():
        raise ValueError(
            f"{held_out.directory}: no window of {actions.steps} steps with actions is of one of "
            f"its {held_out.num_episodes} episodes that no training drew from ({int(drawn.sum())} "
            "were drawn): name a corpus that is held out"
        )
    if not finite.all():
        logging.warning(
            "%s: %d of %d windows have actions that are not finite and are left out",
            *(held_out.directory, int((~finite).sum()), len(finite)),
        )
    rows = rows[finite]
    rows = rows[:: max(1, -(-len(rows) // most))]
    verifier = Verifier(imagination, actions, reader)
    true, other, kept = _distances(verifier, source, rows, seed)
    episodes = len(np.unique(held_out.episode_of_rows(kept)))
    return Calibration(verifier, true, other, episodes, str(held_out.directory))


def _windows(reader: LoadedQuantizer, index: CorpusIndex) -> examples.Pairs:
    view = {name: str(getattr(index, name)) for name in ("split", "image_key", "sidecar_dir")}
    return examples.Pairs(reader.config, {"path": str(index.directory), **view})


def _distances(
    verifier: Verifier, source: examples.Pairs, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distances of windows with their true actions, with those of others, their first rows)."""
    acted = source.index.actions[rows[:, :1] + np.arange(verifier.every)]
    acted = np.asarray(acted, np.float32)
    shuffled = acted[np.random.default_rng(seed).permutation(len(rows))]
    true, other, kept, start = [], [], [], 0
    with Progress(f"verify {Path(source.index.directory).name}", len(rows), unit="window") as bar:
        bar.waits()
        for batch in source.batches(rows):
            end, size = start + batch.size, len(batch.frames)
            for given, found in ((acted, true), (shuffled, other)):
                actions = np.pad(given[start:end], [(0, size - batch.size), (0, 0), (0, 0)], "edge")
                apart = verifier.distances(batch.first, actions, batch.last)
                found.append(apart[: batch.size][batch.good])
            kept.append(batch.rows[batch.good, 0])
            start = end
            bar.update(batch.size)
    return tuple(np.concatenate(x) for x in (true, other, kept))
