"""`lapa data bench`: the loader beside its decoders alone and beside the pipelines of others.

On a corpus that it makes. Rates are per CPU-second, in turns, a process per pipeline: docs/data.md
says what is compared.
"""

import dataclasses
import json
import platform
from pathlib import Path
from typing import Annotated

from data_pipelines.bench import compare, corpus, start
from data_pipelines.bench.arms import ARMS, Setting
from lapa_jax.settings import corpus_settings, stage_settings
from lapa_jax.verbs import data, flags, text

WINDOW_SECONDS = 0.5
BACKENDS = {"tfdata": "tf", "threads": "threads"}  # arm → data.decode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of `lapa data bench`.

    workdir: keeps the corpus
    arms: some of those below (default: all)
    json: JSON lines, the ratios last
    """

    workdir: str = "runs/data_bench"
    arms: tuple[str, ...] = tuple(ARMS)
    rounds: Annotated[int, "[1, 1e6]", "turns of each"] = 5
    seconds: Annotated[float, "(0, 1e6]", "of a turn"] = 4.0
    batch: Annotated[int, "[1, 1e6]", "pairs in a batch"] = 64
    threads: Annotated[int, "[1, 1e4]", "of each pipeline"] = 2
    episodes: Annotated[int, "[1, 1e6]", "of the corpus"] = 200
    size: Annotated[int, "[1, 8192]", "of its images"] = 256
    minutes: Annotated[float, "[0, 1e6]", "watch the memory of each backend for so long"] = 0
    index_episodes: Annotated[
        int,
        "[0, 1e9]",
        "time the first batch of an index of so many episodes, too (a million: 0.7 GB)",
    ] = 0
    json: bool = False


def main(argv: list[str]) -> int:
    parser = data.parser("bench", __doc__)
    arms = "\n".join(f"  {name:<16} {arm.what}" for name, arm in ARMS.items())
    parser.epilog = f"arms:\n{arms}\n\n{parser.epilog}"
    args = flags.parse(parser, argv, Options)
    if unknown := sorted(set(args.arms) - ARMS.keys()):
        parser.error(f"--arms {','.join(unknown)}: choose from {','.join(ARMS)}")
    shape = corpus.Shape(episodes=args.episodes, size=args.size)
    directory = corpus.make(Path(args.workdir), shape)
    setting = _setting(args, directory, with_grain="grain" in args.arms)
    rows = compare.compare(setting, args.arms, args.rounds, args.seconds)
    found = compare.ratios(rows)
    backends = [decode for arm, decode in BACKENDS.items() if arm in args.arms]
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
        about["arms"] = ",".join(args.arms)
        lines = [about, *rows, *starts, *memories, {"state_bytes": state}, found]
        text.show("\n".join(json.dumps(line) for line in lines))
    else:
        told = start.to_text(starts, state, memories)
        text.show(f"{compare.to_text(rows, found)}\n\n{told}")
    return 0


def _setting(args: Options, directory: Path, with_grain: bool) -> Setting:
    config = stage_settings("quantizer").data
    config.image_size = (args.size, args.size)
    config.corpora.bench = corpus_settings(str(directory), window_seconds=WINDOW_SECONDS)
    return Setting(
        directory,
        config,
        batch=args.batch,
        threads=args.threads,
        window=round(WINDOW_SECONDS * corpus.FPS),
        array_record=corpus.array_record(directory) if with_grain else None,
    )
