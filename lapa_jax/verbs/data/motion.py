"""`lapa data motion`: how much each pair of frames differs.

Decodes every frame of an indexed corpus and writes how much it differs from the one a window later:
the mean over its values, which are 0 to 255.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSet
from data_pipelines.loader import motion
from lapa_jax.verbs import data, flags, text
from lapa_jax.verbs.data.corpus import View

LEVELS = (0.25, 0.5, 1, 2, 4, 8, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(View):
    """Of `lapa data motion`."""

    window_seconds: Annotated[float, "(0, 1e4]", "as the training's"]
    fps: Annotated[float, "[0, 1e4]", "default: the episodes' metadata"] = 0.0
    workers: Annotated[int | None, "[1, 4096]", "threads (default: one per core)"] = None


def main(argv: list[str]) -> int:
    options = flags.parse(data.parser("motion", __doc__), argv, Options)
    window = options.window_seconds
    folder = motion.write_motion(
        options.directory,
        window_seconds=window,
        fps=options.fps,
        workers=options.workers,
        **options.where,
    )
    index = load_index(options.directory, **options.where)
    found = LabelSet.open(index.sidecar_dir, motion.set_name(window), index, motion.MOTION)
    shares = [f"{share:.1%}" for share in motion.shares_below(found, LEVELS)]
    rows = [("difference", "below it"), *zip(map("{:g}".format, LEVELS), shares, strict=True)]
    text.show(f"{folder}\n{text.table(rows)}")
    return 0
