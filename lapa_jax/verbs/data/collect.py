"""`lapa data collect`: expert episodes of an environment as RLDS corpora, one per view; with
--together one corpus, whose first view is `image` and whose others are cameras of their names.

Every view shows the same trajectories under the same episode ids. Episode k is a function of
(seed, split, environment, tasks, noise) alone, not of the number of processes or of the other
arguments. The same command goes on where it was stopped. Flags of an environment:
`lapa data collect --benchmark NAME --help`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Annotated

from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.verbs import data, flags, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of `lapa data collect`.

    out: corpora go to OUT/<view>
    views: comma-separated (default: robot)
    tasks: comma-separated tasks that take turns (default: all); of the tabletop --families instead
    split: name of the split
    state: record the robot's state of the tabletop, too; of others it always is
    keep_failures: keep episodes that did not succeed
    together: one corpus of all views, OUT/<views joined by +>, instead of one a view
    """

    out: str
    episodes: Annotated[int, "[1, 1e9]", "episodes per view"]
    views: tuple[str, ...] = ("robot",)
    tasks: tuple[str, ...] = ()
    seed: Annotated[int, "[0, 2147483647]", "other episodes"] = 0
    size: Annotated[int, "[1, 8192]", "image side in pixels"] = 64
    split: str = "train"
    noise: Annotated[
        float, "[0, 1]", "exploration noise, part of the action range (default: 0)"
    ] = 0.0
    state: bool = False
    keep_failures: bool = False
    together: bool = False
    workers: Annotated[
        int, "[1, 1024]", "processes that step a simulator (default: as many as there are cores)"
    ] = 0


def _defaults(name: str) -> object:
    """Of the environment's flags; None: its own."""
    if name == "tabletop":  # all that there is
        from lapa_jax.envs.tabletop import FULL

        return FULL
    return None


def main(argv: list[str] | None = None) -> int:
    first = argparse.ArgumentParser("lapa data collect", add_help=False, allow_abbrev=False)
    first.add_argument("--benchmark", default="tabletop")
    name = first.parse_known_args(argv)[0].benchmark
    if name not in envs.ENVS:
        raise ValueError(f"--benchmark {name}: known are {', '.join(sorted(envs.ENVS))}")
    parser = data.parser("collect", __doc__)
    parser.add_argument(
        "--benchmark",
        default="tabletop",
        help=f"{', '.join(sorted(envs.ENVS))} (default: tabletop)",
    )
    kind, _ = envs.ENVS[name]
    flags.add(parser.add_argument_group(f"the environment {name}"), kind, _defaults(name))
    parser.add_argument("--no-actions", action="store_true", help="leave steps/action out")
    parser.add_argument("--no-language", action="store_true", help="leave instructions empty")
    flags.add(parser, Options)
    args = parser.parse_args(argv)
    if args.benchmark != name:
        parser.error("--benchmark is to be written out: it decides which flags there are")
    options = dataclasses.asdict(flags.read(args, Options))
    options["workers"] = options["workers"] or len(os.sched_getaffinity(0))
    report = collect(
        envs.make({"name": name, **vars(flags.read(args, kind))}),
        with_actions=not args.no_actions,
        with_language=not args.no_language,
        with_state=options.pop("state"),
        only_successful=not options.pop("keep_failures"),
        **options,
    )
    text.show(report.table())
    cameras = options["views"][1:] if options["together"] else ()
    for path in report.directories.values():
        for told in ("", *(f" --image_key {camera}" for camera in cameras)):
            text.show(f"next: lapa data index {path}{told}")
    return 0
