"""`lapa demo`: the whole method on the tabletop world, or a quantizer on your own clips."""

import sys

from experiments import demo as settings
from lapa_jax.studies import demo
from lapa_jax.studies.study import Interrupted
from lapa_jax.train import EXIT_RESTART
from lapa_jax.verbs import flags, text


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa demo", settings.__doc__)
    add = parser.add_argument
    add("--size", choices=settings.SIZES, default="small")
    add("--workdir", default="", help="default: runs/demo (runs/demo-SIZE)")
    add("--videos", default="", help="a folder of your own clips: quantizer and its report only")
    args = parser.parse_args(argv)
    default = "runs/demo" if args.size == "small" else f"runs/demo-{args.size}"
    try:
        if args.videos:
            report = demo.run_videos(args.videos, args.workdir or "runs/demo-videos", args.size)
        else:
            config = settings.get_config(f"size={args.size}")
            report = demo.run_demo(config, args.workdir or default)
    except Interrupted:
        sys.stderr.write("lapa: interrupted; the same command continues where it was\n")
        return EXIT_RESTART
    text.show(f"report: {report}")
    return 0
