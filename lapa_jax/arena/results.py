"""What an evaluation found: numbers by task, a page with film strips, videos."""

import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import storage
from lapa_jax.diagnostics.statistics import wilson_interval
from lapa_jax.envs.env import EnvSpec
from lapa_jax.report.frames import Strip, film_strips
from lapa_jax.report.html import Report, estimate

_SIDE = 256  # of a video at least, pixels
_STRIPS = 60  # on a page
MANY = 0.5  # of the actions beyond the bounds: they are of other units


def summary(
    spec: EnvSpec, tasks: Sequence[str], records: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[str, Any]:
    """Of JSON's types. Episodes with an error are counted, and are neither success nor failure."""
    by_task = {
        task: [one for (of, _), one in sorted(records.items()) if of == task] for task in tasks
    }
    ran = [one for found in by_task.values() for one in found if "error" not in one]
    seconds = {name: sum(one[f"{name}_s"] for one in ran) for name in _PARTS}
    total, steps = seconds["total"], sum(one["steps"] for one in ran)
    result: dict[str, Any] = {
        "environment": spec.name,
        "tasks": {task: _rate(found) for task, found in by_task.items()},
        "all": _rate([one for found in by_task.values() for one in found]),
        "steps": steps,
        "clipped": sum(one["clipped"] for one in ran),
    }
    if steps:
        other = total - seconds["simulator"] - seconds["policy"]
        medians = [one["latency_ms"] for one in ran if one["latency_ms"] is not None]
        result |= {
            "latency_ms": statistics.median(medians),
            "latency_max_ms": max(one["latency_max_ms"] or 0.0 for one in ran),
            "share_of_simulator": seconds["simulator"] / total,
            "share_of_policy": seconds["policy"] / total,
            "loop_by_simulator": other / seconds["simulator"],
            "reset_ms": 1e3 * seconds["reset"] / len(ran),
            "step_ms": 1e3 * (seconds["simulator"] - seconds["reset"]) / steps,
        }
    return result


_PARTS = ("reset", "simulator", "policy", "total")


def _rate(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ran = [one for one in found if "error" not in one]
    successes = sum(one["success"] for one in ran)
    rate = wilson_interval(successes, len(ran)).as_dict() if ran else {}
    return {
        "successes": successes,
        "episodes": len(ran),
        "errors": len(found) - len(ran),
        **rate,
        "steps_to_success": (
            statistics.median(one["steps"] for one in ran if one["success"]) if successes else None
        ),
    }


def rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """A table: a heading, a row for each task, and one for all."""
    named = [*result["tasks"].items(), ("all", result["all"])]
    shown = [
        [
            task,
            estimate(one.get("estimate"), one.get("low"), one.get("high")),
            f"{one['successes']}/{one['episodes']}",
            one["errors"],
            one["steps_to_success"],
        ]
        for task, one in (named[:1] if len(result["tasks"]) == 1 else named)
    ]
    return [["task", "success (95 %)", "episodes", "errors", "steps to success"], *shown]


def notes(spec: EnvSpec, result: Mapping[str, Any]) -> list[str]:
    """What a reader must know."""
    found = []
    if result["clipped"]:
        found.append(
            f"{result['clipped']:,} of {result['steps']:,} actions were beyond the bounds of "
            f"{spec.name} and were clipped to them."
        )
        if result["clipped"] > MANY * result["steps"]:
            found[-1] += f" So many may be of other units than {_units(spec)}."
    if errors := result["all"]["errors"]:
        found.append(f"{errors} episodes ended in an error and count for nothing.")
    return found


def _units(spec: EnvSpec) -> str:
    return ", ".join(f"{n} ({u})" for n, u in zip(spec.actions, spec.action_units, strict=True))


def page(
    path: Path,
    spec: EnvSpec,
    result: Mapping[str, Any],
    records: Mapping[tuple[str, int], Mapping[str, Any]],
    videos: Mapping[tuple[str, int], Path],
    settings: Mapping[str, Any],
) -> None:
    """Writes the page; videos: of episodes, by their key."""
    report = Report(f"A policy in {spec.name}", f"The server was {settings['server']}.")
    told = notes(spec, result)
    if told:
        report.notes(told)
    header, *lines = rows(result)
    section = report.section("Success", "Share of episodes that succeed, by task.")
    section.table(header, lines)
    if result["steps"]:
        section.table(
            ["latency, median", "largest", "simulator", "policy", "a step", "a reset"],
            [
                [
                    f"{result['latency_ms']:.1f} ms",
                    f"{result['latency_max_ms']:.1f} ms",
                    f"{result['share_of_simulator']:.0%}",
                    f"{result['share_of_policy']:.0%}",
                    f"{result['step_ms']:.2f} ms",
                    f"{result['reset_ms']:.0f} ms",
                ]
            ],
            "Latency of questions to the policy; shares of the time of episodes; the simulator's "
            "time for a step, with what it renders, and for a reset.",
        )
    shown = [key for key in sorted(records) if key in videos and "error" not in records[key]]
    if shown:
        strips = [
            Strip(
                frames_of(videos[key]),
                records[key]["instruction"],
                records[key]["success"],
                f"{key[0]}, {key[1]}",
            )
            for key in shown[:_STRIPS]
        ]
        section = report.section("Episodes", "The first ones of each task, by the first camera.")
        section.figure(film_strips(strips))
    report.section("How this was made").settings("Settings", settings, open=True)
    report.write(path)


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Frames uint8 (T, H, W, 3) as an mp4; small ones are enlarged, with sharp pixels."""
    import av

    frames = _enlarged(frames)
    odd = [(0, n % 2) for n in frames.shape[1:3]]  # sides of yuv420p are even
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], "edge")
    with storage.atomic_path(path) as temporary:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt, stream.options = "yuv420p", {"crf": "18", "preset": "veryfast"}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


def write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    """The same as a GIF, which runs by itself in pages that show no video; it begins anew for ever,
    and its last frame stays for a second."""
    pictures = [Image.fromarray(frame) for frame in _enlarged(frames)]
    milliseconds = [round(1000 / fps)] * (len(pictures) - 1) + [max(1000, round(1000 / fps))]
    with storage.atomic_path(path) as temporary:
        pictures[0].save(
            temporary,
            **dict(format="GIF", save_all=True, append_images=pictures[1:]),
            **dict(duration=milliseconds, loop=0),
        )


def _enlarged(frames: np.ndarray) -> np.ndarray:
    scale = max(1, -(-_SIDE // min(frames.shape[1:3])))
    scale += scale % 2 if scale > 1 else 0
    return frames.repeat(scale, 1).repeat(scale, 2)


def frames_of(path: Path) -> np.ndarray:
    """uint8 (T, H, W, 3) of a video that `write_video` made, not larger than a strip needs."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        scale = max(1, min(stream.width, stream.height) // 128)
        size = {"width": stream.width // scale, "height": stream.height // scale}
        return np.stack([f.to_ndarray(format="rgb24", **size) for f in container.decode(stream)])
