"""`lapa data flow`: how far the picture moves between each pair of frames, for the objective flow.

Writes the optical flow of every frame of an indexed corpus to the one a window later, in cells: by
OpenCV (--method dis), or exactly, of a corpus that `lapa data collect` made of the tabletop
(--method tabletop, with the flags of the scene that it was given).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSet
from data_pipelines.loader import flow, motion
from lapa_jax.envs.tabletop import FULL, SceneConfig, Tabletop
from lapa_jax.envs.tabletop.flow import Replay
from lapa_jax.verbs import data, flags, text
from lapa_jax.verbs.data.corpus import View


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(View):
    """Of `lapa data flow`."""

    window_seconds: Annotated[float, "(0, 1e4]", "as the training's"]
    fps: Annotated[float, "[0, 1e4]", "default: the episodes' metadata"] = 0.0
    method: Annotated[str, ("dis", "tabletop"), "who says it"] = "dis"
    cell: Annotated[int, "[1, 8192]", "pixels a side, whose mean is kept"] = 4
    workers: Annotated[int | None, "[1, 4096]", "threads (default: one per core)"] = None


def main(argv: list[str]) -> int:
    parser = data.parser("flow", __doc__)
    flags.add(parser, Options)
    flags.add(parser.add_argument_group("the scene, with --method tabletop"), SceneConfig, FULL)
    args = parser.parse_args(argv)
    options = flags.read(args, Options)
    index = load_index(options.directory, **options.where)
    with motion.frames_of(index) as reader:
        by = {}
        if options.method == "dis":
            by["estimate"] = flow.dis()
        else:
            env = Tabletop(flags.read(args, SceneConfig))
            by["exact"] = Replay(env, index, lambda rows: reader.read(rows)[0])
        folder = flow.write_flow(
            options.directory,
            window_seconds=options.window_seconds,
            fps=options.fps,
            cell=options.cell,
            method=options.method,
            workers=options.workers,
            **options.where,
            **by,
        )
    name = motion.set_name(options.window_seconds)
    found = LabelSet.open(index.sidecar_dir, name, index, flow.FLOW)
    rows = np.flatnonzero(found.valid)
    some = found.labels(rows[:: -(-len(rows) // 4096)]) if len(rows) else np.zeros((1, 1, 2))
    rows, columns = found.provenance["grid"]
    text.show(
        f"{folder}\n{rows} x {columns} cells; pixels a window: mean "
        f"{np.linalg.norm(some, axis=-1).mean():.2f}, largest "
        f"{np.linalg.norm(some, axis=-1).max():.2f}\n"
        f"next: lapa train with --config.model.objective.grid=({rows},{columns})"
    )
    return 0
