"""`lapa data stats`: statistics of actions and of the robot's state, and the bins of actions.

Of an indexed corpus (the last step of an episode has no action), and the bins that action tokens
are: values that are frequent, and quantiles of the rest. Exact up to 2 GiB of actions; beyond, or
with --approximate, quantiles come from a histogram and take little memory. --write and --read are
of the files that others keep statistics in: openpi's norm_stats.json, OpenVLA's
dataset_statistics.json and LeRobot's meta/stats.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from data_pipelines.checks import stat_files, statistics
from data_pipelines.checks.binning import middle_edges
from data_pipelines.checks.vectors import (
    Vectors,
    grippers,
    relative_statistics,
    state_statistics,
)
from data_pipelines.index import CorpusIndex, load_index
from data_pipelines.normalise import MODES, Gripper, Normaliser
from lapa_jax.policy.codecs import Bins
from lapa_jax.verbs import data, flags, text
from lapa_jax.verbs.data.corpus import View

COLUMNS = ("mean", "std", "min", "q01", "q99", "max")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(View):
    """Of `lapa data stats`.

    approximate: quantiles by a histogram, within about 0.5 %
    json: write statistics and edges
    csv: write the edges as the original's csv
    delta: dimensions of actions, as 0,1,2, that are relative to the state where a chunk begins
    horizon: steps of such a chunk
    gripper: dimension:kind:open of the action's, as 6:binary:1, several joined by commas; none
        (default: as the data look)
    names: of the action's dimensions
    units: of the action's dimensions
    mode: of normalisation, for what is said of single dimensions
    write: openpi, openvla or lerobot, and the file
    read: a file of theirs, or of ours: whether it is of this corpus
    name: of the data set in OpenVLA's file (default: the directory's; of a file with one, that one)
    """

    bins: Annotated[int, "[1, 65536]", "of a dimension"] = 256
    approximate: bool = False
    json: str | None = flags.option(None, metavar="FILE")
    csv: str | None = flags.option(None, metavar="FILE")
    delta: tuple[int, ...] = ()
    horizon: Annotated[int, "[1, 4096]", "steps of a chunk, with --delta"] = 1
    gripper: str = ""
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    mode: str = flags.option("q01_q99", choices=MODES)
    write: list[str] = flags.option([], nargs=2, metavar=("FORMAT", "FILE"))
    read: list[str] = flags.option([], metavar="FILE")
    name: str = ""


def main(argv: list[str]) -> int:
    options = flags.parse(data.parser("stats", __doc__), argv, Options)
    if options.horizon > 1 and not options.delta:
        raise ValueError(f"--horizon {options.horizon} is of the chunks of --delta")
    found = load_index(options.directory, **options.where)
    values, binned = statistics.survey(found, options.bins, options.approximate)
    tokenizer = Bins(*zip(*binned, strict=True))
    vectors = _vectors(found, options, values)
    for form, path in options.write:
        name = options.name or Path(options.directory).resolve().name
        stat_files.write(form, path, name, vectors)
    if options.csv:
        _, columns = statistics.describe(found, options.approximate)
        edges = [middle_edges(column, options.bins) for column in columns]
        Path(options.csv).write_text(Bins(edges).to_csv(), encoding="utf-8")
    if options.json:
        facts = {"directory": options.directory, "split": options.split, "corpus_hash": found.hash}
        facts |= values | json.loads(tokenizer.to_json())
        facts["statistics"] = {name: one.statistics.as_dict() for name, one in vectors.items()}
        Path(options.json).write_text(json.dumps(facts, indent=1) + "\n")
    how = "; quantiles are approximate, from a histogram" if values["approximate"] else ""
    notes = statistics.peculiarities(values, values["largest_error"], f"{options.bins} bins")
    table = _table(values, tokenizer.sizes)
    lines = [f"{values['num_actions']} actions{how}", table, *notes]
    for name, one in vectors.items():
        lines += _told(name, one.statistics, options)
    text.show("\n".join([*lines, *_compared(vectors, options)]))
    return 0


def _vectors(index: CorpusIndex, options: Options, values: dict[str, Any]) -> dict[str, Vectors]:
    said: dict[str, Any] = {"names": options.names, "units": options.units}
    for flag, given in said.items():
        if given and len(given) != index.action_dim:
            raise ValueError(
                f"--{flag} gives {len(given)}, an action has {index.action_dim} dimensions"
            )
    given, dim = options.gripper, index.action_dim
    said["grippers"] = _grippers(given, dim, values) if given else grippers(index)
    said["delta"] = tuple(d % dim for d in options.delta)
    of = values
    if options.delta:
        of = relative_statistics(index, options.delta, options.horizon)
    found = {"action": Vectors.of(index, of, options.mode, **said)}
    if index.states is not None:
        of = state_statistics(index, values["approximate"])
        found["state"] = Vectors.of(index, of, options.mode)
    return found


def _grippers(given: str, dim: int, values: dict[str, Any]) -> tuple[Gripper, ...]:
    if given == "none":
        return ()
    found = []
    for one in given.split(","):
        try:
            place, kind, is_open = one.split(":")
            gripper = Gripper(int(place), kind, float(is_open))
        except ValueError as error:
            raise ValueError(
                f"--gripper {one}: it is DIMENSION:continuous:OPEN or DIMENSION:binary:OPEN, as "
                "6:binary:1, or none"
            ) from error
        if not -dim <= gripper.dimension < dim:
            raise ValueError(f"--gripper {one}: dimensions are 0 to {dim - 1}")
        gripper = dataclasses.replace(gripper, dimension=gripper.dimension % dim)
        low, high = (values[name][gripper.dimension] for name in ("min", "max"))
        slack = 1e-6 * max(abs(low), abs(high))  # data are float32
        if gripper.kind == "binary" and not low - slack <= gripper.open <= high + slack:
            raise ValueError(
                f"--gripper {one}: that dimension holds {low:g} to {high:g}, and a binary gripper "
                f"that is open at {gripper.open:g} would never open"
            )
        if any(gripper.dimension == other.dimension for other in found):
            raise ValueError(f"--gripper {given}: dimension {gripper.dimension} is there twice")
        found.append(gripper)
    return tuple(found)


def _told(name: str, found: Normaliser, options: Options) -> list[str]:
    lines = []
    if name == "state" or found.delta:
        places = ", ".join(map(str, found.delta))
        what = f"{found.count} {name}s"
        if found.delta:
            what = f"actions, of which {places} relative to the state, in chunks of"
            what += f" {options.horizon}"
        numbers = {column: getattr(found, column) for column in COLUMNS}
        lines += ["", what, _rows(numbers, range(found.dim))]
    if name == "action":
        guessed = "" if options.gripper else ", as the data look (--gripper says otherwise)"
        for one in found.grippers:
            lines.append(
                f"gripper: action dimension {one.dimension}, {one.kind}, open at {one.open:g}"
                f"{guessed}"
            )
        if not found.grippers:
            lines.append("gripper: none, or it cannot be told (--gripper)")
    return lines + found.peculiarities(name)


def _compared(vectors: dict[str, Vectors], options: Options) -> list[str]:
    lines = []
    for path in options.read:
        form, theirs = stat_files.read(path, options.name)
        for what, one in theirs.items():
            if what not in vectors:
                raise ValueError(f"--read {path}: it is of a {what}, and the corpus has none")
            ours = vectors[what].statistics
            off = stat_files.compare(ours, one, path, what, form)
            line = f"{path} ({form}): {what} of this corpus, off by {off:.2%} at most"
            used = stat_files.normalised(ours)
            if form == "openvla" and what == "action" and list(one.mask) != used:
                line += (
                    f"; but its mask normalises action dimensions {_places(one.mask)}, where "
                    f"{_places(used)} are expected (--gripper)"
                )
            if form == "lerobot" and (told := stat_files.merged_quantiles(ours, one)):
                line += f"; but its quantiles are of episodes, merged: {told}"
            lines.append(line)
    return lines


def _places(mask: Sequence[bool]) -> str:
    return ", ".join(str(d) for d, used in enumerate(mask) if used) or "none"


def _table(values: dict[str, Any], sizes: tuple[int, ...]) -> str:
    names = (*COLUMNS, "largest_error")
    return _rows({name: values[name] for name in names}, [f"{bins} bins" for bins in sizes])


def _rows(numbers: dict[str, Any], last: Any) -> str:
    is_bins = not isinstance(last, range)
    rows = [("", *numbers, *(["bins"] if is_bins else []))]
    for dimension, said in enumerate(last):
        row = [f"{column[dimension]:.4g}" for column in numbers.values()]
        rows.append((dimension, *row, *([said] if is_bins else [])))
    return text.table(rows)
