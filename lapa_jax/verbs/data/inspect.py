"""`lapa data inspect`: what is in a corpus."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Annotated, Any

from data_pipelines.checks import inspection
from lapa_jax.report.corpus import corpus_page
from lapa_jax.verbs import data, flags, text
from lapa_jax.verbs.data.corpus import Corpus
from lapa_jax.verbs.text import sparkline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Corpus):
    """Of `lapa data inspect`.

    json: print JSON
    html: write a page with film strips
    """

    max_episodes: Annotated[int, "[0, 1e9]", "read only that many per split (default: all)"] = 0
    json: bool = False
    html: str | None = flags.option(None, metavar="FILE")


def main(argv: list[str]) -> int:
    options = flags.parse(data.parser("inspect", "What is in an RLDS corpus."), argv, Options)
    report = inspection.inspect_corpus(
        options.directory,
        splits=[options.split] if options.split else None,
        **options.keys(options.splits[0]),
        max_episodes=options.max_episodes,
        strips=bool(options.html),
    )
    if options.html:
        corpus_page(report).write(options.html)
    if options.json:
        for split in report["splits"].values():
            del split["strips"]
        text.show(report)
    else:
        text.show(options.html or to_text(report))
    return 0


def to_text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    title = f"{report['directory']}: {report['name'] or 'unnamed'} {report['version']}".rstrip()
    lines = [title, "features"]
    lines += [f"  {key:<40} {kind}" for key, kind in report["features"].items()]
    for name, split in report["splits"].items():
        lengths, texts = split["lengths"], split["instructions"]
        scanned = "" if split["complete_scan"] else " (first episodes only)"
        hours = f"{split['hours']:.2f} h" if split["hours_known"] else "hours unknown (no fps)"
        lines += [
            f"split {name}{scanned}",
            f"  {split['episodes']} episodes, {split['frames']} frames, {hours}, "
            f"{split['shards']} shards, {split['bytes'] / 1e6:.1f} MB",
            f"  fps: {_counts(split['fps'])}",
            f"  length: min {lengths['min']}, median {lengths['median']:g}, "
            f"mean {lengths['mean']:.1f}, max {lengths['max']}",
        ]
        most = max(lengths["histogram"])
        bins = itertools.pairwise(lengths["edges"])
        for count, (low, high) in zip(lengths["histogram"], bins, strict=True):
            bar = "#" * round(40 * count / most)
            lines.append(f"    {low:>7} .. {high - 1:>5}  {count:>7} {bar}")
        for key, image in split["images"].items():
            lines.append(
                f"  image {key}: {_counts(image['sizes'])}; {image['mean_bytes'] / 1e3:.1f} KB each"
            )
        if any(split["cameras"]):
            lines.append(f"  cameras: {_counts(split['cameras'])}")
        changing = texts["changing_within_episode"]
        lines.append(
            f"  instructions: {texts['coverage']:.1%} of the episodes, {texts['distinct']} distinct"
            + (f", {changing} episodes change theirs" if changing else "")
        )
        lines += [f"    {count:>7} x {text}" for text, count in texts["most_common"]]
        dimensions = f"{len(split['actions'])} dimensions" if split["actions"] else "none"
        lines.append(f"  actions: {dimensions}")
        lines += map(_action, split["actions"])
        if split["actions_not_finite"]:
            lines.append(f"    {split['actions_not_finite']} steps are NaN or infinite: left out")
    for index in report["indexes"]:
        lines.append(f"index of {index['image_key']}, split {index['split']}: {index['hash']}")
    if not report["indexes"]:
        lines.append(f"index: none (lapa data index {report['directory']})")
    for what in ("label_sets", "image_token_sets", "action_sets"):
        for labels in report[what]:
            facts = {key: value for key, value in labels.items() if key not in ("name", "split")}
            title = f"{what[:-1].replace('_', ' ')} {labels['name']}, split {labels['split']}"
            lines.append(f"{title}: {json.dumps(facts)}")
    if not report["label_sets"]:
        lines.append("label sets: none")
    return "\n".join(lines)


def _action(a: dict[str, Any]) -> str:
    line = f"    {a['dimension']:>3}: {a['min']:+.4g} .. {a['max']:+.4g}, mean {a['mean']:+.4g}, "
    line += f"std {a['std']:.4g}"
    if a["constant"]:
        return f"{line} (constant)"
    return f"{line}, {a['q01']:+.3g} {sparkline(a['histogram']['counts'], 0)} {a['q99']:+.3g}"


def _counts(counter: dict) -> str:
    if len(counter) == 1:
        return str(next(iter(counter)))
    return ", ".join(f"{value} ({count})" for value, count in counter.items())
