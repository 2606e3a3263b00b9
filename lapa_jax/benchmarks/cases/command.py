"""A whole command, from its start to its end: what starting and compiling cost.

    --option "command={python} -m lapa_jax train --config ... --workdir {scratch}/run"

{python} is this interpreter, {scratch} a folder that is made anew for every repetition.
"""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable


def prepare(command: str) -> Callable[[], None]:
    def step() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            words = [x.format(python=sys.executable, scratch=scratch) for x in shlex.split(command)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    return step
