"""What verbs print."""

import json
import math
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

SPARKS = "▁▂▃▄▅▆▇█"


def table(rows: Iterable[Iterable[Any]], left: Collection[int] = (), gap: str = "  ") -> str:
    """Rows of equally many cells in columns, on the right side of them but for those of `left`."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        gap.join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def sparkline(values: Sequence[float], low: float | None = None) -> str:
    """One character for each value, from the lowest (or `low`) to the highest; ! where it is not
    finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "!" * len(values)
    low, high = min(finite) if low is None else low, max(finite)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        SPARKS[round((value - low) * scale)] if math.isfinite(value) else "!" for value in values
    )


def show(value: Any) -> None:
    """Prints a text as it is, anything else as JSON."""
    sys.stdout.write((value if isinstance(value, str) else json.dumps(value, indent=1)) + "\n")


def say(text: str) -> None:
    """Prints a line at once, also into a pipe: something long follows."""
    show(text)
    sys.stdout.flush()
