"""`lapa data collect`: expert episodes of the tabletop world as RLDS corpora, one per view.

Every view shows the same trajectories under the same episode ids. Episode k is a function of
(seed, split, scene, noise) alone, not of the batch size or of the other arguments. A run that is
stopped leaves no corpus, and the same command starts it again.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.envs.tabletop import FAMILIES, FULL
from lapa_jax.verbs import data, flags, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of `lapa data collect`.

    out: corpora go to OUT/<view>
    views: comma-separated (default: robot)
    split: name of the split
    keep_failures: keep episodes that did not succeed
    """

    out: str
    episodes: Annotated[int, "[1, 1e9]", "episodes per view"]
    families: tuple[str, ...] = dataclasses.field(
        default=FULL.families,
        metadata={"help": f"comma-separated task families of {', '.join(FAMILIES)} (default: all)"},
    )
    views: tuple[str, ...] = ("robot",)
    seed: int = 0
    size: Annotated[int, "[1, 8192]", "image side in pixels"] = 64
    split: str = "train"
    blocks: Annotated[int, "[2, 8]", "blocks on the table"] = FULL.blocks
    horizon: Annotated[int, "[1, 1e6]", "steps after which an episode has failed"] = FULL.horizon
    noise: Annotated[
        float, "[0, 1]", "exploration noise, part of the action range (default: 0)"
    ] = 0.0
    keep_failures: bool = False


def main(argv: list[str] | None = None) -> int:
    parser = data.parser("collect", __doc__)
    parser.add_argument("--no-actions", action="store_true", help="leave steps/action out")
    parser.add_argument("--no-language", action="store_true", help="leave instructions empty")
    flags.add(parser, Options)
    args = parser.parse_args(argv)
    options = dataclasses.asdict(flags.read(args, Options))
    scene = {key: options.pop(key) for key in ("families", "blocks", "horizon")}
    report = collect(
        envs.make({"name": "tabletop", **scene}),
        with_actions=not args.no_actions,
        with_language=not args.no_language,
        only_successful=not options.pop("keep_failures"),
        **options,
    )
    text.show(report.table())
    for path in report.directories.values():
        text.show(f"next: lapa data index {path}")
    return 0
