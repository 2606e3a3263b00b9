"""Imagined videos: of given z, of z that a quantizer reads off a video, of a policy's z.

Where z is read off held-out videos the true frames are known, and what was imagined from the first
frame alone is measured against them. Of z from elsewhere no truth is known: nothing is measured.

Shape suffixes: N or B rollouts, K steps, H, W image rows and columns, L codes or vectors of a z.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from data_pipelines.progress import Progress
from lapa_jax.diagnostics import rollouts as measures
from lapa_jax.diagnostics.reconstruction import image_errors
from lapa_jax.evidence.rollout_sources import BATCH, Clips
from lapa_jax.report.picture import to_uint8
from lapa_jax.runs.loaded import LoadedPolicy, LoadedQuantizer, Model
from lapa_jax.world.imagination import Imagination, check_labels, check_policy


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What was imagined.

    labels: a word for each. source, seen: the frames that z was read off; None where z comes from
    elsewhere. error: MSE of each step against `seen`, where these are the true frames of the same
    video, else None. beside: what another model imagined of the same. report: what was measured.
    """

    labels: list[str]
    first_NHWC: np.ndarray  # uint8
    z_NKL: np.ndarray  # int (N, K, L), or float (N, K, L, width)
    imagined_NKHWC: np.ndarray  # uint8
    seen_NKHWC: np.ndarray | None = None  # uint8
    source_NHWC: np.ndarray | None = None  # uint8, the frame before them
    error_NK: np.ndarray | None = None
    beside_NKHWC: np.ndarray | None = None  # uint8
    report: dict[str, Any] = dataclasses.field(default_factory=dict)


def imagine(imagination: Imagination, first_BHWC: np.ndarray, z_BKL: np.ndarray) -> np.ndarray:
    """The K frames float32 (B, K, H, W, 3) that z leads to from one true frame, uint8, each from
    what was imagined before."""
    state, drawn = imagination.start(first_BHWC), []
    for k in range(z_BKL.shape[1]):
        state, frames = imagination.step(state, z_BKL[:, k])
        drawn.append(np.asarray(frames))
    return np.stack(drawn, axis=1)


def imagine_forced(
    imagination: Imagination, frames_BKHWC: np.ndarray, z_BKL: np.ndarray
) -> np.ndarray:
    """As `imagine`, but each of the K frames one step on from the true one before, of K + 1 true
    ones uint8: teacher-forced. A dynamics model, too, sees that one frame alone."""
    drawn = [
        np.asarray(imagination.step(imagination.start(frames_BKHWC[:, k]), z_BKL[:, k])[1])
        for k in range(z_BKL.shape[1])
    ]
    return np.stack(drawn, axis=1)


def reader_of(
    imagination: Imagination, quantizer: LoadedQuantizer | None, flag: str = "--quantizer"
) -> LoadedQuantizer:
    """The quantizer that reads z for an imagination: itself, or that of the label set of a dynamics
    run, which `flag` names. Raises ValueError for another one, and where there is none."""
    model = imagination.model
    if isinstance(model, LoadedQuantizer):
        if quantizer is not None:
            raise ValueError(
                f"{flag} {quantizer.workdir}: {model.workdir} is one, and reads z itself"
            )
        return model
    if quantizer is None:
        raise ValueError(
            f"{model.workdir} is a dynamics run, which reads no z off frames: name the quantizer "
            f"of its label set with {flag}"
        )
    own = quantizer.stage.model_config
    z = (own.code_length,) if own.has_codes else (own.code_length, own.quant_dim)
    codes = own.codebook_size if own.has_codes else 0
    for what, theirs, ours in (
        ("image size", tuple(quantizer.image_size), imagination.image_size),
        ("shape of z", z, imagination.shape),
        ("codebook size", codes, imagination.codes),
    ):
        if theirs != ours:
            raise ValueError(f"{flag} {quantizer.workdir}: its {what} is {theirs}, not {ours}")
    check_labels(flag, quantizer, model)
    return quantizer


def z_reader(quantizer: LoadedQuantizer) -> Callable[[np.ndarray], np.ndarray]:
    """A function from K + 1 frames uint8 (B, K + 1, H, W, 3) to z of each window: (B, K, L), or (B,
    K, L, width) of a quantizer without codes, as `lapa label` writes it."""
    read, has_codes = jax.jit(quantizer.stage.read), quantizer.stage.model_config.has_codes

    def z_of(frames_BKHWC: np.ndarray) -> np.ndarray:
        B, first, last = _windows(frames_BKHWC)
        found = read(quantizer.params, quantizer.variables, first, last)
        z = np.asarray(found.z_BL if has_codes else found.received_BLQ)
        return z.reshape(B, -1, *z.shape[1:])

    return z_of


def _windows(frames_BKHWC: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """(B, the frames (B K, H, W, 3) before and after each window) of K + 1 frames."""
    pairs = frames_BKHWC[:, :-1], frames_BKHWC[:, 1:]
    return len(frames_BKHWC), *(x.reshape(-1, *x.shape[2:]) for x in pairs)


def of_z(imagination: Imagination, first_BHWC: np.ndarray, z_BKL: np.ndarray) -> Rollouts:
    """Of z that somebody gives."""
    drawn = to_uint8(imagine(imagination, first_BHWC, z_BKL))
    return Rollouts(["given z"] * len(z_BKL), first_BHWC, z_BKL, drawn)


def transferred(
    imagination: Imagination, first_BHWC: np.ndarray, clips: Clips, z_of: Callable
) -> Rollouts:
    """Of z that is read off other videos, by what `z_reader` made, on first frames: action
    transfer."""
    z = z_of(clips.frames)
    drawn = to_uint8(imagine(imagination, first_BHWC, z))
    labels = [f"z of episode {number}" for number in clips.episodes]
    return Rollouts(labels, first_BHWC, z, drawn, clips.frames[:, 1:], clips.frames[:, 0])


def of_policy(
    imagination: Imagination,
    policy: LoadedPolicy,
    first_BHWC: np.ndarray,
    instruction: str,
    steps: int,
) -> Rollouts:
    """Of z that a latent VLA says at each imagined frame. Raises ValueError for a policy of other
    z, or that needs more than the frame and the instruction."""
    check_policy(imagination, policy)
    labels = [instruction] * len(first_BHWC)
    z, drawn = imagine_said(imagination, policy.predict_latent, first_BHWC, labels, steps)
    return Rollouts(labels, first_BHWC, z, drawn)


def imagine_said(
    imagination: Imagination,
    says: Callable[[np.ndarray, Sequence[str]], np.ndarray],
    first_BHWC: np.ndarray,
    instructions: Sequence[str],
    steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(z (B, K, ...) that a function says of each imagined frame and its instruction, the K =
    `steps` frames uint8 (B, K, H, W, 3) that they lead to from one true frame)."""
    state, frame, z, drawn = imagination.start(first_BHWC), first_BHWC, [], []
    for _ in range(steps):
        z.append(np.asarray(says(frame, instructions)))
        state, frame = imagination.step(state, z[-1])
        frame = to_uint8(frame)  # as the policy sees frames
        drawn.append(frame)
    return np.stack(z, axis=1), np.stack(drawn, axis=1)


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Frozen features of the windows of clips, by a teacher or a quantizer. what: says which."""

    model: Model
    what: str
    of: Any  # (params, variables, frames before, frames after) -> (windows, ...)

    def __call__(self, frames_BKHWC: np.ndarray) -> np.ndarray:
        """float32 (B, K, D) of K + 1 frames uint8 (B, K + 1, H, W, 3)."""
        B, first, last = _windows(frames_BKHWC)
        found = np.asarray(self.of(self.model.params, self.model.variables, first, last))
        return found.reshape(B, len(first) // B, -1)


def extractor(model: Model, image_size: tuple[int, int]) -> Extractor:
    """Of a run of stage `teacher`: its features of the later frame of a window, mean over patches.
    Of a quantizer: what its encoder says of the window, before the bottleneck. Raises ValueError
    for a run of another stage, or image size."""
    if model.config.stage not in ("teacher", "quantizer"):
        raise ValueError(
            f"--features {model.workdir} is a run of stage {model.config.stage!r}: features are of "
            "a teacher or a quantizer"
        )
    theirs = tuple(model.stage.model_config.image_size)
    if theirs != image_size:
        raise ValueError(
            f"--features {model.workdir}: it sees images of {theirs}, imagined are {image_size}"
        )
    if model.config.stage == "teacher":
        features, what = model.stage.features, "features of a frame, mean over patches"

        def of(params, variables, first, last):
            del first
            return features(params, variables, last).mean((1, 2))
    else:
        read, what = model.stage.read, "the encoder's latent of a window, before the bottleneck"

        def of(params, variables, first, last):
            return read(params, variables, first, last).latent_BLQ

    return Extractor(model, f"{model.config.stage} {model.workdir}: {what}", jax.jit(of))


def check_beside(imagination: Imagination, other: Imagination) -> None:
    """Raises ValueError unless both can go on from the same frames by the same z."""
    model, where = other.model, f"--beside {other.model.workdir}"
    for what, theirs, ours in (
        ("image size", other.image_size, imagination.image_size),
        ("shape of z", other.shape, imagination.shape),
        ("codebook size", other.codes, imagination.codes),
    ):
        if theirs != ours:
            raise ValueError(
                f"{where}: its {what} is {theirs}, that of {imagination.model.workdir} {ours}"
            )
    check_labels("--beside", model, imagination.model)


def of_videos(
    imagination: Imagination,
    clips: Clips,
    z_of: Callable,
    extract: Extractor,
    other: Imagination | None = None,
) -> Rollouts:
    """Of z that is read off each window of true videos, by what `z_reader` made, from their first
    frames alone: with errors over the horizon (`measures.by_step`), beside those of an `other`
    model (`measures.beside`), and Fréchet distances from the true clips in the features that
    `extract` gives."""
    batch, kept = min(BATCH, len(clips.frames)), []
    with Progress("imagine", len(clips.frames), unit="episode") as bar:
        bar.waits()
        for start in range(0, len(clips.frames), batch):
            frames = clips.frames[start : start + batch]
            size = len(frames)
            true = np.pad(frames, [(0, batch - size), *[(0, 0)] * 4], "edge")  # compiled once
            z = z_of(true)
            free, forced = imagine(imagination, true[:, 0], z), imagine_forced(imagination, true, z)
            still = np.repeat(true[:, :1], z.shape[1], axis=1)
            drawn = (true[:, 1:], to_uint8(free), to_uint8(forced), still)
            seen = [extract(np.concatenate([true[:, :1], x], axis=1)) for x in drawn]
            errors = _errors(true, free, forced)
            own = [z, drawn[1], *errors, *seen]
            if other is not None:
                theirs = imagine(other, true[:, 0], z)
                own += [to_uint8(theirs), _errors(true, theirs, theirs)[0]]
            kept.append([x[:size] for x in own])
            bar.update(size)
    columns = [np.concatenate(x) for x in zip(*kept, strict=True)]
    theirs, their_error = columns[-2:] if other is not None else (None, None)
    z, imagined, free, forced, copy, *seen = columns[:9]
    rows = measures.by_step(free, forced, copy)
    for row in rows:
        row["seconds"] = round(row["step"] * clips.window_seconds, 6)
    names = ("true", "imagined", "teacher_forced", "first_frame")
    frechet = measures.frechet_report(dict(zip(names, seen, strict=True)))
    if frechet["distances"] is None:
        logging.warning(
            "no Fréchet distance: half of the episodes have %d windows, no more than the %d "
            "features. Take more --episodes or --steps",
            *(frechet["samples"], frechet["features"]),
        )
    report = {
        "episodes": clips.episodes.tolist(),
        "left_out": clips.left_out,
        "seen_in_training": float(clips.seen_in_training.mean()),
        "window_seconds": clips.window_seconds,
        "steps_above_copying": measures.steps_above_copying(rows),
        "by_step": rows,
        "frechet": {"extractor": extract.what, **frechet},
    }
    if other is not None:
        compared = measures.beside(free, their_error, copy)
        report["beside"] = {
            "workdir": str(other.model.workdir),
            "stage": other.model.config.stage,
            "params_hash": other.model.params_hash,
            "by_step": compared,
        }
    labels = [f"episode {number}" for number in clips.episodes]
    return Rollouts(
        labels,
        clips.frames[:, 0],
        z,
        imagined,
        clips.frames[:, 1:],
        clips.frames[:, 0],
        free,
        theirs,
        report,
    )


def _errors(
    true_BKHWC: np.ndarray, free_BKHWC: np.ndarray, forced_BKHWC: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Mean squared errors float64 (B, K): imagined, teacher-forced, and the first frame's."""
    first, found = true_BKHWC[:, 0], []
    for k in range(free_BKHWC.shape[1]):
        true = true_BKHWC[:, k + 1]
        error, copy = image_errors(first, true, free_BKHWC[:, k])
        found.append((error, image_errors(first, true, forced_BKHWC[:, k])[0], copy))
    return tuple(np.stack(x, axis=1) for x in zip(*found, strict=True))
