"""`lapa data bench`: the loader beside its decoders alone and beside the pipelines of others.

Every arm lives in a process of its own. They take turns, several rounds of a few seconds, so that
other work on the machine hits all alike; rates are per CPU-second of the whole process (all of its
threads), and a ratio is the median of the rounds' ratios.
"""

import importlib.util
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import psutil

from data_pipelines.bench.arms import ARMS, Setting

_SETTLE = 8  # batches that are dropped at the start of a turn: some were made before it
# ratio → (numerator, denominator, what it should reach)
GOALS = {
    "tfdata_vs_octo": ("tfdata", "octo", 6.0),
    "threads_vs_octo": ("threads", "octo", 7.5),
    "tfdata_vs_octo_no_resize": ("tfdata", "octo_no_resize", 1.1),
    "threads_vs_octo_no_resize": ("threads", "octo_no_resize", 1.3),
    "tfdata_vs_limit": ("tfdata", "threads_limit", 0.88),
    "threads_vs_limit": ("threads", "threads_limit", 0.88),
    "tfdata_vs_grain": ("tfdata", "grain", 1.25),
    "threads_vs_grain": ("threads", "grain", 1.5),
    "tfdata_vs_whole_episode": ("tfdata", "whole_episode", 17.0),  # 20 frames a frame used
}


def compare(
    setting: Setting, arms: Sequence[str], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """A row per arm: {arm, what, pairs_per_cpu_second, by_round, pairs_per_second,
    first_batch_seconds, resident_mib}, or {arm, what, skipped}."""
    context = multiprocessing.get_context("spawn")
    rows, running = {}, {}
    try:
        for name in arms:
            rows[name] = {"arm": name, "what": ARMS[name].what}
            missing = [p for p in ARMS[name].needs if importlib.util.find_spec(p) is None]
            if missing:
                rows[name]["skipped"] = (
                    f"{', '.join(missing)} not installed: pip install {' '.join(missing)}"
                )
                continue
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, name, setting), daemon=True)
            process.start()
            theirs.close()
            running[name] = process, ours
            rows[name] |= _receive(name, ours) | {"by_round": [], "wall": []}
        for _ in range(rounds):
            for name, (_, ours) in running.items():
                ours.send(seconds)
                turn = _receive(name, ours)
                rows[name]["by_round"].append(round(turn["pairs"] / turn["cpu_seconds"], 1))
                rows[name]["wall"].append(turn["pairs"] / turn["wall_seconds"])
                rows[name]["resident_mib"] = turn["resident_mib"]
    finally:
        for process, ours in running.values():
            ours.close()  # ends it
            process.join(5)
            if process.is_alive():
                process.kill()
    for row in rows.values():
        if "by_round" in row:
            row["pairs_per_cpu_second"] = statistics.median(row["by_round"])
            row["pairs_per_second"] = round(statistics.median(row.pop("wall")), 1)
    return list(rows.values())


def ratios(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Of GOALS, each the median over the rounds; None where an arm was not run."""
    by_arm = {row["arm"]: row.get("by_round") for row in rows}
    found = {}
    for name, (above, below, _) in GOALS.items():
        above, below = by_arm.get(above), by_arm.get(below)
        found[name] = (
            round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)
            if above and below
            else None
        )
    return found


def _receive(name: str, connection: Connection) -> dict[str, Any]:
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError(
            f"the process of arm {name!r} ended; its error stands above (or the memory ran out)"
        ) from None


def _serve(connection: Connection, name: str, setting: Setting) -> None:
    """A turn for every number of seconds that arrives; ends when the other side closes."""
    start = time.perf_counter()
    batches = ARMS[name].batches(setting)
    shape = next(batches).shape
    first = time.perf_counter() - start
    expected = (setting.batch, 2, *setting.size, 3)
    if shape != expected:
        raise ValueError(f"arm {name!r} gives batches of {shape}, not {expected}")
    connection.send({"first_batch_seconds": round(first, 3)})
    while True:
        try:
            seconds = connection.recv()
        except EOFError:
            return
        for _ in range(_SETTLE):
            next(batches)
        count, start, cpu = 0, time.perf_counter(), _cpu_seconds()
        while (wall := time.perf_counter() - start) < seconds:
            next(batches)
            count += 1
        turn = {"pairs": count * setting.batch, "wall_seconds": wall}
        turn |= {"cpu_seconds": _cpu_seconds() - cpu, "resident_mib": resident_mib()}
        _wait_until_idle()
        connection.send(turn)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _wait_until_idle(limit: float = 10.0) -> None:
    """Until the batches ahead are made, so that the next arm has the machine."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        before = _cpu_seconds()
        time.sleep(0.05)
        if _cpu_seconds() - before < 0.005:
            return


def resident_mib() -> float:
    return round(psutil.Process().memory_info().rss / 2**20, 1)


def to_text(rows: list[dict[str, Any]], found: dict[str, float | None]) -> str:
    octo = next((row.get("by_round") for row in rows if row["arm"] == "octo"), None)
    lines = [f"{'pairs per CPU-second':<54}{'':>8}{'x octo':>8}{'wall':>8}{'first':>8}{'MiB':>8}"]
    for row in rows:
        if "skipped" in row:
            lines.append(f"{row['what']:<54} skipped: {row['skipped']}")
            continue
        times = f"{row['pairs_per_cpu_second'] / statistics.median(octo):8.2f}" if octo else " " * 8
        lines.append(
            f"{row['what']:<54}{row['pairs_per_cpu_second']:8.0f}{times}"
            f"{row['pairs_per_second']:8.0f}{row['first_batch_seconds']:7.2f}s"
            f"{row['resident_mib']:8.0f}"
        )
    lines += ["", f"{'ratio':<28}{'found':>8}{'goal':>8}"]
    for name, value in found.items():
        if value is not None:
            goal = GOALS[name][2]
            verdict = "" if value >= goal else "  missed"
            lines.append(f"{name:<28}{value:8.2f}{goal:8.2f}{verdict}")
    return "\n".join(lines)


def cores() -> int:
    return len(os.sched_getaffinity(0))
