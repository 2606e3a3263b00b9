"""Run directories: what is written when a config claims one, and what is compared when it goes on.

The checkpoints are the run. Beside them config.json and assets/ are copies, for people and for
`lapa status`; where no step has been saved, any config may take the directory.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from data_pipelines.storage import places
from lapa_jax import config as configs

CONFIG_FILE, ASSETS, COMPLETE = "config.json", "assets", "complete"

# Keys that may differ when a run is continued: none of them changes what is computed, but for last
# bits that depend on the compiler, those of the guard not before a step that it is for. Every other
# key is compared.
MAY_CHANGE = (
    "compile_effort",
    "log_every_steps",
    "checkpoint.",
    "guard.",
    "evaluation.",
    "logging.",
    "data.decode",
    "data.num_threads",
    "data.prefetch_batches",
    "data.max_bad_fraction",
    "data.unusable_episodes",  # the fingerprint of the data tells where it matters
)
# Of `steps` the start of a training tells more: it knows the schedule.
BUT_STEPS = ("steps", *MAY_CHANGE)


def check_config(
    where: Path | str,
    there: dict[str, Any],
    config: ConfigDict,
    free: tuple[str, ...] = MAY_CHANGE,
    *,
    moved_to: Path | None = None,
) -> None:
    """Raises ValueError listing the keys that differ, but for those that begin as one of `free`,
    where a config is not the one `there`. `moved_to`: a directory that may have been elsewhere, so
    that paths below it are compared from there on."""
    found = configs.difference(configs.upgrade(there), configs.to_dict(config))
    found = {
        key: (old, new)
        for key, (old, new) in found.items()
        if not key.startswith(free) and not (moved_to and _same_below(moved_to, old, new))
    }
    if found:
        lines = [f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in found.items()]
        raise ValueError(
            f"{where} is of another config; choose another --workdir, or restore\n"
            + "\n".join(lines)
        )


def _same_below(directory: Path, old: Any, new: Any) -> bool:
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    below = new.removeprefix(str(directory))
    return below != new and below.startswith("/") and old.endswith(below)


def check_step(
    where: Path,
    meta: Mapping[str, Any],
    config: ConfigDict,
    assets: Mapping[str, bytes] | None = None,
) -> None:
    """Raises ValueError where a checkpoint is not of this run: of another config or, where these
    are known, of other assets. It was copied in from elsewhere, or the command has changed."""
    check_config(where, meta["config"], config, BUT_STEPS)
    for name in sorted(meta["assets"].keys() | assets.keys()) if assets is not None else ():
        if meta["assets"].get(name) != assets.get(name):
            raise ValueError(
                f"{where} is a step of another run: its asset {name} is not that of the newest "
                f"step there; move one of them away"
            )


def check_assets(workdir: Path, assets: Mapping[str, bytes]) -> None:
    """Compares WORKDIR/assets with what the checkpoints hold, which is what is used.

    Raises ValueError for a file that was changed or is missing. Without the directory, or where
    writing it was cut short, `write` makes it anew.
    """
    directory = workdir / ASSETS
    if not (directory / COMPLETE).exists():
        return
    for name, data in assets.items():
        path = directory / name
        if not _holds(path, data):
            how = "was changed" if path.is_file() else "is missing"
            raise ValueError(
                f"{path} {how}: the run was trained with the one in its checkpoints. Restore it, "
                f"or remove {directory}, which is then written anew from them; a run with another "
                f"{name} needs another --workdir"
            )


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def write(
    workdir: Path,
    config: ConfigDict,
    assets: Mapping[str, bytes],
    report: Mapping[str, Any] | None = None,
) -> None:
    """Makes a directory this config's: config.json, assets/ and, where there is a `report` of what
    was taken from another run, init_from.json."""
    places.make(workdir)
    write_json(workdir / CONFIG_FILE, configs.to_dict(config))
    directory = workdir / ASSETS
    places.make(directory)
    done = directory / COMPLETE
    if not done.exists() or not all(_holds(directory / n, d) for n, d in assets.items()):
        done.unlink(missing_ok=True)
        for name, data in assets.items():
            (directory / name).write_bytes(data)
        done.touch()
        logging.info("%s written", directory)
    if report is not None:
        write_json(workdir / "init_from.json", report)


def claim(workdir: str | Path, config: ConfigDict) -> Path:
    """Makes `workdir` the directory of this config, or checks that it is.

    Raises ValueError listing the keys that differ when it is that of another.
    """
    workdir = places.absolute(workdir)
    places.make(workdir)
    path = workdir / CONFIG_FILE
    if path.exists():
        check_config(workdir, configs.read(path), config)
    write_json(path, configs.to_dict(config))
    return workdir


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: a reader sees the old file or the new one."""
    places.replace(path, json.dumps(value, indent=1) + "\n")
