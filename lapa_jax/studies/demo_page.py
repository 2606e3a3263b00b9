"""The report of a demo: what was run, what the latent actions are, and what they were good for."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.diagnostics.statistics import Interval, paired_difference_of_proportions
from lapa_jax.envs.env import Environment
from lapa_jax.envs.rollout import render_states
from lapa_jax.evidence.measures import rows
from lapa_jax.evidence.page import atlas, quantizer_pictures
from lapa_jax.evidence.policy import SuccessEvaluation
from lapa_jax.evidence.quantizer import QuantizerEvaluation
from lapa_jax.machine.environment import describe_environment
from lapa_jax.report import figures
from lapa_jax.report.html import Report
from lapa_jax.runs import run

ARM_NAMES = {"lapa": "LAPA", "scratch": "Scratch"}


def write(
    workdir: Path,
    config: ConfigDict,
    env: Environment,
    quantizer: run.Run,
    heldout: dict[str, QuantizerEvaluation],
    arms: dict[str, list[SuccessEvaluation]],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Writes report.html; returns the numbers of summary.json."""
    summary = {
        "quantizer": _quantizer_numbers(quantizer, heldout),
        "policy": {
            arm: {
                "successes": sum(e.report["successes"] for e in found),
                "episodes": sum(e.report["episodes"] for e in found),
            }
            for arm, found in arms.items()
        },
        "lapa_minus_scratch": _lapa_minus_scratch(arms).as_dict(),
    }
    report = Report(
        "Latent action pretraining on a tabletop",
        f"Videos without actions teach a policy what to do; {config.labelled_episodes} labelled "
        "robot episodes teach it how. The same policy without the videos is the comparison.",
    )
    _cards(report, summary, seconds)
    _pipeline(report, config, heldout, arms, summary)
    _data_section(report, config, env)
    section = report.section(
        "Quantizer: what happens between two frames",
        "Trained on frame pairs alone. Everything here is measured on held-out episodes.",
    )
    section.figure(
        figures.loss_curves(
            {"training": figures.read_metrics(workdir / "quantizer" / "metrics.jsonl")},
            "loss",
            log=True,
            smooth=5,
        ),
        "Mean squared error of the predicted later frame.",
    )
    for view, found in heldout.items():
        quantizer_pictures(section, found, view)
    views = list(heldout)
    if len(views) == 2:
        one, other = (found.sample.z for found in heldout.values())
        agree = float((one == other).all(axis=1).mean())
        section.text(
            f"The same motion seen as {views[0]} and as {views[1]} gets the same latent action in "
            f"{agree:.0%} of {len(one):,} held-out pairs."
        )
    section.figure(atlas(quantizer, heldout), "Every latent action applied to the same frames.")
    _policy_section(report, workdir, env, arms, config)
    _closing(report, config, seconds)
    report.write(workdir / "report.html")
    return summary


def write_videos(
    workdir: Path,
    config: ConfigDict,
    quantizer: run.Run,
    found: QuantizerEvaluation,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The report of a quantizer on the user's own clips; returns the numbers of summary.json."""
    heldout = {"videos": found}
    report = Report("Latent actions of your videos", f"{found.report['pairs']:,} frame pairs.")
    numbers = {"quantizer": _quantizer_numbers(quantizer, heldout)}
    _cards(report, numbers, seconds)
    section = report.section(
        "Quantizer", "Measured on the clips that it was trained on: there is no held-out part."
    )
    rows = figures.read_metrics(workdir / "quantizer" / "metrics.jsonl")
    section.figure(figures.loss_curves({"training": rows}, "loss", log=True, smooth=5))
    quantizer_pictures(section, found, "videos")
    section.figure(atlas(quantizer, heldout), "Every latent action applied to the same frames.")
    _closing(report, config, seconds)
    report.write(workdir / "report.html")
    return numbers


def _quantizer_numbers(
    quantizer: run.Run, heldout: dict[str, QuantizerEvaluation]
) -> dict[str, float]:
    """Means over the views."""
    model = quantizer.stage.model_config
    names = ("perplexity", "psnr", "skill")
    found = [{r["measure"]: r["value"] for r in rows(one.report)} for one in heldout.values()]
    return {"codebook_size": model.codebook_size, "code_length": model.code_length} | {
        name: round(float(np.mean([one[name] for one in found])), 4) for name in names
    }


def _cards(report: Report, summary: dict[str, Any], seconds: dict[str, float]) -> None:
    cards = []
    for arm, counts in summary.get("policy", {}).items():
        cards.append(
            {
                "label": f"Success, {ARM_NAMES[arm]}",
                "value": f"{counts['successes'] / counts['episodes']:.0%}",
                "note": f"{counts['successes']} of {counts['episodes']} episodes",
            }
        )
    numbers = summary["quantizer"]
    cards += [
        {
            "label": "Code perplexity",
            "value": f"{numbers['perplexity']:.1f}",
            "note": f"of {numbers['codebook_size']} codes; {numbers['code_length']} a pair",
        },
        {"label": "Skill", "value": f"{numbers['skill']:.2f}", "note": "0: copies; 1: perfect"},
        {
            "label": "Wall time",
            "value": f"{sum(seconds.values()) / 60:.1f} min",
            "note": "all parts; see below",
        },
    ]
    report.cards(cards)


def _pipeline(report, config, heldout, arms, summary) -> None:
    shown = next(iter(heldout.values())).sample
    model = config.quantizer.model
    rate = {arm: f"{c['successes'] / c['episodes']:.0%}" for arm, c in summary["policy"].items()}
    last = next(iter(arms.values()))[0]
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
        f"What was run, from left to right; success over {last.report['episodes']} episodes "
        "a family and arm.",
    )


def _data_section(report: Report, config: ConfigDict, env: Environment) -> None:
    section = report.section(
        "Data",
        "A planar tabletop written for this project; its scores are not Language Table scores.",
    )
    half = f"{1 / len(config.video_views):.0%}"
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
        "No episode is in two parts. Videos show a scripted expert with noise; the held-out "
        "episodes show the same motion in every view.",
    )
    if config.size != "full":
        section.text(
            f"This is the simpler scene: {config.scene.blocks} blocks, families "
            f"{', '.join(config.scene.families)}. `lapa demo --size full` takes eight blocks and "
            "all families."
        )


def _policy_section(
    report: Report,
    workdir: Path,
    env: Environment,
    arms: dict[str, list[SuccessEvaluation]],
    config: ConfigDict,
) -> None:
    section = report.section(
        "Policy: does it act?",
        "Both arms: same model, tokens, labelled episodes and order, and "
        f"{config.action_finetuning.steps:,} fine-tuning steps. LAPA starts from the latent VLA, "
        "Scratch from random parameters.",
    )
    section.figure(
        figures.loss_curves(
            {
                "latent VLA": figures.read_metrics(workdir / "latent_vla" / "metrics.jsonl"),
                **{
                    f"fine-tuning, {ARM_NAMES[arm]}": figures.read_metrics(
                        workdir / arm / "metrics.jsonl"
                    )
                    for arm in arms
                },
            },
            "token_accuracy",
            smooth=3,
        ),
        "Accuracy of the predicted tokens in training; latent and action tokens have different "
        "vocabularies, so only the two fine-tuning curves compare.",
    )
    rows = [e.report | {"arm": ARM_NAMES[arm]} for arm, found in arms.items() for e in found]
    section.figure(figures.success_chart(rows), "Closed-loop success with 95 % Wilson intervals.")
    section.table(
        ["family", "arm", "successes", "episodes", "rate", "95 % interval"],
        [
            [
                r["family"],
                r["arm"],
                r["successes"],
                r["episodes"],
                f"{r['estimate']:.1%}",
                f"{r['low']:.1%} to {r['high']:.1%}",
            ]
            for r in rows
        ],
        f"Fixed start states (seed {config.seed}), at most {config.scene.horizon} steps.",
    )
    gap = _lapa_minus_scratch(arms)
    section.text(
        f"LAPA minus Scratch, all families: {gap.estimate:+.1%} (95 %: {gap.low:+.1%} to "
        f"{gap.high:+.1%}; a paired interval, as both act from the same start states)."
    )
    section.figure(
        figures.film_strips(_strips(env, arms, config)),
        "The same start states, both arms: the first of each family.",
    )


def _lapa_minus_scratch(arms: dict[str, list[SuccessEvaluation]]) -> Interval:
    """Episode i of both arms starts from the same state."""
    outcomes = (
        np.concatenate([np.asarray(e.rollouts.success) for e in arms[arm]])
        for arm in ("lapa", "scratch")
    )
    return paired_difference_of_proportions(*outcomes)


def _strips(env: Environment, arms: dict[str, list[SuccessEvaluation]], config: ConfigDict) -> list:
    size = config.action_finetuning.data.image_size
    strips = []
    families = len(config.scene.families)
    for number in range(families):
        for episode in range(3 if families == 1 else 1):
            for arm, found in arms.items():
                rollouts = found[number].rollouts
                states = jax.tree.map(lambda x, i=episode: x[i], rollouts.states)
                frames = np.asarray(render_states(env, states, size, "robot"))
                strips.append(
                    figures.Strip(
                        frames[: int(rollouts.length[episode]) + 1],
                        found[number].instructions[episode],
                        bool(rollouts.success[episode]),
                        ARM_NAMES[arm],
                    )
                )
    return strips


def _closing(report: Report, config: ConfigDict, seconds: dict[str, float]) -> None:
    section = report.section("How this was made")
    section.table(["part", "seconds"], [[name, round(value, 1)] for name, value in seconds.items()])
    section.settings("Versions and hardware", describe_environment())
    section.settings("Settings", config.to_dict())
    section.notes(
        [
            "One seed: the intervals cover episodes, not repetitions of the training.",
            "The videos show the world and the tasks that the policy is tested on, half of them in "
            "the robot's own view; transfer to other worlds is not shown here.",
        ],
        "Read this before quoting a number",
    )
