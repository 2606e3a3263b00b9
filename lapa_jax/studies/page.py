"""The page of a study: what was run, what came out so far, and what is not there yet."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lapa_jax import config as configs
from lapa_jax.diagnostics.statistics import wilson_interval
from lapa_jax.machine.environment import describe_environment
from lapa_jax.report import figures
from lapa_jax.report.html import Report, Section
from lapa_jax.studies import contrasts
from lapa_jax.studies.record import percent
from lapa_jax.studies.study import UNKNOWN, Cell, Study, text_of, version

NAMED = 6  # cells of a note at most
KEYS = ("arm", "setting", "labels", "seed", "family")  # what tells rows of outcomes apart
ROWS = 400  # of the table of all rows at most; rows.csv has them all

Pictures = Mapping[str, figures.Picture]


def write(study: Study, spec: str, command: str, *, claims: bool = True) -> Path:
    """Writes WORKDIR/report.html of the rows that are there; returns its path.

    spec: of the study's file, whose `tables(rows)` and `figures(rows)`, {caption: Picture}, are
    shown where it has them. claims: whether the study's size is one that claims anything.
    """
    rows, missing = study.rows(), study.missing()
    path = configs.locate(spec)
    said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    claim = " ".join(said.partition("\n\n")[0].split())
    report = Report(f"Study: {path.stem}", claim)
    seconds = study.seconds()
    _cards(report, study, seconds)
    notes = [] if claims else ["Of size `quick`, which shows that everything runs: no claim."]
    notes += _missing(study) + _versions(study)
    found = report.section("What was found")
    if rows:
        _tables(found, spec, rows, notes, partly=bool(missing))
        _pictures(report, spec, rows, notes, partly=bool(missing))
    else:
        found.text("No cell is done yet.")
    if notes:
        report.notes(notes, "Before reading")
    _made(report, study, command, seconds)
    if rows:
        _rows(report, rows)
    return report.write(study.workdir / "report.html")


def _cards(report: Report, study: Study, seconds: Mapping[str, float]) -> None:
    count = len(study.cells)
    cards = [{"label": "cells done", "value": f"{count - len(study.missing())} of {count}"}]
    for key, label in (("arm", "arms"), ("setting", "settings"), ("seed", "seeds")):
        if values := {text_of(c.values[key]): None for c in study.cells if key in c.values}:
            note = ", ".join(values) if len(values) <= 6 else ""
            cards.append({"label": label, "value": len(values), "note": note})
    hours = sum(seconds.values()) / 3600
    cards.append({"label": "hours of work so far", "value": f"{hours:.3g}"})
    report.cards(cards)


def _named(cells: Sequence[Cell]) -> str:
    names = [" ".join(map(text_of, cell.values.values())) for cell in cells[:NAMED]]
    more = f", and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
    return "; ".join(names) + more


def _missing(study: Study) -> list[str]:
    if not (missing := study.missing()):
        return []
    keys = ", ".join(missing[0].values)
    return [f"{len(missing)} cells are not done yet ({keys}): {_named(missing)}."]


def _versions(study: Study) -> list[str]:
    """Of every version of the code but this one, the cells with rows that it had a part in."""
    cells: dict[str, list[Cell]] = {}
    for cell in filter(study.is_done, study.cells):
        for made_by in study.versions(cell):
            if made_by != version():
                cells.setdefault(made_by, []).append(cell)
    return [
        f"Parts of {len(those)} cells were made by {'' if made_by == UNKNOWN else 'version '}"
        f"{made_by} of the code; this page is of {version()}: {_named(those)}."
        for made_by, those in cells.items()
    ]


def _asked(
    spec: str, function: str, rows: list[dict[str, Any]], notes: list[str], partly: bool
) -> Mapping[str, Any]:
    """What a function of the study's file gives of the rows; where they are but a part of all, a
    note may say why it gives nothing."""
    try:
        return configs.call(str(configs.locate(spec)), function, rows, optional=True) or {}
    except ValueError as error:
        if not partly:
            raise
        notes.append(f"`{function}` of the study's file needs cells that are missing: {error}.")
        return {}


def _tables(
    section: Section, spec: str, rows: list[dict[str, Any]], notes: list[str], partly: bool
) -> None:
    tables = _asked(spec, "tables", rows, notes, partly)
    for name, (header, *body) in tables.items():
        section.table(header, body, name)
    if not tables:
        section.text("The rows are below.")


def _pictures(
    report: Report, spec: str, rows: list[dict[str, Any]], notes: list[str], partly: bool
) -> None:
    """The file's figures; without any, those of outcomes by arm."""
    found = _asked(spec, "figures", rows, notes, partly)
    try:
        pictures = found or success_pictures(rows)
    except ValueError as error:
        if not partly:
            raise
        notes.append(f"Rows that do not compare: {error}.")
        return
    if not pictures:
        return
    section = report.section("Pictures")
    for caption, picture in pictures.items():
        section.figure(picture, caption)


def success_pictures(rows: contrasts.Rows) -> Pictures:
    """Curves over the label budgets, and every arm at the budget that most rows have, by setting;
    of rows that these values, the arm, seed and family tell apart."""
    told_apart = {tuple(row.get(key) for key in KEYS) for row in rows}
    known = all(row.keys() >= {"arm", "seed", "family", "outcomes"} for row in rows)
    if not known or len(told_apart) < len(rows):
        return {}
    settings = {row.get("setting") or "success": {"setting": row.get("setting")} for row in rows}
    panels = {
        setting: {
            arm: [(n, x.estimate, x.low, x.high) for n, x in points]
            for arm, points in curves.items()
        }
        for setting, which in settings.items()
        if (curves := contrasts.curves(rows, which))
    }
    pictures = {}
    if panels:
        caption = "Bands are 95 % intervals, by resampling seeds, families and start states."
        pictures[caption] = figures.success_curves(panels)
    budgets = [row.get("labels") for row in rows]
    budget = max(dict.fromkeys(budgets), key=budgets.count)
    dots = {arm: {"arm": arm} for arm in dict.fromkeys(row["arm"] for row in rows)}
    for name, setting in settings.items():
        for arm, row in dots.items():
            which = {"arm": arm, "labels": budget, **setting}
            if contrasts.seeds_of(rows, which):
                rate = contrasts.rate(rows, which)
                row |= {name: rate.estimate, f"{name}_low": rate.low, f"{name}_high": rate.high}
    shown = dict(zip(settings, settings, strict=True))
    at = "" if budget is None else f" with {budget:,} labels"
    pictures[f"Success of every arm{at}, with 95 % intervals."] = figures.dot_plots(
        list(dots.values()), "arm", shown, alike=True
    )
    return pictures


def _rows(report: Report, rows: list[dict[str, Any]]) -> None:
    section = report.section(
        "Every row", "As in rows.csv; of outcomes with Wilson's interval of the one row."
    )
    if len(rows) > ROWS:
        section.text(f"The first {ROWS} of {len(rows):,}.")
    rows = rows[:ROWS]
    if all("outcomes" in row for row in rows):
        keys = [key for key in KEYS if any(key in row for row in rows)]
        header = [*keys, "successes", "of", "rate"]
        body = []
        for row in rows:
            found = wilson_interval(sum(row["outcomes"]), len(row["outcomes"]))
            cells = [sum(row["outcomes"]), len(row["outcomes"]), percent(found)]
            body.append([*(_text(row.get(key)) for key in keys), *cells])
    else:
        header = [
            key
            for key in dict.fromkeys(key for row in rows for key in row)
            if any(row.get(key) is not None for row in rows)
            and not any(isinstance(row.get(key), list) for row in rows)
        ]
        body = [[_text(row.get(key)) for key in header] for row in rows]
    section.table(header, body)


def _text(value: Any) -> Any:
    return value if isinstance(value, float) or value is None else text_of(value)


def _made(report: Report, study: Study, command: str, seconds: Mapping[str, float]) -> None:
    section = report.section("How this was made")
    section.text(f"`{command}`")
    minutes = {name: f"{taken / 60:.1f} min" for name, taken in seconds.items()}
    section.settings("Parts, in the order in which they ended", minutes)
    section.settings("Versions and hardware of this page", describe_environment())
