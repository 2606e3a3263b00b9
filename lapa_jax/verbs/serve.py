"""`lapa serve`: a policy behind WebSocket (openpi's protocol) and REST (OpenVLA's), with a page.

    lapa serve --workdir runs/action_vla
    LAPA_SERVE_TOKEN=... lapa serve --workdir runs/action_vla --host 0.0.0.0 --port 8000

The port opens when everything is compiled. SIGTERM and Ctrl-C finish what was asked and exit with
0. Protocols, limits, security: docs/serving.md.
"""

import argparse
import os

from lapa_jax.serving.images import RESIZING
from lapa_jax.serving.limits import BATCH_SIZES, TOKEN, Limits
from lapa_jax.verbs import flags


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    limits = flags.read(args, Limits)
    try:
        from lapa_jax.serving.start import prepare
    except ModuleNotFoundError as error:
        raise RuntimeError(f"lapa serve: {error}: pip install 'lapa_jax[serve]'") from error
    server, bound = prepare(args, limits, os.environ.get(TOKEN, ""))
    with bound:
        server.run(sockets=[bound])
    return 0


def parser() -> argparse.ArgumentParser:
    parser = flags.parser("lapa serve", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="the policy's run")
    add("--host", default="127.0.0.1", help=f"others than this machine need {TOKEN} to be set")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--image_tokenizer", help="the run that made the image tokens the policy was trained on")
    add("--quantizer", help="the run whose labels the policy learnt: decodes z to pictures")
    add("--resizing", choices=RESIZING, default="crop", help="of images of another size")
    add("--batch_sizes", type=_numbers, default=BATCH_SIZES, help="compiled, e.g. 1,4,16")
    add("--action_names", type=_words, default=(), help="of each dimension, e.g. x,y")
    add("--action_units", type=_words, default=(), help="of each dimension, e.g. m,m")
    add("--compile_cache", default="", help="a folder that keeps compiled programs")
    flags.add(parser, Limits)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))
