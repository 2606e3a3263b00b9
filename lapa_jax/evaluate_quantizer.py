"""What a quantizer's latent actions are worth, on the pairs of a corpus or of two paired views."""

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import logging

from lapa_jax import pairs, runs
from lapa_jax.diagnostics import codebook, probes
from lapa_jax.diagnostics.content import content_report
from lapa_jax.diagnostics.controls import fit_motion_codes
from lapa_jax.diagnostics.embodiment import code_agreement, embodiment_report
from lapa_jax.diagnostics.reconstruction import (
    image_errors,
    reconstruction_report,
    structural_similarity,
)
from lapa_jax.true_action import decoder_given_true_action

MIN_EPISODES = 3  # to fit, to choose settings, and to test


@dataclasses.dataclass(frozen=True)
class QuantizerEvaluation:
    """The report, and N pairs with what the quantizer makes of them."""

    report: dict[str, Any]
    first: np.ndarray  # uint8 (N, H, W, 3)
    last: np.ndarray  # uint8 (N, H, W, 3)
    recon: np.ndarray  # float32 (N, H, W, 3)
    z: np.ndarray  # int32 (N, code_length)
    actions: np.ndarray | None  # float32 (N, A), summed over the window
    latents: np.ndarray  # float32 (N, code_length, quant_dim), before the bottleneck
    episode: np.ndarray  # int (N,)


def evaluate_quantizer(run: runs.Run, corpus: dict, *, max_pairs: int) -> QuantizerEvaluation:
    """Code usage, reconstruction and, where there are actions, a linear probe from z to them; with
    episode-bootstrap 95 % intervals.

    Takes at most `max_pairs` pairs, evenly spread over the corpus.
    """
    pairs.require_quantizer(run)
    source = pairs.Pairs(run.config, corpus)
    every = max(1, -(-len(source.rows) // max_pairs))
    rows = source.rows[::every]

    @jax.jit
    def reconstruct(params, variables, first, last):
        z = run.stage.quantize(params, variables, first, last)
        latent = run.stage.encode(params, variables, first, last)
        return z, latent, run.stage.decode(params, variables, first, z)

    kept = []
    for batch in source.batches(rows):
        outputs = reconstruct(run.params, run.variables, batch.first, batch.last)
        outputs = (np.asarray(x)[: batch.size][batch.good] for x in outputs)
        first, last = (x[: batch.size][batch.good] for x in (batch.first, batch.last))
        z, latent, recon = outputs
        errors = np.stack(image_errors(first, last, recon), axis=1)
        kept.append((first, last, recon, z, latent, errors, batch.rows[batch.good]))
    first, last, recon, z, latents, errors, rows = (
        np.concatenate(x) for x in zip(*kept, strict=True)
    )
    size = run.stage.model_config.codebook_size
    episode = source.index.episode_of_rows(rows[:, 0])
    report = {"pairs": len(z), "window_seconds": source.window_seconds}
    report["codes"] = codebook.codebook_report(z, size)
    report["codes"] |= codebook.codebook_intervals(z, size, episode, seed=0)
    report["reconstruction"] = reconstruction_report(*errors.T, episode, seed=0)
    actions = source.actions(rows)
    if actions is not None:
        report["probe"] = probes.probe_latent_actions(
            z,
            actions,
            episode,
            size,
            seed=0,
            first_frames=first,
            extra={"continuous_latent": latents.reshape(len(latents), -1)},
        )
    return QuantizerEvaluation(report, first, last, recon, z, actions, latents, episode)


def in_depth(run: runs.Run, found: QuantizerEvaluation) -> QuantizerEvaluation:
    """The same evaluation with all that takes minutes: structural similarity, what z holds of the
    action and of the scene beside controls, and the decoder given the true action."""
    first, last, episode = found.first, found.last, found.episode
    errors = image_errors(first, last, found.recon)
    report = found.report | {
        "reconstruction": reconstruction_report(
            *errors,
            episode,
            seed=0,
            ssim=structural_similarity(found.recon, last),
            ssim_copy=structural_similarity(first, last),
        ),
    }
    episodes = len(np.unique(episode))
    if episodes < MIN_EPISODES:
        logging.warning(
            "%d episodes: what z holds is not measured, which takes %d to test on others",
            episodes,
            MIN_EPISODES,
        )
        return dataclasses.replace(found, report=report)
    size = run.stage.model_config.codebook_size
    report["content"] = content_report(
        found.z, found.latents, first, last, found.actions, episode, size, seed=0
    )
    if found.actions is not None:
        report["true_action"] = decoder_given_true_action(
            run, first, last, found.actions, found.latents, episode, seed=0
        )
    return dataclasses.replace(found, report=report)


def evaluate_paired_views(
    one: QuantizerEvaluation, other: QuantizerEvaluation, codebook_size: int
) -> dict[str, Any]:
    """Whether the same motion in two views is the same latent action: corpora that hold the same
    episodes, as `lapa data collect --views A,B` writes them. Controls: codes by k-means of the
    change of the frames, fitted in the first view."""
    if len(one.z) != len(other.z) or (one.episode != other.episode).any():
        raise ValueError(
            f"the views are not paired: {len(one.z)} and {len(other.z)} pairs of "
            f"{len(np.unique(one.episode))} and {len(np.unique(other.episode))} episodes"
        )
    flat = tuple(v.latents.reshape(len(v.latents), -1) for v in (one, other))
    report = embodiment_report(
        (one.z, other.z), flat, one.actions, one.episode, codebook_size, seed=0
    )
    motion = fit_motion_codes(one.first, one.last, one.episode, codebook_size, seed=0)
    codes = (motion(view.first, view.last) for view in (one, other))
    report["motion_kmeans"] = code_agreement(*codes, one.episode, codebook_size, seed=0)
    return report
