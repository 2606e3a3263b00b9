"""What a quantizer's evaluation looks like: pictures and tables for any report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lapa_jax.diagnostics.codebook import actions_per_code
from lapa_jax.evidence import measures
from lapa_jax.evidence.quantizer import QuantizerEvaluation
from lapa_jax.machine.environment import describe_environment
from lapa_jax.report import figures
from lapa_jax.report.html import Report, Section, estimate
from lapa_jax.report.picture import Picture
from lapa_jax.runs.loaded import Model

MAX_CODES = 16  # columns of the atlas
FEATURES = {
    "latent_action": "latent action z",
    "continuous_latent": "latent before the bottleneck",
    "first_frame": "first frame only",
    "first_frame_and_latent_action": "first frame and z",
}
CONTROLS = FEATURES | {"random_codes": "random codes", "motion_kmeans": "k-means of the change"}


def write(
    path: Path,
    run: Model,
    found: Mapping[str, QuantizerEvaluation],
    result: Mapping[str, Any],
    transfer: Mapping[str, np.ndarray],
) -> None:
    """Writes the report of `lapa evaluate`: evaluations by corpus, the whole result, and the frames
    of `evaluate_transfer` (empty without it)."""
    model = run.stage.model_config
    held = f"{model.codebook_size} codes" if model.has_codes else f"{model.quant_dim} numbers"
    report = Report(
        "What the latent actions are worth",
        f"{run.workdir}, step {run.step:,}: {held} × {model.code_length}.",
    )
    if not model.has_codes:
        report.text(
            "The latent stays continuous: what is told of codes elsewhere is left out, and z is "
            "the latent itself."
        )
    for name, evaluation in found.items():
        section = report.section(
            f"Corpus {Path(name).name}",
            what_was_measured(evaluation.report),
        )
        verdict_table(section, evaluation.report["verdict"])
        _numbers(section, evaluation.report)
        quantizer_pictures(section, evaluation, Path(name).name)
        if model.has_codes and evaluation.sample.draws_frames:
            section.figure(*atlas(run, {name: evaluation}))
        _content(section, evaluation.report)
    if "paired_views" in result:
        _paired_views(report, result["paired_views"])
    if "transfer" in result or "distractors" in result:
        _simulated(report, result, transfer)
    closing = report.section("How this was made")
    closing.settings("Versions and hardware", describe_environment())
    closing.settings("Config of the run", run.config.to_dict())
    report.write(path)


def what_was_measured(report: Mapping[str, Any]) -> str:
    """Of which pairs the numbers are, and what their intervals cover."""
    episodes = report["episodes"]
    told = f"{report['pairs']:,} frame pairs of {episodes:,} episode{'s' * (episodes > 1)}, "
    told += f"{report['window_seconds']:g} s apart{of_the_training(report['seen_in_training'])}"
    if episodes > 1:
        return told + ". Intervals are 95 %, by resampling episodes."
    return told + ". One episode has no intervals."


def of_the_training(share: float) -> str:
    """The words for the share of what was measured that the training could draw from."""
    if share == 1:
        return ", all of them of the training: new episodes would look worse"
    if share:
        return f", {share:.0%} of them of the training, which look better than new ones"
    return ", none of them of the training"


def verdict_table(section: Section, found: Mapping[str, Any]) -> None:
    """Whether the latent actions can be used, check by check."""
    marks = {True: "yes", False: "no", None: "not measured"}
    section.text(f"Verdict: {found['word']}.")
    section.table(
        ["check", "passed", "what"],
        [[check["name"], marks[check["passed"]], check["told"]] for check in found["checks"]],
        "Thresholds, and why they are these, are in docs/measures.md.",
    )
    if found["notes"]:
        section.notes(found["notes"], "What the verdict rests on")


def _numbers(section: Section, report: Mapping[str, Any]) -> None:
    found = [row for row in measures.rows(report) if row["value"] is not None]
    section.table(
        ["measure", "value"],
        [[r["measure"], estimate(r["value"], r["low"], r["high"])] for r in found],
        "Every measure in short; docs/measures.md says what they are.",
    )


def _content(section: Section, report: Mapping[str, Any]) -> None:
    drawn = report["reconstruction"]
    _table(
        section,
        "later frame",
        {"skill": "skill", "PSNR, dB": "psnr", "SSIM": "ssim"},
        {
            "decoded from z": drawn,
            "the same decoder given the z of another pair": {"skill": drawn.get("skill_exchanged")},
            "the same decoder given the true action": report.get("true_action"),
        },
        _of_a_copy(drawn)
        + " The true action bounds what this decoder could do with a perfect latent of its size; "
        "it is measured on a quarter of the episodes." * ("true_action" in report),
    )
    content = report.get("content")
    if content is None:
        section.text("Too few episodes to measure what z holds.")
        return
    if "label_efficiency" in content:
        curves = content["label_efficiency"]
        section.figure(
            figures.label_curves(curves, {k: v for k, v in FEATURES.items() if k in curves}),
            "How many labels it takes to read the true action off, tested on other episodes.",
        )
    controls = content["controls"]
    _table(
        section,
        "codes or features",
        {
            "perplexity": "perplexity",
            "R² linear": "r2_linear",
            "R² network": "r2_mlp",
            "tells the episode": "scene_accuracy",
        },
        {CONTROLS.get(name, name): row for name, row in controls.items()},
        "z beside what it should beat (codes that nobody learnt) and what it should not be (the "
        "scene). Chance to tell the episode: "
        + ", ".join({estimate(row["scene_chance"]) or "–" for row in controls.values()})
        + ".",
    )
    given = content.get("code_given_scene", {})
    bits = {f"true action → z, {k}": row for k, row in content.get("action_to_code", {}).items()}
    bits["first frame → z, new scene"] = given.get("other_episodes")
    bits["first frame → z, known scene"] = given.get("later_in_episode")
    _table(
        section,
        "classifier",
        {
            "bits left": "bits",
            "bits of z": "marginal_bits",
            "explained": "explained_bits",
            "accuracy": "accuracy",
            "most common code": "modal_accuracy",
        },
        bits,
        "How well z can be told from the true action, and from the first frame alone: H(z | scene) "
        "is at most the bits left there.",
    )


def _of_a_copy(drawn: Mapping[str, Any]) -> str:
    """What copying the first frame has, in words."""
    if "ssim_copy" not in drawn:
        return (
            "Skill is that of features, which this decoder predicts: a copy of the first frame's 0."
        )
    return (
        f"Copying the first frame has skill 0, PSNR {_decibels(drawn['psnr_copy'])} and SSIM "
        f"{drawn['ssim_copy']:.3f}."
    )


def _table(
    section: Section,
    head: str,
    columns: Mapping[str, str],
    rows: Mapping[str, Mapping[str, Any] | None],
    note: str,
) -> None:
    """A row per name, of the numbers at the keys of `columns`; nothing where there are no rows."""
    cells = [
        [name, *(_with_interval(row, key) for key in columns.values())]
        for name, row in rows.items()
        if row is not None
    ]
    if cells:
        section.table([head, *columns], cells, note)


def _paired_views(report: Report, paired: Mapping[str, Any]) -> None:
    section = report.section(
        "The same motion in two views", f"{paired['windows']:,} windows of the same episodes."
    )
    retrieval = paired["retrieval_at_1"]
    rows = [
        [name, _interval(paired[key]["agreement"]), _interval(paired[key]["null"])]
        for name, key in (
            ("same code in both views", "codes"),
            ("same code, k-means of the change", "motion_kmeans"),
        )
        if key in paired
    ]
    rows += [
        ["nearest latent is the same window", _interval(retrieval), estimate(retrieval["chance"])],
        ["alignment of the latents (linear CKA)", estimate(paired["cka"]), "0"],
    ]
    if "probe" in paired:
        other, own = (
            _with_interval(paired["probe"][view], "r2_mean") for view in ("other_view", "same_view")
        )
        name = "R² of a probe fitted in one view, tested in the other"
        rows.append([name, other, f"in its own view {own}"])
    section.table(
        ["measure", "value", "to compare with"],
        rows,
        "Codes are compared with those of the other view's windows exchanged within each episode: "
        "agreement above that is about the motion, not the scene.",
    )


def _simulated(report: Report, result: Mapping[str, Any], frames: Mapping[str, np.ndarray]) -> None:
    section = report.section(
        "What only a simulator tells",
        "z of one scene decoded in another, against what the same actions do there; and codes "
        "under motion that no action made.",
    )
    if transfer := result.get("transfer"):
        _transferred(section, transfer, frames)
    if distractors := result.get("distractors"):
        still, moving = distractors["changed_still"], distractors["changed_moving"]
        section.table(
            ["moving distractors change z", "share", "chance"],
            [
                ["while nothing else moves", _interval(still), estimate(still["chance"])],
                ["while the robot moves", _interval(moving), estimate(moving["chance"])],
            ],
        )


def _transferred(
    section: Section, transfer: Mapping[str, Any], frames: Mapping[str, np.ndarray]
) -> None:
    same, note = transfer["same_code_as_own"], ""
    if same is not None:
        note = f" The other scene gives the code of the true pair in {same:.0%}."
    _table(
        section,
        "later frame decoded from",
        {"skill": "skill", "PSNR, dB": "psnr"},
        {
            "z of the other scene": transfer["z"],
            "z of the true pair": transfer["own"],
            "z of a third scene": transfer["shuffled"],
        },
        f"{transfer['episodes']:,} motions.{note}",
    )
    names = ("first", "later", "other scene", "simulated", "decoded from z", "decoded from own")
    section.figure(
        figures.frame_columns({name: frames[name][:8] for name in names}),
        "One motion per column: where z is read, the other scene, what the simulator says, and "
        "what the decoder draws.",
    )


def _with_interval(row: Mapping[str, Any], key: str) -> Any:
    return estimate(row.get(key), *(row.get(f"{key}_interval") or ()))


def _interval(found: Mapping[str, float]) -> Any:
    return estimate(found["estimate"], found["low"], found["high"])


def _decibels(psnr: float | None) -> str:
    return "without bound" if psnr is None else f"{psnr:.1f} dB"


def quantizer_pictures(
    section: Section, found: QuantizerEvaluation, view: str, actions: Sequence[str] = ()
) -> None:
    """Reconstructions, code usage, and what is known of the motion; actions: names of the
    dimensions, with units."""
    report = found.report
    sample = found.sample
    shown = np.linspace(0, len(sample.first) - 1, 8).astype(int)
    labels = () if sample.z is None else [f"z = {_name(z)}" for z in sample.z[shown]]
    first, last = sample.first[shown], sample.last[shown]
    skill = estimate(report["reconstruction"]["skill"]) or "undefined"
    if sample.draws_frames:
        section.figure(
            figures.reconstruction_grid(first, last, sample.recon[shown], labels=labels),
            f"{view}: pairs {report['window_seconds']:g} s apart and the later frame as predicted "
            f"from the first frame and z. Skill {skill}, PSNR "
            f"{_decibels(report['reconstruction']['psnr'])}.",
        )
    else:
        section.figure(
            figures.frame_columns({"first": first, "later": last}, labels=labels),
            f"{view}: pairs {report['window_seconds']:g} s apart. The decoder predicts features of "
            f"the later frame, no picture; skill {skill}.",
        )
    if sample.z is not None:
        section.figure(
            figures.code_usage(report["codes"]["histogram"]),
            f"{view}: how often each code is used. Perplexity "
            f"{report['codes']['mean_perplexity']:.2f}.",
        )
    if sample.actions is None:
        return
    dimensions = sample.actions.shape[1]
    names = list(actions) or [f"action {i}, sum over the window" for i in range(dimensions)]
    rows = []
    if sample.z is not None and dimensions > 1:
        rows = actions_per_code(sample.z, sample.actions, sample.codebook_size)
    if rows:
        rest = f"; the first two of {dimensions} dimensions" if dimensions > 2 else ""
        section.figure(
            figures.code_meaning(rows, names=tuple(names[:2])),
            f"{view}: the true motion under each latent action, which the quantizer never saw: "
            f"arrows to the mean, ellipses of one standard deviation{rest}.",
        )
    if "probe" in report:
        section.table(
            ["features", *(f"R² {name.split(',')[0]}" for name in names), "mean R²"],
            [[name, *p["r2"], p["r2_mean"]] for name, p in report["probe"].items()],
            f"{view}: linear probe to the true motion, tested on other episodes; beside the "
            "controls that see shuffled z or the first frame only.",
        )


def _name(z: np.ndarray) -> str:
    return " ".join(str(int(code)) for code in z)


def atlas(quantizer: Model, heldout: dict[str, QuantizerEvaluation]) -> tuple[Picture, str]:
    """Common latent actions decoded from a few start frames of every view, and what it shows."""
    everything = np.concatenate([found.sample.z for found in heldout.values()])
    codes, counts = np.unique(everything, axis=0, return_counts=True)
    codes = codes[np.sort(np.argsort(-counts, kind="stable")[:MAX_CODES])]
    per_view = 3 if len(heldout) == 1 else 2
    starts = np.concatenate(
        [
            first[np.linspace(0, len(first) - 1, per_view + 2).astype(int)[1:-1]]
            for first in (found.sample.first for found in heldout.values())
        ]
    )
    repeated = np.repeat(starts, len(codes), axis=0)
    z = np.tile(codes, (len(starts), 1)).astype(np.int32)
    decoded = jax.jit(quantizer.stage.decode)(quantizer.params, quantizer.variables, repeated, z)
    decoded = np.asarray(decoded).reshape(len(starts), len(codes), *starts.shape[1:])
    many = len(codes) < len(counts)
    which = f"The {len(codes)} most common of {len(counts):,}" if many else f"The {len(codes)}"
    return (
        figures.atlas(starts, np.clip(decoded, 0, 1), [f"z = {_name(c)}" for c in codes]),
        f"{which} latent actions that were used, each applied to the same frames.",
    )
