"""`lapa data convert SOURCE`: foreign recordings to RLDS corpora, and back to the original's files.

The module of each source (data_pipelines/convert) does the work; here are its flags.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable


def main(argv: list[str]) -> int:
    """Converts one source; the report goes to stdout."""
    parser = argparse.ArgumentParser(
        prog="lapa data convert",
        description="Foreign recordings to RLDS corpora.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  lapa data convert video VIDEOS --out data/videos --fps 10 --size 64",
    )
    sources = parser.add_subparsers(dest="format", required=True, metavar="SOURCE")
    for add in (_add_video, _add_ssv2):
        add(sources)
    args = vars(parser.parse_args(argv))
    del args["format"]
    run, as_json = args.pop("run"), args.pop("json")
    report = run(**args)
    text = json.dumps(report.to_json(), indent=1) if as_json else report.table()
    sys.stdout.write(text + "\n")
    return 0


def _add_video(sources: argparse._SubParsersAction) -> None:
    from data_pipelines.convert import decode, video

    one = _source(
        sources,
        "video",
        "a folder tree of video files",
        video.__doc__,
        "clips --out data/clips --fps 10 --size 64 --captions captions.csv",
        video.convert_videos,
    )
    one.add_argument("source", metavar="folder", help=f"searched for {', '.join(decode.EXTENSIONS)}")
    one.add_argument("--captions", help=".csv or .jsonl with file (relative path) and caption")
    one.add_argument(
        "--clip_seconds", type=float, default=0.0, help="cut into episodes (default: 0, whole)"
    )
    one.add_argument(
        "--source_fps", type=float, default=0.0, help="for files without time stamps and rate"
    )
    one.add_argument("--fps", type=float, default=10.0, help="frames per second (default: 10)")
    _add_picture_flags(one)
    _add_shared_flags(one)


def _add_ssv2(sources: argparse._SubParsersAction) -> None:
    from data_pipelines.convert import ssv2

    one = _source(
        sources,
        "ssv2",
        "Something-Something V2",
        ssv2.__doc__,
        "20bn-something-something-v2 --labels labels/train.json --out data/ssv2 --size 256",
        ssv2.convert_ssv2,
    )
    one.add_argument("videos", metavar="folder", help="with the .webm files")
    one.add_argument("--labels", required=True, help="train.json, validation.json or test.json")
    one.add_argument("--fps", type=float, default=12.0, help="frames per second (default: 12)")
    _add_picture_flags(one)
    _add_shared_flags(one)


def _source(
    sources: argparse._SubParsersAction,
    name: str,
    summary: str,
    description: str,
    example: str,
    run: Callable,
) -> argparse.ArgumentParser:
    one = sources.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  lapa data convert {name} {example}",
    )
    one.add_argument("--json", action="store_true", help="print the report as JSON")
    one.set_defaults(run=run)
    return one


def _add_picture_flags(one: argparse.ArgumentParser) -> None:
    from data_pipelines.convert import decode

    one.add_argument(
        "--size", type=_size, default=(64, 64), help="N or HEIGHTxWIDTH, pixels (default: 64)"
    )
    one.add_argument(
        "--fit", choices=decode.FITS, default="crop", help="how the aspect is kept (default: crop)"
    )
    one.add_argument("--quality", type=int, default=92, help="JPEG quality (default: 92)")


def _add_shared_flags(one: argparse.ArgumentParser) -> None:
    one.add_argument("--out", required=True, help="corpus directory")
    one.add_argument("--name", help="dataset name (default: from the output directory)")
    one.add_argument("--split", default="train", help="name of the split (default: train)")
    one.add_argument(
        "--max_bad_fraction",
        type=float,
        default=0.1,
        help="more unconvertible recordings than this are an error (default: 0.1)",
    )
    one.add_argument(
        "--per_shard",
        type=int,
        default=256,
        help="recordings in a shard, the unit of resume (default: 256)",
    )
    one.add_argument("--workers", type=int, default=1, help="processes (default: 1)")


def _size(text: str) -> tuple[int, int]:
    """N or HEIGHTxWIDTH."""
    numbers = text.lower().split("x")
    if len(numbers) not in (1, 2) or not all(n.isdigit() and int(n) for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor HEIGHTxWIDTH")
    return int(numbers[0]), int(numbers[-1])
