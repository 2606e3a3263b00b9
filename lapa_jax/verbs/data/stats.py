"""`lapa data stats`: statistics of actions, and their bins.

Of an indexed corpus (the last step of an episode has no action), and the bins that action tokens
are: values that are frequent, and quantiles of the rest. Exact up to 2 GiB of actions; beyond, or
with --approximate, quantiles come from a histogram and take little memory.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from data_pipelines.checks import statistics
from data_pipelines.checks.binning import middle_edges
from data_pipelines.index import load_index
from lapa_jax.policy.codecs import Bins
from lapa_jax.verbs import data, flags, text
from lapa_jax.verbs.data.corpus import View

COLUMNS = ("mean", "std", "min", "q01", "q99", "max", "largest_error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(View):
    """Of `lapa data stats`.

    approximate: quantiles by a histogram, within about 0.5 %
    json: write statistics and edges
    csv: write the edges as the original's csv
    """

    bins: Annotated[int, "[1, 65536]", "of a dimension"] = 256
    approximate: bool = False
    json: str | None = flags.option(None, metavar="FILE")
    csv: str | None = flags.option(None, metavar="FILE")


def main(argv: list[str]) -> int:
    options = flags.parse(data.parser("stats", __doc__), argv, Options)
    found = load_index(options.directory, **options.where)
    values, binned = statistics.survey(found, options.bins, options.approximate)
    tokenizer = Bins(*zip(*binned, strict=True))
    if options.csv:
        _, columns = statistics.describe(found, options.approximate)
        edges = [middle_edges(column, options.bins) for column in columns]
        Path(options.csv).write_text(Bins(edges).to_csv(), encoding="utf-8")
    if options.json:
        facts = {"directory": options.directory, "split": options.split, "corpus_hash": found.hash}
        facts |= values | json.loads(tokenizer.to_json())
        Path(options.json).write_text(json.dumps(facts, indent=1) + "\n")
    how = "; quantiles are approximate, from a histogram" if values["approximate"] else ""
    notes = statistics.peculiarities(values, values["largest_error"], f"{options.bins} bins")
    table = _table(values, tokenizer.sizes)
    text.show("\n".join([f"{values['num_actions']} actions{how}", table, *notes]))
    return 0


def _table(values: dict[str, Any], sizes: tuple[int, ...]) -> str:
    rows = [("", *COLUMNS, "bins")]
    for dimension, bins in enumerate(sizes):
        numbers = (f"{values[column][dimension]:.4g}" for column in COLUMNS)
        rows.append((dimension, *numbers, f"{bins} bins"))
    return text.table(rows)
