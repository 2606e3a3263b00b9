"""A foreign model as a run: what an import reads, and the run directory that it becomes."""

import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.nn.module import Tree
from lapa_jax.runs import run
from lapa_jax.training import state as states
from lapa_jax.training.checkpoint import Checkpoints
from lapa_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class Imported:
    config: ConfigDict
    params: Tree
    assets: dict[str, bytes] = dataclasses.field(default_factory=dict)
    variables: Tree | None = None  # None: fresh ones


def write_run(out: Path, imported: Imported, *, source: str, source_format: str) -> None:
    """Writes a run directory with a checkpoint of step 0, without optimizer state."""
    config = imported.config
    stage = stages.build(config, imported.assets)
    variables = imported.variables
    if variables is None:
        variables = jax.jit(lambda key: stage.init(key)[1])(jax.random.key(config.seed))
    state = states.create(imported.params, variables, None, config.seed, ema=False)
    run.claim(out, config)
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
    with Checkpoints(out / "checkpoints", keep=1, largest_bytes=largest) as checkpoints:
        checkpoints.save(0, state, meta)
