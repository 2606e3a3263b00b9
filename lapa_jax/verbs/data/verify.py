"""`lapa data verify`: whether a corpus is sound; exit code 1 where there are faults."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines.checks import verify
from lapa_jax.verbs import data, flags, text
from lapa_jax.verbs.data.corpus import Corpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Corpus):
    """Of `lapa data verify`.

    image_key: observation; repeatable (default: image)
    allow: is none here; repeatable
    exclude_file: write the episodes that have faults, for lapa data index --exclude_file
    workers: threads (default: one per core)
    json: print JSON
    """

    image_key: list[str] = flags.option([])
    allow: list[str] = flags.option([], metavar="FAULT")
    exclude_file: str | None = flags.option(None, metavar="FILE")
    workers: int | None = None
    json: bool = False


def main(argv: list[str]) -> int:
    kinds = "\n".join(f"  {kind:<16} {what}" for kind, what in verify.KINDS.items())
    parser = data.parser("verify", f"Whether an RLDS corpus is sound. Faults:\n{kinds}")
    options = flags.parse(parser, argv, Options)
    splits = options.splits
    report = verify.verify_corpus(
        options.directory,
        splits=splits,
        image_keys=options.image_key or [options.known(splits[0]).image],
        **options.keys(splits[0]),
        allow=options.allow,
        workers=options.workers,
    )
    if options.exclude_file:
        Path(options.exclude_file).write_text(verify.exclude_list(report), encoding="utf-8")
    text.show(report.to_json() if options.json else verify.to_text(report))
    return 1 if report.faults else 0
