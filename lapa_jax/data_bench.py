"""`lapa data bench`: the loader beside its decoders alone and beside the pipelines of others.

    lapa data bench                          # a table, on a corpus that it makes
    lapa data bench --json                   # JSON lines; the last one holds the ratios
    lapa data bench --arms tfdata,threads --rounds 9

Rates are per CPU-second, in turns, a process per pipeline: docs/data.md says what is compared.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

from data_pipelines import bench, bench_corpus
from data_pipelines.bench_arms import ARMS
from experiments import base

WINDOW_SECONDS = 0.5


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa data bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="arms:\n" + "\n".join(f"  {name:<16} {arm.what}" for name, arm in ARMS.items()),
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
    parser.add_argument("--json", action="store_true", help="JSON lines, the ratios last")
    args = parser.parse_args(argv)
    arms = args.arms.split(",")
    if unknown := sorted(set(arms) - ARMS.keys()):
        parser.error(f"--arms {','.join(unknown)}: choose from {','.join(ARMS)}")
    if min(args.rounds, args.batch, args.threads, args.episodes) < 1 or args.seconds <= 0:
        parser.error("--rounds, --batch, --threads, --episodes and --seconds must be positive")
    shape = bench_corpus.Shape(episodes=args.episodes, size=args.size)
    directory = bench_corpus.make(Path(args.workdir), shape)
    data = base.stage_defaults("quantizer").data
    data.image_size = (args.size, args.size)
    data.corpora.bench = base.corpus(str(directory), window_seconds=WINDOW_SECONDS)
    setting = bench.setting_of(
        directory,
        data,
        batch=args.batch,
        threads=args.threads,
        array_record=bench_corpus.array_record(directory) if "grain" in arms else None,
    )
    rows = bench.compare(setting, arms, args.rounds, args.seconds)
    found = bench.ratios(rows)
    if args.json:
        lines = [{"machine": platform.machine(), "cores": bench.cores(), **vars(args)}, *rows]
        text = "\n".join(json.dumps(line) for line in [*lines, found])
    else:
        text = bench.to_text(rows, found)
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
