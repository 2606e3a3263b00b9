"""`lapa bench compare`: two builds, or this one and the code of others, in turn.

    lapa bench compare --case CASE --case CASE@../before --option batch=4 --out step.json

A case is a Python file with `prepare(**options)`, which gives `step`: a call of it does one
repetition and returns when that is done. `step.work` (1 unless it is there) says how much that is,
in pairs, tokens or frames; times are compared for one of them. Cases: lapa_jax/benchmarks/cases.

CASE is FILE[@FOLDER[@PYTHON]]. FOLDER comes first on PYTHONPATH: the build whose `lapa_jax` is
measured (this one, unless given), or a checkout of others. PYTHON is the interpreter of an
environment of its own. Each side is a process that stays warm; they take turns, and every other
round begins with the second.

CPU time is that of all threads of a side and of those of its children that have ended, so it can be
compared beside other work. A ratio is that of one round, the first side over the second; the
interval is a bootstrap of the median over the rounds.
"""

import argparse
import contextlib
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from lapa_jax.benchmarks import side
from lapa_jax.machine import environment

SIDES = ("first", "second")
BUILD = Path(__file__).parents[2]
PACKAGES = (*environment.PACKAGES, "torch", "transformers", "imageio-ffmpeg", "lerobot")


@dataclass(frozen=True)
class Case:
    file: Path
    folder: Path = BUILD
    python: str = sys.executable

    @classmethod
    def of(cls, text: str) -> "Case":
        """FILE[@FOLDER[@PYTHON]]; raises ArgumentTypeError where one of them is not there."""
        file, folder, python = [*text.split("@", 2), "", ""][:3]
        found = cls(Path(file), Path(folder or BUILD), python or sys.executable)
        missing = [] if found.file.is_file() else [f"file {file!r}"]
        missing += [] if found.folder.is_dir() else [f"folder {folder!r}"]
        missing += [] if os.access(found.python, os.X_OK) else [f"interpreter {python!r}"]
        if missing:
            raise argparse.ArgumentTypeError(f"no {', no '.join(missing)} (of {text!r})")
        return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--case", type=Case.of, action="append", required=True, help="given twice")
    told = "of `prepare`, for {}: numbers, true and false as in JSON, else a text"
    for flag, whose in (("option", "both sides"), *((name, f"the {name} side") for name in SIDES)):
        more = dict(action="append", default=[], metavar="KEY=VALUE")
        add(f"--{flag}", help=told.format(whose), **more)
    add("--rounds", type=int, default=7, help="timed repetitions of each side (default: 7)")
    add("--warmup", type=int, default=1, help="repetitions before them (default: 1)")
    add("--out", type=Path, metavar="FILE", help="for the JSON")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Tables of the sides, the rounds and the ratios, and what they were taken with."""
    if len(args.case) != 2 or args.rounds < 1 or args.warmup < 0:
        given = f"{len(args.case)} cases, --rounds {args.rounds}, --warmup {args.warmup}"
        raise ValueError(f"{given}: two cases, one round or more and no negative warmup are needed")
    result: dict[str, Any] = {
        "command": shlex.join(["lapa", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": environment.host() | {"load": os.getloadavg()},
    }
    with contextlib.ExitStack() as stack:
        sides = [
            stack.enter_context(_Side(case, dict(map(_option, args.option + own))))
            for case, own in zip(args.case, (args.first, args.second), strict=True)
        ]
        result |= {name: one.about for name, one in zip(SIDES, sides, strict=True)}
        for one in sides * args.warmup:
            one.repeat()
        # [round][side]
        taken = [_both(sides, backwards=bool(i % 2)) for i in range(args.rounds)]
    result |= {"sides": [], "rounds": [], "ratios": []}
    ratios: dict[str, list[float]] = {"cpu": [], "wall": []}
    for i, one in enumerate(sides):
        row = {"side": SIDES[i], "work": one.work}
        for kind in ratios:
            of_side = [both[i][kind] for both in taken]
            row |= {f"{kind}_{name}": x for name, x in _spread(of_side).items()}
        row["work_per_cpu_second"] = _rounded(one.work / row["cpu_median"])
        result["sides"].append(row)
    for number, (a, b) in enumerate(taken):
        row = {"round": number, "began": SIDES[number % 2]}
        for kind, found in ratios.items():
            found.append(a[kind] / sides[0].work / (b[kind] / sides[1].work))
            row |= {f"first_{kind}": _rounded(a[kind]), f"second_{kind}": _rounded(b[kind])}
            row[f"{kind}_ratio"] = _rounded(found[-1])
        result["rounds"].append(row)
    for kind, found in ratios.items():
        row = {"first_over_second": kind, "rounds": len(found), **_spread(found)}
        result["ratios"].append(
            row | dict(zip(("low_95", "high_95"), interval(found), strict=True))
        )
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def interval(ratios: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % for their median; None of less than three."""
    if len(ratios) < 3:
        return None, None
    if min(ratios) == max(ratios):  # of which the library makes NaN
        return ratios[0], ratios[0]
    found = bootstrap(
        (np.array(ratios),), np.median, n_resamples=2000, method="percentile", rng=0
    ).confidence_interval
    return _rounded(found.low), _rounded(found.high)


class _Side(contextlib.AbstractContextManager):
    """The process of a case, from its first line on, which comes when it is prepared."""

    def __init__(self, case: Case, options: dict[str, Any]):
        self._told = f"{case.file}, PYTHONPATH {case.folder}, {case.python}"
        given = [os.path.abspath(case.folder), os.environ.get("PYTHONPATH", "")]
        environ = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # two processes on one GPU
        environ |= {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, given))}
        command = [case.python, side.__file__, os.path.abspath(case.file)]
        command += [json.dumps(options), json.dumps(PACKAGES)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._process = subprocess.Popen(command, env=environ, **pipes)
        ready = self._receive()
        self.work: float = ready["work"]
        self.about = {
            "case": str(case.file),
            "options": options,
            "folder": str(case.folder),
            "code": environment.code_revision(case.folder),
            "versions": ready["versions"],
        }

    def repeat(self) -> dict[str, float]:
        """{cpu, wall} in seconds."""
        with contextlib.suppress(BrokenPipeError):  # that it ended, the answer tells
            self._process.stdin.write("\n")
        return self._receive()

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # which ends it
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended, its error stands above: {self._told}")
        return json.loads(line)


def _both(sides: Sequence[_Side], backwards: bool) -> list[dict[str, float]]:
    order = (1, 0) if backwards else (0, 1)
    found = {i: sides[i].repeat() for i in order}
    return [found[0], found[1]]


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option {text}: KEY=VALUE is needed")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: _rounded(value) for name, value in found.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
