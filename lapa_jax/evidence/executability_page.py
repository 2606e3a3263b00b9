"""What is written of imagined videos that were executed: film strip, video, page and JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax.evidence.executability import ROWS, Executability, Executed
from lapa_jax.machine.environment import describe_environment
from lapa_jax.report import figures
from lapa_jax.report.frames import film
from lapa_jax.report.html import Report, Section, estimate
from lapa_jax.world.imagination import Imagination

SHOWN = 8  # windows of a start in pictures
WORDS = {"imagined": "imagined", "imagined_policy": "imagined, by the policy's z"}
PANELS = {"success": "success", "action_r2": "R² of the actions"}


def shown(made: Executability) -> dict[int, str]:
    """Which starts are shown, with a word for each: the first that succeeds by what is read off the
    true frames and off the imagined ones, off the true ones alone, and not off the true ones."""
    true, imagined = (made.rows[name].success_N for name in ("true_frames", "imagined"))
    kinds = {
        "succeeds by its true frames and by what was imagined": true & imagined,
        "succeeds by its true frames, and not by what was imagined": true & ~imagined,
        "does not succeed by its true frames": ~true,
    }
    return {int(np.argmax(which)): word for word, which in kinds.items() if which.any()}


def rows_of(made: Executability, number: int) -> dict[str, np.ndarray]:
    """Named rows of frames uint8 (min(K, SHOWN) + 1, H, W, 3), from the first frame on: true ones,
    what was imagined and what came of it, and the same by a policy. White where there are none."""
    rows, until = made.rows, int(made.windows_N[number])
    found = {"true": made.true_NKHWC[number, : until + 1]}
    found |= _pair(rows["imagined"], number, until, ("imagined", "executed"))
    if "closed_loop" in rows:
        words = ("policy: imagined", "policy: executed")
        found |= _pair(rows["imagined_policy"], number, None, words)
        found["closed loop"] = rows["closed_loop"].seen_NKHWC[number]
    count = min(made.true_NKHWC.shape[1], SHOWN + 1)
    return {name: _filled(frames[:count], count) for name, frames in found.items()}


def _pair(row: Executed, number: int, until: int | None, words: tuple[str, str]) -> dict:
    """What was imagined, and below it what was there: up to where the execution ended."""
    first, plan, seen = row.seen_NKHWC[number, :1], row.plan_NKHWC[number], row.seen_NKHWC[number]
    plan = np.concatenate([first, plan])
    end = len(seen) if until is None else until + 1
    return {words[0]: plan[:end], words[1]: seen[:end]}


def _filled(frames: np.ndarray, count: int) -> np.ndarray:
    missing = [(0, count - len(frames)), *[(0, 0)] * 3]
    return np.pad(frames, missing, constant_values=255)


def strip(made: Executability) -> np.ndarray:
    """The film strip, an image uint8: for each start shown its rows, over time to the right."""
    return film([row for n in shown(made) for row in rows_of(made, n).values()])


def video(made: Executability) -> np.ndarray:
    """The frames uint8 (K + 1, H', W', 3) of the video: a line for each start shown, its rows side
    by side."""
    lines = [list(rows_of(made, n).values()) for n in shown(made)]
    count = len(lines[0][0])
    return np.stack(
        [film([np.stack([row[k] for row in line]) for line in lines]) for k in range(count)]
    )


def result(imagination: Imagination, made: Executability, asked: Mapping[str, Any]) -> dict:
    """What `rollout.json` holds: asked is what the flags said."""
    model = imagination.model
    return {
        "workdir": str(model.workdir),
        "stage": model.config.stage,
        "step": model.step,
        "params_hash": model.params_hash,
        "asked": dict(asked),
        **made.report,
    }


def write(
    path: Path, imagination: Imagination, made: Executability, found: Mapping[str, Any]
) -> None:
    """Writes the page; found: what `result` gave."""
    model, seconds = imagination.model, found["window_seconds"]
    report = Report(
        "Imagined videos, executed",
        f"{model.workdir}, stage {model.config.stage}, step {model.step:,}.",
    )
    n, windows = len(made.starts), found["windows"]
    section = report.section(
        "Success",
        f"{n:,} start states of {made.starts.env.spec.name}, seed {found['seed']}, the same in "
        f"every row; at most {windows} windows of {seconds:g} s, each of "
        f"{found['steps_per_window']} control steps with one action. {_read_by(found)}",
    )
    _success(section, found)
    section = report.section("Starts")
    labels = ["start", *(f"+{(k + 1) * seconds:.2g} s" for k in range(min(windows, SHOWN)))]
    for number, word in shown(made).items():
        picture = figures.frame_columns(rows_of(made, number), labels=labels)
        told = f"Start {number} ({made.starts.instructions[number]!r}) {word}."
        section.figure(picture, told)
    _pictures(report.section("Gap of pictures"), found["by_step"])
    closing = report.section("How this was made")
    closing.settings("What was asked", found["asked"], open=True)
    closing.settings("Environment", found["env"])
    closing.settings("Versions and hardware", describe_environment())
    closing.settings("Config of the run", model.config.to_dict())
    report.write(path)


def _read_by(found: Mapping[str, Any]) -> str:
    how, workdir = found["reader"], found["inverse_dynamics"]["workdir"]
    if how["kind"] == "run":
        return f"Actions are read by {workdir}."
    r2 = estimate(how["r2_mean"], *(how["r2_mean_interval"] or ()))
    return (
        f"Actions are a linear reading of the {how['latents']} latents of {workdir}, fitted on "
        f"{how['windows']:,} windows of {how['episodes']:,} episodes of {how['corpus']} (R² on "
        f"some of these episodes, by a reading that was not fitted on them: {r2})."
    )


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows of the success and the reading of each row, as texts."""
    rows = [
        [
            name,
            f"{row['successes']} of {row['n']}",
            estimate(row["estimate"], row["low"], row["high"]),
            estimate(row.get("action_r2"), *(row.get("action_r2_interval") or ())) or "–",
        ]
        for name, row in found["rows"].items()
    ]
    return [["row", "successes", "share, 95 %", "R² of actions, 95 %"], *rows]


def _success(section: Section, found: Mapping[str, Any]) -> None:
    rows = [
        {"row": name, "success": row["estimate"]}
        | {"success_low": row["low"], "success_high": row["high"]}
        | _r2(row)
        for name, row in found["rows"].items()
    ]
    section.figure(figures.dot_plots(rows, "row", PANELS), "Bars: 95 %.")
    head, *cells = table(found)
    beyond = [estimate(found["rows"][row[0]]["beyond_bounds"]) for row in cells]
    section.table(
        [*head, "clipped", "what acts"],
        [[*row, part, ROWS[row[0]]] for row, part in zip(cells, beyond, strict=True)],
        "Wilson's intervals. R² of actions: of those that are read off the windows of the video "
        "against the expert's, each dimension in units of its spread; 0 of whoever says the mean "
        "action. A reader whose R² on `true_frames` is no better than on `first_frame` reads no "
        "motion, and tells nothing of what is imagined. Clipped: the share of control steps whose "
        "action was beyond the bounds.",
    )
    section.table(
        ["difference of success", "points, 95 %"],
        [
            [
                f"`{one['of']}` − `{one['minus']}`",
                estimate(*(100 * one[key] for key in ("estimate", "low", "high"))),
            ]
            for one in found["differences"]
        ],
        "On the same start states: Newcombe's paired intervals.",
    )


def _r2(row: Mapping[str, Any]) -> dict[str, float]:
    if row.get("action_r2") is None:
        return {}
    low, high = row["action_r2_interval"] or (row["action_r2"],) * 2
    return {"action_r2": row["action_r2"], "action_r2_low": low, "action_r2_high": high}


def _pictures(section: Section, by_step: Mapping[str, Any]) -> None:
    section.text(
        "How far imagined frames are from what their own execution looked like, over the episodes "
        "that still went on: neither says which of the two is wrong."
    )
    by_step = {name: rows for name, rows in by_step.items() if rows}
    if not by_step:
        section.text("Not measured: no episode took a whole window.")
        return
    panels: dict[str, dict[str, list[list[float]]]] = {}
    for name, rows in by_step.items():
        lines = {"imagined": "mse", "the first frame in its place": "mse_copy"}
        panels[f"MSE, {WORDS[name]}"] = {
            word: [[r["step"], r[key], *(r[f"{key}_interval"] or [r[key]] * 2)] for r in rows]
            for word, key in lines.items()
        }
    section.figure(
        figures.band_curves(panels, x="window"),
        "Bands: 95 % by resampling episodes.",
    )
    for name, rows in by_step.items():
        keys = ("mse", "mse_copy", "skill")
        section.table(
            ["window", "episodes", "MSE", "MSE of the first frame", "skill"],
            [
                [r["step"], r["n"], *(estimate(r[k], *(r[f"{k}_interval"] or ())) for k in keys)]
                for r in rows
            ],
            f"{WORDS[name].capitalize()}. Skill is 1 − their ratio.",
        )
