"""`lapa data bench`: the loader beside its decoders alone and beside the pipelines of others.

On a corpus that it makes. Rates are per CPU-second, in turns, a process per pipeline: docs/data.md
says what is compared.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

from data_pipelines.bench import compare, corpus, start
from data_pipelines.bench.arms import ARMS, Setting
from lapa_jax.settings import corpus_settings, stage_settings

WINDOW_SECONDS = 0.5
BACKENDS = {"tfdata": "tf", "threads": "threads"}  # arm → data.decode


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa data bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="arms:\n"
        + "\n".join(f"  {name:<16} {arm.what}" for name, arm in ARMS.items())
        + "\n\nexample:\n  lapa data bench --workdir runs/data_bench",
    )
    parser.add_argument(
        "--workdir", default="runs/data_bench", help="keeps the corpus (default: runs/data_bench)"
    )
    parser.add_argument("--arms", default=",".join(ARMS), help="some of those below (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn (default: 4)")
    parser.add_argument("--batch", type=int, default=64, help="pairs in a batch (default: 64)")
    parser.add_argument("--threads", type=int, default=2, help="of each pipeline (default: 2)")
    parser.add_argument("--episodes", type=int, default=200, help="of the corpus (default: 200)")
    parser.add_argument("--size", type=int, default=256, help="of its images (default: 256)")
    parser.add_argument(
        "--minutes", type=float, default=0, help="watch the memory of each backend for so long"
    )
    parser.add_argument(
        "--index_episodes",
        type=int,
        default=0,
        help="time the first batch of an index of so many episodes, too (a million: 0.7 GB)",
    )
    parser.add_argument("--json", action="store_true", help="JSON lines, the ratios last")
    args = parser.parse_args(argv)
    arms = args.arms.split(",")
    if unknown := sorted(set(arms) - ARMS.keys()):
        parser.error(f"--arms {','.join(unknown)}: choose from {','.join(ARMS)}")
    if min(args.rounds, args.batch, args.threads, args.episodes) < 1 or args.seconds <= 0:
        parser.error("--rounds, --batch, --threads, --episodes and --seconds must be positive")
    shape = corpus.Shape(episodes=args.episodes, size=args.size)
    directory = corpus.make(Path(args.workdir), shape)
    setting = _setting(args, directory, with_grain="grain" in arms)
    rows = compare.compare(setting, arms, args.rounds, args.seconds)
    found = compare.ratios(rows)
    backends = [decode for arm, decode in BACKENDS.items() if arm in arms]
    settings = [setting]
    if args.index_episodes:
        many = start.many_episodes(directory, args.index_episodes)
        settings.append(_setting(args, many, with_grain=False))
    starts = [
        row for one in settings for name in backends for row in start.first_batches(one, name)
    ]
    state = start.state_bytes(setting)
    memories = [start.memory(setting, name, args.minutes) for name in backends if args.minutes]
    if args.json:
        about = {"machine": platform.machine(), "cores": compare.cores(), **vars(args)}
        lines = [about, *rows, *starts, *memories, {"state_bytes": state}, found]
        text = "\n".join(json.dumps(line) for line in lines)
    else:
        text = compare.to_text(rows, found) + "\n\n" + start.to_text(starts, state, memories)
    sys.stdout.write(text + "\n")
    return 0


def _setting(args: argparse.Namespace, directory: Path, with_grain: bool) -> Setting:
    data = stage_settings("quantizer").data
    data.image_size = (args.size, args.size)
    data.corpora.bench = corpus_settings(str(directory), window_seconds=WINDOW_SECONDS)
    return Setting(
        directory,
        data,
        batch=args.batch,
        threads=args.threads,
        window=round(WINDOW_SECONDS * corpus.FPS),
        array_record=corpus.array_record(directory) if with_grain else None,
    )
