"""`lapa data VERB`: make corpora, look at them and check them."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

# verb → (what it does, an example); those in _MODULES have modules of their own
VERBS = {
    "collect": (
        "expert episodes of the tabletop world, one corpus per view",
        "lapa data collect --out data/tabletop --episodes 200 --views robot,human",
    ),
    "convert": (
        "videos, Something-Something V2, LeRobot data sets and the original's files to a corpus",
        "lapa data convert video VIDEOS --out data/videos --fps 10 --size 64",
    ),
    "index": (
        "the frame index that training needs",
        "lapa data index data/tabletop/robot",
    ),
    "inspect": (
        "what is in a corpus, as text, JSON or an HTML page with film strips",
        "lapa data inspect data/tabletop/robot --html robot.html",
    ),
    "verify": (
        "whether a corpus is sound: checksums, images, actions, instructions, ids, sidecars",
        "lapa data verify data/tabletop/robot --exclude_file exclude.txt",
    ),
    "stats": (
        "statistics of the actions, and the bin edges of action tokens",
        "lapa data stats data/tabletop/robot --json stats.json --csv edges.csv",
    ),
    "motion": (
        "how much each pair of frames differs, for data.min_pair_difference",
        "lapa data motion data/tabletop/robot --window_seconds 0.6",
    ),
    "batch": (
        "the examples of any training step, as text, JSON or a picture",
        "lapa data batch --workdir runs/quantizer --step 5 --png batch.png",
    ),
    "bench": (
        "how fast the loader is, beside its decoders alone and the pipelines of others",
        "lapa data bench --workdir runs/data_bench",
    ),
}
_MODULES = {"collect": "collect", "convert": "convert", "bench": "data_bench"}


def usage() -> str:
    lines = ["usage: lapa data VERB [flags]     (lapa data VERB --help tells the flags)", ""]
    for verb, (text, example) in VERBS.items():
        lines += [f"  {verb:<8} {text}", f"           {example}"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs one data verb."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage() + "\n")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        sys.stderr.write(f"lapa data: unknown verb {verb!r}\n\n{usage()}\n")
        return 2
    if verb in _MODULES:
        return importlib.import_module(f"lapa_jax.verbs.{_MODULES[verb]}").main(rest)
    mains = {
        "index": index,
        "inspect": inspect,
        "verify": verify,
        "stats": stats,
        "motion": motion,
        "batch": batch,
    }
    return mains[verb](rest)


def index(argv: list[str]) -> int:
    """`lapa data index`."""
    from data_pipelines.index import load_index
    from data_pipelines.index.build import build_index
    from data_pipelines.rlds.shards import find_shards

    parser = _parser("index", "Builds the frame index of a corpus beside its shards.")
    parser.add_argument("directory", help="corpus directory")
    parser.add_argument("--split", help="only this split (default: all)")
    parser.add_argument("--image_key", help="observation (default: image)")
    _add_keys(parser)
    parser.add_argument(
        "--fps",
        type=float,
        help="of episodes whose metadata do not tell it, 0: unknown (default: that of the data set "
        "where it is known)",
    )
    parser.add_argument("--sidecar_dir", help="where to write (default: in the corpus directory)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="SHARD:RECORD",
        help="leave a damaged episode out, by shard file name and record number; repeatable",
    )
    parser.add_argument(
        "--exclude_file", metavar="FILE", help="the same, a line each; lapa data verify writes it"
    )
    args = parser.parse_args(argv)
    exclude = [_record(text) for text in args.exclude + _lines(args.exclude_file)]
    splits = [args.split] if args.split else _splits(args.directory)
    shards = {split: {path.name for path in find_shards(args.directory, split)} for split in splits}
    for name, _ in exclude:
        if not any(name in names for names in shards.values()):
            raise ValueError(f"--exclude {name}: no such shard in {args.directory}, {splits}")
    for split in splits:
        table = _known(args.directory, split)
        keys = dict(
            image_key=args.image_key or table.image,
            **_keys(args, table),
            sidecar_dir=args.sidecar_dir,
        )
        folder = build_index(
            args.directory,
            split=split,
            fps=table.fps if args.fps is None else args.fps,
            workers=args.workers,
            exclude=[item for item in exclude if item[0] in shards[split]],
            **keys,
        )
        found = load_index(args.directory, split=split, **keys)
        actions = "none" if found.actions is None else f"{found.actions.shape[1]} dimensions"
        _print(
            f"{split}: {found.num_episodes} episodes, {found.num_frames} frames, images "
            f"{found.image_size}, actions {actions}, {len(found.instructions)} instructions -> "
            f"{folder}"
        )
    return 0


def inspect(argv: list[str]) -> int:
    """`lapa data inspect`."""
    from data_pipelines.checks import inspection, pictures

    parser = _parser("inspect", "What is in an RLDS corpus.")
    parser.add_argument("directory", help="corpus directory")
    parser.add_argument("--split", help="only this split (default: all)")
    _add_keys(parser)
    parser.add_argument("--sidecar_dir", help="where index and label sets lie, if elsewhere")
    parser.add_argument(
        "--max_episodes", type=int, default=0, help="read only that many per split (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page with film strips")
    args = parser.parse_args(argv)
    table = _known(args.directory, args.split or _splits(args.directory)[0])
    report = inspection.inspect_corpus(
        args.directory,
        splits=[args.split] if args.split else None,
        sidecar_dir=args.sidecar_dir,
        **_keys(args, table),
        max_episodes=args.max_episodes,
        strips=bool(args.html),
    )
    if args.html:
        Path(args.html).write_text(pictures.corpus_page(report), encoding="utf-8")
    if args.json:
        for split in report["splits"].values():
            del split["strips"]
        _print(report)
    elif not args.html:
        _print(inspection.to_text(report))
    else:
        _print(args.html)
    return 0


def verify(argv: list[str]) -> int:
    """`lapa data verify`; 1 where there are faults."""
    from data_pipelines.checks import verify as verification

    kinds = "\n".join(f"  {kind:<16} {text}" for kind, text in verification.KINDS.items())
    parser = _parser("verify", f"Whether an RLDS corpus is sound. Faults:\n{kinds}")
    parser.add_argument("directory", help="corpus directory")
    parser.add_argument("--split", help="only this split (default: all)")
    parser.add_argument(
        "--image_key", action="append", help="observation; repeatable (default: image)"
    )
    _add_keys(parser)
    parser.add_argument("--sidecar_dir", help="where index and label sets lie, if elsewhere")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="FAULT", help="is none here; repeatable"
    )
    parser.add_argument(
        "--exclude_file",
        metavar="FILE",
        help="write the episodes that have faults, for lapa data index --exclude_file",
    )
    parser.add_argument("--workers", type=int, help="threads (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    splits = [args.split] if args.split else _splits(args.directory)
    table = _known(args.directory, splits[0])
    report = verification.verify_corpus(
        args.directory,
        splits=splits,
        image_keys=args.image_key or [table.image],
        **_keys(args, table),
        sidecar_dir=args.sidecar_dir,
        allow=args.allow,
        workers=args.workers,
    )
    if args.exclude_file:
        Path(args.exclude_file).write_text(verification.exclude_list(report), encoding="utf-8")
    _print(report.to_json() if args.json else verification.to_text(report))
    return 1 if report.faults else 0


def stats(argv: list[str]) -> int:
    """`lapa data stats`."""
    from data_pipelines.checks import statistics
    from data_pipelines.index import load_index
    from lapa_jax.policy.codecs.action import ActionTokenizer

    parser = _parser(
        "stats",
        "Statistics of the actions of an indexed corpus (the last step of an episode has none),\n"
        "and the quantiles between which action tokens lie. Exact up to 2 GiB of actions; beyond,\n"
        "or with --approximate, quantiles come from a histogram and take little memory.",
    )
    parser.add_argument("directory", help="corpus directory")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--image_key", default="", help="of the index (default: the only one)")
    parser.add_argument("--sidecar_dir", help="where the index lies, if elsewhere")
    parser.add_argument("--bins", type=int, default=256, help="of a dimension (default: 256)")
    parser.add_argument(
        "--approximate", action="store_true", help="quantiles by a histogram, within about 0.5 %%"
    )
    parser.add_argument("--json", metavar="FILE", help="write statistics and edges")
    parser.add_argument("--csv", metavar="FILE", help="write the edges as the original's csv")
    args = parser.parse_args(argv)
    found = load_index(
        args.directory, split=args.split, image_key=args.image_key, sidecar_dir=args.sidecar_dir
    )
    approximate = args.approximate or statistics.too_large(found)
    if approximate:
        sketch = statistics.sketch_actions(found)
        values, edges = sketch.statistics(), sketch.edges(args.bins)
    else:
        values = statistics.action_statistics(found)
        rows = statistics.valid_action_rows(found)
        edges = statistics.quantile_edges(found.actions[rows], args.bins)
    values["approximate"] = approximate
    tokenizer = ActionTokenizer(edges)
    if args.csv:
        Path(args.csv).write_text(tokenizer.to_csv(), encoding="utf-8")
    if args.json:
        facts = {"directory": args.directory, "split": args.split, "corpus_hash": found.hash}
        facts |= values | json.loads(tokenizer.to_json())
        Path(args.json).write_text(json.dumps(facts, indent=1) + "\n")
    columns = ("mean", "std", "min", "q01", "q99", "max")
    how = "; quantiles are approximate, from a histogram" if approximate else ""
    lines = [
        f"{values['num_actions']} actions{how}",
        f"{'':>3}" + "".join(f"{c:>11}" for c in columns),
    ]
    for dimension, bins in enumerate(tokenizer.num_bins):
        numbers = "".join(f"{values[column][dimension]:>11.4g}" for column in columns)
        constant = "  (constant)" if values["constant"][dimension] else ""
        lines.append(f"{dimension:>3}{numbers}{bins:>6} bins{constant}")
    _print("\n".join(lines))
    return 0


def motion(argv: list[str]) -> int:
    """`lapa data motion`."""
    from data_pipelines.index import load_index
    from data_pipelines.index.labels import LabelSet
    from data_pipelines.loader import motion as motions

    parser = _parser(
        "motion",
        "Decodes every frame of an indexed corpus and writes how much it differs from the one a\n"
        "window later: the mean over its values, which are 0 to 255.",
    )
    parser.add_argument("directory", help="corpus directory")
    parser.add_argument("--window_seconds", type=float, required=True, help="as the training's")
    parser.add_argument("--fps", type=float, default=0.0, help="default: the episodes' metadata")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--image_key", default="", help="of the index (default: the only one)")
    parser.add_argument("--sidecar_dir", help="where the index lies, if elsewhere")
    parser.add_argument("--workers", type=int, help="threads (default: one per core)")
    args = parser.parse_args(argv)
    view = dict(split=args.split, image_key=args.image_key, sidecar_dir=args.sidecar_dir)
    folder = motions.write_motion(
        args.directory,
        window_seconds=args.window_seconds,
        fps=args.fps,
        workers=args.workers,
        **view,
    )
    index = load_index(args.directory, **view)
    name = motions.set_name(args.window_seconds)
    found = LabelSet.open(index.sidecar_dir, name, index, motions.MOTION)
    levels = (0.25, 0.5, 1, 2, 4, 8, 16)
    shares = motions.shares_below(found, levels)
    lines = [f"{level:>9g}{share:>8.1%}" for level, share in zip(levels, shares, strict=True)]
    _print("\n".join([f"{folder}", "difference  below it", *lines]))
    return 0


def batch(argv: list[str]) -> int:
    """`lapa data batch`."""
    from data_pipelines.checks import pictures
    from data_pipelines.loader import Loader
    from lapa_jax import config as configs
    from lapa_jax import stages

    parser = _parser("batch", "The examples of a training step and where they come from.")
    parser.add_argument(
        "--step", type=int, required=True, help="from 0: K leads from step K to step K + 1"
    )
    parser.add_argument("--workdir", help="a run: its config, in the place of --config")
    parser.add_argument("--hosts", type=int, default=1, help="number of hosts (default: 1)")
    parser.add_argument("--host", type=int, help="only what this host gets (default: all hosts)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--png", metavar="FILE", help="write a contact sheet")
    parser.add_argument(
        "--max_examples", type=int, default=16, help="examples on the sheet (default: 16)"
    )
    args, config = configs.parse(parser, argv, or_workdir=True)
    if args.step < 0 or args.max_examples < 1:
        parser.error("--step must not be negative, --max_examples at least 1")
    fields = stages.get(config.stage).fields_of(config)
    per_host = config.global_batch // max(1, args.hosts)
    shared = dict(fields=fields, global_batch=config.global_batch, seed=config.seed)
    host, hosts = (0, 1) if args.host is None else (args.host, args.hosts)
    if args.hosts < 1 or config.global_batch % args.hosts:
        raise ValueError(
            f"config.global_batch={config.global_batch} is not a multiple of --hosts {args.hosts}"
        )
    with Loader(config.data, host=host, num_hosts=hosts, **shared) as loader:
        values = loader.batch(args.step)
        records = loader.describe(args.step)
        fingerprint = loader.fingerprint(args.step)
    records = records[host * len(values["position"]) :][: len(values["position"])]
    for number, record in enumerate(records):
        record["host"] = (host * per_host if args.host is not None else 0) + number
        record["host"] //= per_host
        for key in ("action", "latent_action"):
            if key in values:
                record[key] = values[key][number].tolist()
    if args.json:
        _print({"fingerprint": fingerprint, "examples": records})
    else:
        _print("\n".join(_example_line(record) for record in records))
    if args.png:
        if "frames" not in values:
            raise ValueError(f"stage {config.stage!r} loads no frames for --png")
        shown = records[: args.max_examples]
        pictures.contact_sheet(
            args.png, values["frames"][: len(shown)], [_caption(record) for record in shown]
        )
    return 0


def _example_line(record: dict[str, Any]) -> str:
    parts = [
        f"{record['position']:>8}",
        f"host {record['host']}",
        record["corpus"],
        str(record["episode_id"] or record["episode"]),
        "steps " + ",".join(str(step) for step in record["steps"]),
    ]
    if "action" in record:
        parts.append("a=" + _numbers(record["action"]))
    if "latent_action" in record:
        parts.append("z=" + _numbers(record["latent_action"]))
    parts.append(record["instruction"] or "(no instruction)")
    parts += [f"REPLACED: {reason}" for reason in record["bad"]]
    return "  ".join(parts)


def _caption(record: dict[str, Any]) -> str:
    episode = str(record["episode_id"] or record["episode"])
    lines = [f"{record['corpus']}  {_short(episode, 28)}  {record['steps']}"]
    lines.append(_short(record["instruction"] or "(no instruction)", 50))
    if "latent_action" in record:
        lines.append("z = " + _numbers(record["latent_action"]))
    if "action" in record:
        lines.append("a = " + _numbers(record["action"]))
    return "\n".join(lines + [f"REPLACED: {_short(reason, 40)}" for reason in record["bad"]])


def _numbers(values: list) -> str:
    return "[" + " ".join(f"{value:.3g}" for value in values) + "]"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _record(text: str) -> tuple[str, int]:
    shard, _, number = text.rpartition(":")
    if not shard or not number.isdigit():
        raise ValueError(f"--exclude {text!r} is not SHARD_FILE_NAME:RECORD_NUMBER")
    return shard, int(number)


def _lines(path: str | None) -> list[str]:
    """What stands before # in each line."""
    if path is None:
        return []
    lines = [line.partition("#")[0].strip() for line in Path(path).read_text("utf-8").splitlines()]
    return [line for line in lines if line]


def _splits(directory: str) -> list[str]:
    from data_pipelines.rlds import writer

    info = writer.read_info(Path(directory))
    return [split["name"] for split in info["splits"]] if info else ["train"]


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--action_key", help="below steps/; several joined by commas")
    parser.add_argument(
        "--instruction_key",
        help="below steps/ (defaults of all keys: those of the data set where it is one of "
        "Open X-Embodiment, else image, action, language_instruction)",
    )


def _known(directory: str, split: str) -> Any:
    """The keys of the data set in a directory, or the standard ones."""
    from data_pipelines import storage
    from data_pipelines.rlds import open_x

    return open_x.keys_of(storage.locate(directory), split) or open_x.Keys()


def _keys(args: argparse.Namespace, table: Any) -> dict[str, str]:
    return {
        "action_key": table.action if args.action_key is None else args.action_key,
        "instruction_key": (
            table.instruction if args.instruction_key is None else args.instruction_key
        ),
    }


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"lapa data {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  {VERBS[verb][1]}",
    )


def _print(value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value, indent=1)
    sys.stdout.write(text + "\n")
