"""`lapa demo`: the whole method on the tabletop world, or a quantizer on your own clips."""

import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from experiments import demo as settings
from lapa_jax.studies import demo
from lapa_jax.studies.study import Interrupted
from lapa_jax.train import EXIT_RESTART
from lapa_jax.verbs import flags, text


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa demo", settings.__doc__)
    add = parser.add_argument
    add("--size", choices=tuple(settings.SIZES), default="small")
    add("--workdir", default="", help="default: runs/demo (runs/demo-SIZE)")
    add("--videos", default="", help="a folder of your own clips: quantizer and its report only")
    args = parser.parse_args(argv)
    name = "demo-videos" if args.videos else "demo" if args.size == "small" else f"demo-{args.size}"
    workdir = Path(args.workdir or f"runs/{name}")
    try:
        if args.videos:
            report = demo.run_videos(args.videos, workdir, args.size, text.say)
        else:
            config = settings.get_config(f"size={args.size}")
            text.say(_plan(config, workdir))
            report = demo.run_demo(config, workdir)
    except Interrupted:
        sys.stderr.write("lapa: interrupted; the same command continues where it was\n")
        return EXIT_RESTART
    text.say(f"report: {report}\nnumbers: {workdir}/summary.json")
    if args.videos:
        numbers = json.loads((workdir / "summary.json").read_text())
        new = "--holdout " if numbers.get("held_out") else ""
    else:
        new = f"--corpus {workdir}/data/heldout/robot "
    page = f"--report {workdir}/quantizer.html"
    text.say(f"next: lapa evaluate --workdir {workdir}/quantizer {new}{page}")
    if not args.videos:
        text.say(f"next: lapa serve --workdir {workdir}/lapa")
    return 0


def _plan(config: ConfigDict, workdir: Path) -> str:
    views = " and ".join(config.video_views)
    return (
        f"lapa demo, {config.size}: {config.video_episodes:,} videos each of {views} without "
        f"actions, quantizer of {config.quantizer.steps:,} steps, latent VLA of "
        f"{config.latent_pretraining.steps:,}, two arms of {config.action_finetuning.steps:,}, "
        f"{config.rollout_episodes} rollouts a family and arm; {settings.SIZES[config.size]}. "
        f"All goes to {workdir}; what is done there already is not done again."
    )
