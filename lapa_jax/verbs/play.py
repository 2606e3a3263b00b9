r"""`lapa play`: a page where latent actions are the controls of what a model imagines.

    lapa play --workdir runs/quantizer --frame first.png
    lapa play --workdir runs/dynamics --corpus data/tabletop/robot --episode 3 --step 10
    lapa play --workdir runs/quantizer --corpus data/tabletop/robot --episode 3 \
        --policy runs/latent_vla --corrections data/tabletop

A quantizer goes on from the frame that its decoder drew, a dynamics model from what it has seen.
With --corpus, labelled by the run, each code shows the mean true action that it stands for. With
--policy the page shows what that says at each frame, and with --corrections it saves what was
chosen as a corpus to train on. Keys, security: docs/world.md.
"""

import argparse
import os
import sys

from lapa_jax.serving.images import RESIZING
from lapa_jax.serving.limits import TOKEN
from lapa_jax.verbs import flags


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    try:
        from lapa_jax.serving.play.start import prepare
    except ModuleNotFoundError as error:
        wanted = "starlette uvicorn websockets msgpack pillow prometheus_client"
        raise RuntimeError(f"lapa play: {error}: pip install {wanted}") from error
    server, bound = prepare(args, os.environ.get(TOKEN, ""))
    with bound:
        server.run(sockets=[bound])
    if server.engine.busy:  # a call of the model cannot be ended
        sys.stderr.flush()
        os._exit(0)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = flags.parser("lapa play", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="a run of a quantizer that draws frames, or of dynamics")
    add("--frame", default="", help="the image to start from, JPEG or PNG")
    add("--corpus", default="", help="directory of shards (indexed): what codes stand for there")
    add("--episode", type=flags.number(int, "[0, 1e9]"), help="of --corpus, to start from")
    text = "of the episode, to start from (default: 0)"
    add("--step", type=flags.number(int, "[0, 1e9]"), default=0, help=text)
    add("--policy", default="", help="run of stage latent_pretraining, which says z at each frame")
    text = "what the policy is told (default: the instruction of --episode)"
    add("--instruction", default="", help=text)
    text = "folder in which games are saved, as the corpus `corrections`, to train the policy on"
    add("--corrections", default="", metavar="DIR", help=text)
    text = "of a first frame of another size than the model's (default: none, which is an error)"
    add("--resizing", choices=RESIZING, default="none", help=text)
    add("--split", default="train", help="of the corpus (default: train)")
    add("--sidecar_dir", default="", help="where index and labels lie (default: the corpus)")
    add("--image_key", default="", help="the camera (default: the only one indexed)")
    text = "the most from the start frame (default: 500)"
    add("--steps", type=flags.number(int, "[1, 100000]"), default=500, help=text)
    add("--host", default="127.0.0.1", help=f"others than this machine need {TOKEN} to be set")
    add("--port", type=flags.number(int, "[0, 65535]"), default=8000, help="0: any that is free")
    return parser
