"""`lapa data convert SOURCE`: foreign recordings to RLDS corpora, and back to the original's files.

The module of each source (data_pipelines/convert) does the work and has its flags, as `Options`.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from pathlib import Path

import numpy as np

from data_pipelines.checks import statistics
from data_pipelines.checks.binning import middle_edges
from data_pipelines.convert import lapa_jsonl, lerobot, rlds, ssv2, to_lapa_jsonl, video
from data_pipelines.convert.report import Report
from data_pipelines.index.build import build_index
from lapa_jax import version
from lapa_jax.policy import codecs
from lapa_jax.policy.layout import LEGACY_PROMPT
from lapa_jax.verbs import data, flags, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """sidecar_dir: where the index goes (default: with the shards)"""

    sidecar_dir: str | None = None


# Of the original's prompt, and of this code as what made label sets.
from_lapa_jsonl = functools.partial(
    lapa_jsonl.convert_lapa_jsonl, prompt=LEGACY_PROMPT, code_version=version.__version__
)


def export(options: to_lapa_jsonl.Options) -> to_lapa_jsonl.Report:
    """Fine-tuning rows get bins: those of a csv, or computed and written beside the rows."""
    to_rows = functools.partial(to_lapa_jsonl.export_lapa_jsonl, prompt=LEGACY_PROMPT)
    if options.label_set:
        return to_rows(options)
    if options.bins_csv:
        tokenizer = codecs.Bins.from_csv(Path(options.bins_csv).read_text())
    else:
        found = options.index()
        actions = found.actions[statistics.valid_action_rows(found)]
        edges = [middle_edges(column, options.bins) for column in statistics.columns_of(actions)]
        if options.gripper != -1:
            statistics.check_gripper(actions, options.gripper)
            edges[options.gripper] = np.array([-0.5, 0.5, 1.5])
        tokenizer = codecs.Bins(edges)
    report = to_rows(options, action_ids=tokenizer.encode)
    Path(options.out).with_suffix(".csv").write_text(tokenizer.to_csv())
    return report


# source → (its module, what converts it, what it is, its examples)
SOURCES = {
    "video": (
        *(video, video.convert_videos, "a folder tree of videos or pictures"),
        "clips --out data/clips --fps 10 --size 64 --captions captions.csv\n"
        "  lapa data convert video clips --out data/clips --cameras front,wrist",
    ),
    "ssv2": (
        *(ssv2, ssv2.convert_ssv2, "Something-Something V2"),
        "20bn-something-something-v2 --labels labels/train.json --out data/ssv2 --size 256",
    ),
    "lerobot": (
        *(lerobot, lerobot.convert_lerobot, "a LeRobot data set, v2.0, v2.1 or v3.0"),
        "aloha_sim --out data/aloha --camera observation.images.top --size 256\n"
        "  lapa data convert lerobot play --out data/play --action_key ''",
    ),
    "tfds": (
        *(rlds, rlds.convert_rlds, "any RLDS data set, such as those of Open X-Embodiment"),
        "/data/bridge/0.1.0 --out data/bridge --size 256\n"
        "  lapa data convert tfds my_robot --data_dir ~/tensorflow_datasets --fps 10 "
        "--out data/robot",
    ),
    "lapa_jsonl": (
        *(lapa_jsonl, from_lapa_jsonl, "the original's pre-training and fine-tuning files"),
        "openx.jsonl --no_images --out data/openx --fps 5 --window_seconds 0.6\n"
        "  lapa data convert lapa_jsonl simpler.jsonl --images simpler --out data/simpler --fps 5",
    ),
    "to_lapa_jsonl": (
        *(to_lapa_jsonl, export),
        "the way back: a corpus and its label sets to the original's file",
        "data/bridge --label_set laq --image_token_set vqgan --out bridge.jsonl\n"
        "  lapa data convert to_lapa_jsonl robot --gripper 6 --images images --out robot.jsonl",
    ),
}
INDEXED = ("video", "ssv2", "lerobot", "tfds")  # lapa_jsonl does it itself


def _training(report: Report, size: tuple[int, int], sidecar_dir: str | None) -> str:
    """The flags of a quantizer's training on what was written. Raises ValueError where its frames
    have a size that none fits."""
    (height, width), corpus = size, "--config.data.corpora.videos"
    config = f"quantizer/videos:data={report.directory},holdout=0.1"
    config += f",size={height}" if height == width != 64 else ""
    config += f",sidecars={sidecar_dir}" if sidecar_dir else ""
    words = ["--config", config, "--workdir", "RUN"]
    if height != width:
        words.append(f"--config.data.image_size=({height}, {width})")
    if height != width or height % 8:
        from experiments.quantizer.videos import patch_of

        patch = patch_of(size)
        words += [f"--config.model.patch_size={patch}"] if height != width and patch != 8 else []
    words += [f"{corpus}.image_key={report.cameras[0]}"] if len(report.cameras) > 1 else []
    words += [f"{corpus}.split={report.split}"] if report.split != "train" else []
    return shlex.join(words)


def main(argv: list[str]) -> int:
    """Converts one source and indexes what was written; the report goes to stdout."""
    parser = data.parser("convert", "Foreign recordings to RLDS corpora.")
    sources = parser.add_subparsers(dest="format", required=True, metavar="SOURCE")
    for name, (module, _, summary, example) in SOURCES.items():
        example = f"lapa data convert {name} {example}"
        one = flags.parser(name, module.__doc__, example, sources.add_parser, help=summary)
        one.add_argument("--json", action="store_true", help="print the report as JSON")
        flags.add(one, module.Options)
        if name in INDEXED:
            flags.add(one, Index)
    args = parser.parse_args(argv)
    module, convert, *_ = SOURCES[args.format]
    options = flags.read(args, module.Options)
    report = convert(options)
    if args.format in INDEXED:
        where = dict(split=report.split, sidecar_dir=args.sidecar_dir)
        folders = [build_index(report.directory, image_key=key, **where) for key in report.cameras]
        report.notes["index"] = ", ".join(map(str, folders))
    text.show(report.to_json() if args.json else report.table())
    if args.format in INDEXED and not args.json:
        try:
            text.show(f"next: lapa train {_training(report, options.size, args.sidecar_dir)}")
        except ValueError as error:
            text.show(f"next: another size, to train with quantizer/videos: {error}")
    return 0
