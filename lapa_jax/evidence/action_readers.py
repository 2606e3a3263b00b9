"""What reads actions off pairs of frames a window apart: an inverse dynamics run, or a linear
reading of a quantizer's latents.

Shape suffixes: N windows, B pairs side by side, H, W image rows and columns, A dimensions of an
action.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.progress import Progress
from lapa_jax.diagnostics.probes import fit_probe, linear_probe
from lapa_jax.envs.rollout import as_chunks
from lapa_jax.evidence.rollouts import extractor
from lapa_jax.runs.examples import Pairs, trained_window
from lapa_jax.runs.loaded import LoadedPolicy, LoadedQuantizer
from lapa_jax.runs.unipi import check_inverse
from lapa_jax.world.action_map import MAX_WINDOWS, steps_of, usable

# (frames before, after, both uint8 (B, H, W, 3)) → actions float (B, A), one for the whole window
Reads = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ActionReader:
    """dim: of an action. control_hz: of them; 0.0 where that is not known. open: gives the function
    that reads, and what is told of it; it may take minutes."""

    dim: int
    control_hz: float
    open: Callable[[], tuple[Reads, dict[str, Any]]]


def reader_of(
    run: LoadedPolicy | LoadedQuantizer,
    labelled: Mapping[str, Any] | None,
    image_size: tuple[int, int],
    windows: Collection[float],
    seed: int = 0,
) -> ActionReader:
    """By what the run is: `by_run`, or, with a `labelled` corpus, `by_latents`. It must see frames
    of `image_size` that are as far apart as z leads: `windows`, seconds, one or a contradiction.
    Raises ValueError as these, and for a corpus that is missing or of no use."""
    if isinstance(run, LoadedQuantizer):
        if labelled is None:
            raise ValueError(
                f"--corpus is missing: --inverse_dynamics {run.workdir} is a quantizer, whose "
                "latents are read by the true actions of a corpus"
            )
        return by_latents(run, labelled, image_size, windows, seed)
    if labelled is not None:
        raise ValueError(
            f"--corpus {labelled['path']}: --inverse_dynamics {run.workdir} reads actions as it "
            "was trained to; a corpus is for a quantizer in its place"
        )
    return by_run(run, image_size, windows, seed)


def by_run(
    inverse: LoadedPolicy, image_size: tuple[int, int], windows: Collection[float], seed: int = 0
) -> ActionReader:
    """Of a run with model.inverse_dynamics, which says the action of a window's first step; where
    it draws, always from the same noise. Raises ValueError as `check_inverse`."""
    check_inverse(inverse, image_size, windows)
    stage = inverse.stage
    options = {"key": jax.random.key(seed)} if stage.draws else {}

    @jax.jit
    def read(held, prompts, pairs):
        return as_chunks(stage.act(*held, prompts, pairs, **options))[:, 0]

    def reads(before_BHWC: np.ndarray, after_BHWC: np.ndarray) -> np.ndarray:
        pairs = np.stack([before_BHWC, after_BHWC], axis=1)
        prompts = stage.prompts([""] * len(pairs))
        return np.asarray(read((inverse.params, inverse.variables), prompts, pairs))

    dim = stage.head.describe()["dim"]
    return ActionReader(dim, inverse.control_hz, lambda: (reads, {"kind": "run"}))


def by_latents(
    quantizer: LoadedQuantizer,
    corpus: Mapping[str, Any],
    image_size: tuple[int, int],
    windows: Collection[float],
    seed: int = 0,
) -> ActionReader:
    """A ridge regression from a quantizer's latents of a window, before the bottleneck, to the mean
    of its true actions, fitted on the episodes of a corpus (keys as under data.corpora). Told is R²
    on episodes that such a regression was not fitted on.

    Raises ValueError for a quantizer of another window or image size, and for a corpus without
    actions or whose windows are not of one number of steps.
    """
    where = f"--inverse_dynamics {quantizer.workdir}"
    size, own = tuple(quantizer.image_size), round(trained_window(quantizer.config), 6)
    if size != image_size:
        raise ValueError(f"{where}: it sees images of {size}, imagined are {image_size}")
    ahead = {round(w, 6) for w in windows}
    if ahead != {own}:
        raise ValueError(
            f"{where} was trained on frames {own} s apart "
            f"(data.corpora.<name>.window_seconds), but z leads {sorted(ahead)} s ahead"
        )
    source = Pairs(quantizer.config, dict(corpus))
    index = source.index
    if index.actions is None:
        raise ValueError(f"--corpus {index.directory} has no actions to read latents by")
    steps = steps_of(index, source.window_seconds)
    latents = extractor(quantizer, image_size)

    def fitted() -> tuple[Reads, dict[str, Any]]:
        first = usable(index, source.rows[:, 0], steps, MAX_WINDOWS)
        rows, x, good = np.stack([first, first + steps], axis=1), [], []
        with Progress(f"read {Path(index.directory).name}", len(rows), unit="pair") as bar:
            bar.waits()
            for batch in source.batches(rows):
                good.append(batch.good)
                x.append(latents(batch.frames)[: batch.size, 0][batch.good])
                bar.update(batch.size)
        x, first = np.concatenate(x).astype(np.float64), first[np.concatenate(good)]
        actions = index.actions[first[:, None] + np.arange(steps)].mean(1, dtype=np.float64)
        episode = index.episode_of_rows(first)
        probe = fit_probe(x, actions, episode, seed=seed)
        found = linear_probe(x, actions, episode, seed=seed)
        report = {
            "kind": "linear",
            "latents": x.shape[1],
            "corpus": str(index.directory),
            "windows": len(x),
            "episodes": len(np.unique(episode)),
            **{key: found[key] for key in ("r2_mean", "r2_mean_interval") if key in found},
        }

        def reads(before_BHWC: np.ndarray, after_BHWC: np.ndarray) -> np.ndarray:
            return probe(latents(np.stack([before_BHWC, after_BHWC], axis=1))[:, 0])

        return reads, report

    return ActionReader(index.action_dim, float(np.unique(index.fps)[0]), fitted)
