"""A foreign model as a run: what an import reads, and the run directory that it becomes."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.storage import given_folder
from data_pipelines.storage.lease import Lease
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.interop.mapping import Rule, to_ours
from lapa_jax.interop.tensor_files import given_file, json_object
from lapa_jax.nn.module import Tree, flatten, unflatten
from lapa_jax.runs import run
from lapa_jax.runs.attempt import LOCK_FILE
from lapa_jax.training import state as states
from lapa_jax.training.checkpoint import Checkpoints
from lapa_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class Imported:
    config: ConfigDict
    params: Tree
    assets: dict[str, bytes] = dataclasses.field(default_factory=dict)
    variables: Tree | None = None  # None: fresh ones


def run_config(path: Path) -> ConfigDict:
    """The config of the run that `lapa export` wrote. Raises ValueError for other files."""
    given_folder(path.parent, "what lapa export wrote")
    found = json_object(path, "the config of a run, that lapa export wrote,")
    if "stage" not in found:
        raise ValueError(
            f"{path} is not the config of a run: {path.parent} is not from lapa export"
        )
    return configs.from_dict(found)


def rebuilt(config: ConfigDict, assets: Iterable[Path]) -> stages.Stage:
    """The stage of an export, whose assets are those of these files that are there. Raises
    ValueError where it needs another."""
    found = {path.name: given_file(path).read_bytes() for path in assets if path.exists()}
    return stages.build(config, found)


def exported(
    stage: stages.Stage, theirs: Mapping[str, Any], rules: Iterable[Rule], sizes: Mapping[str, int]
) -> Imported:
    """A run that `lapa export` wrote: its parameters and its variables."""
    params, variables = (flatten(tree) for tree in stage.model.abstract())
    found = flatten(to_ours(theirs, rules, sizes, unflatten(params | variables)))
    params, variables = (unflatten({p: found[p] for p in one}) for one in (params, variables))
    return Imported(stage.config, params, dict(stage.assets), variables)


def write_run(out: Path, imported: Imported, *, source: str, source_format: str) -> None:
    """Writes a run directory with a checkpoint of step 0, without optimizer state."""
    config = imported.config
    stage = stages.build(config, imported.assets)
    variables = imported.variables
    if variables is None:
        variables = jax.jit(lambda key: stage.init(key)[1])(jax.random.key(config.seed))
    state = states.create(imported.params, variables, None, config.seed, ema=False)
    meta = {
        "config": configs.to_dict(config),
        "data": {},
        "assets": imported.assets,
        "provenance": {
            "code_version": __version__,
            "imported": {"format": source_format, "source": Path(source).name},
        },
    }
    largest = max(x.nbytes for x in jax.tree.leaves(imported.params))
    with contextlib.ExitStack() as stack:
        stack.enter_context(Lease(out / LOCK_FILE, out, "choose another --out"))
        run.claim(out, config)
        saved = Checkpoints(out / "checkpoints", keep=1, largest_bytes=largest)
        stack.enter_context(saved).save(0, state, meta)
