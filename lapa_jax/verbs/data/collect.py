"""`lapa data collect`: expert episodes of the tabletop world as RLDS corpora, one per view.

Every view shows the same trajectories under the same episode ids. Episode k is a function of
(seed, split, scene, noise) alone, not of the batch size or of the other arguments. A run that is
stopped leaves no corpus, and the same command starts it again.
"""

from __future__ import annotations

import dataclasses

from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.envs.tabletop import FAMILIES, FULL
from lapa_jax.verbs import data, flags, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of `lapa data collect`.

    out: corpora go to OUT/<view>
    episodes: episodes per view
    views: comma-separated (default: robot)
    size: image side in pixels
    split: name of the split
    blocks: blocks on the table
    horizon: steps after which an episode has failed
    noise: exploration noise, part of the action range (default: 0)
    keep_failures: keep episodes that did not succeed
    """

    out: str
    episodes: int
    families: tuple[str, ...] = dataclasses.field(
        default=FULL.families,
        metadata={"help": f"comma-separated task families of {', '.join(FAMILIES)} (default: all)"},
    )
    views: tuple[str, ...] = ("robot",)
    seed: int = 0
    size: int = 64
    split: str = "train"
    blocks: int = FULL.blocks
    horizon: int = FULL.horizon
    noise: float = 0.0
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
    return 0
