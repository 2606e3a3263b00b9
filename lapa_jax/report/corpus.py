"""Pictures of data for people: the page of a corpus, and the contact sheet of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from lapa_jax.report.html import Report

COLUMNS = ("min", "q01", "mean", "q99", "max", "std")


def corpus_page(found: Mapping[str, Any]) -> Report:
    """What `inspect_corpus` found, with its film strips (made with strips=True)."""
    page = Report(f"{found['name'] or 'corpus'} {found['version']}".rstrip(), found["directory"])
    for name, split in found["splits"].items():
        some = "" if split["complete_scan"] else f" (first {split['episodes']} episodes only)"
        _split(page.heading(f"Split {name}{some}"), split)
    sets = [*found["label_sets"], *found["image_token_sets"], *found["action_sets"]]
    page.heading("Label sets")
    if not sets:
        page.text("None: `lapa label` makes them.")
    for labels in sets:
        facts = {key: value for key, value in labels.items() if key not in ("name", "split")}
        page.settings(f"{labels['name']}, split {labels['split']}", facts, open=True)
    indexes = [(one["image_key"], one["split"], one["hash"]) for one in found["indexes"]]
    page.heading("Indexes")
    if indexes:
        page.table(("image", "split", "hash"), indexes)
    else:
        page.text("None: `lapa data index` makes one.")
    page.heading("Features").table(("key", "kind"), list(found["features"].items()))
    return page


def _split(page: Report, split: Mapping[str, Any]) -> None:
    lengths, texts, actions = split["lengths"], split["instructions"], split["actions"]
    facts = {
        "episodes": split["episodes"],
        "frames": split["frames"],
        "duration": _duration(3600 * split["hours"]) if split["hours_known"] else "unknown",
        "fps": ", ".join(split["fps"]),
        "with instruction": f"{math.floor(100 * texts['coverage'])}%",  # 100% is all
        "action dimensions": len(actions) or "none",
        f"in {split['shards']} shard{'s' if split['shards'] > 1 else ''}": (
            f"{split['bytes'] / 1e6:.1f} MB"
        ),
    }
    page.cards([{"label": label, "value": value} for label, value in facts.items()])
    if split["strips"] and actions:
        page.text(
            "Below each episode its actions by step, each dimension between its least and greatest "
            "value in the split."
        )
    for strip in split["strips"]:
        for view, shown in strip["views"].items():
            seen = f", {view}" if len(strip["views"]) > 1 else ""
            frames = zip(shown["steps"], shown["images"], strict=True)
            page.row(
                [(_frame(shown["kind"], image, step), str(step)) for step, image in frames],
                f"{strip['instruction'] or 'no instruction'} ({strip['episode']}{seen})",
            )
        if actions and strip["actions"]:  # an episode of a single step has none
            drawn = zip(actions, strip["actions"], strict=True)
            page.row([(_line(values, a), f"a{a['dimension']}") for a, values in drawn])
    most = max(lengths["histogram"])
    edges = lengths["edges"]
    page.table(
        ("from", "to", "episodes", ""),
        [
            (low, high - 1, count, _bars([count / most], f"{count} episodes"))
            for low, high, count in zip(edges[:-1], edges[1:], lengths["histogram"], strict=True)
        ],
        f"Episode length in steps: min {lengths['min']}, median {lengths['median']:g}, mean "
        f"{lengths['mean']:.1f}, max {lengths['max']}",
    )
    changing = texts["changing_within_episode"]
    if texts["most_common"]:
        shown, distinct = len(texts["most_common"]), texts["distinct"]
        which = f"The {shown} most common of {distinct:,}" if shown < distinct else f"All {shown}"
        page.table(
            ("episodes", "instruction"),
            [(count, text) for text, count in texts["most_common"]],
            f"{which} different instructions."
            + (f" Episodes that change theirs: {changing}." if changing else ""),
        )
    if actions:
        page.table(("dimension", *COLUMNS, "from 1 % to 99 %"), list(map(_action, actions)))
    if split["actions_not_finite"]:
        page.text(f"{split['actions_not_finite']} steps are NaN or infinite and left out.")


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds:.1f} s"


def _action(action: Mapping[str, Any]) -> list[Any]:
    histogram = action["histogram"]["counts"]
    shares = np.array(histogram) / max(*histogram, 1)
    title = f"histogram of action {action['dimension']}"
    shown = "constant" if action["constant"] else _bars(shares, title)
    return [action["dimension"], *(float(action[key]) for key in COLUMNS), shown]


def _frame(kind: str, image: str, step: int) -> Markup:
    text = '<img alt="step {}" src="data:image/{};base64,{}">'
    return Markup(text).format(step, kind, Markup(image))


def _line(values: Sequence[float], action: Mapping[str, Any]) -> Markup:
    """An episode's actions between the extremes of all."""
    span, step = action["max"] - action["min"] or 1.0, 120 / max(1, len(values) - 1)
    points = " ".join(
        f"{number * step:.1f},{38 - 36 * (value - action['min']) / span:.1f}"
        for number, value in enumerate(values)
        if np.isfinite(value)
    )
    line = Markup('<polyline points="{}"/>').format(points)
    return _svg(40, f"action {action['dimension']}", line)


def _bars(shares: Sequence[float], title: str) -> Markup:
    """Bars of these heights, parts of the highest; a single one lies."""
    if len(shares) == 1:
        path = f"M0 4h{120 * shares[0]:.1f}v16H0z"
    else:
        width = 120 / len(shares)
        path = "".join(
            f"M{number * width:.2f} 24v{-23 * share:.2f}h{0.85 * width:.2f}V24z"
            for number, share in enumerate(shares)
        )
    return _svg(24, title, Markup('<path d="{}"/>').format(path))


def _svg(height: int, title: str, body: Markup) -> Markup:
    text = '<svg viewBox="0 0 120 {}" role="img" aria-label="{}">{}</svg>'
    return Markup(text).format(height, title, body)


def contact_sheet(
    path: str | Path, frames: np.ndarray, captions: Sequence[str], *, columns: int = 4
) -> None:
    """Writes a PNG: the frames of each example side by side, its caption above.

    frames: uint8 (examples, frames, height, width, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(frames) != len(captions):
        raise ValueError(f"{len(frames)} examples but {len(captions)} captions")
    count, per_example, height, width, _ = frames.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    lines = max(caption.count("\n") + 1 for caption in captions)
    cell_width = max(3.2, 1.6 * per_example)
    cell_height = cell_width * height / (width * per_example) + 0.19 * lines + 0.1
    figure = Figure(figsize=(columns * cell_width, rows * cell_height), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        axes.axis("off")
        if number < count:
            axes.imshow(np.concatenate(list(frames[number]), axis=1), interpolation="nearest")
            for boundary in range(1, per_example):
                axes.axvline(boundary * width - 0.5, color="white", linewidth=2)
            axes.set_title(captions[number], fontsize=8, loc="left", pad=3, parse_math=False)
    figure.tight_layout(pad=0.4)
    figure.savefig(path)
