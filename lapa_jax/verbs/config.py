"""`lapa config`: a config as it would run, each key with its meaning and what it may be.

`--config.key=value` overrides as in training, and the result is checked as there.
"""

from lapa_jax import config as configs
from lapa_jax import settings
from lapa_jax.verbs import flags, text

WIDTH = 44


def main(argv: list[str]) -> int:
    parser = flags.parser(
        "lapa config", __doc__, "lapa config action_vla/tabletop:quick=True --config.steps=200"
    )
    parser.add_argument("config", metavar="FILE[:args]", help="a file, or one of `lapa configs`")
    args, rest = parser.parse_known_args(argv)
    if unknown := [one for one in rest if not (one.startswith("--config.") and "=" in one)]:
        parser.error(f"unknown arguments {unknown}; overrides are written --config.key=value")
    config = configs.load(args.config, rest)
    settings.check(config)
    for key, value, what in settings.explained(config):
        text.show(f"{f'{key} = {value!r}':<{WIDTH}}  # {what}")
    return 0
