"""`lapa data pull`: a corpus from the hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lapa_jax.interop import hub
from lapa_jax.verbs import data, flags, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of `lapa data pull`.

    repo: the dataset, ORG/NAME or hf://datasets/ORG/NAME[@REVISION]
    out: where to; what is there already is not fetched again
    """

    repo: str = flags.option(positional=True)
    out: str


def main(argv: list[str]) -> int:
    options = flags.parse(data.parser("pull", "A corpus from the hub."), argv, Options)
    out = Path(options.out)
    if out.exists() and any(out.iterdir()) and not (out / ".cache" / "huggingface").is_dir():
        raise ValueError(f"--out {out} is not empty, and not from the hub: give a new directory")
    folder = hub.pull(hub.parse(options.repo, "dataset"), options.out)
    if not any(Path(folder).rglob("*.tfrecord*")):
        raise ValueError(f"{options.repo} holds no TFRecord shards: convert what is in {folder}")
    text.show(f"{options.repo} -> {folder}")
    return 0
