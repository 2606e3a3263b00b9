"""What a quantizer's latent actions are worth, on the pairs of a corpus or of two paired views."""

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import logging

from lapa_jax.diagnostics import codebook, probes
from lapa_jax.diagnostics.content import content_report
from lapa_jax.diagnostics.controls import fit_motion_codes
from lapa_jax.diagnostics.embodiment import (
    code_agreement,
    cross_view_probe,
    linear_cka,
    retrieval,
)
from lapa_jax.diagnostics.reconstruction import (
    image_errors,
    reconstruction_report,
    structural_similarity,
)
from lapa_jax.evidence.true_action import decoder_given_true_action
from lapa_jax.runs import examples
from lapa_jax.runs.loaded import LoadedQuantizer, Model, require

MIN_EPISODES = 3  # to fit, to choose settings, and to test


@dataclasses.dataclass(frozen=True)
class QuantizerEvaluation:
    """The report, and N pairs with what the quantizer makes of them."""

    report: dict[str, Any]
    first: np.ndarray  # uint8 (N, H, W, 3)
    last: np.ndarray  # uint8 (N, H, W, 3)
    recon: np.ndarray  # float32 (N, H, W, 3)
    z: np.ndarray | None  # int32 (N, code_length); None where the latent stays continuous
    actions: np.ndarray | None  # float32 (N, A), summed over the window
    latents: np.ndarray  # float32 (N, code_length, quant_dim), before the bottleneck
    episode: np.ndarray  # int (N,)
    codebook_size: int

    @property
    def flat_latents(self) -> np.ndarray:
        return self.latents.reshape(len(self.latents), -1)

    @property
    def latent_action(self) -> np.ndarray:
        """What probes see, (N, D): one-hot codes, or the continuous latent itself."""
        if self.z is None:
            return self.flat_latents
        return probes.one_hot_codes(self.z, self.codebook_size)


def evaluate_quantizer(run: Model, corpus: dict, *, max_pairs: int) -> QuantizerEvaluation:
    """Code usage, reconstruction and, where there are actions, a linear probe from z to them; with
    episode-bootstrap 95 % intervals. Of a bottleneck that stays continuous all but code usage, with
    its latent in the place of z.

    Takes at most `max_pairs` pairs, evenly spread over the corpus.
    """
    require(run, LoadedQuantizer)
    source = examples.Pairs(run.config, corpus)
    every = max(1, -(-len(source.rows) // max_pairs))
    rows = source.rows[::every]

    @jax.jit
    def reconstruct(params, variables, first, last):
        read = run.stage.read(params, variables, first, last)
        recon = run.stage.decode_latent(params, variables, first, read.received_BLQ)
        return recon, read.latent_BLQ, *(() if read.z_BL is None else (read.z_BL,))

    kept = []
    for batch in source.batches(rows):
        outputs = reconstruct(run.params, run.variables, batch.first, batch.last)
        arrays = (batch.first, batch.last, *outputs)
        first, last, *outputs = (np.asarray(x)[: batch.size][batch.good] for x in arrays)
        errors = np.stack(image_errors(first, last, outputs[0]), axis=1)
        kept.append((first, last, errors, batch.rows[batch.good], *outputs))
    first, last, errors, rows, recon, latents, *codes = (
        np.concatenate(x) for x in zip(*kept, strict=True)
    )
    model = run.stage.model_config
    found = QuantizerEvaluation(
        report={"pairs": len(rows), "window_seconds": source.window_seconds},
        first=first,
        last=last,
        recon=recon,
        z=codes[0] if codes else None,
        actions=source.actions(rows),
        latents=latents,
        episode=source.index.episode_of_rows(rows[:, 0]),
        codebook_size=model.codebook_size,
    )
    report, episode = found.report, found.episode
    if found.z is None:
        logging.warning(
            "model.bottleneck.name=%r has no codes: nothing is told of their use",
            model.bottleneck["name"],
        )
    else:
        report["codes"] = codebook.codebook_report(found.z, model.codebook_size)
        report["codes"] |= codebook.codebook_intervals(
            found.z, model.codebook_size, episode, seed=0
        )
    report["reconstruction"] = reconstruction_report(*errors.T, episode, seed=0)
    if found.actions is not None:
        report["probe"] = probes.probe_latent_actions(
            found.latent_action,
            found.actions,
            episode,
            seed=0,
            first_frames=first,
            extra={} if found.z is None else {"continuous_latent": found.flat_latents},
        )
    return found


def in_depth(run: Model, found: QuantizerEvaluation) -> QuantizerEvaluation:
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
    report["content"] = content_report(
        found.z, found.latents, first, last, found.actions, episode, found.codebook_size, seed=0
    )
    if found.actions is not None:
        report["true_action"] = decoder_given_true_action(
            run, first, last, found.actions, found.latents, episode, seed=0
        )
    return dataclasses.replace(found, report=report)


def evaluate_paired_views(one: QuantizerEvaluation, other: QuantizerEvaluation) -> dict[str, Any]:
    """Whether the same motion in two views is the same latent action: corpora that hold the same
    episodes, as `lapa data collect --views A,B` writes them. Controls: codes by k-means of the
    change of the frames, fitted in the first view."""
    if len(one.episode) != len(other.episode) or (one.episode != other.episode).any():
        raise ValueError(
            f"the views are not paired: {len(one.episode)} and {len(other.episode)} pairs of "
            f"{len(np.unique(one.episode))} and {len(np.unique(other.episode))} episodes"
        )
    episode, size = one.episode, one.codebook_size
    latents = one.flat_latents, other.flat_latents
    report: dict[str, Any] = {
        "windows": len(episode),
        "retrieval_at_1": retrieval(*latents, episode, seed=0),
        "cka": linear_cka(*latents),
    }
    if one.z is not None:
        report["codes"] = code_agreement(one.z, other.z, episode, size, seed=0)
        motion = fit_motion_codes(one.first, one.last, episode, size, seed=0)
        codes = (motion(view.first, view.last) for view in (one, other))
        report["motion_kmeans"] = code_agreement(*codes, episode, size, seed=0)
    if one.actions is not None:
        report["probe"] = cross_view_probe(
            one.latent_action, other.latent_action, one.actions, episode, seed=0
        )
    return report
