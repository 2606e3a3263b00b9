"""`lapa serve`: a policy behind WebSocket (openpi's protocol) and REST (OpenVLA's), with a page.

    lapa serve --workdir runs/action_vla
    LAPA_SERVE_TOKEN=... lapa serve --workdir runs/action_vla --host 0.0.0.0 --port 8000

Answers when everything is compiled; /healthz tells. SIGTERM, SIGHUP and Ctrl-C finish what was
asked and exit with 0. Protocols, limits, security: docs/serving.md.
"""

import argparse
import os
import sys

from lapa_jax.policy.modality import WEIGHTS
from lapa_jax.serving.images import RESIZING
from lapa_jax.serving.limits import BATCH_SIZES, TOKEN, Limits
from lapa_jax.verbs import flags


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    limits = flags.read(args, Limits)
    try:
        from lapa_jax.serving.start import prepare
    except ModuleNotFoundError as error:
        wanted = "starlette uvicorn websockets msgpack pillow prometheus_client"
        raise RuntimeError(f"lapa serve: {error}: pip install {wanted}") from error
    server, bound = prepare(args, limits, os.environ.get(TOKEN, ""))
    with bound:
        server.run(sockets=[bound])
    if server.engine.failed:
        raise server.engine.failed
    if server.engine.busy:  # neither a compilation nor a call of the model can be ended
        sys.stderr.flush()
        os._exit(0)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = flags.parser("lapa serve", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="the policy's run")
    add("--host", default="127.0.0.1", help=f"others than this machine need {TOKEN} to be set")
    add("--port", type=flags.number(int, "[0, 65535]"), default=8000, help="0: any that is free")
    add("--image_tokenizer", help="the run that made the image tokens the policy was trained on")
    text = "of the policy: as they trained, or rounded to 8 bits, which is faster"
    add("--weights", choices=WEIGHTS, default="trained", help=text)
    add("--quantizer", help="the run whose labels the policy learnt: decodes z to pictures")
    text = "names of the cameras' images in an observation, in the order of training"
    add("--image_keys", type=_words, default=(), help=f"{text}; default: see /metadata")
    text = "name of the robot's state in an observation, of a policy that sees it"
    add("--state_key", default="", help=f"{text}; default: see /metadata")
    add("--resizing", choices=RESIZING, default="crop", help="of images of another size")
    add("--batch_sizes", type=_numbers, default=BATCH_SIZES, help="compiled, e.g. 1,4,16")
    add("--action_names", type=_words, default=(), help="of each dimension, e.g. x,y")
    add("--action_units", type=_words, default=(), help="of each dimension, e.g. m,m")
    text = "actions a second; 0: that of the run's data, where it is known"
    add("--control_hz", type=flags.number(float, "[0, 1e4]"), default=0.0, help=text)
    text = "of the noise that heads like flow begin every answer with"
    add("--seed", type=flags.number(int, "[0, 4294967295]"), default=0, help=text)
    text = "of a head flow also answers that follow the one before; all is compiled twice"
    add("--real_time", action="store_true", help=text)
    add("--compile_cache", default="", help="a folder that keeps compiled programs")
    flags.add(parser, Limits)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(flags.number(int, "[1, 4096]"), text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise argparse.ArgumentTypeError(f"{text!r} holds an empty name")
    return words
