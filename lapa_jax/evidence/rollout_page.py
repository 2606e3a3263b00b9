"""What is written of rollouts: a film strip, a video's frames, the page, and the JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax.evidence.page import of_the_training
from lapa_jax.evidence.rollouts import Rollouts
from lapa_jax.machine.environment import describe_environment
from lapa_jax.report import figures
from lapa_jax.report.frames import film
from lapa_jax.report.html import Report, Section, estimate
from lapa_jax.world.imagination import Imagination

SHOWN = 3  # rollouts in pictures
NAMES = {"": "imagined", "forced_": "teacher-forced"}
CLIPS = {
    "true": "true clips (what cannot be told apart)",
    "imagined": "imagined",
    "teacher_forced": "teacher-forced",
    "first_frame": "the first frame, repeated",
}
NO_TRUTH = "z was not read off a video of this scene, so what truly follows it there is not known"


def shown(rollouts: Rollouts) -> dict[int, str]:
    """Which rollouts are shown, with a word for each: where errors are known, those of the least,
    the median and the largest error at the last step; else the first ones."""
    if rollouts.error_NK is None:
        return {n: rollouts.labels[n] for n in range(min(SHOWN, len(rollouts.labels)))}
    order = np.argsort(rollouts.error_NK[:, -1], kind="stable")
    places = {"least error": 0, "median error": (len(order) - 1) // 2, "largest error": -1}
    found: dict[int, str] = {}
    for word, place in places.items():
        found.setdefault(int(order[place]), word)
    if len(found) == 1:
        return {n: rollouts.labels[n] for n in found}
    return {n: f"{rollouts.labels[n]}, {word} at the last step" for n, word in found.items()}


def rows_of(rollouts: Rollouts, number: int) -> dict[str, np.ndarray]:
    """Named rows of frames uint8 (K + 1, H, W, 3): those that z was read off, where there are any,
    below them the imagined ones and those of another model, all from the first frame on."""
    rows = {}
    if rollouts.seen_NKHWC is not None:
        word = "z is of" if rollouts.error_NK is None else "true"
        rows[word] = np.stack([rollouts.source_NHWC[number], *rollouts.seen_NKHWC[number]])
    first = rollouts.first_NHWC[number]
    rows["imagined"] = np.stack([first, *rollouts.imagined_NKHWC[number]])
    if rollouts.beside_NKHWC is not None:
        name = Path(rollouts.report["beside"]["workdir"]).name
        rows[f"by {name}"] = np.stack([first, *rollouts.beside_NKHWC[number]])
    return rows


def strip(rollouts: Rollouts) -> np.ndarray:
    """The film strip, an image uint8: for each rollout shown its rows, over time to the right."""
    return film([row for n in shown(rollouts) for row in rows_of(rollouts, n).values()])


def video(rollouts: Rollouts) -> np.ndarray:
    """The frames uint8 (K + 1, H', W', 3) of the video: a line for each rollout shown, what z was
    read off on the left and what was imagined to its right."""
    lines = [list(rows_of(rollouts, n).values()) for n in shown(rollouts)]
    count = len(lines[0][0])
    return np.stack(
        [film([np.stack([row[k] for row in line]) for line in lines]) for k in range(count)]
    )


def result(
    imagination: Imagination, rollouts: Rollouts, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """What `rollout.json` holds: asked is what the flags said."""
    model = imagination.model
    made = zip(rollouts.labels, rollouts.z_NKL.tolist(), strict=True)
    errors = rollouts.report or {"errors": None, "why": NO_TRUTH}
    return {
        "workdir": str(model.workdir),
        "stage": model.config.stage,
        "step": model.step,
        "params_hash": model.params_hash,
        "asked": dict(asked),
        "steps": rollouts.z_NKL.shape[1],
        **errors,
        "rollouts": [{"of": label, "z": z} for label, z in made],
    }


def write(
    path: Path, imagination: Imagination, rollouts: Rollouts, found: Mapping[str, Any]
) -> None:
    """Writes the page; found: what `result` gave."""
    model = imagination.model
    report = Report(
        "Imagined videos", f"{model.workdir}, stage {model.config.stage}, step {model.step:,}."
    )
    seconds = rollouts.report.get("window_seconds", imagination.window_seconds)
    section = report.section("Rollouts", _said(rollouts, seconds))
    labels = [
        f"+{k * seconds:.2g} s" if seconds else f"step {k}" for k in range(found["steps"] + 1)
    ]
    labels[0] = "start"
    for number, word in shown(rollouts).items():
        picture = figures.frame_columns(rows_of(rollouts, number), labels=labels)
        section.figure(picture, f"{word}. z: {_z(rollouts.z_NKL[number])}")
    if rollouts.report:
        _errors(report.section("Error over the horizon", _measured(rollouts)), rollouts.report)
        _frechet(report.section("Distance of distributions"), rollouts.report["frechet"])
    else:
        report.section("Error over the horizon").text(f"Not measured: {NO_TRUTH}.")
    closing = report.section("How this was made")
    closing.settings("What was asked", found["asked"], open=True)
    closing.settings("Versions and hardware", describe_environment())
    closing.settings("Config of the run", model.config.to_dict())
    report.write(path)


def _said(rollouts: Rollouts, seconds: float) -> str:
    count, steps = rollouts.z_NKL.shape[:2]
    apart = f", {seconds:g} s apart" if seconds else ""
    many = f"{count:,} rollouts" if count > 1 else "One rollout"
    length = f"{steps} steps" if steps > 1 else "one step"
    return f"{many} of {length}{apart}, from one given frame each."


def _z(z_KL: np.ndarray) -> str:
    if z_KL.dtype.kind == "f":
        return f"vectors {list(z_KL.shape)}, in `rollout.json`"
    return ", ".join(":".join(map(str, codes)) for codes in z_KL)


def _measured(rollouts: Rollouts) -> str:
    report = rollouts.report
    steps, count = report["steps_above_copying"], len(report["episodes"])
    told = f"{count:,} episodes{of_the_training(report['seen_in_training'])}. "
    if steps is not None:
        told += (
            f"Nearer to the true frames than the first frame is for {steps} of "
            f"{len(report['by_step'])} steps: so far the interval of skill lies above 0. "
        )
    if short := report["left_out"]["too_short"]:
        told += f"Left out as too short: {len(short)} episodes. "
    if bad := report["left_out"]["undecodable"]:
        told += f"Left out as not decodable: {len(bad)} episodes. "
    return told


def _errors(section: Section, report: Mapping[str, Any]) -> None:
    rows = report["by_step"]
    panels: dict[str, dict[str, list[list[float]]]] = {"skill": {}, "MSE": {}}
    for title, key in (("skill", "skill"), ("MSE", "mse")):
        for prefix, name in NAMES.items():
            points = [
                [
                    row["step"],
                    row[prefix + key],
                    *(row[f"{prefix}{key}_interval"] or [row[prefix + key]] * 2),
                ]
                for row in rows
                if row[prefix + key] is not None
            ]
            if points:
                panels[title][name] = points
    other = report.get("beside")
    if other:
        panels["skill"][f"imagined by {Path(other['workdir']).name}"] = [
            [row["step"], row["skill"], *(row["skill_interval"] or [row["skill"]] * 2)]
            for row in other["by_step"]
            if row["skill"] is not None
        ]
    panels["MSE"]["copying the first frame"] = [
        [row["step"], *[row["mse_copy"]] * 3] for row in rows
    ]
    section.figure(
        figures.band_curves({title: lines for title, lines in panels.items() if lines}, x="step"),
        "Skill is 1 − MSE / MSE of copying the first frame. Teacher-forced: each frame is drawn "
        "from the true one before. Bands: 95 % by resampling episodes.",
    )
    table = [
        [
            row["step"],
            *(
                estimate(row[key], *(row[f"{key}_interval"] or ()))
                for key in ("mse", "psnr", "skill", "forced_skill", "times_forced")
            ),
            estimate(row["mse_copy"]),
        ]
        for row in rows
    ]
    head = ["step", "MSE", "PSNR, dB", "skill", "teacher-forced skill", "MSE / teacher-forced"]
    section.table([*head, "MSE of copying"], table)
    if other:
        _beside(section, other)


def _beside(section: Section, other: Mapping[str, Any]) -> None:
    rows = [
        [
            row["step"],
            *(estimate(row[key], *(row[f"{key}_interval"] or ())) for key in ("skill", "above")),
        ]
        for row in other["by_step"]
    ]
    section.table(
        ["step", "its skill", "skill of this run less that"],
        rows,
        f"{other['workdir']}, stage {other['stage']}, from the same frames by the same z. 95 % by "
        "resampling episodes.",
    )


def _frechet(section: Section, found: Mapping[str, Any]) -> None:
    section.text(
        f"Squared Fréchet distance in {found['features']} features of each step: "
        f"{found['extractor']}. It is no FVD: no network of videos is asked, and numbers compare "
        "only with others of the same features and the same count."
    )
    if found["distances"] is None:
        section.text(
            f"Not measured: half of the episodes have {found['samples']} steps, which must be more "
            "than the features."
        )
        return
    rows = [
        [
            CLIPS[name],
            estimate(x["distance"], *x["range"]),
            estimate(x["above_true"], *x["above_true_range"]),
        ]
        for name, x in found["distances"].items()
    ]
    section.table(
        ["clips", "from true clips", "more than true ones"],
        rows,
        f"Steps of one half of the episodes against those of the other, {found['samples']} each; "
        f"mean and middle 95 % of {found['splits']} random halves.",
    )
