"""A report as one HTML file that opens offline, in light and in dark, on a phone and on paper.

Every text is escaped; `backticks` in texts become code, **stars** bold. The file loads nothing:
images are data URIs and a content security policy forbids the rest. Same calls, same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data_pipelines import storage
from lapa_jax.report.picture import Picture


def _inline(text: str) -> Markup:
    """Escaped text in which `code` and **bold** are marked; what is markup already stays."""
    if isinstance(text, Markup):
        return text
    kinds = (Markup("{}"), Markup("<code>{}</code>"), Markup("<strong>{}</strong>"))
    parts = re.split(r"`([^`]+)`|\*\*([^*]+)\*\*", text)
    return Markup("").join(kinds[i % 3].format(x) for i, x in enumerate(parts) if x is not None)


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> Any:
    """A number as a cell of a table or in a text, with its interval where it has one."""
    if value is None:
        return None
    if low is None or high is None or low == high:  # one episode has nothing to resample
        return f"{value:.3g}"
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    return value if isinstance(value, str) else str(value)


def _setting(value: Any) -> str:
    # Settings are quoted as they are: 1024 is no quantity to be grouped.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else _value(value)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _setting(value)


class Blocks:
    """Contents in the order of the calls; every method returns self, so calls can be chained."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []

    def _add(self, kind: str, **content: Any) -> Any:
        self.blocks.append({"kind": kind, **content})
        return self

    def text(self, text: str) -> Any:
        """Paragraphs, separated by empty lines."""
        return self._add("text", paragraphs=[p for p in re.split(r"\n\s*\n", text) if p.strip()])

    def heading(self, text: str) -> Any:
        """Of what follows, on a page without sections."""
        return self._add("heading", text=text)

    def row(self, items: Sequence[tuple[Markup, str]], caption: str = "") -> Any:
        """Small pictures side by side, each with a word below it."""
        return self._add("row", cells=list(items), caption=caption) if items else self

    def cards(self, cards: Sequence[Mapping[str, Any]]) -> Any:
        """Key numbers: each card has `label` and `value`, and may have a `note`."""
        made = []
        for card in cards:
            if not {"label", "value"} <= set(card) <= {"label", "value", "note"}:
                raise ValueError(f"a card has label, value and maybe note, got {sorted(card)}")
            made.append({"note": "", **card, "value": _value(card["value"])})
        return self._add("cards", cards=made)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Any:
        """Cells are texts or numbers; a column that holds only numbers is set to the right."""
        for row in rows:
            if len(row) != len(header):
                raise ValueError(
                    f"a row has {len(row)} cells, the header has {len(header)}: {list(row)!r}"
                )
        numeric = [
            any(row[i] is not None for row in rows)
            and all(_is_number(row[i]) or row[i] is None for row in rows)
            for i in range(len(header))
        ]
        cells = [[_value(cell) for cell in row] for row in rows]
        return self._add("table", header=header, numeric=numeric, caption=caption, rows=cells)

    def figure(self, picture: Picture, caption: str = "") -> Any:
        if not isinstance(picture, Picture):
            raise ValueError(
                f"figure needs a Picture (it carries the alt text), got {type(picture).__name__}"
            )
        # On a narrow screen charts shrink to fit; wide pictures stay readable and scroll.
        wide = picture.width > 660
        least = min(800, round(0.72 * picture.width)) if wide else min(300, picture.width)
        return self._add("figure", picture=picture, caption=caption, min_width=least)

    def settings(self, title: str, mapping: Mapping[str, Any], *, open: bool = False) -> Any:
        """Nested settings or an environment as a folded list of dotted keys."""
        return self._add("settings", title=title, rows=list(_flat(mapping)), open=open)

    def notes(self, notes: Sequence[str], title: str = "Notes") -> Any:
        """What the reader must know to read the numbers right."""
        return self._add("notes", title=title, notes=list(notes))


def _is_number(value: Any) -> bool:
    if isinstance(value, str):  # formatted by the caller: 57 %, 0.31 ± 0.02
        return bool(re.fullmatch(r"[-+−]?[\d.,]+\s?(%|s|min|h|dB|GiB|MiB)?", value))
    return isinstance(value, int | float) and not isinstance(value, bool)


class Section(Blocks):
    def __init__(self, title: str, intro: str, anchor: str) -> None:
        super().__init__()
        self.title, self.intro, self.anchor = title, intro, anchor


class Report(Blocks):
    """Blocks added to the report itself come before the first section."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        super().__init__()
        self.title, self.subtitle = title, subtitle
        self.sections: list[Section] = []

    def section(self, title: str, intro: str = "") -> Section:
        """A new section; add to what this returns."""
        self.sections.append(Section(title, intro, f"section-{len(self.sections) + 1}"))
        return self.sections[-1]

    def html(self) -> str:
        strict = dict(autoescape=True, undefined=jinja2.StrictUndefined)
        environment = jinja2.Environment(**strict, trim_blocks=True, lstrip_blocks=True)
        environment.filters["inline"] = _inline
        source = resources.files(__package__).joinpath("template.html.j2")
        template = environment.from_string(source.read_text(encoding="utf-8"))
        # A lone surrogate in data (a path, a damaged instruction) is no reason to lose a report.
        return template.render(report=self).encode("utf-8", "replace").decode("utf-8")

    def write(self, path: str | Path) -> Path:
        """Writes the file in one move: a reader sees the old report or the whole new one."""
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent}: make it before writing {path.name}")
        storage.write_text(path, self.html())
        return path
