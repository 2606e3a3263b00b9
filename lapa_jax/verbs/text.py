"""What verbs print."""

import json
import sys
from collections.abc import Collection, Iterable
from typing import Any


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


def show(value: Any) -> None:
    """Prints a text as it is, anything else as JSON."""
    sys.stdout.write((value if isinstance(value, str) else json.dumps(value, indent=1)) + "\n")
