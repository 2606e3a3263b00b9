"""`lapa data convert SOURCE`: foreign recordings to RLDS corpora, and back to the original's files.

The module of each source (data_pipelines/convert) does the work; here are its flags.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax import version
from lapa_jax.policy.codecs import action
from lapa_jax.policy.layout import LEGACY_PROMPT


def main(argv: list[str]) -> int:
    """Converts one source; the report goes to stdout."""
    parser = argparse.ArgumentParser(
        prog="lapa data convert",
        description="Foreign recordings to RLDS corpora.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  lapa data convert video VIDEOS --out data/videos --fps 10 --size 64",
    )
    sources = parser.add_subparsers(dest="format", required=True, metavar="SOURCE")
    for add in (
        *(_add_video, _add_ssv2, _add_lerobot, _add_tfds),
        *(_add_lapa_jsonl, _add_to_lapa_jsonl),
    ):
        add(sources)
    args = vars(parser.parse_args(argv))
    del args["format"]
    run, as_json, indexes = (args.pop(key) for key in ("run", "json", "indexes"))
    sidecar_dir = args.pop("sidecar_dir") if indexes else None
    report = run(**args)
    if indexes:
        report.notes["index"] = _index(report, sidecar_dir)
    text = json.dumps(report.to_json(), indent=1) if as_json else report.table()
    sys.stdout.write(text + "\n")
    return 0


def _index(report: Any, sidecar_dir: str | None) -> str:
    """Indexes the split that was written, so that it can be trained on."""
    from data_pipelines.index.build import build_index

    return str(build_index(report.directory, split=report.split, sidecar_dir=sidecar_dir))


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
    one.add_argument(
        "source", metavar="folder", help=f"searched for {', '.join(decode.EXTENSIONS)}"
    )
    one.add_argument("--captions", help=".csv or .jsonl with file (relative path) and caption")
    one.add_argument(
        "--clip_seconds", type=float, default=0.0, help="cut into episodes (default: 0, whole)"
    )
    one.add_argument(
        "--split_scenes",
        type=float,
        nargs="?",
        const=0.3,
        default=0.0,
        metavar="DISTANCE",
        help="begin another episode where the video cuts to another scene (0.3 if no number is "
        "given; default: off)",
    )
    one.add_argument(
        "--source_fps", type=float, default=0.0, help="for files without time stamps and rate"
    )
    one.add_argument("--fps", type=float, default=10.0, help="frames per second (default: 10)")
    _add_picture_flags(one)
    _add_shared_flags(one)
    _add_index_flag(one)


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
    _add_index_flag(one)


def _add_lerobot(sources: argparse._SubParsersAction) -> None:
    from data_pipelines.convert import lerobot

    one = _source(
        sources,
        "lerobot",
        "a LeRobot data set, v2.0, v2.1 or v3.0",
        lerobot.__doc__,
        "aloha_sim --out data/aloha --camera observation.images.top --size 256",
        lerobot.convert_lerobot,
    )
    one.add_argument("root", metavar="folder", help="with meta, data and videos")
    one.add_argument("--camera", default="", help="the feature (default: the only one there is)")
    one.add_argument("--action_key", default="action", help="the feature (default: action)")
    one.add_argument(
        "--state_key",
        default="observation.state",
        help="the feature, '' for none (default: observation.state where there is one)",
    )
    _add_picture_flags(one)
    _add_shared_flags(one)
    _add_index_flag(one)


def _add_tfds(sources: argparse._SubParsersAction) -> None:
    from data_pipelines.convert import rlds

    one = _source(
        sources,
        "tfds",
        "any RLDS data set, such as those of Open X-Embodiment",
        rlds.__doc__,
        "/data/bridge/0.1.0 --out data/bridge --size 256\n"
        "  lapa data convert tfds my_robot --data_dir ~/tensorflow_datasets --fps 10 "
        "--out data/robot",
        rlds.convert_rlds,
    )
    one.add_argument("source", help="directory with the TFRecord shards, or name of a data set")
    one.add_argument("--data_dir", help="where TFDS keeps a data set that is given by name")
    one.add_argument("--source_split", default="", help="the split to read (default: --split)")
    for key, what in (
        ("image_key", "camera, below steps/observation/"),
        ("action_key", "numbers below steps/, several keys joined by commas, '' for none"),
        ("instruction_key", "text below steps/, '' for none"),
    ):
        standard = "that of the data set where it is known"
        one.add_argument(f"--{key}", help=f"{what} (default: {standard})")
    one.add_argument("--state_key", default="", help="numbers below steps/ (default: none)")
    one.add_argument(
        "--fps",
        type=float,
        default=0.0,
        help="steps per second (default: that of the data set where it is known)",
    )
    _add_picture_flags(one)
    _add_shared_flags(one)
    _add_index_flag(one)


def _add_lapa_jsonl(sources: argparse._SubParsersAction) -> None:
    from data_pipelines.convert import lapa_jsonl

    one = _source(
        sources,
        "lapa_jsonl",
        "the original's pre-training and fine-tuning files",
        lapa_jsonl.__doc__,
        "openx.jsonl --no_images --out data/openx --fps 5 --window_seconds 0.6\n"
        "  lapa data convert lapa_jsonl simpler.jsonl --images simpler --out data/simpler --fps 5",
        functools.partial(
            lapa_jsonl.convert_lapa_jsonl, prompt=LEGACY_PROMPT, code_version=version.__version__
        ),
    )
    one.add_argument("file", help=".jsonl")
    one.add_argument("--fps", type=float, required=True, help="rows of an episode per second")
    images = one.add_mutually_exclusive_group(required=True)
    images.add_argument("--images", help="folder that the paths of `image` start from")
    images.add_argument(
        "--no_images",
        dest="images",
        action="store_const",
        const=None,
        help="black placeholders, for training from the image tokens of the rows alone",
    )
    one.add_argument(
        "--window_seconds", type=float, default=0.0, help="of the quantizer that made `delta`"
    )
    one.add_argument("--codebook_size", type=int, default=8, help="of that quantizer (default: 8)")
    one.add_argument("--quantizer", default="", help="what to call it (default: hash of the file)")
    one.add_argument(
        "--image_tokenizer", default="", help="what to call that of `vision` (default: as above)"
    )
    one.add_argument("--label_set", default="lapa", help="name for `delta` (default: lapa)")
    one.add_argument("--image_token_set", default="lapa", help="name for `vision` (default: lapa)")
    _add_picture_flags(one)
    _add_shared_flags(one)


def _add_to_lapa_jsonl(sources: argparse._SubParsersAction) -> None:
    from data_pipelines.convert import to_lapa_jsonl

    one = _source(
        sources,
        "to_lapa_jsonl",
        "the way back: a corpus and its label sets to the original's file",
        to_lapa_jsonl.__doc__,
        "data/bridge --label_set laq --image_token_set vqgan --out bridge.jsonl\n"
        "  lapa data convert to_lapa_jsonl robot --gripper 6 --images images --out robot.jsonl",
        _export,
    )
    one.add_argument("corpus", help="corpus directory, indexed")
    one.add_argument("--out", required=True, help=".jsonl; bins of actions go to .csv beside it")
    one.add_argument("--split", default="train")
    one.add_argument("--sidecar_dir", help="where index and label sets lie, if elsewhere")
    one.add_argument("--image_key", default="image")
    one.add_argument("--label_set", default="", help="for `delta`; none: fine-tuning rows")
    one.add_argument("--image_token_set", default="", help="for `vision`")
    one.add_argument("--images", help="copy the JPEGs of the rows to this folder")
    one.add_argument("--bins", type=int, default=256, help="of each action (default: 256)")
    one.add_argument(
        "--bins_csv", help="take the bin edges from this csv of the original, do not compute them"
    )
    one.add_argument(
        "--gripper", type=int, default=-1, help="action dimension of 0 and 1 (default: none)"
    )


def _export(
    corpus: str, out: str, *, bins: int, bins_csv: str | None, gripper: int, **flags: Any
) -> Any:
    """Fine-tuning rows get bins: those of a csv, or computed and written beside the rows."""
    from data_pipelines.convert import to_lapa_jsonl
    from data_pipelines.index import load_index

    if flags["label_set"]:
        return to_lapa_jsonl.export_lapa_jsonl(corpus, out, prompt=LEGACY_PROMPT, **flags)
    if bins_csv:
        tokenizer = action.from_csv(Path(bins_csv).read_text())
    else:
        found = load_index(
            corpus,
            split=flags["split"],
            sidecar_dir=flags["sidecar_dir"],
            image_key=flags["image_key"],
        )
        tokenizer = _bins(found, bins, gripper)
    report = to_lapa_jsonl.export_lapa_jsonl(
        corpus, out, prompt=LEGACY_PROMPT, action_ids=tokenizer.encode, **flags
    )
    Path(out).with_suffix(".csv").write_text(tokenizer.to_csv())
    return report


def _bins(found: Any, bins: int, gripper: int) -> action.ActionTokenizer:
    """The original's: quantiles, but [-0.5, 0.5, 1.5] of the gripper."""
    from data_pipelines.checks import statistics

    actions = found.actions[statistics.valid_action_rows(found)]
    edges = statistics.quantile_edges(actions, bins)
    if gripper != -1:
        if not 0 <= gripper < len(edges):
            raise ValueError(f"--gripper {gripper}: actions have dimensions 0 to {len(edges) - 1}")
        other = set(np.unique(actions[:, gripper])) - {0.0, 1.0}
        if other:
            raise ValueError(
                f"--gripper {gripper}: that dimension holds {float(min(other)):g}, not 0 and 1 only"
            )
        edges[gripper] = np.array([-0.5, 0.5, 1.5])
    return action.ActionTokenizer(edges)


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
    one.set_defaults(run=run, indexes=False)
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


def _add_index_flag(one: argparse.ArgumentParser) -> None:
    one.add_argument("--sidecar_dir", help="where the index goes (default: with the shards)")
    one.set_defaults(indexes=True)


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
        default=0,
        help="recordings in a shard (default: as many as make 256 MiB)",
    )
    one.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    one.add_argument(
        "--runner",
        default="",
        help="of Apache Beam, such as DirectRunner, DataflowRunner, FlinkRunner, SparkRunner "
        "(default: none, --workers processes of this machine)",
    )
    one.add_argument("--beam_options", default="", help="flags for Beam, as one text")


def _size(text: str) -> tuple[int, int]:
    """N or HEIGHTxWIDTH."""
    numbers = text.lower().split("x")
    if len(numbers) not in (1, 2) or not all(n.isdigit() and int(n) for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor HEIGHTxWIDTH")
    return int(numbers[0]), int(numbers[-1])
