"""`lapa data inspect`: what is in a corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines.checks import inspection, pictures
from lapa_jax.verbs import data, flags, text
from lapa_jax.verbs.data.corpus import Corpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Corpus):
    """Of `lapa data inspect`.

    max_episodes: read only that many per split (default: all)
    json: print JSON
    html: write a page with film strips
    """

    max_episodes: int = 0
    json: bool = False
    html: str | None = dataclasses.field(default=None, metadata={"metavar": "FILE"})


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
        Path(options.html).write_text(pictures.corpus_page(report), encoding="utf-8")
    if options.json:
        for split in report["splits"].values():
            del split["strips"]
        text.show(report)
    else:
        text.show(options.html or inspection.to_text(report))
    return 0
