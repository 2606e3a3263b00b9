"""What rollouts begin with: videos, and z as text and files."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from data_pipelines.progress import Progress
from lapa_jax.runs import examples
from lapa_jax.runs.loaded import LoadedQuantizer
from lapa_jax.world.imagination import Imagination, check_quantizers

BATCH = 16  # videos that are read, and imagined, side by side


@dataclasses.dataclass(frozen=True)
class Clips:
    """Videos from their first frame on.

    frames: uint8 (N, K + 1, H, W, 3), a window apart. left_out: episodes that were asked for, by
    why they are not there. seen_in_training: of either run that takes part.
    """

    episodes: np.ndarray  # int (N,)
    frames: np.ndarray
    window_seconds: float
    left_out: dict[str, list[int]]
    seen_in_training: np.ndarray  # bool (N,)


def read_clips(
    imagination: Imagination,
    reader: LoadedQuantizer,
    corpus: Mapping[str, Any],
    *,
    steps: int,
    episodes: int = 1,
    episode: int | None = None,
    flag: str = "--episode",
) -> Clips:
    """Videos of a corpus (keys as under data.corpora), `steps` windows from each one's first frame:
    at most `episodes` of those that neither training drew from, evenly spread, or the one that
    `episode` numbers (`flag` says where), drawn from or not. reader: the quantizer whose window and
    frame size it is.

    Episodes too short for that are left out and named. Raises ValueError where none is left, and
    for a number that no episode has.
    """
    source = examples.Pairs(reader.config, dict(corpus), batch=BATCH)
    index = source.index
    if episode is not None:
        _check_episode(flag, episode, index)
    first, window = source.rows[:, 0], source.rows[:, 1] - source.rows[:, 0]
    numbers, at = np.unique(index.episode_of_rows(first), return_index=True)
    first, window = first[at], window[at]  # of each episode that is a window long
    drawn = examples.drawn_in_training(reader.config, index)
    if reader is not imagination.model:
        drawn |= examples.drawn_in_training(imagination.model.config, index)
    every = np.arange(index.num_episodes)
    asked = every[~drawn] if episode is None else np.array([episode])
    if not len(asked):
        raise ValueError(
            f"every one of {index.num_episodes} episodes of {index.directory} was drawn in "
            "training: give --corpus another one, or train with a smaller "
            "data.corpora.<name>.fraction"
        )
    most = np.zeros(index.num_episodes, np.int64)  # windows that an episode holds
    most[numbers] = (index.episode_start + index.episode_length)[numbers] - 1 - first
    most[numbers] //= window
    fits = asked[most[asked] >= steps]
    if not len(fits):
        what = f"episode {episode}" if episode is not None else f"the longest of {len(asked)}"
        raise ValueError(
            f"--steps {steps}: {what} of {index.directory} holds {most[asked].max()} windows of "
            f"{source.window_seconds:g} s"
        )
    short = [int(e) for e in asked if most[e] < steps]
    if short:
        logging.warning(
            "%s: %d of %d episodes are shorter than %d windows of %g s and left out: %s",
            *(index.directory, len(short), len(asked), steps, source.window_seconds),
            ", ".join(map(str, short)),
        )
    if len(fits) > episodes:
        fits = fits[np.linspace(0, len(fits) - 1, episodes).round().astype(int)]
    place = np.searchsorted(numbers, fits)
    rows = first[place, None] + window[place, None] * np.arange(steps + 1)
    frames, bad = [], []
    with Progress(f"read {Path(index.directory).name}", len(rows), unit="episode") as bar:
        for batch in source.batches(rows):
            frames.append(batch.frames[: batch.size][batch.good])
            bad += index.episode_of_rows(batch.rows[~batch.good, 0]).tolist()
            bar.update(batch.size)
    kept = fits[~np.isin(fits, bad)]
    if not len(kept):
        raise ValueError(f"{index.directory}: no frames of episodes {bad} can be decoded")
    left_out = {"too_short": short, "undecodable": bad}
    return Clips(kept, np.concatenate(frames), source.window_seconds, left_out, drawn[kept])


def codes_of(imagination: Imagination, text: str) -> np.ndarray:
    """z int32 (1, K, L) of a text: the K steps joined by commas, the L codes of one by colons.
    Raises ValueError for other numbers, and where the run has vectors."""
    if not imagination.codes:
        raise ValueError(
            f"--codes {text}: z of {imagination.model.workdir} is vectors, not codes: give --z"
        )
    steps = [step.split(":") for step in text.split(",")]
    for step in steps:
        if len(step) != imagination.length:
            raise ValueError(
                f"--codes {text}: step {':'.join(step)!r} has {len(step)} codes, a z of this run "
                f"has {imagination.length} (joined by colons)"
            )
        for code in step:
            if not (code.strip().isdecimal() and int(code) < imagination.codes):
                raise ValueError(
                    f"--codes {text}: {code.strip()!r} is not in the codebook of 0 to "
                    f"{imagination.codes - 1}"
                )
    return np.array([steps]).astype(np.int32)


def z_of_file(imagination: Imagination, path: str) -> np.ndarray:
    """z (1, K, L) or (1, K, L, width) of a JSON file, whose "z" is a list of K steps, each as
    nested lists, and "quantizers" the hashes of those whose z they are: what the page of `lapa
    play` saves. Raises ValueError for other contents, and for z of another quantizer; where the
    file does not tell whose they are, that is said in the log."""
    try:
        found = json.loads(Path(path).read_text())
        z, quantizers = np.array(found["z"]), found.get("quantizers", [])
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # also unequal lengths
        raise ValueError(f'--z {path} is no JSON with a list of steps under "z"') from error
    wanted = ("K", *map(str, imagination.shape))
    kind = "integers" if imagination.codes else "numbers"
    fits = z.shape[1:] == imagination.shape and z.size
    if not fits or z.dtype.kind not in ("iu" if imagination.codes else "iuf"):
        raise ValueError(
            f"--z {path} holds {z.dtype}{list(z.shape)}, not {kind} of shape ({', '.join(wanted)})"
        )
    try:
        imagination.checked(z if imagination.codes else z.astype(np.float32))
    except ValueError as error:
        raise ValueError(f"--z {path}: {error}") from error
    if not (isinstance(quantizers, list) and all(isinstance(x, str) for x in quantizers)):
        raise ValueError(f'--z {path}: "quantizers" must be a list of hashes')
    check_quantizers(f"--z {path}", set(quantizers), imagination.model)
    return z[None].astype(np.int32 if imagination.codes else np.float32)


def _check_episode(flag: str, episode: int, index: Any) -> None:
    if not 0 <= episode < index.num_episodes:
        raise ValueError(
            f"{flag} {episode}: {index.directory} has episodes 0 to {index.num_episodes - 1}"
        )
