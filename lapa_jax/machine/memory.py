"""How much memory this process has used."""

import re
from pathlib import Path


def peak_resident_bytes() -> int:
    """The most that this process had resident (Linux). getrusage's ru_maxrss does not tell: a
    program starts there with the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[1]) * 1024
