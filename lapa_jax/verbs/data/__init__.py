"""`lapa data VERB`: make corpora, look at them and check them."""

from __future__ import annotations

import argparse
import importlib
import sys

from lapa_jax import cli
from lapa_jax.verbs import flags

# verb → (what it does, an example); each is the module of its name
_TOLD = {
    "collect": (
        "expert episodes of the tabletop or a benchmark, one corpus per view",
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
    "flow": (
        "how far the picture moves between each pair of frames, for the objective flow",
        "lapa data flow data/tabletop/robot --window_seconds 0.2",
    ),
    "batch": (
        "the examples of any training step, as text, JSON or a picture",
        "lapa data batch --workdir runs/quantizer --step 5 --png batch.png",
    ),
    "push": (
        "a corpus to the Hugging Face hub, with a card",
        "lapa data push data/tabletop/robot ORG/robot",
    ),
    "pull": (
        "a corpus from the hub",
        "lapa data pull ORG/robot --out data/robot",
    ),
    "bench": (
        "how fast the loader is, beside its decoders alone and the pipelines of others",
        "lapa data bench --workdir runs/data_bench",
    ),
}
# verb → (module, what it does, an example)
VERBS = {verb: (f"{__name__}.{verb}", *told) for verb, told in _TOLD.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs one data verb."""

    def call(module: str, rest: list[str]) -> int:
        return importlib.import_module(module).main(rest)

    return cli.dispatch("lapa data", VERBS, sys.argv[1:] if argv is None else argv, call)


def parser(verb: str, description: str | None) -> argparse.ArgumentParser:
    """Of one of them, with its example."""
    return flags.parser(f"lapa data {verb}", description, VERBS[verb][2])
