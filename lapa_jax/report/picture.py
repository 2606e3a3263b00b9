"""Pictures as data URIs, and a small canvas for SVG drawn by hand.

Pictures need no files and no network. SVG pictures carry a style sheet that follows the reader's
light or dark setting; use the colour names below (INK, MUTED, ...), never plain black or white.
Output is a pure function of the input.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

INK, MUTED, GRID, PANEL = "var(--ink)", "var(--muted)", "var(--grid)", "var(--panel)"
GOOD, BAD = "#2a9d6f", "#d1495b"
# Distinct on light and dark ground, and in order of use.
SERIES = ("#3b7dd8", "#e08214", "#2a9d6f", "#d1495b", "#8e6bbf", "#2aa5b8", "#c9a227", "#8a8f98")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

STYLE = (
    "<style>:root{--ink:#1d2433;--muted:#5d6675;--grid:#dfe3ea;--panel:#f4f6fa}"
    "@media (prefers-color-scheme:dark)"
    "{:root{--ink:#e6e9ef;--muted:#9aa4b2;--grid:#343b48;--panel:#232936}}"
    "</style>"
)


@dataclass(frozen=True)
class Picture:
    """An image for the report: where its bytes are, what it shows in words, its size in CSS px."""

    data_uri: str
    alt: str
    width: int
    height: int
    pixelated: bool = False

    def __post_init__(self) -> None:
        if not self.data_uri.startswith("data:image/"):
            raise ValueError("data_uri must start with 'data:image/': the report loads no files")
        if not self.alt.strip():
            raise ValueError("alt is empty: say in words what the picture shows")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"the size must be positive, got {self.width} x {self.height}")


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def to_uint8(images: np.ndarray, name: str = "images") -> np.ndarray:
    """Images (..., H, W, 3) for display; floats are [0, 1], what a decoder overshoots is cut."""
    images = np.asarray(images)
    if images.ndim < 3 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"{name} must have shape (..., H, W, 3), got {images.shape}")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name} has dtype {images.dtype}: give uint8 or floats in [0, 1]")
    images = images.astype(np.float64)
    # A wrong scale (0..255, -1..1) goes far outside; overshoot of a decoder does not.
    if not np.isfinite(images).all() or images.min() < -0.75 or images.max() > 1.75:
        raise ValueError(
            f"{name} must be finite floats in [0, 1], got a range of "
            f"[{images.min():.4g}, {images.max():.4g}]"
        )
    return np.rint(np.clip(images, 0.0, 1.0) * 255).astype(np.uint8)


def png_uri(image: np.ndarray) -> str:
    """A PNG of one image (H, W, 3), uint8 or float in [0, 1]."""
    image = to_uint8(image, "image")
    if image.ndim != 3:
        raise ValueError(f"image must have shape (H, W, 3), got {image.shape}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", optimize=True)
    return _uri("png", buffer.getvalue())


def picture_of_frame(image: np.ndarray, alt: str, *, scale: int = 4) -> Picture:
    """One frame as a PNG, shown `scale` times its size with sharp pixels."""
    height, width = np.asarray(image).shape[:2]
    return Picture(png_uri(image), alt, width * scale, height * scale, pixelated=True)


def picture_of_svg(svg: str, alt: str, width: int, height: int) -> Picture:
    return Picture(_uri("svg+xml", svg.encode("utf-8")), alt, width, height)


def printable(text: str) -> str:
    """Text that XML admits: control characters become visible replacement characters."""
    return "".join(
        c
        if c in "\t\n"
        or (ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF and c not in "\ufffe\uffff")
        else "\ufffd"
        for c in text
    )


def wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of at most about `width` px at font size `size`; long words are broken, none lost."""
    limit = max(4, int(width / (0.6 * size)))
    lines = [""]
    for word in printable(text).split():
        pieces = [word[i : i + limit] for i in range(0, len(word), limit)]
        for piece in pieces:
            joined = f"{lines[-1]} {piece}" if lines[-1] else piece
            if len(joined) <= limit:
                lines[-1] = joined
            else:
                lines.append(piece)
    return lines


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


# Names of styles that are not SVG's own.
_STYLES = dict(size="font-size", color="fill", anchor="text-anchor", weight="font-weight")
_STYLES |= dict(radius="rx", dash="stroke-dasharray")


class Drawing:
    """Collects SVG elements; every text is escaped, every image embedded."""

    def __init__(self, width: float, height: float):
        self.width, self.height = int(np.ceil(width)), int(np.ceil(height))
        self._parts: list[str] = []

    def _add(self, tag: str, body: str = "", **attributes: object) -> None:
        text = "".join(
            f" {_STYLES.get(key, key).replace('_', '-')}="
            + quoteattr(_number(value) if isinstance(value, int | float) else str(value))
            for key, value in attributes.items()
            if value is not None
        )
        self._parts.append(f"<{tag}{text}>{body}</{tag}>")

    def text(self, x: float, y: float, text: str, **style: object) -> None:
        """`style`: size in px, color, anchor (start, middle, end), weight."""
        style = dict(size=13, color=INK, anchor="start", weight=400) | style
        self._add("text", escape(printable(text)), x=x, y=y, font_family=FONT, **style)

    def rect(self, x: float, y: float, width: float, height: float, **style: object) -> None:
        """`style`: radius, fill, stroke, stroke_width."""
        place = dict(x=x, y=y, width=width, height=height)
        self._add("rect", **place, **dict(radius=0, fill="none") | style)

    def path(self, commands: str, *, stroke: str = MUTED, dash: str | None = None) -> None:
        line = dict(stroke=stroke, stroke_width=1.5, dash=dash)
        ends = dict(stroke_linejoin="round", stroke_linecap="round")
        self._add("path", d=commands, fill="none", **line, **ends)

    def image(self, image: np.ndarray, x: float, y: float, width: float, height: float) -> None:
        """A frame with sharp pixels in the given rectangle."""
        place = dict(x=x, y=y, width=width, height=height, preserveAspectRatio="none")
        self._add("image", href=png_uri(image), style="image-rendering:pixelated", **place)

    def picture(self, alt: str) -> Picture:
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}">{STYLE}{"".join(self._parts)}</svg>'
        )
        return picture_of_svg(svg, alt, self.width, self.height)
