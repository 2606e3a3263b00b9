"""A sign of life at every step, for the supervisor (launch/supervise.py) that started the process.

metrics.jsonl has a line every so many steps, from one process; this is of every step and process,
in a file of the machine itself.
"""

import os
from pathlib import Path

VARIABLE = "LAPA_HEARTBEAT"


def beat(step: int) -> None:
    """Writes `step` to the file that LAPA_HEARTBEAT names; does nothing without a supervisor."""
    path = os.environ.get(VARIABLE)
    if path:
        Path(path).write_text(f"{step}\n", encoding="ascii")
