"""A server of a run, for as long as an evaluation takes."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_SERVED = re.compile(r"served at http://(\S+)")
_END_SECONDS = 30.0
# It ends when this process does, however that ends.
_CODE = (
    "import ctypes, signal, sys; from lapa_jax.cli import main; "
    "sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, signal.SIGTERM); sys.exit(main())"
)


@contextlib.contextmanager
def started(
    workdir: str,
    log: Path,
    *,
    workers: int,
    image_keys: Sequence[str],
    seconds: float,
    real_time: bool = False,
) -> Iterator[str]:
    """The address of `lapa serve --workdir WORKDIR`, which compiles batches of up to `workers`
    observations. Raises RuntimeError with the server's own words where it does not start."""
    sizes = [2**i for i in range(workers.bit_length()) if 2**i <= workers]
    flags = ["--workdir", workdir, "--port", "0", "--requests_per_second", "0"]
    flags += ["--batch_sizes", ",".join(map(str, sizes))]
    flags += ["--image_keys", ",".join(image_keys)] if image_keys else []
    flags += ["--real_time"] if real_time else []
    with open(log, "ab") as file:
        before = file.tell()
        command = [sys.executable, "-c", _CODE, "serve", *flags]
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        yield f"ws://{_address(process, log, before, seconds)}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen, log: Path, before: int, seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended = process.poll() is not None
        text = log.read_bytes()[before:].decode(errors="replace")
        if found := _SERVED.search(text):
            return found[1]
        if ended:
            lines = [line for line in text.splitlines() if line.strip()] or ["it said nothing"]
            raise RuntimeError(f"lapa serve: {lines[-1].removeprefix('lapa: ')} ({log})")
        time.sleep(0.05)
    raise RuntimeError(f"lapa serve did not start in {seconds:g} s (--start_seconds): {log}")
