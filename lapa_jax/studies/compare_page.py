"""The page of `lapa evaluate --compare`: a row for each model, in every table and figure."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lapa_jax.evidence import verdict
from lapa_jax.machine.environment import describe_environment
from lapa_jax.report import figures
from lapa_jax.report.html import Report, Section, estimate
from lapa_jax.studies.compare import LABELS, Compared, numbers

Reports = Mapping[str, Mapping[str, Any]]
OVERVIEW = {
    "skill": "skill",
    "r2_all_labels": "R² of the motion, linear",
    "information_bits": "bits shared with it",
    "additivity_error": "additivity, error",
    "delta": "Δ, relative",
    "cut_carried": "carried over a cut",
    "scene_accuracy": "tells the episode",
    "displacement_motion": "displacement, ρ",
    "paired_r2": "R² from the other view",
    "distractors_r2": "R² under distractors",
}
VIEWS = {
    "paired": ("The same motion in another view", "the other view"),
    "distractors": ("The same motion under distractors", "the view with distractors"),
}


def write(path: Path, reports: Reports, how: Compared) -> None:
    """Writes the page of what `compare.results` gives."""
    found = {name: numbers(report) for name, report in reports.items()}
    first = next(iter(reports.values()))
    corpora = " and ".join(dict.fromkeys(one["corpus"] for one in reports.values()))
    report = Report(
        "Latent action models, compared",
        f"{len(reports)} models on {corpora}: {first['pairs']:,} pairs of "
        f"{first['episodes']:,} episodes.",
    )
    report.text(
        "Every model reads the same corpus and is measured alike. Intervals are 95 %, by "
        "resampling episodes; they do not hold what another seed of the training would change. "
        "Bold: the best of a column, where more or less is better for every model."
    )
    if notes := _notes(reports):
        report.notes(notes, "Before comparing")
    _models(report.section("The models"), reports)
    rows = [_flat(name, one) for name, one in found.items()]
    shown = {
        key: title
        for key, title in OVERVIEW.items()
        if any(row.get(key) is not None for row in rows)
    }
    report.section("At a glance", "What each number is stands with its table below.").figure(
        figures.dot_plots(rows, "model", shown)
    )
    _codes(report, found)
    alike = len({(one["about"]["predicts"], *_size(one)) for one in reports.values()}) == 1
    _drawn(report, found, max if alike else None)
    _content(report, found)
    _leakage(report, found, max if alike else None)
    _algebra(report, found, max if alike else None)
    _windows(report, reports)
    for view in VIEWS:
        if any(view in one for one in reports.values()):
            _view(report, view, found)
    closing = report.section("How this was made")
    closing.settings("Versions and hardware", describe_environment())
    closing.settings("What was measured", vars(how))
    report.write(path)


def _notes(reports: Reports) -> list[str]:
    notes = []
    windows = sorted({one["window_seconds"] for one in reports.values()})
    if len(windows) > 1:
        told = ", ".join(f"{window:g}" for window in windows)
        notes.append(
            f"The models read pairs of different windows ({told} s), each that of its training: "
            "`--window_seconds` takes one for all."
        )
    first = next(iter(reports.values()))
    if first["pairs"] < verdict.FEW_PAIRS or first["episodes"] < verdict.FEW_EPISODES:
        notes.append(
            f"Few were measured ({first['pairs']:,} pairs of {first['episodes']:,} episodes): they "
            "say little of others, and verdicts are no more."
        )
    if seen := [name for name, one in reports.items() if one["seen_in_training"]]:
        notes.append(
            f"Trained on some of these pairs, which look better than new ones: {', '.join(seen)}."
        )
    if features := [n for n, one in reports.items() if one["about"]["predicts"] == "features"]:
        notes.append(
            "Skill and Δ of these are of the features that they predict, which compares with no "
            f"pixels: {', '.join(features)}."
        )
    sizes: dict[str, list[str]] = {}
    for name, one in reports.items():
        sizes.setdefault("x".join(map(str, _size(one))), []).append(name)
    if len(sizes) > 1:
        told = "; ".join(f"{size}: {', '.join(names)}" for size, names in sizes.items())
        notes.append(
            "Pictures of different sizes are drawn, and PSNR, SSIM and skill compare with those of "
            f"the same size alone: {told}."
        )
    return notes


def _size(report: Mapping[str, Any]) -> Sequence[int]:
    return report["about"]["image_size"]


def _flat(name: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name}
    for key, number in found.items():
        row |= {key: number["value"], f"{key}_low": number["low"], f"{key}_high": number["high"]}
    return row


def _models(section: Section, reports: Reports) -> None:
    rows = []
    for name, one in reports.items():
        about, cost = one["about"], one["cost"]
        size = about["codebook_size"]
        held = f"{size} codes" if size else f"{about['quant_dim']} numbers"
        what = [about["objective"] or about["architecture"], about["bottleneck"]]
        rows.append(
            [
                name,
                " · ".join(filter(None, what)),
                f"{about['code_length']} × {held}",
                f"{one['window_seconds']:g} s",
                f"{cost['parameters'] / 1e6:.3g}",
                f"{cost['read_flops'] / 1e9:.3g}",
                f"{cost['train_flops'] / 1e9:.3g}",
                one["verdict"]["word"],
            ]
        )
    section.table(
        ["model", "what", "z", "window", "weights, M", "GFLOPs a label", "to train", "verdict"],
        rows,
        "GFLOPs of one pair: to read z off it, and of a training example, forward and backward. "
        "Verdict: docs/measures.md.",
    )


def _table(
    section: Section,
    found: Mapping[str, Mapping[str, Any]],
    columns: Mapping[str, tuple[str, Callable[..., Any] | None]],
    note: str,
) -> None:
    """A row for each model. columns: title → (number, max or min where one is better, else None);
    columns that no model has are left out."""
    kept = {
        title: (key, best)
        for title, (key, best) in columns.items()
        if any(_value(one, key) is not None for one in found.values())
    }
    if not kept:
        return
    tops = {}
    for key, best in kept.values():
        known = [v for one in found.values() if (v := _value(one, key)) is not None]
        tops[key] = best(known) if best is not None and len(known) > 1 else None
    rows = []
    for name, one in found.items():
        cells: list[Any] = [name]
        for key, _ in kept.values():
            number = one.get(key) or dict.fromkeys(("value", "low", "high"))
            cells.append(_cell(number, tops[key]))
        rows.append(cells)
    section.table(["model", *kept], rows, note)


def _cell(number: Mapping[str, Any], top: float | None) -> Any:
    """The number, bold where it is the best, and its interval below."""
    value, low, high = (number[name] for name in ("value", "low", "high"))
    if value is None:
        return None
    shown = estimate(value)
    if value == top:
        shown = Markup("<strong>{}</strong>").format(shown)
    if low is None or low == high:
        return shown
    return Markup("{}<br><small>{:.3g} to {:.3g}</small>").format(shown, low, high)


def _value(one: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    return (one.get(key) or {}).get("value")


def _codes(report: Report, found: Mapping[str, Any]) -> None:
    coded = {name: one for name, one in found.items() if _value(one, "perplexity") is not None}
    if not coded:
        return
    _table(
        report.section("Code health", "Of the models that have codes."),
        coded,
        {
            "perplexity": ("perplexity", None),
            "of the codebook": ("perplexity_fraction", max),
            "dead codes": ("dead_code_fraction", min),
            "bits, joint": ("joint_entropy_bits", None),
        },
        "1 is a collapse; an even use of all codes has the size of the codebook.",
    )


def _drawn(report: Report, found: Mapping[str, Any], best: Callable[..., Any] | None) -> None:
    _table(
        report.section("Reconstruction", "Skill = 1 − MSE / MSE of a copy of the first frame."),
        found,
        {
            "skill": ("skill", best),
            "given another pair's z": ("skill_exchanged", None),
            "given the true action": ("true_action_skill", None),
            "PSNR, dB": ("psnr", best),
            "of a copy": ("psnr_copy", None),
            "SSIM": ("ssim", best),
        },
        "What z adds is skill above that with another pair's z; the true action, through a map "
        "that is fitted, is what this decoder could do (a quarter of the episodes).",
    )


def _content(report: Report, found: Mapping[str, Any]) -> None:
    if not any(_value(one, "r2_all_labels") is not None for one in found.values()):
        return
    section = report.section(
        "Action content", "R² of a linear probe from z to the true motion, on other episodes."
    )
    cells = [
        {"model": name, "labels": count, "R²": max(value, -1.0)}
        for name, one in found.items()
        for count in LABELS
        if (value := _value(one, f"r2_{count}_labels")) is not None
    ]
    section.figure(
        figures.heat_maps(cells, "model", "labels", {"R²": None}),
        "By the number of labels; below −1 is shown as −1.",
    )
    _table(
        section,
        found,
        {
            "all labels": ("r2_all_labels", max),
            "small network": ("network_r2", max),
            "k-means of the change": ("r2_motion_kmeans", None),
            "first frame alone": ("r2_first_frame", None),
            "bits shared": ("information_bits", max),
            "of the episode alone": ("information_chance", None),
            "displacement, ρ": ("displacement_motion", max),
        },
        "Bits that latent and action share, by nearest neighbours, beside those with z exchanged "
        "within each episode. ρ: rank correlation of ‖z‖ with the length of the motion.",
    )


def _leakage(report: Report, found: Mapping[str, Any], best: Callable[..., Any] | None) -> None:
    _table(
        report.section("Leakage", "Whether z is about the scene, or a picture of what follows."),
        found,
        {
            "tells the episode": ("scene_accuracy", min),
            "chance": ("scene_chance", None),
            "bits the first frame tells": ("scene_bits", min),
            "bits of z": ("code_bits", None),
            "carried over a cut": ("cut_carried", None),
            "Δ, relative": ("delta", best),
        },
        "Over a cut no motion leads: what z adds there to the drawing, it carries as a picture. Δ: "
        "z applied to the frame that it led to, about 1 where it moves things on, 0 where it draws "
        "the later frame whatever it is given, −1 where the decoder copies.",
    )


def _algebra(report: Report, found: Mapping[str, Any], best: Callable[..., Any] | None) -> None:
    if not any(_value(one, "additivity_error") is not None for one in found.values()):
        return
    section = report.section(
        "Algebra", "Whether latents add up as motions do; errors are squared and relative."
    )
    _table(
        section,
        found,
        {
            "additivity": ("additivity_error", min),
            "chance, additivity": ("additivity_chance", None),
            "reversal": ("reversal_error", min),
            "chance, reversal": ("reversal_chance", None),
            "identity": ("identity_error", min),
            "composed, skill": ("composed_skill", best),
        },
        "|z02 − z01 − z12|² / |z02|², |z01 + z10|² / |z01|², and what latents of no motion vary "
        "by. Chance: with the added part of other clips. Composed: the frame two windows on, drawn "
        "from what the model makes of both steps' latents: their sum, or the product of rotations.",
    )
    _table(
        section,
        found,
        {
            f"{title}, {k} windows": (f"cumulative_{name}_{k}", better)
            for name, title, better in (
                ("error", "sum of steps", min),
                ("chained", "skill step by step", best),
                ("direct", "at once", best),
            )
            for k in ("2", "4")
        },
        "Over several windows: the error of the sum of the steps' latents, and the skill of the "
        "frame drawn in steps, each from the one before, and at once.",
    )


def _windows(report: Report, reports: Reports) -> None:
    cells = [
        {"model": name, "windows": float(windows), "R²": max(row["r2_mean"], -1.0)}
        for name, one in reports.items()
        for windows, row in one.get("window_curve", {}).items()
        if row["r2_mean"] is not None
    ]
    if not cells:
        return
    section = report.section("Window curve", "R² of the linear probe by the frames' distance.")
    section.figure(
        figures.heat_maps(cells, "model", "windows", {"R²": None}),
        "In windows of each model; all on the same clips. Below −1 is shown as −1.",
    )


def _view(report: Report, view: str, found: Mapping[str, Any]) -> None:
    title, other = VIEWS[view]
    _table(
        report.section(title),
        found,
        {
            "same code": (f"{view}_same_code", max),
            "by chance": (f"{view}_same_code_null", None),
            "nearest is the same": (f"{view}_retrieval", max),
            "CKA": (f"{view}_cka", max),
            "R² there": (f"{view}_r2", max),
            "R² here": ("r2_all_labels", None),
            "skill there": (f"{view}_skill", None),
        },
        f"Same code as in {other}, beside windows exchanged within the episode; how often the "
        "nearest latent there is the same window; a probe fitted here and tested there.",
    )


def text_rows(reports: Reports) -> Sequence[Sequence[str]]:
    """A short table for a terminal, its head first."""
    keys = ("perplexity", "skill", "r2_all_labels", "information_bits", "additivity_error", "delta")
    rows = [["model", *keys, "verdict"]]
    for name, one in reports.items():
        known = numbers(one)
        values = (_value(known, key) for key in keys)
        cells = ["–" if value is None else f"{value:.3g}" for value in values]
        rows.append([name, *cells, one["verdict"]["word"]])
    return rows
