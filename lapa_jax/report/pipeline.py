"""The picture of the method: videos → quantizer → labels → latent VLA → action VLA → success.

Each box takes a note (what this run used) and, where given, a real frame. On one row the picture is
1137 px wide; it keeps its meaning without colour.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lapa_jax.report.picture import INK, MUTED, PANEL, SERIES, Drawing, Picture, wrap

BOXES = (
    ("videos", "Videos", "no actions", SERIES[7]),
    ("quantizer", "Quantizer", "frame pair → z", SERIES[0]),
    ("labels", "Labels", "z for every frame", SERIES[7]),
    ("latent_vla", "Latent VLA", "image, instruction → z", SERIES[4]),
    ("action_vla", "Action VLA", "image, instruction → a", SERIES[1]),
    ("success", "Success", "closed loop", SERIES[2]),
)
WIDTH, STEP, FRAME = 164, 193, 72


def pipeline_diagram(
    notes: Mapping[str, str] | None = None, frames: Mapping[str, np.ndarray] | None = None
) -> Picture:
    """Notes and frames (H, W, 3) by box: videos, quantizer, labels, latent_vla, action_vla,
    success, and a note for `demonstrations`, the few episodes with actions."""
    notes, frames = dict(notes or {}), dict(frames or {})
    names = [name for name, *_ in BOXES]
    for key in [*notes, *frames]:
        if key not in [*names, "demonstrations"] or (key == "demonstrations" and key in frames):
            raise ValueError(f"the pipeline has no box {key!r}: use one of {names}")
    lines = {name: wrap(note, WIDTH - 24, 12) for name, note in notes.items()}
    note_rows = max((len(lines.get(name, [])) for name in names), default=0)
    picture_height = FRAME + 10 if frames else 0
    height = 62 + picture_height + 16 * note_rows + (4 if note_rows else 0)
    extra = 48 + 18 * len(lines.get("demonstrations", []))
    top = 8
    drawing = Drawing(STEP * (len(BOXES) - 1) + WIDTH + 8, top + height + 34 + extra + 6)
    for i, (name, title, subtitle, color) in enumerate(BOXES):
        x = 4 + i * STEP
        drawing.rect(x, top, WIDTH, height, fill=PANEL, stroke=color, stroke_width=1.5, radius=10)
        drawing.rect(x + 12, top + 12, 4, 32, fill=color, radius=2)
        drawing.text(x + 24, top + 25, title, size=15, weight=600)
        drawing.text(x + 24, top + 43, subtitle, size=11.5, color=MUTED)
        if name in frames:
            drawing.image(frames[name], x + (WIDTH - FRAME) / 2, top + 56, FRAME, FRAME)
        for row, line in enumerate(lines.get(name, [])):
            drawing.text(x + 12, top + 68 + picture_height + 16 * row, line, size=12)
        if i:
            middle = top + height / 2
            drawing.path(f"M{x - STEP + WIDTH + 5} {middle}H{x - 8}")
            drawing.path(f"M{x - 13} {middle - 5}L{x - 7} {middle}L{x - 13} {middle + 5}")
    x = 4 + names.index("action_vla") * STEP
    y = top + height + 34
    drawing.path(f"M{x + WIDTH / 2} {y - 4}V{top + height + 7}")
    _arrow_up(drawing, x + WIDTH / 2, top + height + 6)
    drawing.rect(x, y, WIDTH, extra, stroke=MUTED, radius=10)
    drawing.text(x + 12, y + 20, "Demonstrations", size=13, weight=600, color=INK)
    drawing.text(x + 12, y + 36, "few, with actions a", size=12, color=MUTED)
    for row, line in enumerate(lines.get("demonstrations", [])):
        drawing.text(x + 12, y + 54 + 16 * row, line, size=12)
    # The frames of the videos also train the latent VLA, beside the labels.
    start, end = 4 + WIDTH / 2, 4 + names.index("latent_vla") * STEP + WIDTH / 2
    low = top + height + 24
    drawing.path(
        f"M{start} {top + height + 3}V{low - 8}Q{start} {low} {start + 8} {low}"
        f"H{end - 8}Q{end} {low} {end} {low - 8}V{top + height + 7}",
        dash="4 4",
    )
    _arrow_up(drawing, end, top + height + 6)
    told, middle = "frames and instructions", (start + end) / 2
    drawing.text(middle, low + 17, told, size=12, color=MUTED, anchor="middle")
    said = "; ".join(f"{name}: {note}" for name, note in notes.items())
    return drawing.picture(
        "The pipeline: videos without actions train a quantizer, which labels every frame pair "
        "with a latent action; the latent VLA learns to predict these from image and instruction; "
        "a few demonstrations turn it into the action VLA, whose success is measured in closed "
        f"loop.{' ' + said + '.' if said else ''}"
    )


def _arrow_up(drawing: Drawing, x: float, y: float) -> None:
    drawing.path(f"M{x - 5} {y + 6}L{x} {y}L{x + 5} {y + 6}")
