"""Run directories: claimed by one config."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.storage import places
from lapa_jax import config as configs

# Keys that may differ when a run is continued: none of them changes what is computed, those of
# the guard not before a step that it is for.
MAY_CHANGE = (
    "log_every_steps",
    "checkpoint.",
    "guard.",
    "evaluation.",
    "logging.",
    "data.decode",
    "data.num_threads",
    "data.prefetch_batches",
    "data.max_bad_fraction",
)


def claim(workdir: str | Path, config: ConfigDict) -> Path:
    """Makes `workdir` the directory of this config's run, or checks that it is.

    Raises ValueError listing the keys that differ when it holds a run of another config.
    """
    workdir = places.absolute(workdir)
    places.make(workdir)
    path = workdir / "config.json"
    values = configs.to_dict(config)
    if path.exists():
        changes = configs.difference(configs.upgrade(json.loads(path.read_text())), values)
        changes = {k: v for k, v in changes.items() if not k.startswith(MAY_CHANGE)}
        if changes:
            lines = [f"  {k}: {old!r} there, {new!r} now" for k, (old, new) in changes.items()]
            raise ValueError(
                f"{workdir} is the run of another config; choose another --workdir, or restore\n"
                + "\n".join(lines)
            )
    write_json(path, values)
    return workdir


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: a reader sees the old file or the new one."""
    places.replace(path, json.dumps(value, indent=1) + "\n")
