"""Pictures made of frames: reconstruction grid, atlas of latent actions, film strips.

Frames are uint8 or floats in [0, 1], (H, W, 3); they stay at their own size inside an SVG and are
enlarged with sharp pixels. Signed differences are orange where a pixel got brighter and blue where
it got darker, over a pale copy of the scene, on one scale per picture that the picture names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lapa_jax.report.picture import BAD, GOOD, GRID, MUTED, Drawing, Picture, to_uint8, wrap

BRIGHTER, DARKER = np.array([230, 105, 10.0]), np.array([25, 95, 215.0])
GAP, TITLE = 6, 18


def signed_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Per pixel in [-1, 1]: the largest channel change, signed by the mean over channels."""
    before, after = to_uint8(before, "before"), to_uint8(after, "after")
    change = (after.astype(np.float64) - before) / 255.0
    return np.abs(change).max(-1) * np.where(change.mean(-1) < 0, -1.0, 1.0)


def change_scale(changes: Sequence[np.ndarray]) -> float:
    """The change shown at full strength: near the largest, but never so small that noise glows."""
    values = np.concatenate([np.abs(change).ravel() for change in changes])
    moving = values[values > 8 / 255]
    return max(float(np.quantile(moving, 0.9)) if len(moving) else 0.0, 32 / 255)


def tint_change(scene: np.ndarray, change: np.ndarray, scale: float) -> np.ndarray:
    """The scene as a pale grey print with the signed change painted over it."""
    grey = to_uint8(scene).astype(np.float64) @ [0.299, 0.587, 0.114]
    pale = (205 + 0.2 * grey)[..., None]
    strength = np.clip(np.abs(change) / scale, 0, 1)[..., None]
    colour = np.where(change[..., None] < 0, DARKER, BRIGHTER)
    return np.rint(pale * (1 - strength) + colour * strength).astype(np.uint8)


def _legend(drawing: Drawing, x: float, y: float, scale: float) -> None:
    for offset, color, label in ((0, BRIGHTER, "brighter"), (82, DARKER, "darker")):
        rgb = "rgb({:.0f},{:.0f},{:.0f})".format(*color)
        drawing.rect(x + offset, y - 10, 12, 12, fill=rgb, radius=2)
        drawing.text(x + offset + 17, y, label, size=12, color=MUTED)
    told = f"full colour: change of {scale:.0%} of the range"
    drawing.text(x + 154, y, told, size=12, color=MUTED)


def reconstruction_grid(
    first: np.ndarray,
    later: np.ndarray,
    reconstruction: np.ndarray,
    *,
    labels: Sequence[str] = (),
    cell: int = 104,
) -> Picture:
    """One example per column: first, true later, reconstruction, the true change, what is missed.

    Images (N, H, W, 3); `labels` (N,) go under the columns, such as the latent action.
    """
    rows = _rows({"first": first, "true later": later, "reconstruction": reconstruction}, labels)
    first, later, reconstruction = rows.values()
    true, missed = signed_change(first, later), signed_change(later, reconstruction)
    scale = change_scale([true])
    rows["true change"] = tint_change(first, true, scale)
    rows["difference"] = tint_change(later, missed, scale)
    drawing = _columns(rows, labels, cell, room_below=24)
    _legend(drawing, LEFT, drawing.height - 8, scale)
    return drawing.picture(
        f"{len(first)} frame pairs in columns; rows: first frame, true later frame, "
        "reconstruction, true change, and the difference of reconstruction and true later frame."
    )


def frame_columns(
    rows: Mapping[str, np.ndarray], *, labels: Sequence[str] = (), cell: int = 104
) -> Picture:
    """Named rows of images (N, H, W, 3), one example per column; `labels` (N,) go under them."""
    images = _rows(rows, labels)
    count = len(next(iter(images.values())))
    drawing = _columns(images, labels, cell, room_below=0)
    return drawing.picture(f"{count} examples in columns; rows: {', '.join(images)}.")


def film(rows: Sequence[np.ndarray], *, cell: int = 96) -> np.ndarray:
    """One image uint8 for a PNG or a frame of a video: rows of images (N, H, W, 3) below each other
    with sharp pixels, at least `cell` pixels wide, white gaps between them."""
    images = list(_rows({f"row {i}": row for i, row in enumerate(rows)}, ()).values())
    times = -(-cell // images[0].shape[2])
    around = [(0, 0), (0, GAP), (0, GAP), (0, 0)]
    lines = []
    for row in images:
        row = np.pad(row.repeat(times, 1).repeat(times, 2), around, constant_values=255)
        lines.append(np.concatenate(list(row), axis=1))
    return np.concatenate(lines)[:-GAP, :-GAP]


def _rows(rows: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, np.ndarray]:
    """As uint8, of one shape and with a label for each column, or an error."""
    images = {name: to_uint8(value, name) for name, value in rows.items()}
    shapes = {value.shape for value in images.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        found = ", ".join(f"{name} {value.shape}" for name, value in images.items())
        raise ValueError(f"the rows must share one shape (N, H, W, 3), got {found}")
    count = next(iter(shapes))[0]
    if labels and len(labels) != count:
        raise ValueError(f"labels must name each of {count} examples, got {len(labels)}")
    return images


LEFT = 116  # room for the names of rows


def _columns(
    rows: Mapping[str, np.ndarray], labels: Sequence[str], cell: int, room_below: int
) -> Drawing:
    count, tall, wide, _ = next(iter(rows.values())).shape
    width, height = cell, cell * tall / wide
    step_x, step_y = width + GAP, height + GAP
    bottom = len(rows) * step_y + (20 if labels else 0)
    drawing = Drawing(LEFT + count * step_x, bottom + room_below)
    for r, (name, images) in enumerate(rows.items()):
        drawing.text(LEFT - 10, r * step_y + height / 2 + 4, name, anchor="end")
        for c, image in enumerate(images):
            drawing.image(image, LEFT + c * step_x, r * step_y, width, height)
    for c, label in enumerate(labels):
        x, y = LEFT + c * step_x + width / 2, len(rows) * step_y + 10
        drawing.text(x, y, label, size=12, color=MUTED, anchor="middle")
    return drawing


def atlas(
    starts: np.ndarray, decoded: np.ndarray, labels: Sequence[str], *, cell: int = 92
) -> Picture:
    """What each latent action does to each start frame.

    starts (R, H, W, 3); decoded (R, C, H, W, 3), the frame decoded from start r and latent action
    c; labels (C,). Each cell shows the decoded frame above its signed change against the start.
    """
    starts, decoded = to_uint8(starts, "starts"), to_uint8(decoded, "decoded")
    if decoded.ndim != 5 or starts.shape != decoded.shape[:1] + decoded.shape[2:]:
        raise ValueError(
            "need starts (R, H, W, 3) and decoded (R, C, H, W, 3), got "
            f"{starts.shape} and {decoded.shape}"
        )
    if len(labels) != decoded.shape[1]:
        raise ValueError(f"labels must name each of {decoded.shape[1]} columns, got {len(labels)}")
    change = signed_change(starts[:, None], decoded)
    scale = change_scale([change])
    width, height = cell, cell * starts.shape[1] / starts.shape[2]
    wrapped = [wrap(label, width, 12) for label in labels]
    top = 8 + 15 * max(len(lines) for lines in wrapped)
    step_x, block = width + GAP, 2 * height + 2 + 14
    left = step_x + 14
    drawing = Drawing(left + len(labels) * step_x, top + len(starts) * block + 20)
    head = dict(size=12, weight=600, anchor="middle")
    note = dict(size=11, color=MUTED, anchor="middle")
    drawing.text(width / 2, top - 8, "start", **head)
    for c, lines in enumerate(wrapped):
        for i, line in enumerate(lines):
            y = top - 8 - 15 * (len(lines) - 1 - i)
            drawing.text(left + c * step_x + width / 2, y, line, **head)
    drawing.path(f"M{step_x + 4} {top}V{top + len(starts) * block - 14}", stroke=GRID)
    for r, start in enumerate(starts):
        y = top + r * block
        drawing.image(start, 0, y, width, height)
        for i, line in enumerate(("above: decoded", "below: change")):
            drawing.text(width / 2, y + height + 20 + 15 * i, line, **note)
        for c in range(len(labels)):
            x = left + c * step_x
            drawing.image(decoded[r, c], x, y, width, height)
            drawing.image(tint_change(start, change[r, c], scale), x, y + height + 2, width, height)
    _legend(drawing, left, top + len(starts) * block + 10, scale)
    return drawing.picture(
        f"{len(starts)} start frames in rows, {len(labels)} latent actions in columns: "
        f"{', '.join(labels)}. Each cell: the decoded frame, and its change against the start."
    )


@dataclass(frozen=True)
class Strip:
    """One rollout: frames (T, H, W, 3), what was asked, how it ended, who acted."""

    frames: np.ndarray
    instruction: str
    success: bool
    label: str = ""


def film_strips(strips: Sequence[Strip], *, frames: int = 8, cell: int = 92) -> Picture:
    """Rollouts as rows of `frames` frames spread evenly over time, first and last included."""
    if not strips or frames < 2:
        raise ValueError(f"need at least one strip and 2 frames, got {len(strips)} and {frames}")
    wide = frames * (cell + GAP)
    shown, said = [], []
    for number, strip in enumerate(strips):
        images = to_uint8(strip.frames, f"frames of strip {number}")
        if images.ndim != 4:
            raise ValueError(f"frames of strip {number} must be (T, H, W, 3), got {images.shape}")
        picked = np.unique(np.linspace(0, len(images) - 1, frames).round().astype(int))
        height = cell * images.shape[1] / images.shape[2]
        who = f"{strip.label}: " if strip.label else ""
        said.append(f"{who}{strip.instruction!r}, {'success' if strip.success else 'failure'}")
        lines = wrap(who + strip.instruction, wide - 100, 14)  # 14: it is set bold
        shown.append((strip.success, picked, images[picked], height, lines))
    drawing = Drawing(wide, sum(TITLE * len(lines) + height + 36 for *_, height, lines in shown))
    y = 0.0
    for success, picked, images, height, lines in shown:
        color, mark = (GOOD, "✓ success") if success else (BAD, "✗ failure")
        drawing.text(wide - GAP, y + 14, mark, weight=600, color=color, anchor="end")
        for line in lines:
            drawing.text(0, y + 14, line, weight=600)
            y += TITLE
        y += 2
        for i, (step, image) in enumerate(zip(picked, images, strict=True)):
            x = i * (cell + GAP)
            drawing.image(image, x, y, cell, height)
            if i == len(picked) - 1:
                drawing.rect(x, y, cell, height, stroke=color, stroke_width=3)
            told = f"step {step}"
            drawing.text(x + cell / 2, y + height + 13, told, size=11, color=MUTED, anchor="middle")
        y += height + 34
    return drawing.picture(f"Rollouts in rows of frames: {'; '.join(said)}.")
