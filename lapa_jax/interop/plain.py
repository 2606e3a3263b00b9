"""Any run as plain arrays with our names: DIR/{model*.safetensors, config.json, assets/}.

Tensors are called params/PATH and variables/PATH, as in checkpoints.
"""

import functools
from pathlib import Path

from lapa_jax import stages
from lapa_jax.interop import safetensors_files, tensor_files
from lapa_jax.interop.cards import model_card
from lapa_jax.interop.imported import Imported, exported, rebuilt, run_config
from lapa_jax.interop.mapping import Rule, to_theirs
from lapa_jax.interop.parity import differing
from lapa_jax.interop.staged import Options, exported_config, staged
from lapa_jax.nn.module import flatten
from lapa_jax.runs.loaded import Model
from lapa_jax.runs.run import write_json

USAGE = """`lapa import --format safetensors --source DIR --out RUN` makes it a run, that every
other verb reads; DIR may be hf://ORG/NAME. Other programs find arrays called params/PATH and
variables/PATH in the .safetensors files, and the settings in config.json."""
CONFIG, ASSETS = "config.json", "assets"


def rules(stage: stages.Stage) -> list[Rule]:
    """Of all parameters and variables."""
    trees = zip(("params", "variables"), stage.model.abstract(), strict=True)
    return [Rule(f"{what}/{path}", path) for what, tree in trees for path in flatten(tree)]


def write(run: Model, out: Path, options: Options) -> int:
    """`lapa export --format safetensors`: every bit is compared."""
    config, dtype = exported_config(run, options.precision)
    tensors = to_theirs(run.params, rules(run.stage), {}, run.variables, dtype)
    card = functools.partial(model_card, run, config, dtype, USAGE)
    with staged(out, run, card) as (directory, parity):
        safetensors_files.write(directory, tensors)
        write_json(directory / CONFIG, config)
        for name, data in run.assets.items():
            (directory / ASSETS).mkdir(exist_ok=True)
            (directory / ASSETS / name).write_bytes(data)
        different = differing(tensor_files.tensors(directory), tensors)
        parity.at_most("tensors_that_differ", different, 0)
    return len(tensors)


def read(source: Path, options: object) -> Imported:
    """`lapa import --format safetensors`."""
    config = run_config(source / CONFIG)
    stage = rebuilt(config, sorted((source / ASSETS).glob("*")))
    return exported(stage, tensor_files.tensors(source), rules(stage), {})
