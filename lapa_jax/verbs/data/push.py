"""`lapa data push`: a corpus to the hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines.checks import inspection
from lapa_jax.interop import cards, hub
from lapa_jax.verbs import data, flags, text
from lapa_jax.verbs.data import inspect
from lapa_jax.verbs.data.corpus import Corpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Corpus):
    """Of `lapa data push`.

    repo: ORG/NAME of the dataset; made, private, unless it is there
    """

    repo: str = flags.option(positional=True)


def main(argv: list[str]) -> int:
    """Reads every shard before anything is sent."""
    about = "A corpus to the hub, with a card that says what is in it, unless it has a README.md."
    options = flags.parse(data.parser("push", about), argv, Options)
    to = hub.target(options.repo, "dataset")
    report = inspection.inspect_corpus(
        options.directory, splits=options.splits, **options.keys(options.splits[0])
    )
    report["directory"] = name = to.repo.split("/")[1]
    card = cards.dataset_card(name, to.repo, inspect.to_text(report))
    text.show(f"{options.directory} -> {hub.push(Path(options.directory), to, card)}")
    return 0
