"""The report of a demo: what was run, what the latent actions are, and what they were good for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lapa_jax.diagnostics.embodiment import code_agreement
from lapa_jax.evidence.measures import rows as measured
from lapa_jax.evidence.page import atlas, quantizer_pictures, verdict_table, what_was_measured
from lapa_jax.evidence.quantizer import QuantizerEvaluation
from lapa_jax.machine.environment import describe_environment
from lapa_jax.report import figures
from lapa_jax.report.html import Report, Section
from lapa_jax.runs.loaded import Model
from lapa_jax.studies.study import contrast
from lapa_jax.training.metrics import read_metrics

ARM_NAMES = {"lapa": "LAPA", "scratch": "Scratch"}
Rows = list[dict[str, Any]]  # of demo._success: one for each arm and family


def write(
    workdir: Path,
    config: ConfigDict,
    quantizer: Model,
    heldout: dict[str, QuantizerEvaluation],
    rows: Rows,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Writes report.html; returns the numbers of summary.json."""
    summary = {
        "quantizer": _quantizer_numbers(quantizer, heldout),
        "policy": {
            arm: {
                key: sum(row[key] for row in rows if row["arm"] == arm)
                for key in ("successes", "episodes")
            }
            for arm in ARM_NAMES
        },
        "lapa_minus_scratch": contrast(rows, "lapa", "scratch").as_dict(),
    }
    if len(heldout) == 2:
        one, other = (found.sample for found in heldout.values())
        summary["same_code_in_both_views"] = code_agreement(
            one.z, other.z, one.episode, one.codebook_size, seed=0
        )
    report = Report(
        "Latent action pretraining on a tabletop",
        f"Videos without actions teach a policy what to do; {config.labelled_episodes} labelled "
        "robot episodes teach it how. The same policy without the videos is the comparison."
        + " Of size `tiny`, which shows that everything runs: no claim."
        * (config.size == "tiny"),
    )
    _cards(report, summary, seconds)
    _pipeline(report, config, heldout, rows, summary)
    _data_section(report, config)
    section = report.section(
        "Quantizer: what happens between two frames",
        "Trained on frame pairs alone. The first curve is of the training; everything else here is "
        "measured on held-out episodes.",
    )
    for view, found in heldout.items():
        section.text(f"Seen as {view}: {what_was_measured(found.report)}")
        verdict_table(section, found.report["verdict"])
    names = ("x, metres a window", "y, metres a window")
    _quantizer_figures(section, workdir, quantizer, heldout, names)
    if same := summary.get("same_code_in_both_views"):
        section.text(
            f"The same motion seen as {' and as '.join(heldout)} gets the same latent action in "
            f"{_percent(same['agreement'])} of {len(one.z):,} held-out pairs; with the pairs of "
            f"one view exchanged within each episode in {_percent(same['null'])}."
        )
    _policy_section(report, workdir, rows, summary, config)
    notes = ["One seed: the intervals cover episodes, not repetitions of the training."]
    shown = "The videos show the world and the tasks that the policy is tested on"
    if "robot" in config.video_views:
        shown += f", {1 / len(config.video_views):.0%} of them in the robot's own view"
    notes.append(f"{shown}; transfer to other worlds is not shown here.")
    _closing(report, config, seconds, notes)
    report.write(workdir / "report.html")
    return summary


def write_videos(
    workdir: Path,
    config: ConfigDict,
    quantizer: Model,
    found: QuantizerEvaluation,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The report of a quantizer on the user's own clips; returns the numbers of summary.json."""
    of, told = {"videos": found}, found.report
    report = Report("Latent actions of your videos", what_was_measured(told))
    numbers = {"quantizer": _quantizer_numbers(quantizer, of), "verdict": told["verdict"]}
    numbers["held_out"] = told["seen_in_training"] == 0.0
    _cards(report, numbers, seconds)
    section = report.section(
        "Quantizer",
        "Trained on frame pairs of your clips alone. The first curve is of the training.",
    )
    verdict_table(section, told["verdict"])
    _quantizer_figures(section, workdir, quantizer, of)
    notes = [
        "One training: another seed may give other codes.",
        "What a latent action does is shown by what the decoder draws; what it means for a robot "
        "is not measured without actions.",
    ]
    _closing(report, config, seconds, notes)
    report.write(workdir / "report.html")
    return numbers


def _quantizer_figures(
    section: Section,
    workdir: Path,
    quantizer: Model,
    found: dict[str, QuantizerEvaluation],
    actions: Sequence[str] = (),
) -> None:
    rows = read_metrics(workdir / "quantizer")
    section.figure(
        figures.loss_curves({"training": rows}, "mse", log=True, smooth=5),
        "Mean squared error of the predicted later frame, in training.",
    )
    for name, one in found.items():
        quantizer_pictures(section, one, name, actions)
    section.figure(*atlas(quantizer, found))


def _quantizer_numbers(
    quantizer: Model, heldout: dict[str, QuantizerEvaluation]
) -> dict[str, float | None]:
    """Means over the views; None where the frames never change."""
    model = quantizer.stage.model_config
    names = ("perplexity", "psnr", "skill")
    found = [{r["measure"]: r["value"] for r in measured(one.report)} for one in heldout.values()]
    numbers = {"codebook_size": model.codebook_size, "code_length": model.code_length}
    for name in names:
        values = [one[name] for one in found if one[name] is not None]
        numbers[name] = round(float(np.mean(values)), 4) if values else None
    return numbers


def _percent(found: Mapping[str, float]) -> str:
    """A rate with its interval."""
    return f"{found['estimate']:.0%} (95 %: {found['low']:.0%} to {found['high']:.0%})"


def _points(found: Mapping[str, float]) -> str:
    """A difference of rates with its interval."""
    value, low, high = (100 * found[key] for key in ("estimate", "low", "high"))
    return f"{value:+.1f} points (95 %: {low:+.1f} to {high:+.1f})"


def _cards(report: Report, summary: dict[str, Any], seconds: dict[str, float]) -> None:
    cards = [
        {
            "label": f"Success, {ARM_NAMES[arm]}",
            "value": f"{counts['successes'] / counts['episodes']:.0%}",
            "note": f"{counts['successes']} of {counts['episodes']} episodes",
        }
        for arm, counts in summary.get("policy", {}).items()
    ]
    if gap := summary.get("lapa_minus_scratch"):
        value, interval = _points(gap).split(" ", 1)
        cards.append({"label": "LAPA minus Scratch", "value": value, "note": f"{interval}, paired"})
    numbers = summary["quantizer"]
    codes = f"of {numbers['codebook_size']} codes; {numbers['code_length']} a pair"
    minutes = f"{sum(seconds.values()) / 60:.1f} min"
    skill = numbers["skill"]
    if verdict := summary.get("verdict"):
        cards.append({"label": "Verdict", "value": verdict["word"], "note": "checks below"})
    cards += [
        {"label": "Code perplexity", "value": f"{numbers['perplexity']:.1f}", "note": codes},
        {
            "label": "Skill",
            "value": None if skill is None else f"{skill:.2f}",
            "note": "0: copies; 1: perfect" if skill is not None else "the frames never change",
        },
        {"label": "Wall time", "value": minutes, "note": "all parts before this page; see below"},
    ]
    report.cards(cards)


def _pipeline(report, config, heldout, rows, summary) -> None:
    shown = next(iter(heldout.values())).sample
    model = config.quantizer.model
    rate = {arm: f"{c['successes'] / c['episodes']:.0%}" for arm, c in summary["policy"].items()}
    report.figure(
        figures.pipeline_diagram(
            {
                "videos": " + ".join(
                    f"{config.video_episodes:,} {view}" for view in config.video_views
                ),
                "quantizer": f"{model.codebook_size} codes × {model.code_length}, "
                f"{config.quantizer.steps:,} steps",
                "labels": "one z per frame pair",
                "latent_vla": f"{config.latent_pretraining.steps:,} steps",
                "action_vla": f"{config.action_finetuning.steps:,} steps",
                "success": f"{rate['lapa']} (scratch {rate['scratch']})",
                "demonstrations": f"{config.labelled_episodes} episodes",
            },
            {"videos": shown.first[0], "quantizer": np.clip(shown.recon[0], 0, 1)},
        ),
        f"What was run, from left to right; success over {rows[0]['episodes']} episodes "
        "a family and arm.",
    )


def _data_section(report: Report, config: ConfigDict) -> None:
    section = report.section(
        "Data",
        "A planar tabletop written for this project; its scores are not Language Table scores.",
    )
    half = f"{1 / len(config.video_views):.0%}"
    noise = f" with noise ({config.expert_noise:g} of the range)" if config.expert_noise else ""
    section.table(
        ["part", "view", "episodes", "actions", "used for"],
        [
            [f"videos, {half} of the mixture", view, config.video_episodes, "no", "quantizer, z"]
            for view in config.video_views
        ]
        + [
            ["labelled", "robot", config.labelled_episodes, "yes", "fine-tuning, both arms"],
            ["held out", " and ".join(config.video_views), config.heldout_episodes, "yes", "here"],
        ],
        f"No episode is in two parts. Videos show a scripted expert{noise}; the held-out "
        "episodes show the same motion in every view.",
    )
    if config.size != "full":
        section.text(
            f"This is the simpler scene: {config.scene.blocks} blocks, families "
            f"{', '.join(config.scene.families)}. `lapa demo --size full` takes eight blocks and "
            "all families."
        )


def _policy_section(
    report: Report, workdir: Path, rows: Rows, summary: dict[str, Any], config: ConfigDict
) -> None:
    scale = config.pretrained_lr_scale
    held = f"train at {scale:g} of the rate" if scale else "are held"
    section = report.section(
        "Policy: does it act?",
        "Both arms: same model, tokens, labelled episodes and order, and "
        f"{config.action_finetuning.steps:,} fine-tuning steps. LAPA starts from the latent VLA, "
        f"whose parameters {held}; Scratch starts from random parameters and trains all.",
    )
    runs = {"latent VLA": "latent_vla"}
    runs |= {f"fine-tuning, {name}": arm for arm, name in ARM_NAMES.items()}
    curves = {name: read_metrics(workdir / run) for name, run in runs.items()}
    section.figure(
        figures.loss_curves(curves, "token_accuracy", smooth=3),
        "Accuracy of the predicted tokens in training; latent and action tokens have different "
        "vocabularies, so only the two fine-tuning curves compare.",
    )
    named = [row | {"arm": ARM_NAMES[row["arm"]]} for row in rows]
    section.figure(figures.success_chart(named), "Closed-loop success with 95 % Wilson intervals.")
    columns = ["family", "arm", "successes", "episodes"]
    section.table(
        [*columns, "rate", "95 % interval"],
        [
            [r[c] for c in columns] + [f"{r['estimate']:.1%}", f"{r['low']:.1%} to {r['high']:.1%}"]
            for r in named
        ],
        f"Fixed start states (seed {config.seed}), at most {config.scene.horizon} steps.",
    )
    families = list(dict.fromkeys(row["family"] for row in rows))
    gaps = {
        family: contrast([r for r in rows if r["family"] == family], "lapa", "scratch").as_dict()
        for family in (families if len(families) > 1 else ())
    }
    gaps["all families" if gaps else families[0]] = summary["lapa_minus_scratch"]
    section.table(
        ["family", "LAPA minus Scratch"],
        [[family, _points(gap)] for family, gap in gaps.items()],
        "Both arms act from the same start states, so that the intervals are of paired outcomes "
        "(Newcombe's hybrid score). The intervals of the two rates above must not be compared.",
    )
    strips = _strips(workdir, rows)
    shown = len(strips) // len(ARM_NAMES) // len(families)
    first = "first" if shown == 1 else f"first {shown}"
    section.figure(
        figures.film_strips(strips),
        f"The same start states, both arms: the {first} of each family, whoever succeeded.",
    )


def _strips(workdir: Path, rows: Rows) -> list[figures.Strip]:
    """By family and episode, all arms of one below each other."""
    strips = []
    films = {arm: np.load(workdir / arm / "films.npz") for arm in ARM_NAMES}
    for film in films["lapa"].files:
        family, number = film.rsplit(" ", 1)
        for row in rows:
            if row["family"] == family:
                asked, done = row["asked"][int(number)], row["outcomes"][int(number)]
                frames = films[row["arm"]][film]
                strips.append(figures.Strip(frames, asked, done, ARM_NAMES[row["arm"]]))
    return strips


def _closing(
    report: Report, config: ConfigDict, seconds: dict[str, float], notes: Sequence[str]
) -> None:
    section = report.section("How this was made")
    section.table(["part", "seconds"], [[name, round(value, 1)] for name, value in seconds.items()])
    section.settings("Versions and hardware", describe_environment())
    section.settings("Settings", config.to_dict())
    section.notes(notes, "Read this before quoting a number")
