"""What is measured of a quantizer's latent actions on a corpus: a registry.

A measure is a function of a `Sample` in a file of lapa_jax/diagnostics, and a line here. What it
returns stands under its key in the JSON of `lapa evaluate`; of that, the numbers that `rows` names
stand in the report, and in the table and CSV of a sweep.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines.progress import Progress
from lapa_jax.diagnostics import (
    again,
    algebra,
    codebook,
    content,
    cuts,
    displacement,
    information,
    pose,
    probes,
    reconstruction,
    window_curve,
)
from lapa_jax.diagnostics.sample import Sample
from lapa_jax.evidence.true_action import decoder_given_true_action

MIN_EPISODES = 3  # to fit, to choose settings, and to test


def always(sample: Sample) -> bool:
    del sample
    return True


def has_codes(sample: Sample) -> bool:
    return sample.z is not None


def has_actions(sample: Sample) -> bool:
    return sample.actions is not None


def enough_episodes(sample: Sample) -> bool:
    return sample.episodes >= MIN_EPISODES


def has_chains(sample: Sample) -> bool:
    return sample.chains is not None


def has_decoder(sample: Sample) -> bool:
    return sample.decode is not None


@dataclasses.dataclass(frozen=True)
class Measure:
    """key: in the report; measures of one key add to it. of: JSON values of a sample.

    rows: name → path in them, with dots; NAME_interval and `chance` beside the number belong to it.
    higher: names of which more is better, whatever the codebook: a sweep says which point is best.
    applies: to which samples. deep: takes minutes, so that only `lapa evaluate` has it.
    """

    key: str
    of: Callable[[Sample], dict[str, Any]]
    rows: Mapping[str, str] = dataclasses.field(default_factory=dict)
    higher: tuple[str, ...] = ()
    applies: Callable[[Sample], bool] = always
    deep: bool = False


def codes(sample: Sample) -> dict[str, Any]:
    """Code usage, perplexity, joint entropy."""
    z, size = sample.z, sample.codebook_size
    intervals = codebook.codebook_intervals(z, size, sample.episode, seed=0)
    return codebook.codebook_report(z, size) | intervals


def probe(sample: Sample) -> dict[str, Any]:
    """R² of linear probes to the true action, beside controls."""
    return probes.probe_latent_actions(
        sample.latent_action,
        sample.actions,
        sample.episode,
        seed=0,
        first_frames=sample.first,
        extra=sample.extra,
    )


MEASURES = (
    Measure(
        "codes",
        codes,
        {
            "perplexity": "mean_perplexity",
            "perplexity_fraction": "mean_perplexity_fraction",
            "joint_entropy_bits": "joint_entropy_bits",
        },
        higher=("perplexity_fraction",),
        applies=has_codes,
    ),
    Measure(
        "reconstruction",
        reconstruction.of_sample,
        {"psnr": "psnr", "skill": "skill"},
        higher=("psnr", "skill"),
    ),
    Measure(
        "reconstruction",
        reconstruction.similarity,
        {"ssim": "ssim"},
        applies=lambda sample: sample.draws_frames,
        deep=True,
    ),
    Measure(
        "probe",
        probe,
        {"probe_r2": "latent_action.r2_mean"},
        higher=("probe_r2",),
        applies=lambda sample: has_actions(sample) and enough_episodes(sample),
    ),
    Measure(
        "pose",
        pose.of_sample,
        {"pose_r2": "r2_mean", "pose_degrees": "direction.degrees"},
        applies=lambda sample: sample.camera_motion is not None and enough_episodes(sample),
        deep=True,
    ),
    Measure(
        "content",
        content.content_report,
        {
            "network_r2": "controls.latent_action.r2_mlp",
            "scene_accuracy": "controls.latent_action.scene_accuracy",
        },
        applies=enough_episodes,
        deep=True,
    ),
    Measure(
        "true_action",
        decoder_given_true_action,
        {"true_action_skill": "skill"},
        applies=lambda sample: has_actions(sample) and enough_episodes(sample),
        deep=True,
    ),
    Measure(
        "information",
        information.of_sample,
        {"information_bits": "latent.bits", "information_codes_bits": "codes.bits"},
        applies=lambda sample: (
            has_actions(sample) and len(sample.first) > 2 * information.NEIGHBOURS
        ),
        deep=True,
    ),
    Measure(
        "displacement",
        displacement.of_sample,
        {
            "displacement_motion": "motion.correlation",
            "displacement_frames": "frame_change.correlation",
        },
        deep=True,
    ),
    Measure(
        "algebra",
        algebra.of_sample,
        {
            "additivity_error": "additivity.value",
            "reversal_error": "reversal.value",
            "identity_error": "identity.value",
            "composed_skill": "composed_skill",
        },
        applies=has_chains,
        deep=True,
    ),
    Measure(
        "window_curve",
        window_curve.of_sample,
        {f"probe_r2_{windows}_windows": f"{windows}.r2_mean" for windows in (1, 2, 4)},
        applies=lambda sample: (
            has_chains(sample)
            and sample.chains.moved is not None
            and len(np.unique(sample.chains.episode)) >= MIN_EPISODES
        ),
        deep=True,
    ),
    Measure("again", again.of_sample, {"delta": "relative"}, applies=has_decoder, deep=True),
    Measure(
        "cuts",
        cuts.of_sample,
        {"cut_skill": "skill", "cut_carried": "carried"},
        applies=lambda sample: has_decoder(sample) and sample.episodes > 1,
        deep=True,
    ),
)


def measure(sample: Sample, *, deep: bool) -> dict[str, Any]:
    """The report on a sample, by key: all that applies to it, without `deep` only what is quick."""
    report: dict[str, Any] = {}
    chosen = [one for one in MEASURES if (deep or not one.deep) and one.applies(sample)]
    with Progress("measure", len(chosen), unit="measure", show=deep) as bar:
        for one in chosen:
            bar.waits(one.key)
            report[one.key] = report.get(one.key, {}) | one.of(sample)
            bar.update()
    return report


def rows(report: Mapping[str, Any], *, deep: bool = True) -> list[dict[str, Any]]:
    """The numbers to show of a report: {measure, value, low, high, chance}, with None for what it
    does not have; without `deep` only those that every report may have."""
    found = []
    for one in MEASURES:
        if one.deep and not deep:
            continue
        for name, path in one.rows.items():
            value, beside = report.get(one.key), {}
            for key in path.split("."):
                beside, value = value or {}, (value or {}).get(key)
            low, high = beside.get(f"{key}_interval") or (None, None)
            chance = beside.get("chance")
            found.append(dict(measure=name, value=value, low=low, high=high, chance=chance))
    return found
