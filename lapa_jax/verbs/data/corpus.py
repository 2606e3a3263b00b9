"""What verbs that look at a corpus are told about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from data_pipelines import storage
from data_pipelines.rlds import open_x, writer
from lapa_jax.verbs import flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus, and the keys of what is in it.

    directory: corpus directory
    split: only this split (default: all)
    action_key: path of a field below steps/, or several joined by commas; '' for none
    instruction_key: path of a text below steps/ or episode_metadata/, or several, of which the
        first that is not blank counts; '' for none (defaults of all keys: those of the data set
        where it is one of Open X-Embodiment, else image, action, language_instruction)
    sidecar_dir: where index and label sets lie, if elsewhere
    """

    directory: str = flags.option(positional=True)
    split: str | None = None
    action_key: str | None = None
    instruction_key: str | None = None
    sidecar_dir: str | None = None

    @property
    def splits(self) -> list[str]:
        """The one that was given, or all."""
        if self.split:
            return [self.split]
        info = writer.read_info(Path(self.directory))
        return [split["name"] for split in info["splits"]] if info else ["train"]

    def known(self, split: str) -> open_x.Keys:
        """The keys of the data set in the directory, or the standard ones."""
        return open_x.keys_of(storage.locate(self.directory), split) or open_x.Keys()

    def keys(self, split: str) -> dict[str, Any]:
        """Those that were given, or known, for who reads the corpus."""
        known = self.known(split)
        found = {"sidecar_dir": self.sidecar_dir}
        for what in ("action", "instruction"):
            given = getattr(self, f"{what}_key")
            found[f"{what}_key"] = getattr(known, what) if given is None else given
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One split of an indexed corpus.

    directory: corpus directory
    split: default: train
    image_key: of the index (default: the only one)
    sidecar_dir: where the index lies, if elsewhere
    """

    directory: str = flags.option(positional=True)
    split: str = "train"
    image_key: str = ""
    sidecar_dir: str | None = None

    @property
    def where(self) -> dict[str, Any]:
        """For `load_index`, beside the directory."""
        keys = ("split", "image_key", "sidecar_dir")
        return {key: getattr(self, key) for key in keys}
