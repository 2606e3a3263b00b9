"""What a study will cost: its cells and parts, and the minutes that such parts took where they were
done."""

from collections.abc import Iterable, Mapping
from typing import Any

from lapa_jax import config as configs
from lapa_jax.studies import record
from lapa_jax.studies.study import Study, kind_of


def planned(study: Study, spec: str, size: str, price: float | None = None) -> dict[str, Any]:
    """Of a study file at a size: cells and parts, and by kind how many there are, how many are
    done, and the minutes of one, as measured here or by the study's result of record of that size
    (None where neither was)."""
    parts = {part.name: part for cell in study.cells for part in cell.parts}
    named = sum(len(cell.parts) for cell in study.cells)
    done = {name for name in parts if study.done(name)}
    (recorded, where), own = _recorded(spec, size), study.minutes()
    measured = recorded | own
    kinds: dict[str, dict[str, Any]] = {}
    for name in parts:
        one = kinds.setdefault(kind_of(name), {"parts": 0, "done": 0})
        one["parts"] += 1
        one["done"] += name in done
    for kind, one in kinds.items():
        count, minutes = measured.get(kind, (0, 0.0))
        one["minutes"] = minutes / count if count else None
    left = [(one["parts"] - one["done"], one["minutes"]) for one in kinds.values()]
    hours = sum(count * minutes for count, minutes in left if minutes is not None) / 60
    return {
        "cells": len(study.cells),
        "cells_left": len(study.missing()),
        "parts": len(parts),
        "parts_shared": named - len(parts),
        "trainings": sum(part.run is not None for part in parts.values()),
        "kinds": kinds,
        "hours_left": hours,
        "parts_not_measured": sum(count for count, minutes in left if minutes is None),
        "measured": [where] * bool(recorded) + [f"in {study.workdir}"] * bool(own),
        **({} if price is None else {"price": hours * price}),
    }


def _recorded(spec: str, size: str) -> tuple[dict[str, list[float]], str]:
    """Minutes by kind of the result of record beside the study's file, and what that is."""
    file = configs.locate(spec)
    path = file.parent / record.FOLDER / f"{file.stem}.json"
    if not path.exists():
        return {}, ""
    found = record.read(path)
    of_size = found.get("size", "cpu") == size
    return found.get("minutes", {}) if of_size else {}, f"by {path.name} of {found['date']}"


def shown(found: Mapping[str, Any]) -> Iterable[list[str]]:
    """Rows of a table."""
    yield ["cells", f"{found['cells']:,}, {found['cells_left']:,} of them left"]
    told = f"{found['parts']:,}, {found['trainings']:,} of them trainings"
    yield ["parts", f"{told}; {found['parts_shared']:,} more are shared with another cell"]
    for kind, one in found["kinds"].items():
        minutes = one["minutes"]
        each = "not measured yet" if minutes is None else f"{minutes:.3g} min each"
        count = f"{one['parts']}" + (f", {one['done']} done" if one["done"] else "")
        yield [kind, f"{count}; {each}"]
    if found["measured"]:
        yield ["minutes", f"as measured {', else '.join(reversed(found['measured']))}"]
    least = "at least " if found["parts_not_measured"] else ""
    known = not least or found["hours_left"] > 0
    hours = f"{least}{found['hours_left']:.3g}"
    yield ["hours left of one process", hours if known else "not measured yet"]
    if "price" in found:
        price = f"{least}{found['price']:,.2f}"
        yield ["price, in the unit of --price", price if known else "not known yet"]
