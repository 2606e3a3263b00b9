"""Any run as plain arrays with our names: DIR/{model*.safetensors, config.json, assets/}.

Tensors are called params/PATH and variables/PATH, as in checkpoints.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lapa_jax.interop import safetensors_files
from lapa_jax.interop.mapping import Rule, to_ours
from lapa_jax.interop.safetensors_files import SafetensorsDirectory, Tensor, tensor
from lapa_jax.nn.module import Tree, flatten

CONFIG, ASSETS = "config.json", "assets"


def tensors(params: Tree, variables: Tree, dtype: np.dtype) -> dict[str, Tensor]:
    """All tensors; parameters in `dtype`, variables as they are."""
    found = {f"params/{path}": tensor(x, dtype) for path, x in flatten(params).items()}
    for path, x in flatten(variables).items():
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise ValueError(f"variables/{path} is a random key: the format has only numbers")
        found[f"variables/{path}"] = tensor(x)
    return found


def write(
    directory: Path,
    config: dict[str, Any],
    assets: dict[str, bytes],
    tensors: dict[str, Tensor],
) -> None:
    safetensors_files.write(directory, tensors)
    (directory / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    for name, data in assets.items():
        (directory / ASSETS).mkdir(exist_ok=True)
        (directory / ASSETS / name).write_bytes(data)


def read_settings(directory: str | Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(config, assets)."""
    directory = Path(directory)
    config = json.loads((directory / CONFIG).read_text())
    if "stage" not in config:
        raise ValueError(
            f"{directory / CONFIG} is not the config of a run: not from --format safetensors"
        )
    files = sorted((directory / ASSETS).glob("*"))
    return config, {file.name: file.read_bytes() for file in files}


def read(directory: str | Path, params: Tree, variables: Tree) -> dict[str, Tree]:
    """{params, variables} of a directory, shaped as these abstract trees."""
    found = SafetensorsDirectory(directory)
    rules = {
        what: [Rule(f"{what}/{path}", path) for path in flatten(tree)]
        for what, tree in (("params", params), ("variables", variables))
    }
    known = {rule.theirs for of_what in rules.values() for rule in of_what}
    extra = sorted(set(found) - known)
    if extra:
        raise ValueError(f"{directory} holds tensors that the model lacks: {extra[:8]}")
    return {
        what: to_ours(
            {rule.theirs: found[rule.theirs] for rule in rules[what] if rule.theirs in found},
            rules[what],
            {},
            tree,
        )
        for what, tree in (("params", params), ("variables", variables))
    }
